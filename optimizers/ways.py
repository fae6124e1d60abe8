"""The ways to run a step: which one a group takes, and what runs it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch
from torch.optim.optimizer import (
    Optimizer,
    _default_to_fused_or_foreach,  # pyright: ignore[reportPrivateImportUsage]
)

from . import compiled, fused
from .bucket import Bucket

if TYPE_CHECKING:
    from .multi_tensor import MultiTensorOptimizer

Implementation = Literal["loop", "foreach", "fused", "compiled"]
WAYS: tuple[Implementation, ...] = get_args(Implementation)
# The options of a constructor or a group that choose a way; without any of them the loop runs.
SWITCHES: tuple[Implementation, ...] = ("foreach", "fused", "compiled")


def chosen_way(options: Mapping[str, Any]) -> Implementation | None:
    """Return the way that options choose, None if they leave it open."""
    for way in ("compiled", "fused"):
        if options.get(way):
            return way
    foreach = options.get("foreach")
    return None if foreach is None else "foreach" if foreach else "loop"


def way_of_group(optimizer: Optimizer, group: Mapping[str, Any]) -> Implementation:
    """Return how the step of a group runs; torch settles what the group leaves open."""
    if (way := chosen_way(group)) is not None:
        return way
    if "foreach" not in group or not _leaves_foreach_to_torch(optimizer, group):
        return "loop"
    _, foreach = _default_to_fused_or_foreach(
        group["params"], bool(group.get("differentiable")), use_fused=False
    )
    return "foreach" if foreach else "loop"


def _leaves_foreach_to_torch(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    if getattr(optimizer, "ignores_unfused", False):
        return True
    if group.get("fused") is not None:
        # Torch takes fused=False for a choice of the loop.
        return False
    if (
        isinstance(optimizer, torch.optim.Adam)
        and isinstance(group.get("lr"), torch.Tensor)
        and not group.get("capturable")
    ):
        return False
    # Adafactor's module does not import torch's function: it is a loop unless foreach is True.
    modules = [
        sys.modules.get(kind.__module__)
        for kind in type(optimizer).__mro__
        if kind is not Optimizer
    ]
    return any(hasattr(module, _default_to_fused_or_foreach.__name__) for module in modules)


def _update(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    optimizer._update(bucket)


RUNNERS: Mapping[Implementation, Callable[[MultiTensorOptimizer, Bucket], None]] = {
    "loop": _update,
    "foreach": _update,
    "fused": fused.run,
    "compiled": compiled.run,
}
