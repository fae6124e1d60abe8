"""Time `report --markdown` and `compare` on 100,000 records, each in a new process.

    python tests/bench/records.py [--count 100000] [--kind seeds ...]

The targets: 20 s and 500 MB for either command; a comparison has half of the records on each side.
Records are generated, 6 kB each, as measured on a CPU with 40 samples per phase. They differ by
seed, batch size, options or model, or are 1,000 records of each of 100 scenarios. Seconds are the
processor's, user and system together.
"""

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from optprof.profiler.records.record import Environment, Machine, Memory, Record
from optprof.scenarios.spec import Scenario

COUNT = 100_000
SAMPLES = 40
REPEATS = 1_000
KINDS = ("seeds", "batches", "options", "models", "repeats")
TARGET_SECONDS, TARGET_MB = 20, 500
ENVIRONMENT = Environment(
    command=("optprof", "sweep", "made-up.toml", "--out", "runs/made-up"),
    threads=2,
    affinity=(0, 1),
    keeps_freed_memory=True,
    python="3.11.7",
    platform="Linux-6.1-x86_64-with-glibc2.36",
    versions={"optprof": "0.1.0", "torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.4.6"},
    machine=Machine(cpu="made up", cores=2, memory_bytes=25276510208),
    git_commit="0123456789ab",
)
OPTIONS: dict[str, Any] = {"lr": 0.001, "betas": [0.9, 0.999], "eps": 1e-08, "weight_decay": 0.01}


def scenario_of(kind: str, number: int) -> Scenario:
    """Return the scenario of a record; only repeats share scenarios."""
    usual = Scenario(
        model="tiny:build", options=OPTIONS, device="cpu", batch_size=1, sequence_length=128
    )
    if kind == "batches":
        return replace(usual, batch_size=number + 1)
    if kind == "options":
        return replace(usual, options={**OPTIONS, "lr": number * 1e-6})
    if kind == "models":
        return replace(usual, model=f"tiny:build_{number}")
    return replace(usual, seed=number if kind == "seeds" else number % (COUNT // REPEATS))


def memory(parameters: int, grown: int) -> Memory:
    """Return the memory of training with AdamW, with a peak larger by `grown`."""
    weights = 4 * parameters
    parts = {"parameter": weights, "gradient": weights, "optimizer_state": 2 * weights}
    parts |= {"activation": weights, "temporary": weights, "input": 1024 + grown}
    peak = sum(parts.values())
    return Memory(
        parameters=weights,
        gradients=weights,
        optimizer_state=2 * weights + 8,
        state_by_key={"step": 8, "exp_avg": weights, "exp_avg_sq": weights},
        state_by_key_dtype={
            "step": {"float32": 8},
            "exp_avg": {"float32": weights},
            "exp_avg_sq": {"float32": weights},
        },
        optimizer_state_allocated=2 * weights + 1024,
        peak_allocated=peak,
        peak_reserved=peak + 2**21,
        peak_phase="step",
        peak_by_category=parts,
        peak_by_phase={"forward": peak - weights, "backward": peak - 512, "step": peak},
        parameters_by_dtype={"float32": weights},
    )


def records(kind: str, count: int, *, seed: int = 0) -> Iterator[Record]:
    """Yield the records of a run; another seed has other times, and one peak in 1,000 is larger."""
    chance = random.Random(seed)
    for number in range(count):
        scenario, parameters = scenario_of(kind, number), 1_000 + number % 977
        grown = 512 if seed and number % 1_000 == 0 else 0
        yield Record(
            scenario=scenario,
            origin="measured",
            parameter_count=parameters,
            memory=memory(parameters, grown),
            times={
                phase: _samples(chance) for phase in ("forward", "backward", "step", "iteration")
            },
            warmup={phase: _samples(chance)[:3] for phase in ("forward", "backward", "step")},
            environment=replace(ENVIRONMENT, seed=scenario.seed, time=_time(number)),
        )


def write(folder: Path, kind: str, count: int, *, seed: int = 0) -> Path:
    """Write the run without a sync for each record, and return its folder."""
    folder.mkdir(parents=True)
    with (folder / "records.jsonl").open("w", encoding="utf-8") as lines:
        lines.writelines(f"{record.to_json()}\n" for record in records(kind, count, seed=seed))
    return folder


def measured(*words: str) -> tuple[float, float, int]:
    """Run optprof; return its processor seconds, its peak resident MB and its bytes of output."""
    with tempfile.TemporaryFile() as printed:
        # rusage counts ended children together, so each command has its own parent.
        command = json.dumps([sys.executable, "-P", "-m", "optprof", *words])
        done = subprocess.run(
            [sys.executable, "-c", _ONE, command],
            check=True,
            stdout=printed,
            stderr=subprocess.PIPE,
        )
        seconds, kib = map(float, done.stderr.split()[-2:])
        return seconds, kib * 1024 / 1e6, printed.seek(0, 2)


_ONE = """
import json, resource, subprocess, sys
subprocess.run(json.loads(sys.argv[1]), check=True)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss, file=sys.stderr)
"""


def show(name: str, measurement: tuple[float, float, int]) -> None:
    """Print a row: seconds and MB with their targets."""
    seconds, megabytes, printed = measurement
    verdict = "ok" if seconds < TARGET_SECONDS and megabytes < TARGET_MB else "beyond the targets"
    text = f"{seconds:6.1f} s of {TARGET_SECONDS}, {megabytes:5.0f} MB of {TARGET_MB}"
    print(f"{name:<34} {text}, {printed / 1e6:.2f} MB printed: {verdict}", flush=True)


def _samples(chance: random.Random) -> tuple[float, ...]:
    return tuple(1e-3 * chance.lognormvariate(0, 0.05) for _ in range(SAMPLES))


def _time(number: int) -> str:
    minutes, seconds = divmod(number, 60)
    days, minutes = divmod(minutes, 24 * 60)
    day = f"2026-{1 + days // 28:02}-{1 + days % 28:02}"
    return f"{day}T{minutes // 60:02}:{minutes % 60:02}:{seconds:02}+00:00"


def main() -> None:
    """Print a row for each kind of run and command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--count", type=int, default=COUNT)
    parser.add_argument("--kind", nargs="+", choices=KINDS, default=KINDS)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as runs:
        for kind in options.kind:
            run = write(Path(runs) / kind, kind, options.count)
            show(f"{kind}: report --markdown", measured("report", str(run), "--markdown"))
            sides = [
                write(Path(runs) / f"{kind}-{seed}", kind, options.count // 2, seed=seed)
                for seed in (0, 1)
            ]
            for form in ("--json", "--markdown"):
                show(f"{kind}: compare {form}", measured("compare", *map(str, sides), form))
            for folder in (run, *sides):
                (folder / "records.jsonl").unlink()


if __name__ == "__main__":
    main()
