"""Readers of a wrapper's values in a checkpoint, which is checked before any of it is used."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..loading import as_tensor, brief

# Converts a checkpoint's value; ValueError says what is expected.
Reader = Callable[[Any], Any]


def read(refusal: str, key: str, values: Any, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Return all values, converted by their readers; ValueError in one line for a misfit."""
    if not isinstance(values, Mapping):
        raise ValueError(f"{refusal} {key!r}: found {brief(values)}, expected a dict")
    converted: dict[str, Any] = {}
    for name, reader in readers.items():
        if name not in values:
            names = ", ".join(map(repr, values)) or "nothing"
            raise ValueError(f"{refusal} {name!r} of {key!r}: found only {names}")
        try:
            converted[name] = reader(values[name])
        except ValueError as error:
            raise ValueError(
                f"{refusal} {name!r} of {key!r}: found {brief(values[name])}, expected {error}"
            ) from None
    return converted


def number(value: Any) -> float:
    """Return a finite number, also from a tensor or an array of one element."""
    tensor = as_tensor(value)
    if tensor is None or tensor.is_meta or tensor.numel() != 1 or tensor.is_complex():
        raise ValueError("a number")
    result = tensor.item()
    if isinstance(result, bool) or not math.isfinite(result):
        raise ValueError("a finite number")
    return result


def count(value: Any) -> int:
    """Return a whole number of at least 0."""
    result = value if isinstance(value, int) and not isinstance(value, bool) else number(value)
    if result < 0 or result != int(result):
        raise ValueError("a count")
    return int(result)


def not_negative(value: Any) -> float:
    """Return a finite number of at least 0."""
    if (result := number(value)) < 0:
        raise ValueError("a number of at least 0")
    return result


def positive(value: Any) -> float:
    """Return a finite number above 0."""
    if (result := number(value)) <= 0:
        raise ValueError("a number above 0")
    return result


def numbers(value: Any) -> list[float]:
    """Return a list of finite numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of numbers")
    return [number(each) for each in value]


def settings(value: Any) -> dict[str, Any]:
    """Return the target's group, which has the number as `lr`."""
    if not isinstance(value, Mapping) or "lr" not in value:
        raise ValueError("a dict with the target as 'lr'")
    # A threshold may be infinite.
    return {**value, "lr": torch.inf if value["lr"] == torch.inf else number(value["lr"])}


def optional(reader: Reader) -> Reader:
    """Return a reader that takes None as well."""
    return lambda value: None if value is None else reader(value)


def tensors_like(params: Sequence[Tensor]) -> Reader:
    """Return a reader of one tensor for each parameter, or None in its place."""

    def read_tensors(value: Any) -> list[Tensor | None]:
        if not isinstance(value, list | tuple) or len(value) != len(params):
            raise ValueError(f"a list of {len(params)} tensors, one for each parameter")
        for index, (each, param) in enumerate(zip(value, params, strict=True)):
            is_tensor = isinstance(each, Tensor) and (param.is_meta or not each.is_meta)
            if each is not None and not (is_tensor and each.shape == param.shape):
                raise ValueError(
                    f"a tensor of shape {tuple(param.shape)} for parameter {index}, not"
                    f" {brief(each)}"
                )
        return list(value)

    return read_tensors
