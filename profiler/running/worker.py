"""The parent's side of a child process: started, asked, watched, and ended with all that it has started."""

import contextlib
import os
import selectors
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, cast

from scenarios import schema

from ..allocator.settings import VARIABLES
from .child import Job

MOST_ANSWER_BYTES = 16 << 20
_POLL_SECONDS = 0.5
_GRACE_SECONDS = 10.0
# The child imports from the places that the parent imports from: its own folder, where a user may have an `optimizers/`, is not put first.
_BOOTSTRAP = "import ast, sys; sys.path[:], sys.argv[:] = ast.literal_eval(sys.argv[1]); from profiler.running.child import main; main()"


class ChildEndedError(Exception):
    """The child is gone; `status` is its exit status, or minus the signal that ended it."""

    def __init__(self, status: int) -> None:
        super().__init__(f"the process was ended by {_signal_name(-status)}" if status < 0 else f"the process ended with status {status}")
        self.status = status


class Worker:
    """A child process that loads torch while nobody waits for it, and answers one job after another."""

    def __init__(self) -> None:
        # What it prints before its first job, such as why it cannot start.
        self._early = tempfile.TemporaryFile()  # noqa: SIM115
        path = [str(Path(place).absolute()) for place in sys.path if isinstance(place, str)]
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-c", _BOOTSTRAP, repr((path, sys.argv))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._early,
            bufsize=0,
            # Each scenario tells CUDA's allocator all of its settings; torch would keep others that it has found here.
            env={name: value for name, value in os.environ.items() if name not in VARIABLES},
            # Ctrl-C on the terminal is the parent's to answer; and what the child starts can be ended with it.
            start_new_session=True,
        )
        self._answers = cast(int, self._process.stdout and self._process.stdout.fileno())
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._answers, selectors.EVENT_READ)
        self._buffer = bytearray()
        self._ready = False

    @property
    def pid(self) -> int:
        """The child's process number."""
        return self._process.pid

    @property
    def alive(self) -> bool:
        """Whether the child is still there."""
        return self._process.poll() is None

    def wait_until_ready(self) -> None:
        """Return when the child has loaded all it needs; ChildEndedError when it ends first."""
        if not self._ready:
            self._line(None)
            self._ready = True

    def ask(self, job: Job, timeout: float | None = None) -> dict[str, Any]:
        """The child's answer; ChildEndedError when it ends first, TimeoutError after `timeout` seconds, ValueError for no answer at all.

        The seconds count from when the child has loaded.
        """
        self.wait_until_ready()
        end = None if timeout is None else time.monotonic() + timeout
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(job.to_line())
        except BrokenPipeError:
            raise ChildEndedError(self._status()) from None
        answer = schema.parse_json(self._line(end))
        if not isinstance(answer, dict):
            raise ValueError(f"the process answered {schema.shown(answer)}, and an object was expected")
        return answer

    def early_words(self) -> str:
        """What the child has printed before its first job."""
        self._early.seek(0)
        return self._early.read(1 << 20).decode(errors="replace")

    def end(self) -> None:
        """End the child and the processes that it has started, now; a second time does nothing."""
        if self._early.closed:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        self._selector.close()
        for stream in (self._process.stdin, self._process.stdout, self._early):
            assert stream is not None
            stream.close()

    def _line(self, end: float | None) -> bytes:
        while b"\n" not in self._buffer:
            wait = _POLL_SECONDS if end is None else min(_POLL_SECONDS, max(0.0, end - time.monotonic()))
            if self._selector.select(wait):
                self._read()
            elif not self.alive:
                # A process that the child has started may hold the pipe open.
                raise ChildEndedError(self._status())
            elif end is not None and time.monotonic() >= end:
                raise TimeoutError
        line, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        return line

    def _read(self) -> None:
        chunk = os.read(self._answers, 1 << 20)
        if not chunk:
            raise ChildEndedError(self._status())
        self._buffer += chunk
        if len(self._buffer) > MOST_ANSWER_BYTES:
            raise ValueError(f"the process answered more than {MOST_ANSWER_BYTES} bytes")

    def _status(self) -> int:
        try:
            return self._process.wait(_GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            # It has closed its pipe and lives on: there is nothing more to wait for.
            os.killpg(self._process.pid, signal.SIGKILL)
            return self._process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
