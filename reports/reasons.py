"""Reasons: why a saving of state may not be seen, in a sentence or a cell, from records alone."""

from collections.abc import Sequence

from .arithmetic.visibility import Sight
from .units import BINARY, MINUS, Units, bytes_text, percent_text
from .words import category_name, phase_name

# A part of a difference below this share of it explains nothing.
TELLING = 0.05


def hidden_most(sights: Sequence[Sight], units: Units = BINARY) -> str:
    """The saving that is hidden most, in one sentence.

    Without a saving it is about the first peak; empty where only states are known.
    """
    saving = [
        (sight.state_saved - sight.allocated_saved, sight)
        for sight in sights
        if sight.state_saved and sight.state_saved > 0 and sight.allocated_saved is not None
    ]
    if saving:
        return _hidden(max(saving, key=lambda pair: pair[0])[1], units)
    peaking = next((sight for sight in sights if sight.allocated), None)
    if peaking is None or peaking.allocated is None:
        return ""
    share = percent_text(peaking.state, peaking.allocated)
    phase = f" in {phase_name(peaking.phase)}" if peaking.phase else ""
    return f"The state of {peaking.entry.label} is {share} of its peak{phase}."


def _hidden(sight: Sight, units: Units) -> str:
    other = sight.baseline
    assert other is not None, "a saving has a baseline"
    baseline = other.entry.scenario.optimizer
    where = ""
    if sight.phase and other.phase:
        where = (
            f"; both peaks lie in {phase_name(sight.phase)}"
            if sight.phase == other.phase
            else f"; its peak lies in {phase_name(sight.phase)}, that of {baseline} in"
            f" {phase_name(other.phase)}"
        )
    reserved = sight.reserved_saved
    more = "" if reserved is None else f", its reserved peak {_lower(reserved, units)}"
    return (
        f"{sight.entry.label} keeps {bytes_text(sight.state_saved or 0, units)} less state than"
        f" {baseline}: its allocated peak is {_lower(sight.allocated_saved or 0, units)}{more}"
        f"{where}."
    )


def other_parts(sight: Sight, units: Units = BINARY) -> str:
    """The other parts in which the peak differs from the baseline's: activations +4.88 KiB."""
    least = TELLING * abs(sight.state_saved or 0)
    return ", ".join(
        f"{category_name(name)} {'+' if count > 0 else MINUS}{bytes_text(abs(count), units)}"
        for name, count in sight.moved
        if name != "optimizer_state" and abs(count) > least
    )


def _lower(count: int, units: Units) -> str:
    if not count:
        return "as high"
    return f"{bytes_text(abs(count), units)} {'lower' if count > 0 else 'higher'}"
