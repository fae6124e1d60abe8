"""How long does the report of 500 records take? `optprof report` in a process of its own, on
records that are made up here.

The marks: 5 s and 500 MB. The records are those of 25 models, 10 optimizers and two origins,
simulated and measured with 30 samples. Seconds are those of the processor, the middle of three
runs; on a quiet machine as many pass.
"""

import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

from optprof.profiler.records.record import Environment, Machine, Memory, Record
from optprof.profiler.records.store import RunStore
from optprof.scenarios.spec import Scenario

MODELS, SAMPLES, RUNS = 25, 30, 3
BYTES_PER_PARAMETER = {
    "adamw": 8,
    "sgd-sai": 4,
    "lamb16": 2,
    "lamb": 8,
    "adam-mini": 4,
    "sgd": 4,
    "adam": 8,
    "prodigy": 16,
    "muon": 4,
}
SM3 = 0.006
MARK_SECONDS, MARK_MB = 5, 500


def memory(parameters: int, state: int) -> Memory:
    """What training holds whose step takes a temporary as large as the parameters."""
    weights = 4 * parameters
    parts = {
        "parameter": weights,
        "gradient": weights,
        "optimizer_state": state,
        "temporary": weights,
    }
    peak = sum(parts.values())
    return Memory(
        parameters=weights,
        gradients=weights,
        optimizer_state=state,
        state_by_key={"momentum": state},
        state_by_key_dtype={"momentum": {"float32": state}},
        optimizer_state_allocated=state,
        peak_allocated=peak,
        peak_reserved=peak + 2**21,
        peak_phase="step",
        peak_by_category=parts,
        peak_by_phase={"step": peak},
    )


def records() -> list[Record]:
    """The records, in the order of a run."""
    chance, found = random.Random(0), []
    for size in range(MODELS):
        parameters = round(1e8 * 1.2**size)
        for name, held in {**BYTES_PER_PARAMETER, "sm3": SM3}.items():
            asked = {"model": f"model-{size}", "optimizer": name, "sequence_length": 1024}
            told = {
                "model_family": "model",
                "parameter_count": parameters,
                "environment": Environment(machine=Machine(cpu="made up")),
            }
            seconds = parameters * held * 1e-9
            step = tuple(seconds * chance.lognormvariate(0, 0.05) for _ in range(SAMPLES))
            found += [
                Record(
                    scenario=Scenario(**asked),
                    origin="simulated",
                    memory=memory(parameters, round(held * parameters)),
                    **told,
                ),
                Record(
                    scenario=Scenario(**asked, device="cpu", implementation="loop"),
                    origin="measured",
                    times={"step": step},
                    **told,
                ),
            ]
    return found


def processor_seconds() -> float:
    """What the processes that this one has started have taken."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the seconds and the most memory of the report, and the size of its page."""
    with tempfile.TemporaryDirectory() as folder:
        run, made = Path(folder) / "run", records()
        store = RunStore.create(run)
        for record in made:
            store.append(record)
        store.close()
        taken = []
        for _ in range(RUNS):
            before = processor_seconds()
            subprocess.run(
                [sys.executable, "-m", "optprof", "report", str(run)],
                check=True,
                stdout=subprocess.DEVNULL,
            )
            taken.append(processor_seconds() - before)
        page = (run / "report.html").stat().st_size
    held = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    verdict = "ok" if median(taken) < MARK_SECONDS and held < MARK_MB else "beyond the marks"
    print(
        f"{len(made)} records: {median(taken):.2f} s, {held:.0f} MB, a page of {page / 1e6:.2f} MB:"
        f" {verdict}"
    )


if __name__ == "__main__":
    main()
