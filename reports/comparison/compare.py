"""Comparison: the differences between two sets of records, scenario by scenario.

Scenarios match when all their fields are equal. Bytes are compared exactly. A time differs if the
whole 95 % interval of its ratio lies beyond a threshold, and is the same if the whole interval lies
within it. Any other time is noise, and is not judged.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import lru_cache
from statistics import median
from typing import Any, Literal

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import scenario_key
from optprof.scenarios.spec import Scenario

from ..arithmetic.ratios import Ratio
from ..arithmetic.times import disturbances
from ..explain import METRICS
from ..units import percent_text
from .sides import Side

Verdict = Literal["regressed", "improved", "same", "not judged", "not compared"]
THRESHOLD = Fraction(5, 100)
NOISY = "noisy"
BEFORE_AFTER = ("before", "after")
Bounds = tuple[float, float]
# The last name of each figure's field.
_NAMES = {name: metric.field.partition(".")[2] for name, metric in METRICS.items()}


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricChange:
    """One figure of one scenario on both sides, in bytes or median seconds.

    `note` says why the two were not compared, or not judged: NOISY if the interval of the ratio
    leaves the answer open, "noisy: ..." if something disturbed the measurement.
    """

    metric: str
    before: float
    after: float
    ratio: Ratio | None
    verdict: Verdict
    note: str = ""

    def beyond(self, share: Fraction) -> bool:
        """Return whether the figure, or a time's whole interval, grew by more than that share."""
        if self.verdict == "not compared" or self.is_disturbed:
            return False
        if METRICS[self.metric].kind == "bytes":
            return Fraction(self.after) - Fraction(self.before) > share * Fraction(self.before)
        return self.ratio is not None and _least(self.ratio) > 1 + share

    def left_open(self, share: Fraction) -> str:
        """Return why it is open whether the figure grew by more than that share; else empty."""
        if self.verdict == "not compared" or self.is_disturbed or self.ratio is None:
            return self.note
        return NOISY if _least(self.ratio) <= 1 + share < _most(self.ratio) else ""

    @property
    def is_disturbed(self) -> bool:
        """Return whether something disturbed the measurement of a time."""
        return self.verdict == "not judged" and self.note != NOISY


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The records of one scenario on both sides, and the changes where both have a result."""

    before: Record
    after: Record
    changes: tuple[MetricChange, ...]

    @property
    def scenario(self) -> Scenario:
        """The scenario of both sides."""
        return self.after.scenario

    @property
    def outcome_verdict(self) -> Verdict:
        """Regressed where the scenario lost its result, improved where it gained one."""
        well = self.before.outcome == "ok", self.after.outcome == "ok"
        return "same" if well[0] == well[1] else "regressed" if well[0] else "improved"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two sets of records: the scenarios of both and of one side, and the damage of either side.

    `superseded` counts the older records of a scenario, which are passed over. `names` are those of
    the two sides in tables.
    """

    pairs: tuple[Pair, ...]
    only_before: tuple[Record, ...]
    only_after: tuple[Record, ...]
    threshold: Fraction
    superseded: int
    damage: tuple[str, ...] = ()
    names: tuple[str, str] = BEFORE_AFTER

    @property
    def records(self) -> list[Record]:
        """A record of each scenario of both sides."""
        return [*(pair.after for pair in self.pairs), *self.only_before, *self.only_after]


def compare_sides(
    before: Side,
    after: Side,
    *,
    threshold: Fraction = THRESHOLD,
    across_machines: bool = False,
    names: tuple[str, str] = BEFORE_AFTER,
) -> Compared:
    """Compare the records of both sides as `compare` does, and list their damage."""
    for side in (before, after):
        if side.damage and not side.records:
            raise ValueError(f"no record can be read: {side.damage[0]}")
    compared = compare(
        before.records, after.records, threshold=threshold, across_machines=across_machines
    )
    damage = [
        f"{name}: {each}"
        for name, side in zip(names, (before, after), strict=True)
        for each in side.damage
    ]
    return replace(compared, damage=tuple(damage), names=names)


def compare(
    before: Sequence[Record],
    after: Sequence[Record],
    *,
    threshold: Fraction = THRESHOLD,
    across_machines: bool = False,
) -> Compared:
    """Compare in the order of `after`; of several records of a scenario the last of a side counts.

    Times of different machines are compared only with `across_machines`. ValueError for an empty
    side.
    """
    for side, records in (("first", before), ("second", after)):
        if not records:
            raise ValueError(
                f"the {side} side of the comparison has no records; profile something there first"
            )
    old, new = _latest(before), _latest(after)
    bounds = bounds_of(threshold)
    return Compared(
        pairs=tuple(
            pair_of(old[key], new[key], bounds, across_machines) for key in new if key in old
        ),
        only_before=tuple(record for key, record in old.items() if key not in new),
        only_after=tuple(record for key, record in new.items() if key not in old),
        threshold=threshold,
        superseded=len(before) - len(old) + len(after) - len(new),
    )


