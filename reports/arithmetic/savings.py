"""Savings: the state of each optimizer against the state of a baseline on the same model and dtype."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .entries import Entry, Setting, by_setting
from .labels import unusual_bytes

BASELINE = "adamw"


@dataclass(frozen=True, kw_only=True)
class Saving:
    """One optimizer's state beside the baseline's, in exact bytes."""

    entry: Entry
    state_bytes: int
    baseline_bytes: int
    is_baseline: bool

    @property
    def saved_bytes(self) -> int:
        """Bytes less than the baseline keeps; below zero for an optimizer that keeps more."""
        return self.baseline_bytes - self.state_bytes

    @property
    def factor(self) -> float:
        """How many times this state fits into the baseline's; infinite for an optimizer that keeps none."""
        return self.baseline_bytes / self.state_bytes if self.state_bytes else math.inf

    @property
    def share_kept(self) -> float:
        """This state as a share of the baseline's."""
        return self.state_bytes / self.baseline_bytes if self.baseline_bytes else math.inf


def savings(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Saving]:
    """A saving for each entry whose setting has the baseline, the baseline's own among them."""
    rows = []
    for group in by_setting(entries).values():
        standard = reference(group, baseline)
        if standard is None or not standard.state_bytes:
            continue
        rows += [
            Saving(
                entry=entry,
                state_bytes=entry.state_bytes,
                baseline_bytes=standard.state_bytes,
                is_baseline=entry is standard,
            )
            for entry in group
            if entry.state_bytes is not None
        ]
    return rows


def without_baseline(entries: Sequence[Entry], baseline: str = BASELINE) -> list[Setting]:
    """The settings whose entries have bytes but no baseline to be compared with."""
    groups = by_setting([entry for entry in entries if entry.state_bytes is not None])
    return [setting for setting, group in groups.items() if reference(group, baseline) is None]


def reference(group: Sequence[Entry], baseline: str) -> Entry | None:
    """The baseline's entry; of several, the one with its usual bytes."""
    candidates = [entry for entry in group if entry.scenario.optimizer == baseline and entry.state_bytes]
    candidates.sort(key=lambda entry: bool(unusual_bytes(baseline, entry.scenario.options)))
    return candidates[0] if candidates else None


@dataclass(frozen=True, kw_only=True)
class SavingsMatrix:
    """Savings as a map: a row a label, a column a setting; a cell that no record tells is not there."""

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
