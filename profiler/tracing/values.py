"""The values of small whole numbers beside a trace, so that code that branches on them takes its real branch.

What follows from the inputs alone (token ids, positions, masks) is computed on the host, operation by operation, while its meta tensor is
traced.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch.utils._pytree import tree_leaves, tree_map

_LARGEST_VALUE = 1 << 22


def with_value(tensor: torch.Tensor) -> torch.Tensor:
    """A meta tensor like this CPU tensor; whole numbers remember their values."""
    twin = tensor.to("meta")
    if not tensor.is_floating_point():
        _remember(twin, tensor)
    return twin


class _UnknownError(Exception):
    """An operand has no value."""


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """The tensor on the host: itself, or the value that a meta tensor remembers; None where there is none."""
    return tensor if tensor.device.type == "cpu" else getattr(tensor, "_traced_value", None)


def _remember(tensor: Any, value: torch.Tensor | None) -> None:
    tensor._traced_value = value


def compute_values(func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Any]) -> None:
    """Do on the host what `func` did on meta tensors, when the values of all operands are known and small."""
    on_device = [output for output in outputs if isinstance(output, torch.Tensor) and output.device.type == "meta"]
    try:
        if max(output.numel() for output in on_device) > _LARGEST_VALUE:
            raise _UnknownError
        values = func(*tree_map(_known, args), **tree_map(_known, dict(kwargs)))
    except _UnknownError:
        # An output that had a value was written in place with something unknown.
        for output in on_device:
            _remember(output, None)
        return
    for output, value in zip(outputs, tree_leaves(values), strict=True):
        if any(output is tensor for tensor in on_device):
            _remember(output, value)


def _known(operand: Any) -> Any:
    """An operand as it is on the host; _UnknownError for a device tensor without a value."""
    if isinstance(operand, torch.device):
        return torch.device("cpu")
    if not isinstance(operand, torch.Tensor):
        return operand
    value = value_of(operand)
    if value is None:
        raise _UnknownError
    return value