def _latest(records: Iterable[Record]) -> dict[bytes, Record]:
    """The last record of each scenario, in the order of the first."""
    return {scenario_key(record.scenario): record for record in records}


def pair_of(
    before: Record,
    after: Record,
    bounds: Bounds,
    across_machines: bool,
    metrics: Iterable[str] = METRICS,
) -> Pair:
    """Return the pair of two records, with the changes of these figures."""
    changes: list[MetricChange] = []
    if before.outcome == after.outcome == "ok":
        reason = _refusal(before, after, across_machines)
        noise = _disturbance(before, after)
        for metric in metrics:
            pair = figure_of(before, metric), figure_of(after, metric)
            if pair[0] is not None and pair[1] is not None:
                changes.append(_change(metric, pair[0], pair[1], bounds, reason, noise))
    return Pair(before=before, after=after, changes=tuple(changes))


def _disturbance(before: Record, after: Record) -> str:
    """The note on times that were disturbed on either side; empty for none."""
    reasons = dict.fromkeys([*disturbances(before), *disturbances(after)])
    return f"{NOISY}: {', '.join(reasons)}" if reasons else ""


def _change(
    metric: str, before: Any, after: Any, bounds: Bounds, reason: str, noise: str
) -> MetricChange:
    if METRICS[metric].kind == "bytes":
        return _byte_change(metric, before, after)
    if metric == "estimate":
        ratio = Ratio(value=after / before) if before > 0 else None
        verdict = _judged(ratio, bounds) if ratio else "not compared"
        return MetricChange(metric=metric, before=before, after=after, ratio=ratio, verdict=verdict)
    ratio = None if reason or min(min(before), min(after)) <= 0 else Ratio.of(before, after)
    note = reason or (
        "a time of 0" if ratio is None else "too few samples" if ratio.low is None else ""
    )
    verdict = "not compared" if ratio is None or note else _judged(ratio, bounds)
    if verdict != "not compared" and (noise or verdict == "not judged"):
        verdict, note = "not judged", noise or NOISY
    return MetricChange(
        metric=metric,
        before=median(before),
        after=median(after),
        ratio=ratio,
        verdict=verdict,
        note=note,
    )


@lru_cache(maxsize=10_000)
def _byte_change(metric: str, before: int, after: int) -> MetricChange:
    """Return the change of a figure in bytes, one object for all scenarios that have the same."""
    verdict = "same" if before == after else "regressed" if after > before else "improved"
    ratio = Ratio(value=after / before) if before else None
    return MetricChange(metric=metric, before=before, after=after, ratio=ratio, verdict=verdict)


def _judged(ratio: Ratio, bounds: Bounds) -> Verdict:
    lowest, highest = _least(ratio), _most(ratio)
    slower, faster = bounds
    if lowest > slower:
        return "regressed"
    if highest < faster:
        return "improved"
    return "same" if lowest >= faster and highest <= slower else "not judged"


def bounds_of(threshold: Fraction) -> Bounds:
    """Return 1 plus and minus the threshold as floats, rounded so that comparisons stay exact."""
    slower, faster = float(1 + threshold), float(1 - threshold)
    return (
        math.nextafter(slower, -math.inf) if slower > 1 + threshold else slower,
        math.nextafter(faster, math.inf) if faster < 1 - threshold else faster,
    )


def _least(ratio: Ratio) -> float:
    return ratio.value if ratio.low is None else ratio.low


def _most(ratio: Ratio) -> float:
    return ratio.value if ratio.high is None else ratio.high


def figure_of(record: Record, metric: str) -> Any:
    """Bytes, one estimate, or samples in seconds; None for a record without the figure."""
    memory, kept = record.memory, _NAMES[metric]
    if metric == "estimate":
        return record.estimate.seconds if record.estimate else None
    if METRICS[metric].kind == "seconds":
        return (record.times or {}).get(kept) or None
    # The workload "state" takes no training step that could have a peak.
    if memory is None or (metric in ("peak", "reserved") and record.scenario.workload != "train"):
        return None
    return getattr(memory, kept)


def _refusal(before: Record, after: Record, across_machines: bool) -> str:
    """The reason not to compare the times of two records; empty for none."""
    if before.origin != after.origin:
        return f"{before.origin} against {after.origin}"
    if before.measured_share != after.measured_share:
        return f"timed on {_share(before)} of the model against {_share(after)}"
    if across_machines:
        return ""
    machines = _machine(before), _machine(after)
    if None in machines:
        return "the machine is not known"
    return "" if machines[0] == machines[1] else "different machines"


def _share(record: Record) -> str:
    return percent_text(1 if record.measured_share is None else record.measured_share, 1)


def _machine(record: Record) -> tuple[Any, ...] | None:
    """The processor, cores, GPU and torch's threads, which decide times; None where unknown."""
    machine = record.environment.machine
    if machine is None or not machine.cpu:
        return None
    return machine.cpu, machine.cores, machine.gpu, record.environment.threads
