"""An entry of the catalogue: what makes the optimizer, and what people should know of it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch.optim.optimizer import Optimizer


@dataclass(frozen=True, kw_only=True)
class Description:
    """An optimizer in words: what it does, where it was published, what its state costs and which options decide that."""

    summary: str
    paper: str
    state: str
    decided_by: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A constructor, the options that the catalogue sets unless told otherwise, and a description."""

    factory: Callable[..., Optimizer]
    description: Description
    options: Mapping[str, Any] = field(default_factory=dict)
