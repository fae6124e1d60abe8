"""Tensors that can be reached from an object, and the plain tensors that each is made of.

Containers and attributes are searched, in cycles too. Weak references are not followed, and modules
are not searched: they may be the model.
"""

import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from types import FunctionType, MemberDescriptorType, MethodType, ModuleType
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# The accessors of the plain tensors that a sparse tensor is made of, by its layout.
_PARTS: Mapping[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
# A scaler belongs to the training loop, also where a wrapped optimizer knows it.
_NOT_SEARCHED = (type, ModuleType, torch.nn.Module, torch.amp.GradScaler, weakref.WeakValueDictionary)
# The owner, the first text on the way, and what was found there.
Found = tuple[Any, str, Any]


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that hold the data of a tensor, those that it is made of or itself.

    A sparse tensor is made of its indices and values, a DTensor of the local shard, torchao's
    low-bit states of codes and scales. All have storages except those of an opaque layout.
    """
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return
    if parts := _PARTS.get(tensor.layout):
        for accessor in parts:
            yield from plain_tensors(getattr(tensor, accessor)())
    elif is_traceable_wrapper_subclass(tensor):
        for name in tensor.__tensor_flatten__()[0]:
            yield from plain_tensors(getattr(tensor, name))
    elif _is_hollow(tensor):
        # MaskedTensor and its like do not say what they are made of.
        yield from tensors_in(vars(tensor))
    else:
        yield tensor


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in containers and in attributes of objects."""
    for _, _, tensor in _reachable([(None, "", value)]):
        yield tensor


def tensors_of_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Yield every tensor that an optimizer reaches: its owner, the first text on the way, and itself.

    The owner is what a state is filed under, or the key of a dict of tensors: nearly always a
    parameter. Parameters and their gradients are among the tensors.
    """
    return _reachable([(None, "", optimizer)])


def _is_hollow(tensor: torch.Tensor) -> bool:
    """Return whether a subclass has a shape of its own and no memory behind it."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not torch._C._has_storage(tensor):
        return False
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return True
    return False


def _reachable(roots: Iterable[Found]) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Search depth first. A stack, because objects of others may be nested deeper than Python recurses."""
    # Values are kept, so that no id is given away a second time.
    seen: dict[int, Any] = {}
    stack = [iter(roots)]
    while stack:
        if (found := next(stack[-1], None)) is None:
            stack.pop()
            continue
        owner, key, value = found
        if type(value) in weakref.ProxyTypes:
            # It passes for what it refers to.
            continue
        if isinstance(value, torch.Tensor):
            yield from ((owner, key, plain) for plain in plain_tensors(value))
        elif id(value) not in seen:
            seen[id(value)] = value
            stack.append(_inside(owner, key, value))


def _inside(owner: Any, key: str, value: Any) -> Iterator[Found]:
    if isinstance(value, torch.optim.Optimizer):
        yield from _inside_optimizer(value)
        return
    for name, item in _members(value):
        of = name if owner is None and isinstance(name, torch.Tensor) else owner
        yield of, key or (name if isinstance(name, str) else ""), item
        if isinstance(name, torch.Tensor):
            yield owner, key, name


def _inside_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[Found]:
    """Yield what names its tensors best first: the state, groups, attributes, and optimizers inside."""
    for owner, held in _members(optimizer.state):
        yield owner, owner if isinstance(owner, str) else "", held
    for group in optimizer.param_groups:
        yield from ((None, name, value) for name, value in group.items() if name != "params")
    attributes = [(name, value) for name, value in _members(optimizer) if not _is_of_torch(name)]
    for is_inner in (False, True):
        yield from ((None, name, value) for name, value in attributes if _holds_optimizer(value) == is_inner)
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield None, "params", parameter
            yield from ((parameter, name, value) for name, value in _hung_on(parameter))


def _is_of_torch(name: str) -> bool:
    """Return whether an attribute is one that torch gives every optimizer; hooks belong to the training loop."""
    return name in ("state", "param_groups") or name.startswith("_optimizer_")


def _holds_optimizer(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.optim.Optimizer) for item in items)


def _hung_on(parameter: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an optimizer gave a parameter. A subclass has its own, which are the model's."""
    if type(parameter) in (torch.Tensor, torch.nn.Parameter):
        yield from ((name, value) for name, value in vars(parameter).items() if "grad" not in name)


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container or an object holds, with its names."""
    if isinstance(value, _NOT_SEARCHED):
        return
    if isinstance(value, Mapping):
        yield from list(value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from (("", item) for item in list(value))
    elif isinstance(value, partial):
        yield from (("", value.func), ("", value.args), ("", value.keywords))
    elif isinstance(value, MethodType):
        yield "", value.__self__
    elif isinstance(value, FunctionType):
        yield from (("", cell) for cell in _contents(value))
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            slots = [name for name, member in vars(kind).items() if isinstance(member, MemberDescriptorType)]
            yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))


def _contents(function: FunctionType) -> Iterator[Any]:
    """Yield what a function has enclosed, except names that have no value yet."""
    for cell in function.__closure__ or ():
        try:
            yield cell.cell_contents
        except ValueError:
            continue
