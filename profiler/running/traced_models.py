"""Traced models: processes that have traced a model and are forked for each of its optimizers."""

import gc
import select
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress

from optprof.scenarios import Scenario

from .child import answer, ending_copies, prepare, trace_ahead, work
from .forks import Fork, is_safe_to_fork, print_into, send
from .guards import POLL_SECONDS, Guards, Task
from .processes import adopt_orphans, end_descendants

# A traced model has started the guard of the next job in its line.
_TAKEN = b"+"


def model_key(scenario: Scenario) -> Scenario | None:
    """Return what the model's trace depends on; None if the trace is not shared."""
    from ..simulating.training import without_optimizer

    try:
        return without_optimizer(scenario) if scenario.device == "sim" else None
    except Exception:
        # An unknown GPU; the scenario's own process reports it.
        return None


class ModelFork(Fork):
    """A process that traces a model for its first job and then forks guards, one for each job.

    `waiting` are the jobs for which it has no guard yet: it still traces the model, or does the job
    itself.
    """

    def __init__(self, leave: Callable[[], None]) -> None:
        self.control, its = socket.socketpair()
        self.waiting: deque[Task] = deque()

        def work() -> None:
            leave()
            self.control.close()
            _serve(its)

        super().__init__(work)
        its.close()

    def give(self, task: Task) -> None:
        """Pass a task on."""
        # If the process was killed, `poll` says so.
        with suppress(BrokenPipeError, ConnectionResetError):
            task.give(self.control)
        self.waiting.append(task)

    def retire(self) -> None:
        """Let the process end once its jobs are done."""
        self.control.close()

    def look(self) -> None:
        """Forget the jobs that have a guard; kill the process if its first job was given up."""
        taken = b""
        with suppress(BlockingIOError, ConnectionResetError):
            taken = self.control.recv(1 << 10, socket.MSG_DONTWAIT)
        for _ in taken[: len(self.waiting)]:
            self.waiting.popleft().close()
        # The user's code may have written into the channel.
        is_sound = taken == _TAKEN * len(taken)
        if not is_sound or (self.waiting and self.waiting[0].is_given_up):
            self.end()


def _serve(control: socket.socket) -> None:
    """Trace the model of the first job, then start a guard for every job.

    If a fork is not safe after the trace, do the first job here and return.
    """
    adopt_orphans()
    guards, is_traced, is_open = Guards(), False, True
    while is_open or guards.pids:
        ready = select.select([control] if is_open else [], [], [], POLL_SECONDS)[0]
        if ready:
            task = Task.take(control)
            is_open = task is not None
            if task is not None:
                print_into(task.output)
                if not is_traced and not _trace(task):
                    return
                is_traced = True
                guards.start(task, control.close)
                with suppress(BrokenPipeError):
                    control.sendall(_TAKEN)
        if guards.were_killed():
            end_descendants(*guards.pids)


def _trace(task: Task) -> bool:
    """Trace the model; if it fails, or if a fork is not safe now, answer here and return False."""
    prepare(task.job)
    with ending_copies():
        failure = trace_ahead(task.job.scenario)
    result = answer(failure) if failure is not None else None
    if result is None and not is_safe_to_fork():
        with ending_copies():
            result = work(task.job)
    end_descendants()
    gc.freeze()
    if result is not None:
        send(task.channel.fileno(), result)
    return result is None
