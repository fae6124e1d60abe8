"""Data from outside, checked against dataclasses: every field by its type, with limits on size; nothing is executed or believed."""

import json
import math
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

# What one value may be, many times what optprof writes.
MOST_LETTERS = 20_000
MOST_ITEMS = 100_000
MOST_DEPTH = 12
MOST_WHOLE = 2**63 - 1

T = TypeVar("T")


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text; ValueError for one that is none, for NaN and Infinity, and for lists in lists without end."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("lists or objects stand inside each other too deep") from None


def read(kind: type[T], data: Any) -> T:
    """The dataclass `kind` that `data`, a mapping, holds; ValueError names the first field that does not fit. Others are left out."""
    return _read(kind, data, "")


def check(annotation: Any, value: Any, where: str) -> Any:
    """The value as the annotated type; ValueError says what `where` must be and what it is."""
    origin = get_origin(annotation)
    if origin is Literal:
        return _one_of(get_args(annotation), value, where)
    if origin in (Union, UnionType):
        return _either(get_args(annotation), value, where)
    if origin is tuple:
        return tuple(_items(get_args(annotation)[0], value, where))
    if origin in (list, Sequence):
        return list(_items(get_args(annotation)[0], value, where))
    if origin in (dict, Mapping):
        return _mapping(get_args(annotation)[1], value, where)
    if is_dataclass(annotation) and isinstance(annotation, type):
        return _read(annotation, value, where)
    return _plain(value, where, MOST_DEPTH) if annotation is Any else _scalar(annotation, value, where)


def shown(value: Any) -> str:
    """The value as an error tells it: short, whatever it holds."""
    return reprlib.repr(value)


def _read(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or kind.__name__.lower()} must be an object, got {shown(data)}")
    hints, values = _hints(kind), {}
    for field in fields(kind):  # pyright: ignore[reportArgumentType]
        path = f"{where}.{field.name}" if where else field.name
        if field.name in data:
            values[field.name] = check(hints[field.name], data[field.name], path)
        elif field.default is MISSING and field.default_factory is MISSING:
            raise ValueError(f"no {path}")
    return kind(**values)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return get_type_hints(kind)


def _one_of(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, str | int) or value not in allowed:
        raise ValueError(f"{where} must be one of {', '.join(map(str, allowed))}, got {shown(value)}")
    return value


def _either(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    if value is None and NoneType in kinds:
        return None
    kinds = tuple(kind for kind in kinds if kind is not NoneType)
    for kind in kinds[:-1]:
        try:
            return check(kind, value, where)
        except ValueError:
            continue
    return check(kinds[-1], value, where)


def _items(kind: Any, value: Any, where: str) -> list[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {shown(value)}")
    _limit(len(value), where)
    return [check(kind, item, where) for item in value]


def _mapping(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    _limit(len(value), where)
    return {_scalar(str, key, where): check(kind, item, f"{where}.{key[:80]}") for key, item in value.items()}


def _plain(value: Any, where: str, depth: int) -> Any:
    """The value as it is, when it is nothing but lists, objects, texts, numbers, truths and nulls."""
    if depth == 0:
        raise ValueError(f"{where} holds lists or objects more than {MOST_DEPTH} deep")
    if isinstance(value, Mapping):
        _limit(len(value), where)
        for key, item in value.items():
            _scalar(str, key, where)
            _plain(item, where, depth - 1)
    elif isinstance(value, list | tuple):
        _limit(len(value), where)
        for item in value:
            _plain(item, where, depth - 1)
    elif value is not None:
        _scalar(type(value), value, where)
    return value


_NAMES = {str: "a text", bool: "true or false", int: "a whole number", float: "a number"}


def _scalar(kind: Any, value: Any, where: str) -> Any:
    if kind not in _NAMES or not (type(value) is kind or (kind is float and type(value) is int)):
        raise ValueError(f"{where} must be {_NAMES.get(kind, 'plain data')}, got {shown(value)}")
    if isinstance(value, str):
        _check_text(value, where)
    if type(value) is int and abs(value) > MOST_WHOLE:
        raise ValueError(f"{where} is at most {MOST_WHOLE}, got a number of {value.bit_length()} bits")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{where} must be finite, got {value}")
    return kind(value)


def _check_text(text: str, where: str) -> None:
    if len(text) > MOST_LETTERS:
        raise ValueError(f"{where} has at most {MOST_LETTERS} letters, got {len(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} must be text that UTF-8 can hold, got {ascii(text)[:40]}") from None


def _limit(count: int, where: str) -> None:
    if count > MOST_ITEMS:
        raise ValueError(f"{where} has at most {MOST_ITEMS} items, got {count}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
