"""Entries of the catalogues: what makes an optimizer, and what people should know about it.

Other packages add optimizers by entry points of the group `optprof.optimizers`:

    [project.entry-points."optprof.optimizers"]
    mine = "my_package:Mine"

names a subclass of torch.optim.Optimizer or an `optprof.optimizers.CatalogueEntry`. Nothing is
imported before its name is used.
"""

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec
from typing import Any

from .spec import one_line

GROUP = "optprof.optimizers"
Factory = Callable[..., Any]


@dataclass(frozen=True, kw_only=True)
class CatalogueEntry:
    """A constructor, the options that the catalogue sets by default, and a description.

    `summary` says what it does, `paper` where it was published, `state` what its state costs, and
    `decided_by` which options change that cost. `factory` may be a text `module:name`, which is
    imported when the optimizer is first made. `package` is the package that it comes from,
    `installed_by` pip's argument to get that. With `goes_by_names` the names of parameters decide
    about their state, so that it needs `named_parameters()`. `fused_on` has the device types for
    its option `fused`. `has_foreach` is False if its option `foreach` changes nothing,
    `foreach_by_default` if `foreach=None` runs the loop on CUDA too.
    """

    factory: Factory | str
    summary: str
    paper: str
    state: str
    decided_by: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = "optprof"
    installed_by: str = ""
    goes_by_names: bool = False
    fused_on: tuple[str, ...] = ("cpu", "cuda")
    has_foreach: bool = True
    foreach_by_default: bool = True

    @property
    def is_installed(self) -> bool:
        """Return whether the package is installed, without importing it."""
        return not self.installed_by or find_spec(self.package) is not None

    def load(self) -> Factory:
        """Return the constructor; ImportError or AttributeError if there is none."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)


def added_by_packages() -> dict[str, tuple[EntryPoint, ...]]:
    """Return the entry points of every name that packages add."""
    return _added(tuple(sys.path))


@lru_cache(maxsize=4)
def _added(path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    del path  # the result depends on it
    added: dict[str, tuple[EntryPoint, ...]] = {}
    for point in entry_points(group=GROUP):
        added[point.name] = (*added.get(point.name, ()), point)
    return added


def owner(point: EntryPoint) -> str:
    """Return the name of the package that adds an entry point."""
    return point.dist.name if point.dist else "a package"


def load_added(point: EntryPoint) -> CatalogueEntry:
    """Return an entry point's optimizer as an entry; ValueError if it is none or not importable."""
    try:
        loaded: Any = point.load()
    except Exception as error:
        raise ValueError(
            f"cannot load {point.name}, which {owner(point)} adds as {point.value}:"
            f" {one_line(error)}"
        ) from error
    if isinstance(loaded, CatalogueEntry):
        return loaded
    # Not before: names are checked without torch.
    from torch.optim.optimizer import Optimizer

    if not (isinstance(loaded, type) and issubclass(loaded, Optimizer)):
        raise ValueError(
            f"{point.name}, which {owner(point)} adds as {point.value}, is {loaded!r}, not a"
            " subclass of torch.optim.Optimizer"
        )
    summary = (loaded.__doc__ or "").strip().partition("\n")[0]
    return CatalogueEntry(
        factory=loaded,
        summary=summary or f"added by {owner(point)}",
        paper="",
        state="not described",
        package=owner(point),
    )
