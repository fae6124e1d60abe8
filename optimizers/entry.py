"""An entry of the catalogue: what makes the optimizer, and what people should know of it."""

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

from torch.optim.optimizer import Optimizer

Factory = Callable[..., Optimizer]


@dataclass(frozen=True, kw_only=True)
class Description:
    """An optimizer in words: what it does, where it was published, what its state costs and which
    options decide that.
    """

    summary: str
    paper: str
    state: str
    decided_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A constructor, the options that the catalogue sets unless told otherwise, and a description.

    `factory` may be text, `module:name`, which is imported when the optimizer is first made.
    `package` is the package that it comes from, `installed_by` what pip is told to get that.
    `goes_by_names` where the parameters' names decide what is kept of them, so that it should be
    given `named_parameters()`. `fused_on` has the types of devices on which its `fused`, if it has
    that option, can be requested. `has_foreach` is False where its option `foreach` changes
    nothing, `foreach_by_default` where `foreach=None` runs the loop on CUDA too.
    """

    factory: Factory | str
    description: Description
    options: Mapping[str, Any] = field(default_factory=dict)
    package: str = "optprof"
    installed_by: str = ""
    goes_by_names: bool = False
    fused_on: tuple[str, ...] = ("cpu", "cuda")
    has_foreach: bool = True
    foreach_by_default: bool = True

    @property
    def is_installed(self) -> bool:
        """Whether the package is there, which is found without importing it."""
        return not self.installed_by or find_spec(self.package) is not None

    def load(self) -> Factory:
        """The constructor; ImportError or AttributeError where it cannot be had."""
        if not isinstance(self.factory, str):
            return self.factory
        module, _, name = self.factory.partition(":")
        return getattr(importlib.import_module(module), name)
