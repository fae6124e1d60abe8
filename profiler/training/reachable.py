"""Tensors that are reachable from an object, and the plain tensors that each is made of.

The search covers containers, attributes and closures of functions, and handles cycles. NumPy arrays
and torch's storages appear as tensors that share their memory. Weak references are not followed.
"""

import gc
import sys
import warnings
import weakref
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from types import FrameType, FunctionType, MemberDescriptorType, ModuleType, TracebackType
from typing import Any

import torch
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# The accessors of a sparse tensor's plain tensors, by layout.
_PARTS: Mapping[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
# A scaler belongs to the training loop, even if a wrapped optimizer refers to it.
_NOT_SEARCHED = (
    type,
    ModuleType,
    FrameType,
    TracebackType,
    torch.amp.GradScaler,
    weakref.WeakValueDictionary,
)
# Modules of Python's objects that refer to others without attributes: generators, iterators,
# caches, bound methods and partial functions.
_PYTHON_MODULES = ("builtins", "itertools", "functools", "collections")
_KEPT_BY_CLASSES = (torch.Tensor, Mapping, list, tuple, set, deque)
# The attributes of parameters in which Megatron, FSDP and Opacus keep gradients.
_GRADIENTS = {
    "main_grad",
    "grad_sample",
    "_current_grad_sample",
    "summed_grad",
    "_saved_grad_shard",
    "_cpu_grad",
}
_PLAIN = (torch.Tensor, torch.nn.Parameter)
# Objects without references, or proxies that act as the object they refer to.
_SKIPPED = frozenset((int, float, complex, bool, str, bytes, type(None), *weakref.ProxyTypes))
# The owner, the first text key on the way, and the object itself.
Reached = tuple[Any, str, Any]


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors with the data of a tensor: those it is made of, or itself.

    A sparse tensor is made of indices and values, a DTensor of the local shard, torchao's low-bit
    states of codes and scales. All have storages except tensors of an opaque layout.
    """
    if type(tensor) in _PLAIN and tensor.layout is torch.strided:
        yield tensor
        return
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        return
    if parts := _PARTS.get(tensor.layout):
        for accessor in parts:
            yield from plain_tensors(getattr(tensor, accessor)())
    elif is_traceable_wrapper_subclass(tensor):
        # A DTensor lists its mesh too.
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        for part in parts:
            if isinstance(part, torch.Tensor):
                yield from plain_tensors(part)
    elif _is_hollow(tensor):
        # MaskedTensor, for one, does not list its parts.
        yield from tensors_in(vars(tensor))
    else:
        yield tensor


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Yield every tensor in containers and in attributes of objects, except modules."""
    for _, _, tensor in _reachable([(None, "", value)], in_modules=False):
        yield tensor


def tensors_of_optimizer(
    optimizer: torch.optim.Optimizer, *, in_modules: bool
) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Yield the owner, the first text key on the way and the tensor, for each reachable tensor.

    The owner is the key of a state, or of a dict of tensors: nearly always a parameter. The tensors
    include parameters and gradients and, if `in_modules`, the parameters and buffers of modules
    that the optimizer keeps. Any of these may be the model's.
    """
    return _reachable([(None, "", optimizer)], in_modules=in_modules)


def _is_hollow(tensor: torch.Tensor) -> bool:
    """Return whether the tensor is of a subclass that has a shape and no memory."""
    if (
        type(tensor) in (torch.Tensor, torch.nn.Parameter)
        or tensor.is_meta
        or not torch._C._has_storage(tensor)
    ):
        return False
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return True
    return False


def _reachable(
    roots: Iterable[Reached], *, in_modules: bool
) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Search depth first, with a stack: objects may be nested deeper than Python can recurse."""
    # Values stay alive, so that no id is used twice.
    seen: dict[int, Any] = {}
    stack = [iter(roots)]
    while stack:
        if (reached := next(stack[-1], None)) is None:
            stack.pop()
            continue
        owner, key, value = reached
        if type(value) in _SKIPPED:
            continue
        if isinstance(value, torch.Tensor):
            yield from ((owner, key, plain) for plain in plain_tensors(value))
        elif isinstance(value, torch.nn.Module):
            tensors = [*value.parameters(), *value.buffers()] if in_modules else []
            stack.append(iter([(owner, key, tensor) for tensor in tensors]))
        elif id(value) not in seen:
            # The tensor too, or a later storage at its address would be taken for the same.
            seen[id(value)] = value, (tensor := _sharing(value))
            if tensor is not None:
                yield owner, key, tensor
            stack.append(_inside(owner, key, value))


def _inside(owner: Any, key: str, value: Any) -> Iterator[Reached]:
    if isinstance(value, torch.optim.Optimizer):
        yield from _inside_optimizer(value)
        return
    for name, item in _members(value):
        of = name if owner is None and isinstance(name, torch.Tensor) else owner
        yield of, key or (name if isinstance(name, str) else ""), item
        if not isinstance(name, str):
            yield owner, key, name


def _inside_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[Reached]:
    """Yield the parts with the best keys first: state, groups, attributes, optimizers inside."""
    for owner, state in _members(optimizer.state):
        yield owner, owner if isinstance(owner, str) else "", state
    for group in optimizer.param_groups:
        yield from ((None, name, value) for name, value in group.items() if name != "params")
    members = [*_members(optimizer), *_class_containers(type(optimizer))]
    attributes = [(name, value) for name, value in members if not _is_of_torch(name)]
    for is_inner in (False, True):
        yield from (
            (None, name, value) for name, value in attributes if _holds_optimizer(value) == is_inner
        )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield None, "params", parameter
            yield from ((parameter, name, value) for name, value in _attributes_of(parameter))


def _class_containers(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield the containers and tensors in class attributes of an optimizer."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != "torch":
            yield from (
                (name, value)
                for name, value in vars(base).items()
                if isinstance(value, _KEPT_BY_CLASSES)
            )


def _is_of_torch(name: str) -> bool:
    """Return whether torch gives every optimizer this attribute; hooks belong to the loop."""
    return name in ("state", "param_groups") or name.startswith("_optimizer_")


def _holds_optimizer(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.optim.Optimizer) for item in items)


def _attributes_of(parameter: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Yield attributes that an optimizer gave a parameter; those of a subclass are the model's."""
    if type(parameter) in (torch.Tensor, torch.nn.Parameter):
        yield from (
            (name, value) for name, value in vars(parameter).items() if name not in _GRADIENTS
        )


def gradients_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield a tensor's gradient, and those that Megatron, FSDP and Opacus keep as attributes."""
    if tensor.grad is not None:
        yield tensor.grad
    yield from tensors_in(
        {name: value for name, value in vars(tensor).items() if name in _GRADIENTS}
    )


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield the names and members of a container or an object."""
    if type(value) is dict:
        # The most frequent case, a parameter's state, has no attributes.
        yield from list(value.items())
        return
    if isinstance(value, _NOT_SEARCHED):
        return
    if isinstance(value, Mapping):
        yield from list(value.items())
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from (("", item) for item in list(value))
    elif isinstance(value, FunctionType):
        yield from (("", item) for item in _contents(value))
    elif type(value).__module__ in _PYTHON_MODULES:
        yield from (("", item) for item in gc.get_referents(value))
    elif _is_array(value):
        yield from (
            ("", item) for item in [value.base, *(value.flat if value.dtype.hasobject else ())]
        )
    yield from list(getattr(value, "__dict__", {}).items())
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            slots = [
                name
                for name, member in vars(kind).items()
                if isinstance(member, MemberDescriptorType)
            ]
            yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))


def _contents(function: FunctionType) -> Iterator[Any]:
    """Yield the defaults and the closure of a function, except names without a value yet."""
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            yield cell.cell_contents


def _sharing(value: Any) -> torch.Tensor | None:
    """Return a tensor that shares the memory of a storage, or of an array that owns its memory."""
    if isinstance(value, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8, device=value.device).set_(value)
    if _is_array(value) and not value.dtype.hasobject and value.flags.owndata and value.size:
        flat = value.ravel(order="K")
        with warnings.catch_warnings(action="ignore"):
            # torch warns of a read-only array.
            with suppress(TypeError, ValueError):
                return torch.from_numpy(flat)
            # A dtype that torch does not support.
            return torch.from_numpy(flat.view("uint8"))
    return None


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
