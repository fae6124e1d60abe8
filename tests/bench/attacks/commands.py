"""Run optprof as a user does, and mark all of its processes so that none is missed."""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).resolve().parents[3]
MARK = "OPTPROF_BENCH_MARK"


class Command:
    """`optprof` with some arguments, started in a folder; its output goes into files."""

    def __init__(self, words: Sequence[str], folder: Path) -> None:
        self.mark = uuid.uuid4().hex
        self.stdout, self.stderr = folder / f".{self.mark}.out", folder / f".{self.mark}.err"
        environment = {
            **os.environ,
            MARK: self.mark,
            "PYTHONPATH": str(ROOT / "src"),
            "OMP_NUM_THREADS": "1",
        }
        with self.stdout.open("wb") as out, self.stderr.open("wb") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-P", "-m", "optprof", *words],
                cwd=folder,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    def said(self) -> str:
        """Return the current text of stderr."""
        return self.stderr.read_text(encoding="utf-8", errors="replace")

    def printed(self) -> str:
        """Return the current text of stdout."""
        return self.stdout.read_text(encoding="utf-8", errors="replace")

    def processes(self) -> Iterator[psutil.Process]:
        """Yield every living process that descends from this command, in any session."""
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                marked = process.environ().get(MARK) == self.mark
                if marked and process.status() != psutil.STATUS_ZOMBIE:
                    yield process

    def children(self) -> list[psutil.Process]:
        """Return the living processes of this command except its first."""
        return [process for process in self.processes() if process.pid != self.process.pid]

    def remove(self) -> None:
        """End the remaining processes and remove the output."""
        for process in self.processes():
            with suppress(psutil.Error):
                process.kill()
        self.process.wait()
        self.stdout.unlink(missing_ok=True)
        self.stderr.unlink(missing_ok=True)


def optprof(words: Sequence[str], folder: Path, *, timeout: float = 300) -> tuple[int, str, str]:
    """Run a command; return its status (-1 after the timeout), stdout and stderr."""
    command = Command(words, folder)
    try:
        with suppress(subprocess.TimeoutExpired):
            command.process.wait(timeout)
        status = command.process.poll()
        return -1 if status is None else status, command.printed(), command.said()
    finally:
        command.remove()
