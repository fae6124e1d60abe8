"""Batches: what a model's `forward` is called with, nested as its author likes."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Mapping
from typing import Any, cast

import torch
from torch.nn.utils.rnn import PackedSequence


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """A copy of a batch, or of a part of it, with `function` of each tensor in the tensor's place.

    Tensors are found in mappings, lists, tuples, sets, dataclasses and objects that have a `to` of
    their own, as batches of graphs have. What holds no tensor is returned as it is.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        # The lengths of its steps stay on the host.
        return PackedSequence(
            function(value.data),
            value.batch_sizes,
            map_tensors(function, value.sorted_indices),
            map_tensors(function, value.unsorted_indices),
        )
    if isinstance(value, Mapping):
        return _with_items(function, cast(Mapping[Any, Any], value))
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*(map_tensors(function, item) for item in value))
    if isinstance(value, list | tuple | set):
        return type(value)(map_tensors(function, item) for item in value)
    if _is_object_of_tensors(value):
        return _with_attributes(function, value)
    return value


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Every tensor of a batch, in order."""
    found: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        found.append(tensor)
        return tensor

    map_tensors(note, value)
    return found


def by_name(model: torch.nn.Module, batch: Any) -> Mapping[str, Any] | None:
    """The batch as keyword arguments of the model's `forward`; None for one that cannot be that.

    A tensor is forward's first argument, and a list or tuple, as a DataLoader gives it, the first ones.
    """
    if isinstance(batch, Mapping):
        return cast(Mapping[str, Any], batch)
    values = [batch] if isinstance(batch, torch.Tensor) else list(batch) if isinstance(batch, list | tuple) else []
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    names = [name for name, parameter in inspect.signature(model.forward).parameters.items() if parameter.kind in kinds]
    if not values or not tensors_in(values) or len(values) > len(names):
        return None
    return dict(zip(names, values, strict=False))


def _is_object_of_tensors(value: Any) -> bool:
    if isinstance(value, type | torch.nn.Module):
        return False
    return dataclasses.is_dataclass(value) or (callable(getattr(value, "to", None)) and hasattr(value, "__dict__"))


def _with_items(function: Callable[[torch.Tensor], torch.Tensor], value: Mapping[Any, Any]) -> Mapping[Any, Any]:
    items = {key: map_tensors(function, item) for key, item in value.items()}
    if type(value) is dict or not hasattr(value, "__setitem__"):
        return items
    # A transformers' output and a BatchEncoding are mappings with methods that models call.
    made: Any = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def _with_attributes(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    made = copy.copy(value)
    names = [field.name for field in dataclasses.fields(value)] if dataclasses.is_dataclass(value) else list(vars(value))
    for name in names:
        # A frozen dataclass lets nobody else set it.
        object.__setattr__(made, name, map_tensors(function, getattr(value, name)))
    return made
