"""Comparison: what changed from one set of records to another, scenario by scenario; arithmetic
alone.

Scenarios are matched when all their fields are equal. Bytes are compared exactly; a time differs
only when the whole 95 % interval of its ratio lies beyond a threshold.
"""

import math
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from fractions import Fraction
from functools import lru_cache, partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

from optprof.profiler.records.record import Environment, Machine, Memory, Record, Watched
from optprof.profiler.records.store import RunStore, scenario_key
from optprof.scenarios import schema
from optprof.scenarios.spec import Scenario

from ..arithmetic.ratios import Ratio
from ..explain import METRICS
from ..markdown import NO_SPLITS
from ..units import percent_text

Verdict = Literal["regressed", "improved", "same", "not compared"]
THRESHOLD = Fraction(5, 100)


@dataclass(frozen=True, kw_only=True, slots=True)
class Change:
    """One figure of one scenario on both sides: bytes, or median seconds; `note` says why it was
    not compared.
    """

    metric: str
    before: float
    after: float
    ratio: Ratio | None
    verdict: Verdict
    note: str = ""

    def beyond(self, share: Fraction) -> bool:
        """Whether the figure grew by more than that share of what it was, for a time with its whole
        interval.
        """
        if self.verdict == "not compared":
            return False
        if METRICS[self.metric].kind == "bytes":
            return Fraction(self.after) - Fraction(self.before) > share * Fraction(self.before)
        return self.ratio is not None and _least(self.ratio) > 1 + share


@dataclass(frozen=True, kw_only=True, slots=True)
class Pair:
    """The records of one scenario on both sides, and the changes from one to the other; none unless
    both ended well.
    """

    before: Record
    after: Record
    changes: tuple[Change, ...]

    @property
    def scenario(self) -> Scenario:
        """What was asked on both sides."""
        return self.after.scenario

    @property
    def outcome_verdict(self) -> Verdict:
        """Regressed where a scenario that ended well no longer does, improved where it does now."""
        well = self.before.outcome == "ok", self.after.outcome == "ok"
        return "same" if well[0] == well[1] else "regressed" if well[0] else "improved"


@dataclass(frozen=True, kw_only=True)
class Compared:
    """Two sets of records: the scenarios of both, those of one side only, and how many older
    records of a scenario were passed over.

    `damage` names what could not be read of either side.
    """

    pairs: tuple[Pair, ...]
    only_before: tuple[Record, ...]
    only_after: tuple[Record, ...]
    threshold: Fraction
    superseded: int
    damage: tuple[str, ...] = ()

    @property
    def records(self) -> list[Record]:
        """A record of each scenario of both sides."""
        return [*(pair.after for pair in self.pairs), *self.only_before, *self.only_after]


@dataclass(frozen=True, kw_only=True)
class Side:
    """The records of a side, of each scenario the newest last, and what could not be read of it."""

    records: Sequence[Record]
    damage: tuple[str, ...] = ()


def read_side(path: Path) -> Side:
    """The records of a run, or of all runs right under a folder; FileNotFoundError where there are
    none.

    A run that cannot be read at all is a ValueError or OSError, and damage where others are beside
    it.
    """
    if _may_hold_run(path):
        store = RunStore(path)
        return Side(records=store.read(lean), damage=store.damage)
    runs: dict[str, list[Record]] = {}
    damage: list[str] = []
    for folder in _runs_under(path):
        store = RunStore(folder)
        try:
            runs[folder.name] = store.read(partial(lean, with_time=True))
            damage += (f"{folder.name}/{each}" for each in store.damage)
        except (OSError, ValueError) as error:
            damage.append(str(error).replace(f"{path}{os.sep}", ""))
    damage += _unreadable_times(runs) if len(runs) > 1 else []
    return Side(records=_in_time(runs.values()), damage=tuple(damage))


