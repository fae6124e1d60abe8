"""Run with timelines, snapshots, traces and printing models on disks that are too small."""

import os
import random
import re
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

from optprof.profiler.records.store import RunStore, file_name

from .commands import optprof
from .row import Row
from .signals import read

COUNT = 12
SCENARIOS = 4
# Sizes of the disks in KiB; the largest still has little more than the records.
SIZES = (64, 96, 128, 192, 256, 384, 512, 1024, 2048, 4096)
ENOUGH = 256 << 10
_PLACE = re.compile(r"^\[(\d+)/\d+\] ", re.MULTILINE)

MODEL = """
import sys
import torch

class Talkative(torch.nn.Module):
    def __init__(self, letters):
        super().__init__()
        self.layers = torch.nn.Sequential(*[torch.nn.Linear(16, 16) for _ in range(8)])
        self.letters = letters
    def forward(self, x):
        for _ in range(self.letters // 4096):
            print("x" * 4095)
        return self.layers(x).square().mean()

def quiet():
    return Talkative(0), {"x": torch.ones(2, 16)}

def talkative():
    return Talkative(16 << 20), {"x": torch.ones(2, 16)}
"""


def run(chance: random.Random, count: int) -> Row:
    """Fill so many disks."""
    row = Row(title="disks filled").looks_for(
        "records lost", "parts left", "not made good", "not one line"
    )
    if os.geteuid() != 0:
        row.notes["not run"] = "mounting a tmpfs takes root"
        return row
    for _ in range(count):
        with TemporaryDirectory() as place:
            _one_disk(row, chance, Path(place))
    return row


def _one_disk(row: Row, chance: random.Random, folder: Path) -> None:
    (folder / "small.py").write_text(MODEL)
    size, model = chance.choice(SIZES), chance.choice(("quiet", "talkative", "talkative"))
    extras = chance.choice((["--snapshot"], ["-d", "cpu", "--trace"], ["--tensorboard"], []))
    device = [] if "-d" in extras else ["-d", "sim"]
    optimizers = ",".join(f"sgd:lr=0.{number + 1}" for number in range(SCENARIOS))
    words = ["profile", f"small:{model}", "-o", optimizers, *device, *extras, "--steps", "2"]
    words += ["--workload", "train", "--out", "disk/run", "--resume"]
    words += [] if chance.random() < 0.5 or "--tensorboard" in extras else ["--no-report"]
    what = f"{size} KiB, {model}, {' '.join(extras) or 'no extras'}"
    with _disk(folder / "disk", size):
        status, _, said = optprof(words, folder)
        row.tried += 1
        row.notes["runs that said the disk is full"] = int(
            row.notes.get("runs that said the disk is full", 0)
        ) + (status != 0)
        _judge(row, what, folder / "disk" / "run", said)
        _mount(folder / "disk", f"remount,size={ENOUGH}k")
        status, _, said = optprof(words, folder)
        _judge_made_good(row, what, folder / "disk" / "run", status, said)


def _judge(row: Row, what: str, run_folder: Path, said: str) -> None:
    begun = [int(place) for place in _PLACE.findall(said)]
    finished = max(begun, default=1) - 1
    records, damaged = read(run_folder / "records.jsonl")
    if len(records) < finished or damaged:
        row.fault("records lost", f"{what}: {len(records)} of {finished}, {damaged} damaged")
    if "Traceback" in said:
        row.fault("not one line", f"{what}: {said[-300:]}")
    if parts := list(run_folder.rglob("*.part")):
        row.fault("parts left", f"{what}: {parts[0].name} and {len(parts) - 1} more")


def _judge_made_good(row: Row, what: str, run_folder: Path, status: int, said: str) -> None:
    """Judge whether the same command on a larger disk completes the run."""
    records = RunStore(run_folder).read() if (run_folder / "records.jsonl").exists() else []
    last = {file_name(record.scenario): record for record in records}
    good = [each for each in last.values() if each.outcome == "ok" and not each.lost]
    if status != 0 or len(good) < SCENARIOS or len(good) != len(last):
        row.fault("not made good", f"{what}: status {status}, {len(good)} good; {said[-200:]}")
        return
    timelines = RunStore(run_folder).read_timelines(good) if good else {}
    for record in good:
        is_traced = record.origin == "simulated" and record.scenario.workload == "train"
        if is_traced and file_name(record.scenario) not in timelines:
            row.fault("not made good", f"{what}: no timeline of {record.scenario.options}")


@contextmanager
def _disk(folder: Path, kib: int) -> Iterator[None]:
    folder.mkdir()
    _mount(folder, f"size={kib}k")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


def _mount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)], check=True)
