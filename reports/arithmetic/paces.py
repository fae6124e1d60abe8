"""Paces: how long each optimizer's step takes against the baseline's, where both were timed alike."""

from collections.abc import Sequence
from dataclasses import dataclass

from .entries import Entry, by_setting
from .ratios import Ratio
from .savings import BASELINE, reference


@dataclass(frozen=True, kw_only=True)
class Pace:
    """The time of one optimizer's step as a multiple of the baseline's, with the 95 % interval of that ratio."""

    entry: Entry
    ratio: Ratio


def paces(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Pace]:
    """A pace for each entry, but the baseline's own, whose step was timed on the same device and implementation as the baseline's."""
    rows = []
    for group in by_setting(entries).values():
        standard = reference([entry for entry in group if entry.step], baseline)
        for entry in group:
            if standard and entry is not standard and entry.step and standard.step and _alike(entry, standard):
                rows.append(Pace(entry=entry, ratio=Ratio.of(standard.step.samples, entry.step.samples)))
    return rows


def _alike(entry: Entry, other: Entry) -> bool:
    scenarios = [found.times_from.scenario for found in (entry, other) if found.times_from]
    # A clock too coarse for a step tells 0, which is no times anything.
    timed = all(found.step and found.step.smallest > 0 for found in (entry, other))
    return timed and len({(scenario.device, scenario.implementation) for scenario in scenarios}) == 1
