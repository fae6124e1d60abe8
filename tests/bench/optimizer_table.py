"""Simulate, time and check every optimizer; write the table in docs/results and its page and CSV.

    python tests/bench/optimizer_table.py [--only adamw,lion] [--raw runs/results] [--out FOLDER]

Raw results are kept in --raw: a run that was interrupted goes on there. A failure is a result.
"""

import argparse
import json
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from results.checks import CHECKS, alone
from results.names import every_optimizer
from results.pages import write
from results.rows import CPU_MODEL, MODELS, SECOND_GPU, rows_of
from training import SPECS

from optprof.profiler.machine.environment import environment
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore, standing
from optprof.profiler.running.plan import plan
from optprof.profiler.running.resume import pending
from optprof.profiler.running.runner import run
from optprof.scenarios import Scenario

ROOT = Path(__file__).parents[2]
SIMULATION_SECONDS, MEASURING_SECONDS, CHECK_SECONDS = 60.0, 40.0, 60.0
# Enough for a median; a step of GPT-2 takes from a tenth of a second to many seconds.
SAMPLES = 5


def questions(specs: Iterable[str], model: str) -> Iterator[dict[str, Any]]:
    """Yield the simulations of a model: whole steps, and the step alone on the second GPU."""
    for spec in specs:
        yield {"model": model, "optimizer": spec, "device": "sim"}
        yield {
            "model": model,
            "optimizer": spec,
            "device": "sim",
            "workload": "state",
            "gpu": SECOND_GPU,
        }


def planned(asked: Iterable[dict[str, Any]], refused: dict[str, str]) -> list[Scenario]:
    """Return the scenarios; an optimizer that cannot be made is put into `refused`, with why."""
    scenarios: list[Scenario] = []
    for question in asked:
        try:
            scenarios += plan([question])
        except Exception as error:
            # A constructor of another package may raise anything.
            lines = str(error).strip().splitlines() or [type(error).__name__]
            refused.setdefault(question["optimizer"], lines[0])
    return scenarios


def recorded(scenarios: list[Scenario], folder: Path, seconds: float) -> list[Record]:
    """Run the scenarios that the folder has no record of, and return the records of all.

    A failure of the same versions is not tried again.
    """
    store = RunStore.resume(folder)
    try:
        kept = [replace(record, outcome="ok", lost=()) for record in store.read()]
        waiting = pending(scenarios, kept, environment(seed=0))
        print(f"{folder.name}: {len(waiting)} of {len(scenarios)} to do", flush=True)

        def started(place: int, scenario: Scenario) -> None:
            print(
                f"{time.strftime('%H:%M:%S')} {folder.name} [{place + 1}/{len(waiting)}]"
                f" {scenario.optimizer} {scenario.workload}",
                flush=True,
            )

        run(waiting, store, started, timeout=seconds)
        return standing(store.read())
    finally:
        store.close()


def checked(specs: list[str], path: Path) -> dict[str, dict[str, str]]:
    """Run the checks that the file has no line of, and return words by check and optimizer."""
    versions = f"torch {torch.__version__}"
    words: dict[str, dict[str, str]] = {name: {} for name in CHECKS}
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            known = json.loads(line)
        except json.JSONDecodeError:
            # The last line of a run that was killed.
            continue
        if known["versions"] == versions:
            words[known["check"]][known["optimizer"]] = known["word"]
    for name in CHECKS:
        todo = [spec for spec in specs if spec not in words[name]]
        for place, spec in enumerate(todo):
            if name == "loss" and spec not in SPECS["gpt"]:
                continue
            words[name][spec] = word = alone(name, spec, CHECK_SECONDS)
            stamp = time.strftime("%H:%M:%S")
            print(f"{stamp} {name} [{place + 1}/{len(todo)}] {spec}: {word}", flush=True)
            line = {"check": name, "optimizer": spec, "word": word, "versions": versions}
            with path.open("a") as file:
                file.write(json.dumps(line) + "\n")
    return words


def main() -> None:
    """Take what is missing, then write the pages."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="optimizers, between commas; the others are left out")
    parser.add_argument("--raw", type=Path, default=ROOT / "runs" / "results")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "results")
    arguments = parser.parse_args()
    specs = arguments.only.split(",") if arguments.only else every_optimizer()
    arguments.raw.mkdir(parents=True, exist_ok=True)
    start, refused, records = time.monotonic(), {}, []
    for model in MODELS:
        scenarios = planned(questions(specs, model), refused)
        records += recorded(scenarios, arguments.raw / model, SIMULATION_SECONDS)
    words = checked(specs, arguments.raw / "checks.jsonl")
    asked = (
        {
            "model": CPU_MODEL,
            "optimizer": spec,
            "device": "cpu",
            "workload": "state",
            "steps": SAMPLES,
        }
        for spec in specs
    )
    # Last and alone, because nothing else may use the processor.
    measured = recorded(planned(asked, refused), arguments.raw / "cpu", MEASURING_SECONDS)
    write(rows_of(specs, records + measured, words, refused), arguments.out)
    print(f"written: {arguments.out}/optimizers.md, optimizers-sortable.html, optimizers.csv")
    print(f"{time.monotonic() - start:.0f} s for {len(specs)} optimizers", flush=True)


if __name__ == "__main__":
    main()
