"""Forks: a process for one job, and the pipes between it and the zygote."""

import ctypes
import json
import os
import signal
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from .processes import ON_LINUX, end_with, thread_count

MOST_ANSWER_BYTES = 16 << 20
# From OpenMP's omp.h: release all resources, threads included.
_OMP_PAUSE_HARD = 2


class Fork:
    """A process that does one job; `status` is its exit status, None until that is known."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = fork(work)
        self.status: int | None = None

    @property
    def sources(self) -> tuple[int, ...]:
        """Descriptors that become readable when `poll` has news."""
        return ()

    def poll(self) -> int | None:
        """Return the exit status of the job, or minus the signal that ended it; None if it runs."""
        if self.status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.status = os.waitstatus_to_exitcode(status) if pid else None
        return self.status

    def end(self) -> None:
        """Kill the process, if it has not ended."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
            self.status = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])


def fork(work: Callable[[], Any]) -> int:
    """Run `work` in a new process and session, which ends with this process; return its pid."""
    parent = os.getpid()
    flush()
    with warnings.catch_warnings():
        # Python warns of threads, and here are none.
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid:
        return pid
    status = 1
    try:
        end_with(parent)
        os.setsid()
        work()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        # Without the zygote's own cleanup.
        flush()
        os._exit(status)


def is_safe_to_fork() -> bool:
    """Return whether this process has only one thread, after ending those of OpenMP."""
    library = ctypes.CDLL(None)
    if hasattr(library, "omp_pause_resource_all"):
        # A fork would inherit the thread pool without its threads, and wait for them forever.
        library.omp_pause_resource_all(_OMP_PAUSE_HARD)
    if thread_count() > 1:
        # OpenBLAS ends its threads before a fork.
        os.waitpid(fork(lambda: None), 0)
    return thread_count() == 1


class Inbox:
    """Lines from a descriptor."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor
        self.closed = False
        self._read = bytearray()

    def read(self) -> None:
        """Read what has arrived, once the descriptor is readable."""
        chunk = os.read(self.descriptor, 1 << 16)
        self.closed = not chunk
        self._read += chunk

    @property
    def size(self) -> int:
        """The number of bytes read and not yet taken as lines."""
        return len(self._read)

    def line(self) -> bytes | None:
        """Take the next whole line; None if there is none yet."""
        line, end, rest = bytes(self._read).partition(b"\n")
        if not end:
            return None
        self._read = bytearray(rest)
        return line + end


def read_answer(reader: int, answer: bytearray) -> bool:
    """Append what a pipe has, up to a line or the limit; return False at the pipe's end."""
    while b"\n" not in answer and len(answer) <= MOST_ANSWER_BYTES:
        try:
            chunk = os.read(reader, 1 << 16)
        except BlockingIOError:
            return True
        if not chunk:
            return False
        answer += chunk
    return True


def send(descriptor: int, data: dict[str, Any]) -> None:
    """Write the data as a line of JSON, after everything printed so far."""
    line = to_line(data)
    flush()
    write(descriptor, line)


def to_line(data: dict[str, Any]) -> bytes:
    """Return the data as a line of JSON."""
    return json.dumps(data, allow_nan=False).encode() + b"\n"


def write(descriptor: int, line: bytes) -> None:
    """Write the whole line."""
    view = memoryview(line)
    while view:
        view = view[os.write(descriptor, view) :]


def flush() -> None:
    """Flush what Python and C have printed into the pipe."""
    for stream in (sys.stdout, sys.stderr):
        # A stream that the user's code has closed or replaced may raise anything.
        with suppress(Exception):
            stream.flush()
    if ON_LINUX:
        ctypes.CDLL(None).fflush(None)
