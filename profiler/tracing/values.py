"""Real values of small tensors during a trace, so that code takes the branches of a real run.

Values that follow from the inputs and from constants alone (token ids, positions, masks) are
computed on the host, operation by operation, while their meta tensors are traced.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_leaves, tree_map

from .layouts import compressed, data_of, made

# The most elements of a value. An operation may have integer outputs as large as its operands: a
# batch of many sequences has values too.
_LARGEST_VALUE, _LARGEST_WHOLE = 1 << 22, 1 << 28
# Masks are often made of floating-point ones. Images are larger, and no branch depends on them.
_LARGEST_FLOATING = 1 << 16
_CONSTANTS = {
    id(torch.ops.aten.ones.default),
    id(torch.ops.aten.zeros.default),
    id(torch.ops.aten.full.default),
}
# The size of their outputs depends on the values of their operands.
SIZED_BY_VALUES = {
    id(torch.ops.aten.nonzero.default),
    id(torch.ops.aten._unique2.default),
    id(torch.ops.aten.unique_consecutive.default),
    id(torch.ops.aten.repeat_interleave.Tensor),
    id(torch.ops.aten.bincount.default),
}

# Without an axis their outputs are allocated for the most elements and then cut, which keeps all
# the memory: UniqueCub.cu.
_UNIQUE, _CONSECUTIVE = torch.ops.aten._unique2.default, torch.ops.aten.unique_consecutive.default


def with_value(tensor: torch.Tensor) -> torch.Tensor:
    """Return a meta tensor like this CPU tensor, with its values if they are integers or few."""
    if tensor.layout is torch.jagged:
        offsets, values = data_of(tensor)
        return torch.nested.nested_tensor_from_jagged(with_value(values), with_value(offsets))
    if tensor.layout is not torch.strided:
        return _sparse_twin(tensor)
    twin = tensor.to("meta")
    if not tensor.is_floating_point() or tensor.numel() <= _LARGEST_FLOATING:
        _remember(twin, tensor)
    return twin


def _sparse_twin(sparse: torch.Tensor) -> torch.Tensor:
    """Return a sparse meta tensor like this sparse CPU tensor, with its entries."""
    *indices, values = data_of(sparse)
    if sparse.layout is not torch.sparse_coo:
        return compressed(
            [part.to("meta") for part in (*indices, values)], sparse.shape, sparse.layout
        )
    twin = made(
        indices[0].to("meta"), values.to("meta"), sparse.shape, coalesced=sparse.is_coalesced()
    )
    remember_entries(twin, indices[0])
    return twin


def entries_of(sparse: torch.Tensor) -> torch.Tensor | None:
    """Return the indices of a sparse tensor on the host, None if they are unknown."""
    return getattr(sparse, "_traced_entries", None)


def remember_entries(sparse: Any, entries: torch.Tensor | None) -> None:
    """Attach the indices on the host to a sparse meta tensor."""
    sparse._traced_entries = entries


class UnknownError(Exception):
    """The value of an operand, or the entries of a sparse one, are unknown."""


def has_values(func: Any, args: Any, outputs: list[Any]) -> bool:
    """Return whether an operation's outputs may have values.

    They may if they are integers or constants, or if an operand has a value.
    """
    for output in outputs:
        if (
            isinstance(output, torch.Tensor)
            and output.is_meta
            and not output.dtype.is_floating_point
        ):
            return True
    for arg in args:
        if isinstance(arg, torch.Tensor) and getattr(arg, "_traced_value", None) is not None:
            return True
    return id(func) in _CONSTANTS


def run_on_values(func: Any, args: Any, kwargs: Mapping[str, Any]) -> Any:
    """Run an operation on the host and return meta tensors that remember the results.

    Raise UnknownError if a value is missing.
    """
    result = func(*tree_map(_on_host, args), **tree_map(_on_host, dict(kwargs)))
    if func is _UNIQUE or (func is _CONSECUTIVE and len(args) < 4 and kwargs.get("dim") is None):
        values, inverse, counts = result
        most = args[0].numel()
        return _remembered(values, most), _remembered(inverse), _remembered(counts, most)
    return tree_map(_remembered, result)


def _remembered(value: Any, most: int = 0) -> Any:
    """Return a meta tensor that remembers a value; if not empty, it has memory for `most`."""
    if not isinstance(value, torch.Tensor):
        return value
    twin = value.to("meta")
    if value.numel() and most > value.numel():
        twin = value.new_empty(most, device="meta")[: len(value)]
    _remember(twin, value)
    return twin


def value_of(tensor: torch.Tensor) -> torch.Tensor | None:
    """Return a CPU tensor itself, or the value that a meta tensor remembers, or None."""
    if tensor.device.type == "cpu":
        return tensor
    value = getattr(tensor, "_traced_value", None)
    return (
        None
        if value is None or getattr(value.untyped_storage(), "_is_overwritten", False)
        else value
    )


def _remember(tensor: Any, value: torch.Tensor | None) -> None:
    tensor._traced_value = value


def _forget(tensor: Any) -> None:
    """Drop the value of a tensor that was overwritten, and of all tensors that share its memory."""
    value: Any = getattr(tensor, "_traced_value", None)
    if value is not None:
        value.untyped_storage()._is_overwritten = True
        tensor._traced_value = None


def compute_values(func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Any]) -> None:
    """Repeat an operation on the host if the values of all operands are known and small."""
    on_device = [
        output
        for output in outputs
        if isinstance(output, torch.Tensor) and output.device.type == "meta"
    ]
    try:
        if any(output.numel() > _most_elements(output, args) for output in on_device):
            raise UnknownError
        values = func(*tree_map(_on_host, args), **tree_map(_on_host, dict(kwargs)))
    except (UnknownError, RuntimeError):
        # RuntimeError: the host has no kernel for some operations in half precision.
        # An output that had a value was overwritten in place with unknown ones.
        for output in on_device:
            _forget(output)
        return
    for output, value in zip(outputs, tree_leaves(values), strict=True):
        if any(output is tensor for tensor in on_device):
            _remember(output, value)


def _most_elements(output: torch.Tensor, args: Any) -> int:
    """Return the most elements of an output whose value is computed."""
    if output.numel() <= _LARGEST_VALUE or output.dtype.is_floating_point:
        return _LARGEST_VALUE
    # A view needs no memory of its own.
    size = output.untyped_storage().nbytes() // output.element_size()
    operands = sum(leaf.numel() for leaf in tree_leaves(args) if isinstance(leaf, torch.Tensor))
    return _LARGEST_WHOLE if size <= max(_LARGEST_VALUE, operands) else _LARGEST_VALUE


def _on_host(operand: Any) -> Any:
    """Return an operand on the host; raise UnknownError for a meta tensor without a value."""
    if isinstance(operand, torch.device):
        return torch.device("cpu")
    if not isinstance(operand, torch.Tensor):
        return operand
    value = value_of(operand)
    if value is None:
        raise UnknownError
    return value


_GENERATOR = torch.Generator


class _AnyGenerator(type):
    """Makes `isinstance` true for every generator, also for those made before the replacement."""

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, _GENERATOR)


class _HostGenerator(metaclass=_AnyGenerator):
    """Makes host generators in place of a meta device's: meta tensors accept those."""

    def __new__(cls, device: Any = "cpu") -> Any:
        return _GENERATOR("cpu" if torch.device(device).type == "meta" else device)


