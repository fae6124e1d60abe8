"""Guards: a process for each job, which does the job in a child and ends all that it starts.

A guard runs no user code. It is the subreaper of its child, so whatever the job has started, even
in another session, is below the guard and ends with the job, while other jobs go on. A guard
answers once all of that is gone.
"""

import os
import select
import signal
import socket
from collections.abc import Callable
from dataclasses import dataclass

from .child import Job, do
from .forks import (
    MOST_ANSWER_BYTES,
    Fork,
    pass_on,
    read_answer,
    take,
    to_line,
    write,
)
from .processes import adopt_orphans, end_descendants

POLL_SECONDS = 0.25


@dataclass(frozen=True, kw_only=True)
class Task:
    """A job that was passed on: `output` takes what it prints, `channel` its answer.

    The asker closes its end of the channel to end the job.
    """

    job: Job
    channel: socket.socket
    output: int

    @classmethod
    def take(cls, control: socket.socket) -> "Task | None":
        """Return the next task; None if the sender is gone."""
        message = take(control, 2)
        if message is None:
            return None
        line, (descriptor, output) = message
        channel = socket.socket(fileno=descriptor)
        # The user's code may have set a default timeout.
        channel.setblocking(True)
        return cls(job=Job.from_line(line), channel=channel, output=output)

    def give(self, control: socket.socket) -> None:
        """Pass the task on to another process."""
        pass_on(control, self.job.to_line(), [self.channel.fileno(), self.output])

    def close(self) -> None:
        """Close this process's copies."""
        self.channel.close()
        os.close(self.output)

    @property
    def is_given_up(self) -> bool:
        """Return whether the asker has closed its end."""
        return bool(select.select([self.channel], [], [], 0)[0])


class Guards:
    """The guards that this process has started."""

    def __init__(self) -> None:
        self._forks: list[Fork] = []

    @property
    def pids(self) -> list[int]:
        """The process numbers of those that still run."""
        return [each.pid for each in self._forks]

    def start(self, task: Task, leave: Callable[[], None]) -> None:
        """Start a guard, which closes what this process has open by `leave`.

        The guard has the only other end of the task's channel, which closes if the guard is killed.
        """

        def work() -> None:
            leave()
            _guard(task)

        self._forks.append(Fork(work))
        task.channel.close()

    def were_killed(self) -> bool:
        """Forget the guards that have ended; return whether one of them left its work undone."""
        ended = [each for each in self._forks if each.poll() is not None]
        self._forks = [each for each in self._forks if each.status is None]
        return any(each.status for each in ended)


def _guard(task: Task) -> None:
    adopt_orphans()
    reader, writer = os.pipe()
    os.set_blocking(reader, False)

    def work() -> None:
        task.channel.close()
        os.close(reader)
        do(task.job, writer)

    child = Fork(work)
    os.close(writer)
    line = _answer_of(child, reader, task.channel)
    end_descendants()
    write(task.channel.fileno(), line)


def _answer_of(child: Fork, reader: int, channel: socket.socket) -> bytes:
    """Return the line of the child's answer, or one that says how it ended."""
    answer, is_open = bytearray(), True
    while True:
        sources = [channel, *([reader] if is_open else [])]
        ready, _, _ = select.select(sources, [], [], POLL_SECONDS)
        # Before the pipe is read: then it has all that an ended process wrote.
        status = child.poll()
        if reader in ready or status is not None:
            is_open = read_answer(reader, answer)
        if b"\n" in answer:
            return bytes(answer.partition(b"\n")[0]) + b"\n"
        if len(answer) > MOST_ANSWER_BYTES:
            return to_line({"refused": f"the process answered more than {MOST_ANSWER_BYTES} bytes"})
        if status is not None:
            return to_line({"status": status})
        if channel in ready:
            return to_line({"status": -signal.SIGKILL})
