"""Savings: the state of each optimizer against the state of a baseline on the same model and dtype.

The baseline is one that runs its step the same way, as a loop, foreach, fused or compiled, where
the run has it; else another, which is said.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .entries import Entry, Setting, by_setting
from .labels import unusual_options

BASELINE = "adamw"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One optimizer's state beside the baseline's, in exact bytes; `baseline` is the entry that it
    is set against, or the entry itself.
    """

    entry: Entry
    baseline: Entry
    state_bytes: int
    baseline_bytes: int

    @property
    def is_baseline(self) -> bool:
        """Whether the entry is what the others of its implementation are set against."""
        return self.entry is self.baseline

    @property
    def is_alike(self) -> bool:
        """Whether both run their step the same way."""
        return self.entry.scenario.implementation == self.baseline.scenario.implementation

    @property
    def saved_bytes(self) -> int:
        """Bytes less than the baseline keeps; below zero for an optimizer that keeps more."""
        return self.baseline_bytes - self.state_bytes

    @property
    def factor(self) -> float:
        """How many times this state fits into the baseline's; infinite for an optimizer that keeps
        none.
        """
        return self.baseline_bytes / self.state_bytes if self.state_bytes else math.inf

    @property
    def share_kept(self) -> float:
        """This state as a share of the baseline's."""
        return self.state_bytes / self.baseline_bytes if self.baseline_bytes else math.inf


def savings(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Saving]:
    """A saving for each entry whose setting has the baseline, the baseline's own among them."""
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


def without_baseline(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Setting]:
    """The settings whose entries have bytes but no baseline to be compared with."""
    groups = by_setting([entry for entry in entries if entry.state_bytes is not None])
    return [setting for setting, group in groups.items() if not _candidates(group, baseline)]


def references(group: Sequence[Entry], baseline: str) -> dict[str, Entry]:
    """The baseline's entry that those of a group are set against, by the way that they run their
    step.

    Of several it is one with its usual bytes, of those one run alike. Empty for a group without a
    baseline.
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


@dataclass(frozen=True, kw_only=True)
class SavingsMatrix:
    """Savings as a map: a row a label, a column a setting; a cell that no record tells is not
    there.
    """

    labels: tuple[str, ...]
    settings: tuple[Setting, ...]
    cells: Mapping[tuple[str, Setting], Saving]


def savings_matrix(savings: Sequence[Saving]) -> SavingsMatrix:
    """The savings by label and setting, both in the order of the run."""
    cells = {(saving.entry.label, saving.entry.setting): saving for saving in savings}
    return SavingsMatrix(
        labels=tuple(dict.fromkeys(label for label, _ in cells)),
        settings=tuple(dict.fromkeys(setting for _, setting in cells)),
        cells=cells,
    )
