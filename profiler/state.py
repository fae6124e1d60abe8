"""Bytes of tensors of any kind, and of an optimizer's state from the tensors that it holds."""

from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import MemberDescriptorType, ModuleType
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


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Exact bytes of the state's tensors by key and dtype, host tensors included; storage shared by two tensors counts once."""

    by_key_dtype: Mapping[str, Mapping[str, int]]

    @property
    def by_key(self) -> dict[str, int]:
        """Bytes of each key, whatever the dtype."""
        return {key: sum(by_dtype.values()) for key, by_dtype in self.by_key_dtype.items()}

    @property
    def total(self) -> int:
        """Bytes of every tensor in the state."""
        return sum(self.by_key.values())


def storage_bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the tensors' storages, each counted once; None counts nothing."""
    return sum(nbytes for _, nbytes in _sizes(tensors).values())


def bytes_by_dtype(tensors: Iterable[torch.Tensor | None]) -> dict[str, int]:
    """The same by torch's names of the dtypes that hold the data, as {"float32": 512}."""
    found: Counter[str] = Counter()
    for dtype, nbytes in _sizes(tensors).values():
        found[str(dtype).removeprefix("torch.")] += nbytes
    return dict(found)


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


def _is_hollow(tensor: torch.Tensor) -> bool:
    """Return whether a subclass has a shape of its own and no memory behind it."""
    if type(tensor) in (torch.Tensor, torch.nn.Parameter) or tensor.is_meta or not torch._C._has_storage(tensor):
        return False
    try:
        tensor.untyped_storage().data_ptr()
    except RuntimeError:
        return True
    return False


def _sizes(tensors: Iterable[torch.Tensor | None]) -> dict[int, tuple[torch.dtype, int]]:
    """The dtype and bytes of each storage."""
    found: dict[int, tuple[torch.dtype, int]] = {}
    for tensor in tensors:
        for plain in () if tensor is None else plain_tensors(tensor):
            if torch._C._has_storage(plain):
                found.setdefault(_storage(plain), (plain.dtype, plain.untyped_storage().nbytes()))
            else:
                # A layout of oneDNN's own may pad this.
                found[id(plain)] = plain.dtype, plain.numel() * plain.element_size()
    return found


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in the optimizer's state with its key; the parameters themselves and views of them are not state.

    Tensors are found in containers and in attributes of objects (GaLore's projectors), in cycles too, but not in modules, which may be the
    model. A tensor made of others (DTensor, torchao's low-bit states) counts as those.
    """
    for _, key, tensor in owned_state_tensors(optimizer):
        yield key, tensor


def owned_state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """As `state_tensors`, each with what its state is filed under: a parameter, in nearly every optimizer."""
    of_parameters = {_storage(plain) for group in optimizer.param_groups for param in group["params"] for plain in plain_tensors(param)}
    seen = {id(optimizer.state)}
    for owner, held in _members(optimizer.state):
        for key, tensor in _tensors(held, owner if isinstance(owner, str) else "", seen):
            if _storage(tensor) not in of_parameters:
                yield owner, key, tensor


def tensors_in(value: Any) -> Iterator[torch.Tensor]:
    """Every tensor in containers and in attributes of objects, but not in modules, found as those of a state are."""
    for _, tensor in _tensors(value, "", set()):
        yield tensor


def state_bytes(optimizer: torch.optim.Optimizer) -> StateBytes:
    """The bytes of the optimizer's state as it is now."""
    found: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    for key, tensor in state_tensors(optimizer):
        if _storage(tensor) not in seen:
            seen.add(_storage(tensor))
            found.setdefault(key, Counter())[str(tensor.dtype).removeprefix("torch.")] += tensor.untyped_storage().nbytes()
    return StateBytes(by_key_dtype={key: dict(by_dtype) for key, by_dtype in found.items()})


def storages_of_state(optimizer: torch.optim.Optimizer) -> list[torch.UntypedStorage]:
    """The storages that hold the state, each once."""
    storages = [tensor.untyped_storage() for _, tensor in state_tensors(optimizer)]
    return list({storage._cdata: storage for storage in storages}.values())


def _tensors(value: Any, key: str, seen: set[int]) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        for plain in plain_tensors(value):
            yield key, plain
    elif id(value) not in seen:
        seen.add(id(value))
        for name, item in _members(value):
            # The first text names the entry.
            yield from _tensors(item, key or (name if isinstance(name, str) else ""), seen)


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _members(value: Any) -> Iterator[tuple[Any, Any]]:
    """What a container or an object holds, with its names."""
    if isinstance(value, type | ModuleType | torch.nn.Module):
        return
    if isinstance(value, Mapping):
        yield from value.items()
    elif isinstance(value, list | tuple | set | frozenset | deque):
        yield from (("", item) for item in value)
    yield from getattr(value, "__dict__", {}).items()
    for kind in type(value).__mro__:
        if "__slots__" in vars(kind):
            slots = [name for name, member in vars(kind).items() if isinstance(member, MemberDescriptorType)]
            yield from ((name, getattr(value, name)) for name in slots if hasattr(value, name))
