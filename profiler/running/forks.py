"""Forks: processes forked from the zygote, and the channels by which they get jobs."""

import ctypes
import json
import os
import signal
import socket
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

from .processes import ON_LINUX, end_with, thread_count

MOST_ANSWER_BYTES = 16 << 20
_SIZE_BYTES = 8
# From OpenMP's omp.h: release all resources, threads included.
_OMP_PAUSE_HARD = 2


class Fork:
    """A forked process; `status` is its exit status, None until that is known."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.pid = fork(work)
        self.status: int | None = None

    def poll(self) -> int | None:
        """Return the exit status, or minus the signal that ended it; None if it still runs."""
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


def pass_on(control: socket.socket, line: bytes, descriptors: Sequence[int]) -> None:
    """Send a line and descriptors to another process."""
    # The size alone is sent with the descriptors: a receiver never reads into the next message.
    socket.send_fds(control, [len(line).to_bytes(_SIZE_BYTES, "big")], descriptors)
    control.sendall(line)


def take(control: socket.socket, count: int) -> tuple[bytes, list[int]] | None:
    """Return the line and the descriptors of the next `pass_on`; None if the sender is gone."""
    flags = getattr(socket, "MSG_CMSG_CLOEXEC", 0)
    size, descriptors, _, _ = socket.recv_fds(control, _SIZE_BYTES, count, flags)
    if len(descriptors) < count:
        return None
    line, whole = bytearray(), int.from_bytes(size, "big")
    while len(line) < whole:
        chunk = control.recv(whole - len(line))
        if not chunk:
            return None
        line += chunk
    return bytes(line), descriptors


def print_into(descriptor: int) -> None:
    """Let all that this process prints go to the descriptor, which is closed."""
    flush()
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


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
