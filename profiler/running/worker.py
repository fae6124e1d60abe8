"""Worker: the parent's side of the zygote. It sends jobs and writes their output into logs."""

import os
import selectors
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from fcntl import F_DUPFD_CLOEXEC, fcntl
from pathlib import Path
from typing import Any

from optprof.scenarios import schema

from ..allocator.settings import VARIABLES
from .child import Job
from .log import Log
from .processes import MARK, ON_LINUX, end_marked, how_it_ended
from .zygote import END, MOST_ANSWER_BYTES

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
    """The zygote and the pipes to it: does jobs one after another, each in its own process.

    The zygote loads torch while the caller goes on, then the code of the catalogue's `models`. If
    it has ended, the next job starts a new one.
    """

    def __init__(self, models: Sequence[str] = ()) -> None:
        self._models = tuple(models)
        self._start()

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_error: object) -> None:
        self.end()

    def _start(self) -> None:
        self._mark = uuid.uuid4().hex
        theirs, self._jobs = _pipe()
        self._answers, to_answers = _pipe()
        self._output, to_output = _pipe()
        os.set_blocking(self._output, False)
        arguments = list(_path()), sys.argv, self._models
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _BOOTSTRAP, repr(arguments)],
                stdin=theirs,
                stdout=to_answers,
                stderr=to_output,
                env=self._environment(),
                # The parent handles Ctrl-C on the terminal.
                start_new_session=True,
            )
        finally:
            for descriptor in (theirs, to_answers, to_output):
                os.close(descriptor)
        self._is_busy = self._is_ready = self._has_ended = False
        self._selector = selectors.DefaultSelector()
        for descriptor in (self._answers, self._output):
            self._selector.register(descriptor, selectors.EVENT_READ)
        self._buffer = bytearray()

    @property
    def pid(self) -> int | None:
        """The process number of the zygote; None after `end`."""
        return None if self._has_ended else self._process.pid

    def ask(self, job: Job, log: Log, timeout: float | None = None) -> dict[str, Any]:
        """Return the answer to a job, once all its processes are gone and its output is in the log.

        Raises ChildEndedError if its process ends without an answer, TimeoutError after `timeout`
        seconds, and ValueError for an invalid answer. The seconds start when torch is loaded.
        """
        if self._has_ended or not self._is_alive:
            self.end()
            self._start()
        try:
            return self._ask(job, log, timeout)
        except BaseException:
            # After Ctrl-C, no caller waits for an answer that may still come.
            if self._is_busy:
                self.end()
            raise

    def end(self) -> None:
        """End the zygote and all that it has started; a second call does nothing."""
        if self._has_ended:
            return
        self._has_ended = True
        os.close(self._jobs)
        with suppress(subprocess.TimeoutExpired):
            # The zygote ends its descendants; before it is ready it has none.
            self._process.wait(_GRACE_SECONDS if self._is_ready else 0)
        if self._process.poll() != 0 or not ON_LINUX:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            end_marked(self._mark)
        self._selector.close()
        os.close(self._answers)
        os.close(self._output)

    def _environment(self) -> dict[str, str]:
        # Each scenario gives CUDA's allocator all its settings; torch would keep those from here.
        kept = {name: value for name, value in os.environ.items() if name not in VARIABLES}
        # Otherwise the search for devices would start CUDA, and no fork could use it.
        return kept | {MARK: self._mark, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}

    @property
    def _is_alive(self) -> bool:
        return self._process.poll() is None

    def _ask(self, job: Job, log: Log, timeout: float | None) -> dict[str, Any]:
        self._is_busy = True
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
        """Log the output from before the answer; its processes are gone."""
        left = _MOST_LEFT_BYTES
        while left > 0 and (taken := self._pump(log)):
            left -= taken
        self._is_busy = False

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
            elif not self._is_alive:
                # Another process may keep the pipe open.
                self._finish(log)
                raise ChildEndedError(self._status())
            elif end is not None and time.monotonic() >= end:
                raise TimeoutError
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _pump(self, log: Log) -> int:
        """Move output into the log, and return the number of bytes."""
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

    def _status(self) -> int:
        try:
            return self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # It has closed its pipe but not ended.
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()


def _path() -> tuple[str, ...]:
    return tuple(str(Path(place).absolute()) for place in sys.path if isinstance(place, str))


def _pipe() -> tuple[int, int]:
    """Return a pipe's ends, not on descriptors 0 to 2, which are free if the streams are closed."""
    ends = []
    for descriptor in os.pipe():
        ends.append(fcntl(descriptor, F_DUPFD_CLOEXEC, 3))
        os.close(descriptor)
    return ends[0], ends[1]
