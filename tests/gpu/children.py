"""Children: the campaign's side of the zygote. Each job has a child and a time limit."""

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from journal import Journal
from zygote import NO_RESULT

# Seconds for a first kernel, including loading torch from a cold disk.
PROBE_SECONDS = 120.0
# Seconds for a killed child to end, and for a fork.
GRACE_SECONDS = 10.0
_LOG_TAIL = 3000
# torch reads these when it is loaded or CUDA starts; they would change the measurements.
_ENVIRONMENT = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "CUDA_LAUNCH_BLOCKING")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The job of a child: a function of tasks.py, its arguments, and its time limit."""

    name: str
    task: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    limit: float = 20.0


class NoDeviceError(RuntimeError):
    """This machine cannot use CUDA."""


class Children:
    """Runs jobs one after another, and starts a new zygote if the last one has ended.

    `forks` is false if a fork cannot use CUDA: each job then has a process that loads torch.
    """

    def __init__(self, journal: Journal, scratch: Path, *, rehearse: bool) -> None:
        self.journal = journal
        self._log = scratch / "child.log"
        self._rehearse = rehearse
        self.forks, self._probed = True, False
        self._process: subprocess.Popen[bytes] | None = None
        self._loaded = False
        self._buffer = b""

    def load(self) -> None:
        """Start a zygote and return while it loads."""
        if self._process is not None and self._process.poll() is None:
            return
        self.end()
        inherited = {key: value for key, value in os.environ.items() if key not in _ENVIRONMENT}
        # Otherwise the search for devices would start CUDA, and no fork could use it.
        environment = {
            **inherited,
            "PYTORCH_NVML_BASED_CUDA_CHECK": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }
        script = Path(__file__).with_name("zygote.py")
        options = ["--rehearse"] * self._rehearse + ["--alone"] * (not self.forks)
        self._process = subprocess.Popen(
            [sys.executable, str(script), str(self.journal.folder), *options],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
        )
        self._loaded, self._buffer = False, b""

    def run(self, job: Job, seconds: float) -> str:
        """Run one job for at most `seconds`; return a word or line on how it ended."""
        start = time.monotonic()
        self.probe()
        ended = self._run(job, seconds)
        tail = {} if ended == "ok" else {"log": self._tail()}
        self.journal.note("ended", name=job.name, how=ended, seconds=_since(start), **tail)
        return ended

    def probe(self) -> None:
        """Test whether a fork can use CUDA; otherwise load torch for each job.

        Raises NoDeviceError if no process can.
        """
        if self._probed or not self.forks:
            return
        self._probed = True
        probe = Job(name="probe", task="probe")
        ended = self._run(probe, PROBE_SECONDS)
        if ended == "ok":
            return
        self.journal.note("zygote", problem=f"a fork cannot use CUDA: {ended}", log=self._tail())
        self.end()
        self.forks = False
        for _ in range(2):
            # Twice, because a device refused by mistake would cost the whole campaign.
            ended = self._run(probe, PROBE_SECONDS)
            if ended == "ok":
                return
        last = self._tail().strip().splitlines()[-1:] or [ended]
        raise NoDeviceError(f"no process can use CUDA: {last[0]}")

    def end(self) -> None:
        """End the zygote and its child; a second call does nothing."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        self._process = None

    def _run(self, job: Job, seconds: float) -> str:
        pid, end = 0, time.monotonic() + seconds
        try:
            self.load()
            if not self._loaded:
                self.journal.note("zygote", **self._answer(seconds))
                self._loaded = True
            pid = self._send(job)
            status = self._answer(end - time.monotonic())["status"]
        except TimeoutError:
            if not self._loaded:
                # The zygote goes on loading, for the next job.
                return "did not start"
            self._kill(pid)
            return f"killed after {seconds:.0f} s"
        except (EOFError, OSError) as error:
            self.end()
            return f"lost its zygote: {error!r}"
        if not self.forks:
            self.end()
        words = {0: "ok", NO_RESULT: "no result, as its record says"}
        return words.get(status, f"status {status}")

    def _send(self, job: Job) -> int:
        """Send the job and return its child's process id."""
        assert self._process is not None
        assert self._process.stdin is not None
        self._log.unlink(missing_ok=True)
        line = {
            "name": job.name,
            "task": job.task,
            "arguments": job.arguments,
            "log": str(self._log),
        }
        self._process.stdin.write(json.dumps(line).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer(GRACE_SECONDS)["pid"]

    def _kill(self, pid: int) -> None:
        """Kill a child that takes too long, and the zygote if the child does not end."""
        if pid and self.forks:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            with suppress(TimeoutError, EOFError):
                self._answer(GRACE_SECONDS)
                return
        self.end()

    def _answer(self, seconds: float) -> dict[str, Any]:
        """Return the zygote's next line; raise TimeoutError, or EOFError if it has ended."""
        assert self._process is not None
        assert self._process.stdout is not None
        end = time.monotonic() + seconds
        with selectors.DefaultSelector() as selector:
            selector.register(self._process.stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not selector.select(max(0.0, end - time.monotonic())):
                    raise TimeoutError
                chunk = os.read(self._process.stdout.fileno(), 1 << 16)
                if not chunk:
                    raise EOFError(f"exit status {self._process.wait()}")
                self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return json.loads(line)

    def _tail(self) -> str:
        with suppress(OSError):
            return self._log.read_text(errors="replace")[-_LOG_TAIL:]
        return ""


def _since(start: float) -> float:
    return round(time.monotonic() - start, 3)
