"""Compiled updates: one tensor's update through torch.compile, compiled once for a kind of tensor.

Sizes are symbols. A tensor is passed flat unless the update reads axes, so that all shapes are one
kind. Numbers, which may change from step to step, are passed as 0-dim tensors. Only what an update
branches on makes a kind of its own: names, switches and options of 0. On a CPU torch.compile needs
a C++ compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .bucket import Bucket

if TYPE_CHECKING:
    from .multi_tensor import MultiTensorOptimizer

# A call of a compiled function takes as long as the plain update of about this many elements.
LEAST_ELEMENTS = 2**14
BACKEND = "inductor"


def run(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    """Update a bucket by compiled code if it is one plain tensor that is large enough.

    Under a dispatch mode, which watches single operations, torch compiles nothing.
    """
    if (
        len(bucket.params) == 1
        and not torch._C._len_torch_dispatch_stack()
        and is_plain(bucket.params[0], bucket.grads[0])
        and bucket.params[0].numel() >= LEAST_ELEMENTS
    ):
        update(optimizer, bucket)
    else:
        optimizer._update(bucket)


def is_plain(param: Tensor, grad: Tensor) -> bool:
    """Return whether a tensor is dense and has data, outside a step that is compiled as a whole."""
    is_plain_type = type(param) in (Tensor, torch.nn.Parameter)
    has_data = not param.is_meta and not grad.is_sparse
    return is_plain_type and has_data and not torch.compiler.is_compiling()


def update(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    """Update a bucket of one plain tensor by code that is compiled for the first of its kind."""
    param, grad, state = bucket.params[0], bucket.grads[0], bucket.states[0]
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    shaped = {key: value for key, value in state.items() if value.shape == param.shape}
    flat = not optimizer.sees_axes and all(
        tensor.is_contiguous() for tensor in (param, grad, *shaped.values())
    )
    param, grad = _plain(param, flat), _plain(grad, flat)
    state = {**state, **{key: _plain(value, flat) for key, value in shaped.items()}}
    # Only the optimizer's own options: torch.compile would guard a scheduler's entries as well.
    options = {
        name: _as_tensors(value, param.device)
        for name, value in bucket.options.items()
        if name in optimizer.defaults
    }
    options["lr"] = _as_tensor(bucket.options["lr"], param.device)
    numbers: Any = {
        name: [_as_tensor(values[0], param.device)] for name, values in bucket.numbers.items()
    }
    layout = (
        param.device,
        param.dtype,
        tuple(size == 1 for size in param.shape),
        param.is_contiguous(),
        grad.is_contiguous(),
    )
    kind = (*layout, *(_kind(options[name]) for name in sorted(options)))
    _compiled(type(optimizer), kind, BACKEND)([param], [grad], [state], options, numbers)
    note_changes(bucket.params)


def note_changes(params: list[Tensor]) -> None:
    """Tell autograd that parameters have changed; inference tensors have no version."""
    torch.autograd.graph.increment_version([param for param in params if not param.is_inference()])


@functools.cache
def _compiled(
    owner: type[MultiTensorOptimizer], kind: Hashable, backend: str
) -> Callable[..., None]:
    # An update reads only its bucket, so one instance without parameters serves all instances.
    instance = owner.__new__(owner)

    def update(
        params: list[Tensor],
        grads: list[Tensor],
        states: list[Any],
        options: dict[str, Any],
        numbers: dict[str, Any],
    ) -> None:
        instance._update(
            Bucket(params=params, grads=grads, states=states, options=options, numbers=numbers)
        )

    # Torch counts compilations by code object and stops after eight, so each kind gets its own.
    update.__code__ = update.__code__.replace(co_name=f"{owner.__name__}_{abs(hash(kind))}")
    return torch.compile(update, fullgraph=True, dynamic=True, backend=backend)


def _plain(tensor: Tensor, flat: bool) -> Tensor:
    """Return a tensor on the same memory, of the same shape or flat.

    torch.compile makes no symbols of a parameter's sizes and follows a view to its base, so the
    result is neither.
    """
    size, stride = ((tensor.numel(),), (1,)) if flat else (tensor.shape, tensor.stride())
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), size, stride)


def _as_tensors(option: Any, device: torch.device) -> Any:
    """Return an option with nonzero numbers as tensors; an update skips what a 0 would scale."""
    if isinstance(option, (list, tuple)):
        return tuple(_as_tensors(each, device) for each in option)
    is_number = isinstance(option, (int, float)) and not isinstance(option, bool)
    return _as_tensor(option, device) if is_number and option else option


def _kind(option: Any) -> Hashable:
    """Return a key that is equal for all values of an option that the same code serves."""
    if isinstance(option, tuple):
        return tuple(map(_kind, option))
    return Tensor if isinstance(option, Tensor) else option


def _as_tensor(value: float | Tensor, device: torch.device) -> Tensor:
    """Return a 0-dim tensor, filled on the device: a copy to the device would wait."""
    return (
        value
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=torch.float64, device=device)
    )