@contextmanager
def host_values() -> Iterator[None]:
    """Inside, meta tensors made of numbers remember them, and format as their value or as nan.

    Random generators for "meta" can be made.
    """
    plain_format = torch.Tensor.__format__

    def formatted(tensor: torch.Tensor, spec: str) -> str:
        if not tensor.is_meta or tensor.dim() or not spec:
            return plain_format(tensor, spec)
        value = value_of(tensor)
        unknown = math.nan if tensor.is_floating_point() else 0
        return format(unknown if value is None else value.item(), spec)

    with ExitStack() as patches:
        patches.enter_context(mock.patch.object(torch.Tensor, "__format__", formatted))
        patches.enter_context(mock.patch.object(torch, "Generator", _HostGenerator))
        for name in ("tensor", "as_tensor"):
            patches.enter_context(
                mock.patch.object(torch, name, partial(_made_on_host, getattr(torch, name)))
            )
        yield


def _made_on_host(
    make: Callable[..., torch.Tensor], data: Any, *args: Any, device: Any = None, **kwargs: Any
) -> torch.Tensor:
    """Make a tensor of numbers on the host and move it to the device, as on a GPU.

    torch itself would drop the numbers of a meta tensor.
    """
    if (
        device is None
        or torch.device(device).type != "meta"
        or isinstance(data, torch.Tensor)
        or kwargs.get("requires_grad")
    ):
        return make(data, *args, device=device, **kwargs)
    return make(data, *args, device="cpu", **kwargs).to(device)
