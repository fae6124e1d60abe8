"""Compiled updates: one tensor's update through torch.compile, compiled once for a kind of tensor
and not once for a tensor.

Sizes are symbols, and where an update does not ask for axes a tensor is passed flat, so that all
shapes are one kind. Numbers, which may change from step to step, come in as 0-dim tensors; only
what an update branches on, names, switches and options of 0, makes a kind of its own. On a CPU
torch.compile needs a C++ compiler.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .multi_tensor import Bucket, MultiTensorOptimizer

# To call a compiled function costs what the plain one takes for about as many elements.
LEAST_ELEMENTS = 2**14
BACKEND = "inductor"


def suits(bucket: Bucket) -> bool:
    """Return whether a bucket is one plain tensor large enough to be worth it.

    Under a dispatch mode, which watches single operations, torch compiles nothing.
    """
    if len(bucket.params) != 1 or torch._C._len_torch_dispatch_stack():
        return False
    return (
        is_plain(bucket.params[0], bucket.grads[0]) and bucket.params[0].numel() >= LEAST_ELEMENTS
    )


def is_plain(param: Tensor, grad: Tensor) -> bool:
    """Whether a tensor is dense and has data, in a step that is not being compiled as a whole."""
    known = type(param) in (Tensor, torch.nn.Parameter) and not param.is_meta and not grad.is_sparse
    return known and not torch.compiler.is_compiling()


def update(optimizer: MultiTensorOptimizer, bucket: Bucket) -> None:
    """The update of a bucket that suits, compiled with torch's inductor at the first of its
    kind.
    """
    param, grad, state = bucket.params[0], bucket.grads[0], bucket.states[0]
    state = {key: value for key, value in state.items() if isinstance(value, Tensor)}
    shaped = {key: value for key, value in state.items() if value.shape == param.shape}
    flat = not optimizer.sees_axes and all(
        tensor.is_contiguous() for tensor in (param, grad, *shaped.values())
    )
    param, grad = _plain(param, flat), _plain(grad, flat)
    state = {**state, **{key: _plain(value, flat) for key, value in shaped.items()}}
    # Options of the optimizer alone: a scheduler's notes in the group would be looked at too.
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
    """Tell autograd that parameters have changed; those of inference mode have no version."""
    torch.autograd.graph.increment_version([param for param in params if not param.is_inference()])


@functools.cache
def _compiled(
    owner: type[MultiTensorOptimizer], kind: Hashable, backend: str
) -> Callable[..., None]:
    from .multi_tensor import Bucket

    # An update reads nothing but its bucket, so one instance without parameters stands for all.
    anyone = owner.__new__(owner)

    def update(
        params: list[Tensor],
        grads: list[Tensor],
        states: list[Any],
        options: dict[str, Any],
        numbers: dict[str, Any],
    ) -> None:
        anyone._update(
            Bucket(params=params, grads=grads, states=states, options=options, numbers=numbers)
        )

    # A code object of its own: torch counts compilations by code object, and gives up after eight.
    update.__code__ = update.__code__.replace(co_name=f"{owner.__name__}_{abs(hash(kind))}")
    return torch.compile(update, fullgraph=True, dynamic=True, backend=backend)


def _plain(tensor: Tensor, flat: bool) -> Tensor:
    """The same memory, as it is or along one axis.

    Not a parameter, whose sizes torch.compile never takes for symbols, and not a view, which it
    follows to its base.
    """
    size, stride = ((tensor.numel(),), (1,)) if flat else (tensor.shape, tensor.stride())
    return tensor.new_empty(0).set_(tensor.untyped_storage(), tensor.storage_offset(), size, stride)


def _as_tensors(option: Any, device: torch.device) -> Any:
    """An option with its numbers as tensors, but for 0, which updates leave out what it would
    scale.
    """
    if isinstance(option, (list, tuple)):
        return tuple(_as_tensors(each, device) for each in option)
    is_number = isinstance(option, (int, float)) and not isinstance(option, bool)
    return _as_tensor(option, device) if is_number and option else option


def _kind(option: Any) -> Hashable:
    """What is the same for all values of an option that are run by the same code."""
    if isinstance(option, tuple):
        return tuple(map(_kind, option))
    return Tensor if isinstance(option, Tensor) else option


def _as_tensor(value: float | Tensor, device: torch.device) -> Tensor:
    """A 0-dim tensor, filled on the device: to copy it there would wait."""
    return (
        value
        if isinstance(value, Tensor)
        else torch.full((), value, dtype=torch.float64, device=device)
    )
