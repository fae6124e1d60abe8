"""Agreement: what was simulated beside what was measured, wherever a run has both for the same
question.

Bytes of state are the same on every device and for every implementation. Peaks and blocks are
compared on CUDA alone, and only where both records ran the step the same way under the same
settings of the allocator, on the memory of the same GPU where there is such a simulation; an
estimated step time is set beside samples that were taken on the GPU that it is for.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Literal

from optprof.profiler.records.record import Record
from optprof.scenarios import hardware
from optprof.scenarios.spec import Scenario

from ..units import percent_text
from .labels import labels, optimizer_key

Unit = Literal["bytes", "seconds"]
_DIFFERING = ("device", "gpu", "implementation", "steps", "seed", "alloc_conf")
BYTES = {
    "state": "optimizer_state",
    "state-allocated": "optimizer_state_allocated",
    "peak": "peak_allocated",
    "reserved": "peak_reserved",
}


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """One figure of one question, simulated (or estimated) and measured; `metric` is a name of
    `explain.METRICS`.
    """

    label: str
    metric: str
    unit: Unit
    simulated: float
    measured: float
    simulated_from: Record
    measured_from: Record

    @property
    def residual(self) -> float:
        """What was simulated less what was measured, in bytes or seconds."""
        return self.simulated - self.measured

    @property
    def percent(self) -> float | None:
        """The residual in per cent of what was measured; None where that is nothing."""
        return 100 * self.residual / self.measured if self.measured else None


def agreements(records: Sequence[Record]) -> list[Agreement]:
    """The figures that a run has both ways, in the order of the run; a measured record is set
    beside its first simulated one.
    """
    names, found = labels(records), []
    held = [record for record in records if record.outcome == "ok"]
    simulated: dict[str, list[Record]] = {}
    for record in held:
        if record.scenario.device == "sim":
            simulated.setdefault(_question(record.scenario), []).append(record)
    for record in held:
        if record.scenario.device != "sim" and record.origin == "measured":
            found += _agreements(
                names[optimizer_key(record.scenario)],
                record,
                simulated.get(_question(record.scenario), ()),
            )
    return found


def summary(found: Sequence[Agreement]) -> str:
    """In a sentence, how many figures of bytes agree to the byte, and how far off the others are at
    most; empty for none.
    """
    exact = [agreement for agreement in found if agreement.unit == "bytes"]
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
    """The figures of a measured record that one of the simulated ones tells."""
    alike = [
        record
        for record in simulated
        if record.scenario.implementation == measured.scenario.implementation
    ]
    placed = [
        record for record in alike if record.scenario.alloc_conf == measured.scenario.alloc_conf
    ]
    if _device_name(measured):
        # A card that the catalogue does not have is none of those that it has.
        placed = [record for record in placed if record.scenario.gpu in (None, gpu_of(measured))]
    placed.sort(key=lambda record: record.scenario.gpu != measured.scenario.gpu)
    found = []
    for metric, field in BYTES.items():
        candidates = simulated if metric == "state" else placed
        value = getattr(measured.memory, field, None)
        other = next(
            (record for record in candidates if getattr(record.memory, field, None) is not None),
            None,
        )
        if (
            value is None
            or other is None
            or (metric in ("peak", "reserved") and measured.scenario.workload != "train")
        ):
            continue
        found.append(
            _agreement(label, metric, "bytes", getattr(other.memory, field), value, other, measured)
        )
    return [*found, *_times(label, measured, alike)]


def _times(label: str, measured: Record, simulated: Sequence[Record]) -> list[Agreement]:
    """The measured step beside its estimate, where the GPU that was asked for is the one that it
    ran on.
    """
    samples = (measured.times or {}).get("step")
    for record in simulated:
        if (
            samples
            and record.estimate
            and record.estimate.gpu == measured.scenario.gpu == gpu_of(measured)
        ):
            return [
                _agreement(
                    label,
                    "estimate",
                    "seconds",
                    record.estimate.seconds,
                    median(samples),
                    record,
                    measured,
                )
            ]
    return []


def gpu_of(record: Record) -> str | None:
    """The catalogue's name of the GPU that the record was measured on, None where it has none or
    none is known.
    """
    machine = record.environment.machine
    return hardware.name_of_device(_device_name(record), machine and machine.gpu_memory_bytes)


def _device_name(record: Record) -> str:
    """Return the name that the GPU gives itself; empty where none was at work or none is told."""
    machine = record.environment.machine
    return (machine and machine.gpu) or "" if record.scenario.device == "cuda" else ""


def _agreement(
    label: str,
    metric: str,
    unit: Unit,
    simulated: float,
    measured: float,
    simulated_from: Record,
    measured_from: Record,
) -> Agreement:
    return Agreement(
        label=label,
        metric=metric,
        unit=unit,
        simulated=simulated,
        measured=measured,
        simulated_from=simulated_from,
        measured_from=measured_from,
    )


def _question(scenario: Scenario) -> str:
    """What a simulated and a measured scenario of the same question share."""
    shared = {name: value for name, value in vars(scenario).items() if name not in _DIFFERING}
    return json.dumps(shared, sort_keys=True, default=str)
