"""Reasons: sentences on why a saving of state may not be seen, from the records alone."""

from .arithmetic.visibility import Sight
from .units import BINARY, Units, bytes_text, gib_text, percent_text
from .words import category_name, listed, phase_name

# A part of a difference below this share of it explains nothing.
TELLING = 0.05


def reasons(sight: Sight, units: Units = BINARY) -> list[str]:
    """The sentences of one optimizer: the saving, then the effects that hide it.

    Empty where only the state is known.
    """
    parts = (_saving, _phases, _foreach, _rounding, _fragmentation, _driver)
    return [sentence for sentence in (part(sight, units) for part in parts) if sentence]


def _saving(sight: Sight, units: Units) -> str:
    label = sight.entry.label
    if sight.allocated is None:
        return ""
    if sight.baseline is None or sight.state_saved is None:
        share, other = (
            percent_text(sight.state, sight.allocated),
            bytes_text(sight.allocated - sight.state, units),
        )
        return (
            f"The state of {label} is {share} of its peak: {other} of the peak are something else."
        )
    falls = [
        f"the allocated peak {_falls(sight.allocated_saved, units)}",
        f"the reserved peak {_falls(sight.reserved_saved, units)}",
    ]
    return (
        f"{label} keeps {_less(sight.state_saved, units)} state than {_name(sight.baseline)};"
        f" {' and '.join(falls)}."
    )


def _phases(sight: Sight, units: Units) -> str:
    other = sight.baseline
    if other is None or not sight.phase or not other.phase:
        return f"Its peak lies in {phase_name(sight.phase)}." if sight.phase else ""
    if sight.phase == other.phase:
        where = f"Both peaks lie in {phase_name(sight.phase)}."
    else:
        where = (
            f"Its peak lies in {phase_name(sight.phase)}, that of {_name(other)} in"
            f" {phase_name(other.phase)}."
        )
    least = TELLING * abs(sight.state_saved or 0)
    parts = [
        (name, count)
        for name, count in sight.moved
        if name != "optimizer_state" and abs(count) > least
    ]
    if not parts:
        return where
    changes = [
        f"{bytes_text(abs(count), units)} {'more' if count > 0 else 'less'} of"
        f" {category_name(name)}"
        for name, count in parts
    ]
    return f"{where} Apart from the state, its own holds {listed(changes)}."


def _foreach(sight: Sight, units: Units) -> str:
    costs = sight.foreach_costs
    if costs is not None:
        return f"As foreach the peak is {_than(costs, units)} as a loop."
    nbytes = dict(sight.parts).get("temporary", 0)
    if sight.entry.scenario.implementation != "foreach" or sight.phase != "step" or not nbytes:
        return ""
    return (
        f"At that moment {bytes_text(nbytes, units)} are temporaries of the step, which foreach"
        " takes for many tensors at once; this run has no result of its loop to compare with"
        " (--implementation loop)."
    )


def _rounding(sight: Sight, units: Units) -> str:
    more = sight.rounding
    if not more:
        return ""
    if more < 0:
        return (
            f"The state's blocks are {bytes_text(-more, units)} smaller than its tensors: some of"
            " them are on the host."
        )
    return (
        f"The blocks that hold the state are {bytes_text(more, units)} larger than its tensors, so"
        " memory_allocated counts that much more."
    )


def _fragmentation(sight: Sight, units: Units) -> str:
    spare = sight.fragmentation
    if not spare or sight.reserved is None:
        return ""
    size = f"{bytes_text(spare, units)} ({percent_text(spare, sight.reserved)})"
    return (
        f"The allocator has reserved {size} more than is ever in use, and nvidia-smi shows what is"
        " reserved."
    )


def _driver(sight: Sight, units: Units) -> str:
    if sight.driver is None or sight.reserved is None:
        return ""
    whole, more = (
        f"{gib_text(sight.driver, units, sight.driver_upper)} {units.giga}",
        bytes_text(sight.driver - sight.reserved, units),
    )
    if sight.driver_is_read:
        return (
            f"The driver counted {whole} for the process, {more} more than the allocator had"
            " reserved."
        )
    return (
        f"The driver would count about {whole}: CUDA's context takes some {more} more than is"
        " reserved (estimated)."
    )


def _name(sight: Sight) -> str:
    return sight.entry.scenario.optimizer


def _than(more: int, units: Units) -> str:
    return (
        f"{bytes_text(more, units)} higher than"
        if more > 0
        else f"{bytes_text(-more, units)} lower than"
        if more
        else "as high as"
    )


def _less(count: int, units: Units) -> str:
    return (
        f"{bytes_text(count, units)} less"
        if count > 0
        else f"{bytes_text(-count, units)} more"
        if count
        else "as much"
    )


def _falls(count: int | None, units: Units) -> str:
    if count is None:
        return "is not known"
    return (
        f"falls by {bytes_text(count, units)}"
        if count > 0
        else f"rises by {bytes_text(-count, units)}"
        if count
        else "stays"
    )
