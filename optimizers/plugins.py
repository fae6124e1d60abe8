"""Optimizers that other packages add: the entry points of the group `optprof.optimizers`.

    [project.entry-points."optprof.optimizers"]
    mine = "my_package:Mine"

names a subclass of torch.optim.Optimizer, or an `optprof.optimizers.Entry` that describes one.
Nothing is imported before its name is used.
"""

import sys
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from torch.optim.optimizer import Optimizer

from .entry import Description, Entry

GROUP = "optprof.optimizers"


def found() -> dict[str, tuple[EntryPoint, ...]]:
    """The entry points of every name that a package adds."""
    return _found(tuple(sys.path))


@lru_cache(maxsize=4)
def _found(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    del path  # the answer depends on it
    named: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        named[point.name] = (*named.get(point.name, ()), point)
    return named


def owner(point: EntryPoint) -> str:
    """The name of the package that adds it."""
    return point.dist.name if point.dist else "a package"


def load(point: EntryPoint) -> Entry:
    """What the entry point names, as an entry; ValueError for what cannot be imported and for what
    is no optimizer.
    """
    try:
        loaded: Any = point.load()
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ValueError(
            f"cannot load {point.name}, which {owner(point)} adds as {point.value}: {reason}"
        ) from error
    if isinstance(loaded, Entry):
        return loaded
    if not (isinstance(loaded, type) and issubclass(loaded, Optimizer)):
        raise ValueError(
            f"{point.name}, which {owner(point)} adds as {point.value}, is {loaded!r}, not a"
            " subclass of torch.optim.Optimizer"
        )
    summary = (loaded.__doc__ or "").strip().partition("\n")[0]
    description = Description(
        summary=summary or f"added by {owner(point)}", paper="", state="not described"
    )
    return Entry(factory=loaded, description=description, package=owner(point))