def lean(record: Record, *, with_time: bool = False) -> Record:
    """Return what a comparison reads of a record: two runs of 100,000 would take 2 GB.

    `with_time` is for runs whose records are put in order.
    """
    memory, watched, environment = record.memory, record.watched, record.environment
    if memory is not None:
        memory = Memory(**{**vars(memory), **NO_SPLITS, "parameters_by_dtype": {}})
    dropped = {
        "memory": memory,
        "times": {phase: array("d", samples) for phase, samples in (record.times or {}).items()},
        "warmup": None,
        "watched": watched and Watched(warnings=watched.warnings),
        "course": None,
        "environment": _shared_environment(
            environment.time if with_time else None,
            # A seed of None marks the record of a user's training loop.
            environment.seed and 0,
            environment.threads,
            environment.machine,
            tuple(environment.versions.items()),
            environment.git_commit,
        ),
    }
    return Record(**{**vars(record), **dropped})


@lru_cache(maxsize=1_000)
def _shared_environment(
    time: str | None,
    seed: int | None,
    threads: int | None,
    machine: Machine | None,
    versions: tuple[tuple[str, str], ...],
    git_commit: str | None,
) -> Environment:
    """Return one environment for all records with these values."""
    return Environment(
        time=time,
        seed=seed,
        threads=threads,
        machine=machine,
        versions=dict(versions),
        git_commit=git_commit,
    )


def compare_sides(
    before: Side, after: Side, *, threshold: Fraction = THRESHOLD, across_machines: bool = False
) -> Compared:
    """Compare the records of both sides, as `compare` does, and say what could not be read of
    them.
    """
    for side in (before, after):
        if side.damage and not side.records:
            raise ValueError(f"no record can be read: {side.damage[0]}")
    compared = compare(
        before.records, after.records, threshold=threshold, across_machines=across_machines
    )
    damage = [
        *(f"before: {each}" for each in before.damage),
        *(f"after: {each}" for each in after.damage),
    ]
    return replace(compared, damage=tuple(damage))


def compare(
    before: Sequence[Record],
    after: Sequence[Record],
    *,
    threshold: Fraction = THRESHOLD,
    across_machines: bool = False,
) -> Compared:
    """Changes, in the order of `after`; times of different machines are compared only when told.
    ValueError for an empty side.

    Of several records of a scenario the last one of a side counts.
    """
    for side, records in (("first", before), ("second", after)):
        if not records:
            raise ValueError(
                f"the {side} side of the comparison has no records; profile something there first"
            )
    old, new = _latest(before), _latest(after)
    return Compared(
        pairs=tuple(
            _pair(old[key], new[key], threshold, across_machines) for key in new if key in old
        ),
        only_before=tuple(record for key, record in old.items() if key not in new),
        only_after=tuple(record for key, record in new.items() if key not in old),
        threshold=threshold,
        superseded=len(before) - len(old) + len(after) - len(new),
    )


def _runs_under(path: Path) -> list[Path]:
    """The folders of runs right under a folder, each once; FileNotFoundError where there are
    none.
    """
    folders = sorted(path.iterdir(), reverse=True) if path.is_dir() else []
    # A link to a run beside it, such as "latest", is that run and no other.
    runs = {folder.resolve(): folder for folder in folders if _may_hold_run(folder)}
    if not runs:
        raise FileNotFoundError(
            f"no run in {path}; name the folder of a run, such as runs/gpt2-xl, or a folder of runs"
        )
    return sorted(runs.values())


def _may_hold_run(folder: Path) -> bool:
    """Return False for a folder without a run; one that may not be looked into may hold the
    newest.
    """
    try:
        (folder / "records.jsonl").lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def _unreadable_times(runs: Mapping[str, Sequence[Record]]) -> Iterator[str]:
    """Name the first record of each run whose time is none: it may be newer than those of other
    runs.
    """
    for name, records in runs.items():
        for record in records:
            time = record.environment.time
            if time is not None and _moment(time) is None:
                yield (
                    f"{name}/records.jsonl: the time of a record, {schema.shown(time)}, cannot be"
                    " read"
                )
                break


def _in_time(runs: Iterable[Sequence[Record]]) -> list[Record]:
    """The records of all runs, those of a scenario by the time of its last record in each run.

    Within a run their order stands: the clock may have been set back, the file only grows.
    """
    grouped: dict[bytes, dict[int, list[Record]]] = {}
    for number, records in enumerate(runs):
        for record in records:
            grouped.setdefault(scenario_key(record.scenario), {}).setdefault(number, []).append(
                record
            )
    groups = (
        sorted(group.values(), key=lambda found: _time(found[-1])) for group in grouped.values()
    )
    return [record for group in groups for found in group for record in found]


