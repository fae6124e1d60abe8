"""Send signals to runs at random moments, to the parent or a child, and resume them."""

import random
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from optprof.profiler.records.record import Record
from optprof.scenarios import schema

from .commands import Command, optprof
from .row import Row

COUNT = 30
SCENARIOS = 8
# Seconds for a run to end after its last signal, and for processes to end after their parent.
PATIENCE, LINGER = 120.0, 10.0
SIGNALS = ("SIGKILL", "SIGTERM", "SIGINT", "SIGHUP", "SIGSTOP")
_PLACE = re.compile(r"^\[(\d+)/\d+\] ", re.MULTILINE)

MODELS = '''
import ctypes, os, time
import torch

class Tiny(torch.nn.Module):
    def __init__(self, before):
        super().__init__()
        self.layer, self.before = torch.nn.Linear(8, 8), before
    def forward(self, x):
        self.before()
        return self.layer(x).square().mean()

def slow():
    """Long enough to be hit."""
    return Tiny(lambda: time.sleep(0.2)), {"x": torch.ones(2, 8)}

def deaf():
    """Call a C function that keeps the GIL, so that no thread or handler of Python runs."""
    return Tiny(lambda: ctypes.PyDLL(None).usleep(400_000)), {"x": torch.ones(2, 8)}

def own_session():
    """Leave the parent's session."""
    def leave():
        try:
            os.setsid()
        except OSError:
            pass
        time.sleep(0.2)
    return Tiny(leave), {"x": torch.ones(2, 8)}
'''


def run(chance: random.Random, count: int) -> Row:
    """Send so many signals."""
    row = Row(title="signals sent").looks_for(
        "records lost", "lines damaged", "processes left", "not completed"
    )
    runs = 0
    while row.tried < count:
        with TemporaryDirectory() as place:
            _one_run(row, chance, Path(place), count)
        runs += 1
    row.notes["runs"] = runs
    return row


def _one_run(row: Row, chance: random.Random, folder: Path, count: int) -> None:
    """Hit one run a few times, resume it after each, and let it end."""
    (folder / "struck.py").write_text(MODELS)
    model, device = (
        chance.choice(("slow", "deaf", "own_session")),
        chance.choice(("sim", "sim", "cpu")),
    )
    optimizers = ",".join(f"sgd:lr=0.{number + 1}" for number in range(SCENARIOS))
    words = ["profile", f"struck:{model}", "-o", optimizers, "-d", device, "--no-report"]
    words += ["--workload", "train", "--steps", "2", "--out", "run", "--resume"]
    for _ in range(min(4, count - row.tried)):
        _hit(row, chance, words, folder)
    status, _, said = optprof(words, folder)
    records, damaged = read(folder / "run" / "records.jsonl")
    done = {record.scenario.options["lr"] for record in records if record.outcome == "ok"}
    if status != 0 or damaged or len(done) != SCENARIOS:
        row.fault(
            "not completed", f"{model} {device}: status {status}, {len(done)} ok, {said[-200:]}"
        )


def _hit(row: Row, chance: random.Random, words: Sequence[str], folder: Path) -> None:
    """Start the run, send one signal, and compare the records with the acknowledged ones."""
    path = folder / "run" / "records.jsonl"
    before = len(read(path)[0])
    command = Command(words, folder)
    try:
        name, child = chance.choice(SIGNALS), chance.random() < 0.4
        _wait_for_a_scenario(command, chance)
        target = _target(command, chance, child=child)
        if target is None:
            return
        row.tried += 1
        row.notes[name] = int(row.notes.get(name, 0)) + 1
        with suppress(psutil.Error):
            target.send_signal(getattr(signal, name))
            if name == "SIGSTOP":
                time.sleep(chance.uniform(0, 0.5))
                target.kill()
        until = time.monotonic() + PATIENCE
        while command.process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        what = f"{name} to a {'child' if child else 'parent'}, {words[1]} on {words[5]}"
        if command.process.poll() is None:
            row.fault("not completed", f"{what}: still at work after {PATIENCE:g} s")
        _judge(row, command, what, path, before)
    finally:
        command.remove()


def _judge(row: Row, command: Command, what: str, path: Path, before: int) -> None:
    until = time.monotonic() + LINGER
    while (left := command.children()) and time.monotonic() < until:
        time.sleep(0.2)
    if left:
        row.fault("processes left", f"{what}: {len(left)}")
    records, damaged = read(path)
    begun = [int(place) for place in _PLACE.findall(command.said())]
    acknowledged = before + max(begun, default=1) - 1
    if len(records) < acknowledged:
        row.fault("records lost", f"{what}: {len(records)} of {acknowledged}")
    if damaged:
        row.fault("lines damaged", f"{what}: {damaged}")


def _wait_for_a_scenario(command: Command, chance: random.Random) -> None:
    """Return at a random moment, most often after a scenario has begun."""
    early = chance.random() < 0.15
    until = time.monotonic() + (chance.uniform(0, 3) if early else 60)
    while command.process.poll() is None and time.monotonic() < until:
        if not early and _PLACE.search(command.said()):
            time.sleep(chance.uniform(0, 2.5))
            return
        time.sleep(0.02)


def _target(command: Command, chance: random.Random, *, child: bool) -> psutil.Process | None:
    if command.process.poll() is not None:
        return None
    children = command.children() if child else []
    return chance.choice(children) if children else psutil.Process(command.process.pid)


def read(path: Path) -> tuple[list[Record], int]:
    """Return the records of a file, and the number of its whole lines that are not records."""
    records, damaged = [], 0
    for line in path.read_bytes().split(b"\n")[:-1] if path.exists() else ():
        try:
            records.append(Record.from_dict(schema.parse_json(line)))
        except ValueError:
            damaged += 1
    return records, damaged
