"""Time `optprof report` on 500 generated records, in a new process.

The targets: 5 s and 500 MB. The records are of 25 models, 10 optimizers and two origins, simulated
and measured with 30 samples. Seconds are the processor's, the median of three runs, which on a
quiet machine are about those of the clock.
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
TARGET_SECONDS, TARGET_MB = 5, 500


def memory(parameters: int, state: int) -> Memory:
    """Return the memory of training with one temporary as large as the parameters."""
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
    """Return the records, in the order of a run."""
    chance, result = random.Random(0), []
    for size in range(MODELS):
        parameters = round(1e8 * 1.2**size)
        for name, nbytes in {**BYTES_PER_PARAMETER, "sm3": SM3}.items():
            settings = {"model": f"model-{size}", "optimizer": name, "sequence_length": 1024}
            common = {
                "model_family": "model",
                "parameter_count": parameters,
                "environment": Environment(machine=Machine(cpu="made up")),
            }
            seconds = parameters * nbytes * 1e-9
            step = tuple(seconds * chance.lognormvariate(0, 0.05) for _ in range(SAMPLES))
            result += [
                Record(
                    scenario=Scenario(**settings),
                    origin="simulated",
                    memory=memory(parameters, round(nbytes * parameters)),
                    **common,
                ),
                Record(
                    scenario=Scenario(**settings, device="cpu", implementation="loop"),
                    origin="measured",
                    times={"step": step},
                    **common,
                ),
            ]
    return result


def processor_seconds() -> float:
    """Return the processor seconds of all ended children."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    """Print the seconds and the peak memory of the report, and the size of its page."""
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
        size = (run / "report.html").stat().st_size
    mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024 / 1e6
    verdict = "ok" if median(taken) < TARGET_SECONDS and mb < TARGET_MB else "beyond the targets"
    print(
        f"{len(made)} records: {median(taken):.2f} s, {mb:.0f} MB, a page of {size / 1e6:.2f} MB:"
        f" {verdict}"
    )


if __name__ == "__main__":
    main()
