"""Agreement: simulated figures and measured ones, if a run has both for the same question.

Bytes of state are the same on every device and for every implementation. Peaks and blocks are
compared on CUDA only, for equal implementations and allocator settings. A simulation on the memory
of the measured GPU is preferred. An estimated step time is compared with samples from its own GPU.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from optprof.profiler.records.record import Record
from optprof.scenarios import hardware
from optprof.scenarios.spec import Scenario

from ..units import percent_text
from .labels import labels, optimizer_key

Unit = Literal["bytes", "seconds"]
_DIFFERING = ("device", "gpu", "implementation", "steps", "seed", "alloc_conf")
_FIELDS = {
    "state": "optimizer_state",
    "state-allocated": "optimizer_state_allocated",
    "peak": "peak_allocated",
    "reserved": "peak_reserved",
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One figure, simulated or estimated, and measured; `metric` is a name of `explain.METRICS`."""

    label: str
    metric: str
    unit: Unit
    simulated: float
    measured: float
    simulated_from: Record
    measured_from: Record

    @property
    def residual(self) -> float:
        """The simulated figure less the measured one, in bytes or seconds."""
        return self.simulated - self.measured

    @property
    def percent(self) -> float | None:
        """The residual in per cent of the measured figure, None if that is 0."""
        return 100 * self.residual / self.measured if self.measured else None


def agreements(records: Sequence[Record]) -> list[Agreement]:
    """Return the figures that a run has both ways, in the order of its measured records.

    A measured record is compared with its first simulated one.
    """
    names = labels(records)
    ok = [record for record in records if record.outcome == "ok"]
    simulated: dict[str, list[Record]] = {}
    for record in ok:
        if record.scenario.device == "sim":
            simulated.setdefault(_question(record.scenario), []).append(record)
    return [
        agreement
        for record in ok
        if record.scenario.device != "sim" and record.origin == "measured"
        for agreement in _agreements(
            names[optimizer_key(record.scenario)],
            record,
            simulated.get(_question(record.scenario), ()),
        )
    ]


def summary(agreements: Sequence[Agreement]) -> str:
    """Count the figures of bytes that agree exactly, and name the worst other; empty for none."""
    exact = [agreement for agreement in agreements if agreement.unit == "bytes"]
    if not exact:
        return ""
    equal = sum(not agreement.residual for agreement in exact)
    furthest = max(exact, key=lambda agreement: abs(agreement.percent or 0))
    text = f"{equal} of {len(exact)} figures agree to the byte"
    if not furthest.percent:
        return f"{text}."
    return (
        f"{text}; the furthest off is {furthest.metric} of {furthest.label}, by"
        f" {percent_text(furthest.residual, furthest.measured)}."
    )


def _agreements(label: str, measured: Record, simulated: Sequence[Record]) -> list[Agreement]:
    """Return the figures that a measured record shares with one of the simulated ones."""
    own = measured.scenario
    alike = [record for record in simulated if record.scenario.implementation == own.implementation]
    placed = [record for record in alike if record.scenario.alloc_conf == own.alloc_conf]
    name, gpu = _gpu(measured)
    if name:
        # Simulations of the catalogue's GPUs say nothing of a GPU that it does not have.
        placed = [record for record in placed if record.scenario.gpu in (None, gpu)]
    placed.sort(key=lambda record: record.scenario.gpu != own.gpu)
    agreements = []
    for metric, field in _FIELDS.items():
        if metric in ("peak", "reserved") and own.workload != "train":
            continue
        nbytes = getattr(measured.memory, field, None)
        for record in simulated if metric == "state" else placed:
            other = getattr(record.memory, field, None)
            if nbytes is not None and other is not None:
                agreements.append(
                    Agreement(
                        label=label,
                        metric=metric,
                        unit="bytes",
                        simulated=other,
                        measured=nbytes,
                        simulated_from=record,
                        measured_from=measured,
                    )
                )
                break
    samples = (measured.times or {}).get("step")
    for record in alike:
        if samples and record.estimate and record.estimate.gpu == own.gpu == gpu:
            agreements.append(
                Agreement(
                    label=label,
                    metric="estimate",
                    unit="seconds",
                    simulated=record.estimate.seconds,
                    measured=median(samples),
                    simulated_from=record,
                    measured_from=measured,
                )
            )
            break
    return agreements


def _gpu(record: Record) -> tuple[str, str | None]:
    """Return the names that the record's GPU has for itself and in the catalogue, if any."""
    machine = record.environment.machine
    if record.scenario.device != "cuda" or machine is None:
        return "", None
    name = machine.gpu or ""
    return name, hardware.name_of_device(name, machine.gpu_memory_bytes)


def _question(scenario: Scenario) -> str:
    """Return a text that a simulated and a measured scenario of the same question share."""
    shared: dict[str, Any] = {
        name: value for name, value in vars(scenario).items() if name not in _DIFFERING
    }
    return json.dumps(shared, sort_keys=True, default=str)
