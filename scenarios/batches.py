"""Batches: the arguments of a model's `forward`, nested in any way."""

import copy
import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import DataLoader


def map_tensors(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """Return a copy of a batch, or of a part of it, with `function` applied to each tensor.

    Tensors may be in mappings, lists, tuples, sets, dataclasses and objects with a method `to`,
    such as batches of graphs. Other values are returned as they are.
    """
    if isinstance(value, torch.Tensor):
        return function(value)
    if isinstance(value, PackedSequence):
        # The batch sizes stay on the host.
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
    """Return every tensor of a batch, in order."""
    tensors: list[torch.Tensor] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        tensors.append(tensor)
        return tensor

    map_tensors(note, value)
    return tensors


def by_name(model: torch.nn.Module, batch: Any) -> Mapping[str, Any]:
    """Return the batch as keyword arguments of the model's `forward`.

    A tensor or an object of tensors is the first argument. The items of a list or tuple, as a
    DataLoader yields it, are the first arguments; a model with one argument gets the whole list.
    Raises ValueError, "must be ...", for any other batch.
    """
    if isinstance(batch, Mapping):
        return cast(Mapping[str, Any], batch)
    if isinstance(batch, DataLoader | Iterator):
        raise ValueError(
            f"must be one batch, got {type(batch).__name__}; return next(iter(...)) of it"
        )
    is_one = isinstance(batch, torch.Tensor | PackedSequence) or _is_object_of_tensors(batch)
    values: list[Any] = (
        [batch] if is_one else list(batch) if isinstance(batch, list | tuple) else []
    )
    if not tensors_in(values):
        raise ValueError(
            "must be a mapping of forward's arguments, or tensors for them in order, got"
            f" {type(batch).__name__}"
        )
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD,)
    names = [
        name
        for name, parameter in inspect.signature(model.forward).parameters.items()
        if parameter.kind in kinds
    ]
    if len(names) == 1 and len(values) > 1:
        return {names[0]: batch}
    if len(values) > len(names):
        takes = f"takes {', '.join(names)}" if names else "names none"
        raise ValueError(
            f"must be as many values as forward of {type(model).__name__} takes by name, got"
            f" {len(values)}; it {takes}"
        )
    return dict(zip(names, values, strict=False))


def _is_object_of_tensors(value: Any) -> bool:
    if isinstance(value, type | torch.nn.Module):
        return False
    return dataclasses.is_dataclass(value) or (
        callable(getattr(value, "to", None)) and hasattr(value, "__dict__")
    )


def _with_items(
    function: Callable[[torch.Tensor], torch.Tensor], value: Mapping[Any, Any]
) -> Mapping[Any, Any]:
    items = {key: map_tensors(function, item) for key, item in value.items()}
    if type(value) is dict or not hasattr(value, "__setitem__"):
        return items
    # Outputs of transformers and BatchEncoding are mappings with methods that models call.
    made: Any = copy.copy(value)
    for key, item in items.items():
        made[key] = item
    return made


def _with_attributes(function: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    made = copy.copy(value)
    names = (
        [field.name for field in dataclasses.fields(value)]
        if dataclasses.is_dataclass(value)
        else list(vars(value))
    )
    for name in names:
        # A frozen dataclass refuses setattr.
        object.__setattr__(made, name, map_tensors(function, getattr(value, name)))
    return made
