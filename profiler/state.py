"""Bytes of an optimizer's state, from the tensors that it holds."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch


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


def state_tensors(optimizer: torch.optim.Optimizer) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor in the optimizer's state with its key, nested containers included; the parameters themselves are not state."""
    parameters = {id(p) for group in optimizer.param_groups for p in group["params"]}
    for key, tensor in _tensors(optimizer.state, key=""):
        if id(tensor) not in parameters:
            yield key, tensor


def state_bytes(optimizer: torch.optim.Optimizer) -> StateBytes:
    """The bytes of the optimizer's state as it is now."""
    found: dict[str, Counter[str]] = {}
    seen: set[int] = set()
    for key, tensor in state_tensors(optimizer):
        storage = tensor.untyped_storage()
        if storage._cdata not in seen:
            seen.add(storage._cdata)
            found.setdefault(key, Counter())[str(tensor.dtype).removeprefix("torch.")] += storage.nbytes()
    return StateBytes(by_key_dtype={key: dict(by_dtype) for key, by_dtype in found.items()})


def _tensors(value: Any, key: str) -> Iterator[tuple[str, torch.Tensor]]:
    if isinstance(value, torch.Tensor):
        yield key, value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            # The outermost names are parameters; below them, the first text names the entry.
            yield from _tensors(item, key or (name if isinstance(name, str) else ""))
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item, key)
