"""The numbers of an optimizer's parameter groups, as one flat dictionary to log."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from torch import Tensor

Aggregate = Literal["mean", "max", "min"]
_AGGREGATES = {"mean": fmean, "max": max, "min": min}


def of_groups(groups: Sequence[Mapping[str, Any]], aggregate: Aggregate) -> dict[str, float]:
    """Every number that all groups have, such as `lr`; where groups differ its name ends in `*` and
    the value is their mean, max or min.
    """
    if aggregate not in _AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(_AGGREGATES)}, got {aggregate!r}")
    found: dict[str, float] = {}
    for name in groups[0]:
        values = [_number(group.get(name)) for group in groups]
        known = [value for value in values if value is not None]
        if len(known) < len(values):
            continue
        if all(value == known[0] for value in known):
            found[name] = known[0]
        else:
            found[f"{name}*"] = _AGGREGATES[aggregate](known)
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else None
    return value if isinstance(value, int | float) else None
