"""Worker: the parent's side of the zygote. It sends jobs and writes their output into logs."""

import os
import selectors
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from threading import RLock
from typing import Any

from optprof.scenarios import schema

from ..allocator.settings import VARIABLES
from .child import Job
from .forks import MOST_ANSWER_BYTES, pass_on
from .log import Log
from .processes import MARK, ON_LINUX, end_marked, how_it_ended
from .zygote import ALONE

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
# A pipe holds no more, so later output of a process that goes on printing is not read.
_MOST_LEFT_BYTES = 1 << 20
# The zygote imports from the places that this process imports from, and knows its command. With -m
# it would need PYTHONPATH for that, which the user's code and its children would inherit.
_BOOTSTRAP = (
    "import ast, sys; sys.path[:], sys.argv[:], models = ast.literal_eval(sys.argv[1]); from"
    " optprof.profiler.running.zygote import main; main(models)"
)


class ChildEndedError(Exception):
    """A process ended without an answer; `status` is its exit status, or minus a signal."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the process {how_it_ended(status)}")
        self.status = status


class Worker:
    """The zygote and the socket to it: does jobs, each in its own process.

    Several threads may `ask` at once. The zygote loads torch while the caller goes on, then the
    code of the catalogue's `models`. If it has ended, the next job starts a new one.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self._models = tuple(models)
        self._lock = RLock()
        # A zygote that cannot fork does one job and ends.
        self._one_by_one = RLock()
        self._channels: set[socket.socket] = set()
        self._start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def _start(self) -> None:
        self._mark = uuid.uuid4().hex
        self._control, its_control = _sockets()
        self._output, its_output = _pipe()
        arguments = list(_path()), sys.argv, self._models
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, repr(arguments)],
                stdin=its_control.fileno(),
                stdout=its_output,
                stderr=its_output,
                env=self._environment(),
                # The parent handles Ctrl-C on the terminal.
                start_new_session=True,
            )
        finally:
            its_control.close()
            os.close(its_output)
        self._has_ended = self._is_ready = self._is_alone = False

    @property
    def pid(self) -> int | None:
        """The process number of the zygote; None after `end`."""
        return None if self._has_ended else self._process.pid

    def ask(self, job: Job, log: Log, timeout: float | None = None) -> dict[str, Any]:
        """Return the answer to a job, once all its processes are gone and its output is in the log.

        Raises ChildEndedError if its process ends without an answer, TimeoutError after `timeout`
        seconds, and ValueError for an invalid answer. The seconds start when torch is loaded.
        """
        channel, its_channel = _sockets()
        with channel, its_channel:
            self._channels.add(channel)
            try:
                self._make_ready(channel, log)
                if not self._is_alone:
                    return self._ask(job, channel, its_channel, log, timeout)
                with self._one_by_one:
                    self._make_ready(channel, log)
                    try:
                        return self._ask(job, channel, its_channel, log, timeout)
                    finally:
                        self.end()
            finally:
                self._channels.discard(channel)

    def interrupt(self) -> None:
        """End the jobs under way: `ask` raises ChildEndedError in their threads."""
        for channel in tuple(self._channels):
            with suppress(OSError):
                channel.shutdown(socket.SHUT_RDWR)

    def end(self) -> None:
        """End the zygote and all that it has started; a second call does nothing."""
        with self._lock:
            if self._has_ended:
                return
            self._has_ended = True
            self._control.close()
            with suppress(subprocess.TimeoutExpired):
                # The zygote ends its descendants; before it is ready it has none.
                self._process.wait(_GRACE_SECONDS if self._is_ready else 0)
            if self._process.poll() != 0 or not ON_LINUX:
                with suppress(ProcessLookupError, PermissionError):
                    os.killpg(self._process.pid, signal.SIGKILL)
                self._process.wait()
                end_marked(self._mark)
            os.close(self._output)

    def _environment(self) -> dict[str, str]:
        # Each scenario gives CUDA's allocator all its settings; torch would keep those from here.
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # Otherwise the search for devices would start CUDA, and no fork could use it.
        return kept | {MARK: self._mark, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

    @property
    def _is_alive(self) -> bool:
        return self._process.poll() is None

    def _make_ready(self, channel: socket.socket, log: Log) -> None:
        """Wait until a zygote has loaded torch; a new one is started if it has ended."""
        with self._lock:
            if self._has_ended or not self._is_alive:
                self.end()
                self._start()
            if self._is_ready:
                return
            with _Reader(self._control, self._output, log, also=channel) as reader:
                try:
                    word = reader.read(lambda: self._is_alive)
                except EOFError:
                    raise ChildEndedError(self._status()) from None
            self._is_ready, self._is_alone = True, word[:1] == ALONE

    def _ask(
        self,
        job: Job,
        channel: socket.socket,
        its_channel: socket.socket,
        log: Log,
        timeout: float | None,
    ) -> dict[str, Any]:
        end = None if timeout is None else time.monotonic() + timeout
        output, its_output = _pipe()
        try:
            line = replace(job, path=_path()).to_line()
            try:
                with self._lock:
                    pass_on(self._control, line, [its_channel.fileno(), its_output])
            except OSError:
                raise ChildEndedError(self._status()) from None
            finally:
                its_channel.close()
                os.close(its_output)
            with _Reader(channel, output, log) as reader:
                return self._answer(reader, end)
        finally:
            os.close(output)

    def _answer(self, reader: "_Reader", end: float | None) -> dict[str, Any]:
        try:
            line = reader.line(lambda: self._is_alive, end)
        except TimeoutError:
            reader.hang_up()
            try:
                line = reader.line(lambda: self._is_alive, time.monotonic() + _GRACE_SECONDS)
            except EOFError:
                raise TimeoutError from None
            if _read(line).get("status") is not None:
                raise
        except EOFError:
            # Only a kill ends a guard early; a zygote that cannot fork has no guards.
            status = self._status() if self._is_alone else self._process.poll()
            raise ChildEndedError(-signal.SIGKILL if status is None else status) from None
        answer = _read(line)
        if "status" in answer:
            raise ChildEndedError(answer["status"])
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer

    def _status(self) -> int:
        try:
            return self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # It has closed its socket but not ended.
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()


class _Reader:
    """Reads a socket while it moves what is printed into a log; at the end the log has all of it.

    `also` is a socket that ends the reading when it becomes readable.
    """

    def __init__(
        self, channel: socket.socket, output: int, log: Log, *, also: socket.socket | None = None
    ) -> None:
        self._channel, self._output, self._log, self._also = channel, output, log, also
        os.set_blocking(output, False)
        self._selector = selectors.DefaultSelector()
        for source in filter(None, (channel, output, also)):
            self._selector.register(source, selectors.EVENT_READ)
        self._buffer = bytearray()

    def __enter__(self) -> "_Reader":
        return self

    def __exit__(self, *_error: object) -> None:
        left = _MOST_LEFT_BYTES
        while left > 0 and (taken := self._pump()):
            left -= taken
        self._selector.close()

    def line(self, is_alive: Callable[[], bool], end: float | None) -> bytes:
        """Return the next line. EOFError if none will come, TimeoutError at the time `end`."""
        while b"\n" not in self._buffer:
            self._buffer += self.read(is_alive, end)
            if len(self._buffer) > MOST_ANSWER_BYTES + (1 << 16):
                raise ValueError(f"the process answered more than {MOST_ANSWER_BYTES} bytes")
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def read(self, is_alive: Callable[[], bool], end: float | None = None) -> bytes:
        """Return what arrives next; errors are those of `line`."""
        while True:
            left = _POLL_SECONDS if end is None else max(0.0, end - time.monotonic())
            ready = {key.fileobj for key, _ in self._selector.select(min(_POLL_SECONDS, left))}
            if self._output in ready:
                self._pump()
            if self._also in ready:
                raise EOFError
            if self._channel in ready:
                try:
                    chunk = self._channel.recv(1 << 20)
                except ConnectionResetError:
                    chunk = b""
                if not chunk:
                    raise EOFError
                return chunk
            if not is_alive():
                # Another process may keep the socket open.
                raise EOFError
            if end is not None and time.monotonic() >= end:
                raise TimeoutError

    def hang_up(self) -> None:
        """Tell the other side that no answer is needed any more."""
        with suppress(OSError):
            self._channel.shutdown(socket.SHUT_WR)

    def _pump(self) -> int:
        """Move output into the log, and return the number of bytes."""
        try:
            printed = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return 0
        if not printed:
            with suppress(KeyError):
                self._selector.unregister(self._output)
        self._log.write(printed)
        return len(printed)


def _read(line: bytes) -> dict[str, Any]:
    answer = schema.parse_json(line)
    # The user's code may have written into the socket.
    if not isinstance(answer, dict) or not isinstance(answer.get("status", 0), int):
        raise ValueError(f"the process answered {schema.shown(answer)}, and an object was expected")
    return answer


def _path() -> tuple[str, ...]:
    return tuple(str(Path(place).absolute()) for place in sys.path if isinstance(place, str))


def _pipe() -> tuple[int, int]:
    """Return a pipe's ends, not on descriptors 0 to 2, which are free if the streams are closed."""
    reader, writer = map(_above_streams, os.pipe())
    return reader, writer


def _sockets() -> tuple[socket.socket, socket.socket]:
    """Return two connected sockets, not on descriptors 0 to 2."""
    one, other = (
        socket.socket(fileno=_above_streams(each.detach())) for each in socket.socketpair()
    )
    # The user may have set a default timeout.
    one.setblocking(True)
    other.setblocking(True)
    return one, other


def _above_streams(descriptor: int) -> int:
    try:
        return fcntl(descriptor, F_DUPFD_CLOEXEC, 3)
    finally:
        os.close(descriptor)
