"""Worker: the parent's side of the zygote. Jobs go in one after another, and what they print is
emptied into logs.
"""

import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from dataclasses import replace
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from types import TracebackType
from typing import Any

from optprof.scenarios import schema

from ..allocator.settings import VARIABLES
from .child import Job
from .log import Log
from .processes import MARK, ON_LINUX, end_marked
from .zygote import END, MOST_ANSWER_BYTES

_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
# A pipe holds no more; who goes on printing after the end is not waited for.
_MOST_LEFT_BYTES = 1 << 20
# The zygote imports from the places that this process imports from, and knows its command. With -m
# it would need PYTHONPATH for that, which the user's code and its children would inherit.
_BOOTSTRAP = (
    "import ast, sys; sys.path[:], sys.argv[:] = ast.literal_eval(sys.argv[1]); from"
    " optprof.profiler.running.zygote import main; main()"
)


class ChildEndedError(Exception):
    """A process has ended without an answer; `status` is its exit status, or minus the signal that
    ended it.
    """

    def __init__(self, status: int) -> None:
        super().__init__(
            f"the process was ended by {_signal_name(-status)}"
            if status < 0
            else f"the process ended with status {status}"
        )
        self.status = status


class Worker:
    """Does jobs one after another, each in a process of its own; torch loads while nobody waits for
    it.

    The zygote that has loaded torch is started again where it is gone.
    """

    def __init__(self) -> None:
        self._zygote: _Zygote | None = _Zygote()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(
        self,
        _kind: type[BaseException] | None,
        _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:
        self.end()

    @property
    def pid(self) -> int | None:
        """The process number of the zygote, None where there is none."""
        return self._zygote.pid if self._zygote else None

    def ask(self, job: Job, log: Log, timeout: float | None = None) -> dict[str, Any]:
        """The answer to a job, when all that it has started is gone and all that it has printed is
        in the log.

        ChildEndedError when its process ends first, TimeoutError after `timeout` seconds,
        ValueError for no answer at all. The seconds count from when torch is loaded.
        """
        if self._zygote is None or not self._zygote.is_alive:
            self.end()
            self._zygote = _Zygote()
        try:
            return self._zygote.ask(job, log, timeout)
        except BaseException:
            # Ctrl-C: nobody waits for the answer that may still come.
            if self._zygote.is_busy:
                self.end()
            raise

    def end(self) -> None:
        """End every process; a second time does nothing."""
        if self._zygote is not None:
            self._zygote.end()
            self._zygote = None


class _Zygote:
    """The process, and the pipes to it."""

    def __init__(self) -> None:
        self._mark = uuid.uuid4().hex
        theirs, self._jobs = _pipe()
        self._answers, to_answers = _pipe()
        self._output, to_output = _pipe()
        os.set_blocking(self._output, False)
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, repr((list(_path()), sys.argv))],
                stdin=theirs,
                stdout=to_answers,
                stderr=to_output,
                env=self._environment(),
                # Ctrl-C on the terminal is the parent's to answer.
                start_new_session=True,
            )
        finally:
            for descriptor in (theirs, to_answers, to_output):
                os.close(descriptor)
        self.pid = self._process.pid
        self.is_busy = False
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._answers, self._output):
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._is_ready = False

    def _environment(self) -> dict[str, str]:
        # Each scenario tells CUDA's allocator all of its settings; torch would keep others that it
        # has found here.
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # The question for a device would else start CUDA, and no fork could use it.
        return kept | {MARK: self._mark, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

    @property
    def is_alive(self) -> bool:
        """Return whether the process is still there."""
        return self._process.poll() is None

    def ask(self, job: Job, log: Log, timeout: float | None) -> dict[str, Any]:
        self.is_busy = True
        if not self._is_ready:
            self._line(log, None)
            self._is_ready = True
        end = None if timeout is None else time.monotonic() + timeout
        self._send(replace(job, path=_path()).to_line())
        try:
            line = self._line(log, end)
        except TimeoutError:
            self._send(END)
            line = self._line(log, time.monotonic() + _GRACE_SECONDS)
            if self._read(line).get("status") is not None:
                self._finish(log)
                raise
        self._finish(log)
        answer = self._read(line)
        if "status" in answer:
            raise ChildEndedError(answer["status"])
        if "refused" in answer:
            raise ValueError(answer["refused"])
        return answer

    def _finish(self, log: Log) -> None:
        """Take what was printed before the answer; who printed it is gone."""
        left = _MOST_LEFT_BYTES
        while left > 0 and (taken := self._pump(log)):
            left -= taken
        self.is_busy = False

    def _read(self, line: bytes) -> dict[str, Any]:
        answer = schema.parse_json(line)
        # The user's code may have written into the pipe.
        if not isinstance(answer, dict) or not isinstance(answer.get("status", 0), int):
            raise ValueError(
                f"the process answered {schema.shown(answer)}, and an object was expected"
            )
        return answer

    def _send(self, line: bytes) -> None:
        view = memoryview(line)
        try:
            while view:
                view = view[os.write(self._jobs, view) :]
        except BrokenPipeError:
            raise ChildEndedError(self._status()) from None

    def _line(self, log: Log, end: float | None) -> bytes:
        while b"\n" not in self._buffer:
            wait = (
                _POLL_SECONDS
                if end is None
                else min(_POLL_SECONDS, max(0.0, end - time.monotonic()))
            )
            ready = [key.fd for key, _ in self._selector.select(wait)]
            if self._output in ready:
                self._pump(log)
            if self._answers in ready:
                self._take(log)
            elif not self.is_alive:
                # A process that it has started may hold the pipe open.
                self._finish(log)
                raise ChildEndedError(self._status())
            elif end is not None and time.monotonic() >= end:
                raise TimeoutError
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _pump(self, log: Log) -> int:
        """Move what was printed into the log, and return how much there was."""
        try:
            printed = os.read(self._output, 1 << 16)
        except BlockingIOError:
            return 0
        if not printed:
            with suppress(KeyError):
                self._selector.unregister(self._output)
        log.write(printed)
        return len(printed)

    def _take(self, log: Log) -> None:
        chunk = os.read(self._answers, 1 << 20)
        if not chunk:
            status = self._status()
            self._finish(log)
            raise ChildEndedError(status)
        self._buffer += chunk
        if len(self._buffer) > MOST_ANSWER_BYTES + (1 << 16):
            raise ValueError(f"the process answered more than {MOST_ANSWER_BYTES} bytes")

    def end(self) -> None:
        """End the process and all that it has started; a second time does nothing."""
        if self._jobs < 0:
            return
        os.close(self._jobs)
        self._jobs = -1
        with suppress(subprocess.TimeoutExpired):
            # It ends what is below it; before it is ready there is nothing.
            self._process.wait(_GRACE_SECONDS if self._is_ready else 0)
        if self._process.poll() != 0 or not ON_LINUX:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self.pid, signal.SIGKILL)
            self._process.wait()
            end_marked(self._mark)
        self._selector.close()
        os.close(self._answers)
        os.close(self._output)

    def _status(self) -> int:
        try:
            return self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # It has closed its pipe and lives on: there is nothing more to wait for.
            os.killpg(self.pid, signal.SIGKILL)
            return self._process.wait()


def _path() -> tuple[str, ...]:
    return tuple(str(Path(place).absolute()) for place in sys.path if isinstance(place, str))


def _pipe() -> tuple[int, int]:
    """A pipe on none of the first three descriptors, which a parent whose streams are closed has
    free.
    """
    ends = []
    for descriptor in os.pipe():
        ends.append(fcntl(descriptor, F_DUPFD_CLOEXEC, 3))
        os.close(descriptor)
    return ends[0], ends[1]


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