def _time(record: Record) -> float:
    """Seconds since 1970 until the record was made; a record without a time is older than any with
    one.
    """
    moment = _moment(record.environment.time)
    if moment is None:
        return -math.inf
    return (
        moment.replace(tzinfo=moment.tzinfo or UTC) - datetime(1970, 1, 1, tzinfo=UTC)
    ).total_seconds()


def _moment(time: object) -> datetime | None:
    try:
        return datetime.fromisoformat(str(time))
    except ValueError:
        return None


def _latest(records: Iterable[Record]) -> dict[bytes, Record]:
    """The last record of each scenario, in the order of the first."""
    return {scenario_key(record.scenario): record for record in records}


def _pair(before: Record, after: Record, threshold: Fraction, across_machines: bool) -> Pair:
    changes: list[Change] = []
    if before.outcome == after.outcome == "ok":
        reason = _refusal(before, after, across_machines)
        for metric in METRICS:
            pair = _figure(before, metric), _figure(after, metric)
            if pair[0] is not None and pair[1] is not None:
                changes.append(_change(metric, pair[0], pair[1], threshold, reason))
    return Pair(before=before, after=after, changes=tuple(changes))


def _change(metric: str, before: Any, after: Any, threshold: Fraction, reason: str) -> Change:
    if METRICS[metric].kind == "bytes":
        return _byte_change(metric, before, after)
    if metric == "estimate":
        ratio = Ratio(value=after / before) if before > 0 else None
        verdict = _judged(ratio, threshold) if ratio else "not compared"
        return Change(metric=metric, before=before, after=after, ratio=ratio, verdict=verdict)
    ratio = None if reason or min(min(before), min(after)) <= 0 else Ratio.of(before, after)
    note = reason or (
        "a time of 0" if ratio is None else "too few samples" if ratio.low is None else ""
    )
    verdict = "not compared" if ratio is None or note else _judged(ratio, threshold)
    return Change(
        metric=metric,
        before=median(before),
        after=median(after),
        ratio=ratio,
        verdict=verdict,
        note=note,
    )


@lru_cache(maxsize=10_000)
def _byte_change(metric: str, before: int, after: int) -> Change:
    """Return the change of a figure in bytes, one object for all scenarios that have the same."""
    verdict = "same" if before == after else "regressed" if after > before else "improved"
    ratio = Ratio(value=after / before) if before else None
    return Change(metric=metric, before=before, after=after, ratio=ratio, verdict=verdict)


def _judged(ratio: Ratio, threshold: Fraction) -> Verdict:
    highest = ratio.value if ratio.high is None else ratio.high
    slower, faster = _bounds(threshold)
    return "regressed" if _least(ratio) > slower else "improved" if highest < faster else "same"


@lru_cache
def _bounds(threshold: Fraction) -> tuple[float, float]:
    """Return the numbers that a float is beyond exactly where it is beyond 1 more or less the
    threshold.
    """
    slower, faster = float(1 + threshold), float(1 - threshold)
    return (
        math.nextafter(slower, -math.inf) if slower > 1 + threshold else slower,
        math.nextafter(faster, math.inf) if faster < 1 - threshold else faster,
    )


def _least(ratio: Ratio) -> float:
    return ratio.value if ratio.low is None else ratio.low


def _figure(record: Record, metric: str) -> Any:
    """Bytes, one estimate, or samples in seconds; None where the record does not tell."""
    memory, kept = record.memory, METRICS[metric].field.partition(".")[2]
    if metric == "estimate":
        return record.estimate.seconds if record.estimate else None
    if METRICS[metric].kind == "seconds":
        return (record.times or {}).get(kept) or None
    # The workload "state" takes no training step that could have a peak.
    if memory is None or (metric in ("peak", "reserved") and record.scenario.workload != "train"):
        return None
    return getattr(memory, kept)


def _refusal(before: Record, after: Record, across_machines: bool) -> str:
    """Why the times of two records are not compared; empty where they are."""
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
    """What makes two machines the same for a clock: processor, cores, GPU and the threads that
    torch uses; None where it is not told.
    """
    machine = record.environment.machine
    if machine is None or not machine.cpu:
        return None
    return machine.cpu, machine.cores, machine.gpu, record.environment.threads
