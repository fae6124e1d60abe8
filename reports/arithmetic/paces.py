"""Paces: how long each optimizer's step takes against the baseline's, where both were timed
alike.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from .entries import Entry, by_setting
from .ratios import Ratio
from .savings import BASELINE, references


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time of one optimizer's step as a multiple of the baseline's, with the 95 % interval of
    that ratio.
    """

    entry: Entry
    ratio: Ratio


def paces(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Pace]:
    """A pace for each entry, but the baseline's own, whose step was timed on the same device and
    implementation as a baseline's.
    """
    rows = []
    for group in by_setting(entries).values():
        clocks = [(entry, _clock(entry)) for entry in group if entry.step]
        alike: dict[tuple[str, str] | None, list[Entry]] = {}
        for entry, clock in clocks:
            alike.setdefault(clock, []).append(entry)
        standards = {clock: references(others, baseline) for clock, others in alike.items()}
        for entry, clock in clocks:
            standard = standards[clock].get(entry.scenario.implementation)
            if clock and standard and entry is not standard and entry.step and standard.step:
                rows.append(
                    Pace(entry=entry, ratio=Ratio.of(standard.step.samples, entry.step.samples))
                )
    return rows


def _clock(entry: Entry) -> tuple[str, str] | None:
    """The device and the implementation that the step was timed on; None for a clock too coarse for
    it, whose 0 is no times anything.
    """
    if entry.times_from is None or entry.step is None or entry.step.smallest <= 0:
        return None
    return entry.times_from.scenario.device, entry.times_from.scenario.implementation
