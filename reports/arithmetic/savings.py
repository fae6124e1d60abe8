"""Savings and paces: each optimizer's state and step against a baseline's in the same setting.

The baseline runs its step the same way, as a loop, foreach, fused or compiled, if the run has such
a result. Otherwise it runs another way, and the report says so.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from .entries import Entry, Setting, by_setting
from .labels import unusual_options
from .ratios import Ratio

# The usual baselines; a run without them is compared with its first optimizer.
USUAL = ("adamw", "adam")


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One optimizer's state and the baseline's, in exact bytes.

    `baseline` is the baseline's entry, which for the baseline itself is `entry`.
    """

    entry: Entry
    baseline: Entry
    state_bytes: int
    baseline_bytes: int

    @property
    def is_baseline(self) -> bool:
        """Return whether the entry is a baseline of others."""
        return self.entry is self.baseline

    @property
    def is_alike(self) -> bool:
        """Return whether both run their step the same way."""
        return self.entry.scenario.implementation == self.baseline.scenario.implementation

    @property
    def saved_bytes(self) -> int:
        """Bytes less than the baseline keeps, negative for an optimizer that keeps more."""
        return self.baseline_bytes - self.state_bytes

    @property
    def factor(self) -> float:
        """The baseline's state as a multiple of this one, infinite for a state of 0 bytes."""
        return self.baseline_bytes / self.state_bytes if self.state_bytes else math.inf

    @property
    def share_kept(self) -> float:
        """This state as a share of the baseline's."""
        return self.state_bytes / self.baseline_bytes if self.baseline_bytes else math.inf


def baseline_of(records: Sequence[Record], requested: str | None = None) -> str:
    """Return the name of the optimizer that a run's others are compared with.

    It is the requested one, else adamw, else adam, else the first that keeps a state. ValueError
    for a requested one that the run does not have.
    """
    names = dict.fromkeys(record.scenario.optimizer for record in records)
    if requested is not None:
        require_baseline(requested, names)
        return requested
    with_state = (
        record.scenario.optimizer
        for record in records
        if record.memory and record.memory.optimizer_state
    )
    usual = (name for name in USUAL if name in names)
    return next(usual, None) or next(with_state, None) or next(iter(names))


def require_baseline(name: str, optimizers: Collection[str]) -> None:
    """Raise ValueError unless the baseline is one of these optimizers."""
    if name not in optimizers:
        raise ValueError(
            f"no optimizer of this run is named {name!r}; give --baseline one of"
            f" {', '.join(dict.fromkeys(optimizers))}"
        )


def savings(entries: Sequence[Entry], baseline: str) -> list[Saving]:
    """Return a saving for each entry whose setting has the baseline, also for the baseline."""
    rows = []
    for group in by_setting(entries).values():
        standards = references(group, baseline)
        for entry in group:
            standard = standards.get(entry.scenario.implementation)
            if standard is not None and standard.state_bytes and entry.state_bytes is not None:
                rows.append(
                    Saving(
                        entry=entry,
                        baseline=standard,
                        state_bytes=entry.state_bytes,
                        baseline_bytes=standard.state_bytes,
                    )
                )
    return rows


def paces(entries: Sequence[Entry], baseline: str) -> list[tuple[Entry, Ratio]]:
    """Return the ratio of each entry's step time to the baseline's.

    An entry needs a baseline whose step was timed on the same device with the same implementation.
    """
    ratios = []
    for group in by_setting(entries).values():
        timed = [(entry, clock) for entry in group if (clock := _clock(entry))]
        alike: dict[tuple[str, str], list[Entry]] = {}
        for entry, clock in timed:
            alike.setdefault(clock, []).append(entry)
        standards = {clock: references(others, baseline) for clock, others in alike.items()}
        for entry, clock in timed:
            standard = standards[clock].get(entry.scenario.implementation)
            if standard and entry is not standard and entry.step and standard.step:
                ratios.append((entry, Ratio.of(standard.step.samples, entry.step.samples)))
    return ratios


def unpaced(entries: Sequence[Entry], baseline: str) -> list[tuple[Entry, Entry]]:
    """Return each entry without a ratio, with the baseline's entry that ran another way.

    Both steps were timed on the same device.
    """
    pairs = []
    for group in by_setting(entries).values():
        timed = [(entry, clock) for entry in group if (clock := _clock(entry))]
        of_baseline = [each for each in timed if each[0].scenario.optimizer == baseline]
        for entry, (device, way) in timed:
            ways = {other: standard for standard, (place, other) in of_baseline if place == device}
            if ways and way not in ways:
                pairs.append((entry, next(iter(ways.values()))))
    return pairs


def _clock(entry: Entry) -> tuple[str, str] | None:
    """Return the device and the implementation of the timed step.

    None without times, and for a clock too coarse for them, whose 0 has no ratio.
    """
    if entry.times_from is None or entry.step is None or entry.step.smallest <= 0:
        return None
    return entry.times_from.scenario.device, entry.times_from.scenario.implementation


def without_baseline(entries: Sequence[Entry], baseline: str) -> list[Setting]:
    """Return the settings whose entries have bytes, but no baseline to compare with."""
    groups = by_setting([entry for entry in entries if entry.state_bytes is not None])
    return [setting for setting, group in groups.items() if not _candidates(group, baseline)]


def references(group: Sequence[Entry], baseline: str) -> dict[str, Entry]:
    """Return the baseline's entry for each way in which a step of the group is run.

    Of several entries, one with the usual bytes is preferred, and then one that is run the same
    way. Empty for a group without a baseline.
    """
    candidates = [
        (other, bool(unusual_options(other.record))) for other in _candidates(group, baseline)
    ]
    if not candidates:
        return {}
    ways = dict.fromkeys(entry.scenario.implementation for entry in group)
    return {
        way: min(candidates, key=lambda each: (each[1], each[0].scenario.implementation != way))[0]
        for way in ways
    }


def _candidates(group: Sequence[Entry], baseline: str) -> list[Entry]:
    return [entry for entry in group if entry.scenario.optimizer == baseline and entry.state_bytes]
