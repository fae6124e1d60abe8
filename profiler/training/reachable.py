"""Tensors that can be reached from an object, and the plain tensors that each is made of.

Containers, attributes and what functions enclose are searched, in cycles too. NumPy's arrays and
torch's storages come as tensors that share their memory. Weak references are not followed.
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

# The accessors of the plain tensors that a sparse tensor is made of, by its layout.
_PARTS: Mapping[torch.layout, tuple[str, ...]] = {
    torch.sparse_coo: ("_indices", "_values"),
    torch.sparse_csr: ("crow_indices", "col_indices", "values"),
    torch.sparse_bsr: ("crow_indices", "col_indices", "values"),
    torch.sparse_csc: ("ccol_indices", "row_indices", "values"),
    torch.sparse_bsc: ("ccol_indices", "row_indices", "values"),
}
# A scaler belongs to the training loop, also where a wrapped optimizer knows it.
_NOT_SEARCHED = (
    type,
    ModuleType,
    FrameType,
    TracebackType,
    torch.amp.GradScaler,
    weakref.WeakValueDictionary,
)
# Where Python's own objects are from that hold others and have no attributes for them: generators,
# iterators, caches, bound methods and partial functions.
_PYTHON_S = ("builtins", "itertools", "functools", "collections")
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
# They hold nothing, or pass for what they refer to.
_PASSED_BY = frozenset((int, float, complex, bool, str, bytes, type(None), *weakref.ProxyTypes))
# The owner, the first text on the way, and what was found there.
Found = tuple[Any, str, Any]


def plain_tensors(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the tensors that hold the data of a tensor, those that it is made of or itself.

    A sparse tensor is made of its indices and values, a DTensor of the local shard, torchao's
    low-bit states of codes and scales. All have storages except those of an opaque layout.
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
        # A DTensor names its mesh too.
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]
        for part in parts:
            if isinstance(part, torch.Tensor):
                yield from plain_tensors(part)
    elif _is_hollow(tensor):
        # MaskedTensor and its like do not say what they are made of.
        yield from tensors_in(vars(tensor))
    else:
        yield tensor


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in containers and in attributes of objects, except modules."""
    for _, _, tensor in _reachable([(None, "", value)], in_modules=False):
        yield tensor


def tensors_of_optimizer(
    optimizer: torch.optim.Optimizer, *, in_modules: bool
) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Yield every tensor that an optimizer reaches: its owner, the first text on the way, and
    itself.

    The owner is what a state is filed under, or the key of a dict of tensors: nearly always a
    parameter. Parameters and their gradients are among the tensors; so are parameters and buffers
    of modules that the optimizer keeps, where `in_modules` says so. Any of those may be the model.
    """
    return _reachable([(None, "", optimizer)], in_modules=in_modules)


def _is_hollow(tensor: torch.Tensor) -> bool:
    """Return whether a subclass has a shape of its own and no memory behind it."""
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
    roots: Iterable[Found], *, in_modules: bool
) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Search depth first. A stack, because objects of others may be nested deeper than Python
    recurses.
    """
    # Values are kept, so that no id is given away a second time.
    seen: dict[int, Any] = {}
    stack = [iter(roots)]
    while stack:
        if (found := next(stack[-1], None)) is None:
            stack.pop()
            continue
        owner, key, value = found
        if type(value) in _PASSED_BY:
            continue
        if isinstance(value, torch.Tensor):
            yield from ((owner, key, plain) for plain in plain_tensors(value))
        elif isinstance(value, torch.nn.Module):
            tensors = [*value.parameters(), *value.buffers()] if in_modules else []
            stack.append(iter([(owner, key, tensor) for tensor in tensors]))
        elif id(value) not in seen:
            # The tensor too, whose storage would else be taken for the next one in its place.
            seen[id(value)] = value, (tensor := _sharing(value))
            if tensor is not None:
                yield owner, key, tensor
            stack.append(_inside(owner, key, value))


def _inside(owner: Any, key: str, value: Any) -> Iterator[Found]:
    if isinstance(value, torch.optim.Optimizer):
        yield from _inside_optimizer(value)
        return
    for name, item in _members(value):
        of = name if owner is None and isinstance(name, torch.Tensor) else owner
        yield of, key or (name if isinstance(name, str) else ""), item
        if not isinstance(name, str):
            yield owner, key, name


def _inside_optimizer(optimizer: torch.optim.Optimizer) -> Iterator[Found]:
    """Yield what names its tensors best first: the state, groups, attributes, and optimizers
    inside.
    """
    for owner, held in _members(optimizer.state):
        yield owner, owner if isinstance(owner, str) else "", held
    for group in optimizer.param_groups:
        yield from ((None, name, value) for name, value in group.items() if name != "params")
    members = [*_members(optimizer), *_class_s_containers(type(optimizer))]
    attributes = [(name, value) for name, value in members if not _is_of_torch(name)]
    for is_inner in (False, True):
        yield from (
            (None, name, value) for name, value in attributes if _holds_optimizer(value) == is_inner
        )
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            yield None, "params", parameter
            yield from ((parameter, name, value) for name, value in _hung_on(parameter))


def _class_s_containers(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what the classes of an optimizer keep for all their instances."""
    for base in kind.__mro__:
        if base.__module__.partition(".")[0] != "torch":
            yield from (
                (name, value)
                for name, value in vars(base).items()
                if isinstance(value, _KEPT_BY_CLASSES)
            )


def _is_of_torch(name: str) -> bool:
    """Return whether an attribute is one that torch gives every optimizer; hooks belong to the
    training loop.
    """
    return name in ("state", "param_groups") or name.startswith("_optimizer_")


def _holds_optimizer(value: Any) -> bool:
    items = value if isinstance(value, list | tuple) else [value]
    return any(isinstance(item, torch.optim.Optimizer) for item in items)


def _hung_on(parameter: torch.Tensor) -> Iterator[tuple[str, Any]]:
    """Yield the attributes that an optimizer gave a parameter. A subclass has its own, which are
    the model's.
    """
    if type(parameter) in (torch.Tensor, torch.nn.Parameter):
        yield from (
            (name, value) for name, value in vars(parameter).items() if name not in _GRADIENTS
        )


def gradients_of(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """Yield the gradient of a tensor, and those that Megatron, FSDP and Opacus hang beside it."""
    if tensor.grad is not None:
        yield tensor.grad
    yield from tensors_in(
        {name: value for name, value in vars(tensor).items() if name in _GRADIENTS}
    )


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    """Yield what a container or an object holds, with its names."""
    if type(value) is dict:
        # Most are: a parameter's state. They have nothing else.
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
    elif type(value).__module__ in _PYTHON_S:
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
    """Yield the defaults of a function and what it has enclosed, except names without a value
    yet.
    """
    yield from function.__defaults__ or ()
    yield from (function.__kwdefaults__ or {}).values()
    for cell in function.__closure__ or ():
        with suppress(ValueError):
            yield cell.cell_contents


def _sharing(value: Any) -> torch.Tensor | None:
    """Return a tensor over the memory of a storage, or of an array that owns its; None for all
    else.
    """
    if isinstance(value, torch.UntypedStorage):
        return torch.empty(0, dtype=torch.uint8, device=value.device).set_(value)
    if _is_array(value) and not value.dtype.hasobject and value.flags.owndata and value.size:
        flat = value.ravel(order="K")
        with warnings.catch_warnings(action="ignore"):
            # Of an array that may not be written to.
            with suppress(TypeError, ValueError):
                return torch.from_numpy(flat)
            # A dtype that torch does not have.
            return torch.from_numpy(flat.view("uint8"))
    return None


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray)
