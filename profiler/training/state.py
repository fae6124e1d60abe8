"""Bytes of tensors of any kind, of an optimizer's state, and of training in all."""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from optprof.scenarios import schema

from ..records.record import Memory
from .reachable import gradients_of, plain_tensors, tensors_of_optimizer

Tensors = Iterable[torch.Tensor | None]
# An optimizer may use each parameter's name as a key of its state.
_MOST_KEYS, _OTHERS = 1_000, "others"


@dataclass(frozen=True, kw_only=True)
class StateBytes:
    """Exact bytes of the state's tensors by key and dtype, tensors on the host included.

    A storage that tensors share counts once.
    """

    by_key_dtype: Mapping[str, Mapping[str, int]]

    @property
    def by_key(self) -> dict[str, int]:
        """Bytes of each key, whatever the dtype."""
        return {key: sum(by_dtype.values()) for key, by_dtype in self.by_key_dtype.items()}

    @property
    def total(self) -> int:
        """Bytes of every tensor in the state."""
        return sum(self.by_key.values())

    def memory(
        self,
        parameters_by_dtype: Mapping[str, int],
        gradients: int,
        *,
        allocated: int | None = None,
        peak_by_phase: Mapping[str, int] | None = None,
        peak_reserved: int | None = None,
    ) -> Memory:
        """Return the memory of training with this state, of which blocks hold `allocated` bytes.

        The highest phase is the peak; of equal ones, the first.
        """
        peaks = peak_by_phase or {}
        return Memory(
            parameters=sum(parameters_by_dtype.values()),
            parameters_by_dtype=parameters_by_dtype,
            gradients=gradients,
            optimizer_state=self.total,
            state_by_key=self.by_key,
            state_by_key_dtype=self.by_key_dtype,
            optimizer_state_allocated=allocated,
            peak_allocated=max(peaks.values(), default=None),
            peak_reserved=peak_reserved,
            peak_phase=max(peaks, key=lambda phase: peaks[phase], default=None),
            peak_by_category={},
            peak_by_phase=peaks,
        )


def storage_bytes(tensors: Tensors) -> int:
    """Return the bytes of the tensors' storages, each counted once; None counts nothing."""
    return sum(nbytes for _, nbytes in _sizes(tensors).values())


def bytes_by_dtype(tensors: Tensors) -> dict[str, int]:
    """Return `storage_bytes` by torch's names of the data's dtypes, as {"float32": 512}."""
    by_dtype: Counter[str] = Counter()
    for dtype, nbytes in _sizes(tensors).values():
        by_dtype[_name(dtype)] += nbytes
    return dict(by_dtype)


def state_tensors(
    optimizer: torch.optim.Optimizer, model: Tensors | None = None
) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield every tensor of the optimizer's state with the first text key on the way to it.

    Examples of keys are "exp_avg" and "masters". The tensor may be in the optimizer's state, groups
    or attributes, in an optimizer inside, or an attribute of a parameter. Parameters, gradients and
    tensors that share their memory are not state. `model` has the model's tensors, including frozen
    parameters and buffers. Without it, they are the parameters of the groups, and modules that the
    optimizer keeps are skipped. A tensor made of others (DTensor, torchao's low-bit states) counts
    as those.
    """
    for _, key, tensor in owned_state_tensors(optimizer, model):
        yield key, tensor


def owned_state_tensors(
    optimizer: torch.optim.Optimizer, model: Tensors | None = None
) -> Iterator[tuple[Any, str, torch.Tensor]]:
    """Yield `state_tensors`, each with its owner: in nearly every optimizer, a parameter."""
    trained = [param for group in optimizer.param_groups for param in group["params"]]
    excluded = set(_sizes(_with_gradients(trained if model is None else model)))
    # An optimizer may train its own copies; their gradients are not state either.
    excluded |= set(_sizes(param.grad for param in trained))
    for owner, key, tensor in tensors_of_optimizer(optimizer, in_modules=model is not None):
        if _key(tensor) not in excluded:
            yield owner, key, tensor


def state_bytes(optimizer: torch.optim.Optimizer, model: Tensors | None = None) -> StateBytes:
    """Return the bytes of the optimizer's state now."""
    return bytes_by_key(state_tensors(optimizer, model))


def bytes_by_key(tensors: Iterable[tuple[str, torch.Tensor]]) -> StateBytes:
    """Return the bytes of tensors of a state, given with their keys."""
    by_key: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    for key, tensor in tensors:
        for storage, (dtype, nbytes) in _sizes([tensor]).items():
            if storage not in seen:
                seen.add(storage)
                name = schema.shortened(key, schema.MOST_NAME)
                name = name if name in by_key or len(by_key) < _MOST_KEYS else _OTHERS
                by_key.setdefault(name, Counter())[_name(dtype)] += nbytes
    return StateBytes(by_key_dtype={key: dict(by_dtype) for key, by_dtype in by_key.items()})


def storages_of_state(
    optimizer: torch.optim.Optimizer, model: Tensors | None = None
) -> list[torch.UntypedStorage]:
    """Return the storages of the state, each once."""
    storages = {_key(tensor): tensor for _, tensor in state_tensors(optimizer, model)}
    return [
        tensor.untyped_storage() for tensor in storages.values() if torch._C._has_storage(tensor)
    ]


def _with_gradients(tensors: Tensors) -> Iterator[torch.Tensor | None]:
    """Yield each tensor and its gradients."""
    for tensor in tensors:
        yield tensor
        if tensor is not None:
            yield from gradients_of(tensor)


def _sizes(tensors: Tensors) -> dict[int, tuple[torch.dtype, int]]:
    """Return the dtype and bytes of each storage."""
    sizes: dict[int, tuple[torch.dtype, int]] = {}
    for tensor in tensors:
        for plain in () if tensor is None else plain_tensors(tensor):
            # A tensor in oneDNN's layout has no storage, and may be padded.
            has_storage = torch._C._has_storage(plain)
            nbytes = (
                plain.untyped_storage().nbytes()
                if has_storage
                else plain.numel() * plain.element_size()
            )
            sizes.setdefault(_key(plain), (plain.dtype, nbytes))
    return sizes


def _key(plain: torch.Tensor) -> int:
    return plain.untyped_storage()._cdata if torch._C._has_storage(plain) else id(plain)


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
