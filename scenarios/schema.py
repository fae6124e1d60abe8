"""Data from outside, checked against dataclasses: every field by its type, with limits on size; nothing is executed or believed."""

import json
import math
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, lru_cache, partial
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
    return _checker(annotation)(value, where)


@cache
def _checker(annotation: Any) -> Callable[[Any, str], Any]:
    """Return the check of an annotation; a run has 100,000 records, so types are looked at once."""
    origin, kinds = get_origin(annotation), get_args(annotation)
    if origin is Literal:
        return partial(_one_of, kinds)
    if origin in (Union, UnionType):
        return _optional(kinds) if NoneType in kinds else partial(_either, kinds)
    if origin is tuple:
        return lambda value, where: tuple(_items(kinds[0], value, where))
    if origin in (list, Sequence):
        return lambda value, where: list(_items(kinds[0], value, where))
    if origin in (dict, Mapping):
        return partial(_mapping, kinds[1])
    if is_dataclass(annotation) and isinstance(annotation, type):
        return partial(_read, annotation)
    if annotation is Any:
        return _anything
    return _text if annotation is str else partial(_scalar, annotation)


def _optional(kinds: tuple[Any, ...]) -> Callable[[Any, str], Any]:
    others = tuple(kind for kind in kinds if kind is not NoneType)
    checker = _checker(others[0]) if len(others) == 1 else partial(_either, others)
    return lambda value, where: None if value is None else checker(value, where)


def shown(value: Any) -> str:
    """The value as an error tells it: short, whatever it holds."""
    return reprlib.repr(value)


def _read(kind: type[T], data: Any, where: str) -> T:
    if not isinstance(data, Mapping):
        raise ValueError(f"{where or kind.__name__.lower()} must be an object, got {shown(data)}")
    values: dict[str, Any] = {}
    for name, path, checker, optional in _fields(kind, where):
        if name in data:
            values[name] = checker(data[name], path)
        elif not optional:
            raise ValueError(f"no {path}")
    return kind(**values)


# Keys from outside stand in `where`, so the cache has an end.
@lru_cache(maxsize=1_000)
def _fields(kind: type, where: str) -> list[tuple[str, str, Callable[[Any, str], Any], bool]]:
    """Return name, path, check and whether it may be left out, for each field of a dataclass."""
    hints = get_type_hints(kind)
    return [
        (
            field.name,
            f"{where}.{field.name}" if where else field.name,
            _checker(hints[field.name]),
            field.default is not MISSING or field.default_factory is not MISSING,
        )
        for field in fields(kind)
    ]


def _one_of(allowed: tuple[Any, ...], value: Any, where: str) -> Any:
    if not isinstance(value, str | int) or value not in allowed:
        raise ValueError(f"{where} must be one of {', '.join(map(str, allowed))}, got {shown(value)}")
    return value


def _either(kinds: tuple[Any, ...], value: Any, where: str) -> Any:
    for kind in kinds[:-1]:
        try:
            return check(kind, value, where)
        except ValueError:
            continue
    return check(kinds[-1], value, where)


def _items(kind: Any, value: Any, where: str) -> Sequence[Any]:
    if not isinstance(value, list | tuple):
        raise ValueError(f"{where} must be a list, got {shown(value)}")
    _limit(len(value), where)
    if kind is float and {float}.issuperset(map(type, value)) and math.isfinite(sum(value)):
        # Samples, most of what a run holds. A sum is finite only where each of them is.
        return value
    checker = _checker(kind)
    return [checker(item, where) for item in value]


def _mapping(kind: Any, value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise ValueError(f"{where} must be an object, got {shown(value)}")
    _limit(len(value), where)
    checker = _checker(kind)
    if kind is int:
        # A path that is never shown takes longer to write than a number to check.
        return {
            _text(key, where): item if type(item) is int and 0 <= item <= MOST_WHOLE else checker(item, f"{where}.{key[:80]}")
            for key, item in value.items()
        }
    return {_text(key, where): checker(item, f"{where}.{key[:80]}") for key, item in value.items()}


def _text(value: Any, where: str) -> str:
    """Return a text; a parser makes the names that stand in every record anew for each of them."""
    known = _TEXTS.get(value) if type(value) is str else None
    return _kept(_TEXTS, value, _scalar(str, value, where)) if known is None else known


def _anything(value: Any, where: str) -> Any:
    """Return plain data; equal lists and objects, as the machine of every record, are one."""
    if not isinstance(value, list | dict):
        return _text(value, where) if type(value) is str else _plain(value, where, MOST_DEPTH)
    try:
        # To a text, 1, 1.0 and True are three.
        text = repr(value)
    except RecursionError:
        return _plain(value, where, MOST_DEPTH)
    known = _PLAIN.get(text)
    return _kept(_PLAIN, text, _plain(value, where, MOST_DEPTH)) if known is None else known


def _kept(known: dict[str, T], text: str, value: T) -> T:
    """Keep what was checked, as long as it is small and there is room for it."""
    if len(text) <= _MOST_KEPT_LETTERS:
        if len(known) >= _MOST_KEPT:
            known.clear()
        known[text] = value
    return value


_MOST_KEPT, _MOST_KEPT_LETTERS = 2_000, 1_000
_TEXTS: dict[str, str] = {}
_PLAIN: dict[str, Any] = {}


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
