"""Traced models: processes that have traced a model and are forked for each of its optimizers."""

import gc
import os
import re
import select
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from functools import partial

from optprof.scenarios import Scenario

from .child import Job, answer, do, ending_copies, prepare, trace_ahead
from .forks import Fork, Inbox, fork, is_safe_to_fork, send

# A line with the exit status of a fork.
_STATUS = re.compile(rb"-?[0-9]{1,9}\n")
_MOST_STATUS_BYTES = 64
_GRACE_SECONDS = 5.0


def model_key(scenario: Scenario) -> Scenario | None:
    """Return what the model's trace depends on; None if the trace is not shared."""
    from ..simulating.training import without_optimizer

    try:
        return without_optimizer(scenario) if scenario.device == "sim" else None
    except Exception:
        # An unknown GPU; the scenario's own process reports it.
        return None


class ModelFork(Fork):
    """A process that traces a model for its first job and forks another process for each job.

    `poll` returns the status of that process, `status` is its own.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        ours, its = socket.socketpair()

        def work() -> None:
            leave()
            ours.close()
            serve(its)

        super().__init__(work)
        its.close()
        self._channel = ours
        self._inbox = Inbox(ours.fileno())
        self._job_status: int | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """The channel, until its other end is closed."""
        return () if self._inbox.closed else (self._channel.fileno(),)

    def give(self, job: Job, writer: int) -> None:
        """Send a job, and the pipe for its answer."""
        self._job_status = None
        # If the process was killed, `poll` says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            socket.send_fds(self._channel, [b"\0"], [writer])
            self._channel.sendall(job.to_line())

    def poll(self) -> int | None:
        """Return the status of the job's process, or its own if it ends earlier."""
        if self._job_status is None:
            with suppress(ConnectionResetError):
                if self.sources and select.select(self.sources, [], [], 0)[0]:
                    self._inbox.read()
            line = self._inbox.line()
            if line is None and self._inbox.size < _MOST_STATUS_BYTES:
                self._job_status = super().poll()
            elif line and _STATUS.fullmatch(line):
                self._job_status = int(line)
            else:
                # The user's code has written into the channel.
                self.end()
                self._job_status = self.status
        return self._job_status

    def settle(self) -> None:
        """Wait until the job's process, which was killed, has ended; kill this one if it hangs."""
        until = time.monotonic() + _GRACE_SECONDS
        while self.poll() is None and time.monotonic() < until:
            select.select(self.sources, [], [], 0.02)
        if self._job_status is None or self._inbox.closed or self._inbox.size:
            self.end()


def serve(channel: socket.socket) -> None:
    """Trace the model of the first job, then do every job in a fork.

    If a fork is not safe after the trace, do the first job here and return.
    """
    lines, is_traced = channel.makefile("rb"), False
    while True:
        _, descriptors, _, _ = socket.recv_fds(channel, 1, 1)
        if not descriptors:
            return
        job, writer = Job.from_line(lines.readline()), descriptors[0]
        if not is_traced:
            prepare(job)
            with ending_copies():
                failure = trace_ahead(job.scenario)
            gc.freeze()
            if failure is not None:
                send(writer, answer(failure))
                return
            if not is_safe_to_fork():
                do(job, writer)
                return
            is_traced = True
        pid = fork(partial(_do_in_fork, channel, job, writer))
        os.close(writer)
        channel.sendall(b"%d\n" % os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))


def _do_in_fork(channel: socket.socket, job: Job, writer: int) -> None:
    channel.close()
    do(job, writer)
