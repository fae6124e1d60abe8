"""Saved: what a checkpoint holds of a wrapper, read with checks before any of it is taken up."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..loading import as_tensor, found_as

# Turns a value into what it is here; ValueError says what would have been right.
Reader = Callable[[Any], Any]


def read(refusal: str, key: str, values: Any, readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Return all values as their readers take them; ValueError in one line for the first that does
    not fit.
    """
    if not isinstance(values, Mapping):
        raise ValueError(f"{refusal} {key!r}: found {found_as(values)}, expected a dict")
    taken: dict[str, Any] = {}
    for name, reader in readers.items():
        if name not in values:
            names = ", ".join(map(repr, values)) or "nothing"
            raise ValueError(f"{refusal} {name!r} of {key!r}: found only {names}")
        try:
            taken[name] = reader(values[name])
        except ValueError as error:
            found = found_as(values[name])
            raise ValueError(
                f"{refusal} {name!r} of {key!r}: found {found}, expected {error}"
            ) from None
    return taken


def number(value: Any) -> float:
    """Return a finite number, which may come as a tensor or an array of one."""
    tensor = as_tensor(value)
    if tensor is None or tensor.is_meta or tensor.numel() != 1 or tensor.is_complex():
        raise ValueError("a number")
    found = tensor.item()
    if isinstance(found, bool) or not math.isfinite(found):
        raise ValueError("a finite number")
    return found


def count(value: Any) -> int:
    """Return a whole number of at least 0."""
    found = value if isinstance(value, int) and not isinstance(value, bool) else number(value)
    if found < 0 or found != int(found):
        raise ValueError("a count")
    return int(found)


def not_negative(value: Any) -> float:
    """Return a finite number of at least 0."""
    if (found := number(value)) < 0:
        raise ValueError("a number of at least 0")
    return found


def positive(value: Any) -> float:
    """Return a finite number above 0."""
    if (found := number(value)) <= 0:
        raise ValueError("a number above 0")
    return found


def numbers(value: Any) -> list[float]:
    """Return a list of finite numbers."""
    if not isinstance(value, list | tuple):
        raise ValueError("a list of numbers")
    return [number(each) for each in value]


def settings(value: Any) -> dict[str, Any]:
    """Return the target's group, with its number as `lr`."""
    if not isinstance(value, Mapping) or "lr" not in value:
        raise ValueError("a dict with the target as 'lr'")
    # A threshold of infinity is one.
    return {**value, "lr": torch.inf if value["lr"] == torch.inf else number(value["lr"])}


def optional(reader: Reader) -> Reader:
    """Return a reader that takes None as well."""
    return lambda value: None if value is None else reader(value)


def tensors_like(params: Sequence[Tensor]) -> Reader:
    """Return a reader of one tensor for each parameter, or None in its place."""

    def read_tensors(value: Any) -> list[Tensor | None]:
        if not isinstance(value, list | tuple) or len(value) != len(params):
            raise ValueError(f"a list of {len(params)} tensors, one for each parameter")
        for place, (each, param) in enumerate(zip(value, params, strict=True)):
            is_tensor = isinstance(each, Tensor) and (param.is_meta or not each.is_meta)
            if each is not None and not (is_tensor and each.shape == param.shape):
                found = found_as(each)
                raise ValueError(
                    f"a tensor of shape {tuple(param.shape)} for parameter {place}, not {found}"
                )
        return list(value)

    return read_tensors
