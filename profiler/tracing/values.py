"""The values of small tensors beside a trace, so that code that branches on them takes its real branch.

What follows from the inputs and from constants alone (token ids, positions, masks) is computed on the
host, operation by operation, while its meta tensor is traced.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

_LARGEST_VALUE = 1 << 22
# A mask is often made of floating-point ones; images are larger, and steer nothing.
_LARGEST_FLOATING = 1 << 16
_CONSTANTS = frozenset(map(id, (torch.ops.aten.ones.default, torch.ops.aten.zeros.default, torch.ops.aten.full.default)))
# Their outputs have as many elements as their operands' values say.
SIZED_BY_VALUES = frozenset(
    map(
        id,
        (
            torch.ops.aten.nonzero.default,
            torch.ops.aten._unique2.default,
            torch.ops.aten.unique_consecutive.default,
            torch.ops.aten.repeat_interleave.Tensor,
            torch.ops.aten.bincount.default,
        ),
    )
)


def with_value(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor like this CPU tensor; whole numbers and small tensors remember their values."""
    twin = tensor.to("meta")
    if not tensor.is_floating_point() or tensor.numel() <= _LARGEST_FLOATING:
        _remember(twin, tensor)
    return twin


class UnknownError(Exception):
    """An operand has no value."""


def has_values(func: Any, args: Any, outputs: list[Any]) -> bool:
    """Return whether an operation's outputs may have values: whole numbers, constants, and what is made of values."""
    for output in outputs:
        if isinstance(output, torch.Tensor) and output.is_meta and not output.dtype.is_floating_point:
            return True
    for arg in args:
        if isinstance(arg, torch.Tensor) and getattr(arg, "_traced_value", None) is not None:
            return True
    return id(func) in _CONSTANTS


def run_on_values(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Return what an operation of SIZED_BY_VALUES makes, as meta tensors; UnknownError where a value is missing."""
    return tree_map(with_value, func(*tree_map(_known, args), **tree_map(_known, dict(kwargs))))


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor on the host: itself, or the value that a meta tensor remembers; None where there is none."""
    if tensor.device.type == "cpu":
        return tensor
    value = getattr(tensor, "_traced_value", None)
    return None if value is None or getattr(value.untyped_storage(), "_is_overwritten", False) else value


def _remember(tensor: Any, value: torch.Tensor | None) -> None:
    tensor._traced_value = value


def _forget(tensor: Any) -> None:
    """Drop the value of a tensor into which something unknown was written, and of all that share its memory."""
    value: Any = getattr(tensor, "_traced_value", None)
    if value is not None:
        value.untyped_storage()._is_overwritten = True
        tensor._traced_value = None


def compute_values(func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Any]) -> None:
    """Do on the host what `func` did on meta tensors, when the values of all operands are known and small."""
    on_device = [output for output in outputs if isinstance(output, torch.Tensor) and output.device.type == "meta"]
    try:
        if any(output.numel() > _LARGEST_VALUE for output in on_device):
            raise UnknownError
        values = func(*tree_map(_known, args), **tree_map(_known, dict(kwargs)))
    except (UnknownError, RuntimeError):
        # RuntimeError: the host has no kernel for some operations in half precision.
        # An output that had a value was written in place with something unknown.
        for output in on_device:
            _forget(output)
        return
    for output, value in zip(outputs, tree_leaves(values), strict=True):
        if any(output is tensor for tensor in on_device):
            _remember(output, value)


def _known(operand: Any) -> Any:
    """An operand as it is on the host; UnknownError for a device tensor without a value."""
    if isinstance(operand, torch.device):
        return torch.device("cpu")
    if not isinstance(operand, torch.Tensor):
        return operand
    value = value_of(operand)
    if value is None:
        raise UnknownError
    return value
