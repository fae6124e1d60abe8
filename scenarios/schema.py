"""The schema: dataclasses whose annotations say what a field may hold, checked alike for what is
made and what is read.

A scenario is checked when it is made, a record before its line is written, and both again when
they are read. Nothing of the data is executed or believed.
"""

import json
import math
import reprlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, is_dataclass
from functools import cache
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

# A value may have this much, many times what optprof writes.
MOST_LETTERS = 20_000
MOST_ITEMS = 100_000
MOST_DEPTH = 12
# JSON has no limit, and pandas, numpy and TOML have this one.
MOST_WHOLE = 2**63 - 1
# A name stands in every table and picture. The longest path of a file is 4,096 letters.
MOST_NAME = 1_000
# A line of `records.jsonl`, and the lines of one: a record of gpt2-xl is 6 kB. A training of
# MOST_ITEMS micro-batches, with a loss and the times of six phases each, takes 18 MB.
MOST_LINE_BYTES = 32 << 20
MOST_RECORDS = 100_000
# 31 years, and less than any clock tells: the ratio of two times stays finite.
LEAST_SECONDS, MOST_SECONDS = 1e-15, 1e9
# Losses of a training that diverges; sums of all that a record holds stay finite.
MOST_LOSS = 1e100

# The room for what stands in place of letters that are left out.
_MARK = 48

# A dictionary is known for a mapping at once, others by their abstract class.
_MAPPINGS = (dict, Mapping)

T = TypeVar("T")
_Check = Callable[[Any], Any]


@dataclass(frozen=True)
class Between:
    """The least and the most that a number may be; both are allowed, and 0 where `or_zero`
    says so.
    """

    least: float
    most: float
    or_zero: bool = False


@dataclass(frozen=True)
class Letters:
    """The most letters that a text may have."""

    most: int


Count = Annotated[int, Between(0, MOST_WHOLE)]
Seconds = Annotated[float, Between(LEAST_SECONDS, MOST_SECONDS, or_zero=True)]
Loss = Annotated[float, Between(-MOST_LOSS, MOST_LOSS)]
Name = Annotated[str, Letters(MOST_NAME)]


class MisfitError(ValueError):
    """A value that does not fit; its place is found on the way out of what holds it."""

    def __init__(self, words: str, place: str = "", before: str = "") -> None:
        super().__init__()
        self.words, self.place, self.before = words, place, before

    def inside(self, name: str) -> "MisfitError":
        """The same, told from one level further out."""
        self.place = f"{name}.{self.place}" if self.place else name
        return self

    def told(self, where: str) -> str:
        """The line for an error; `where` is what was checked."""
        return f"{self.before}{'.'.join(filter(None, (where, self.place)))}{self.words}"


class NewerError(ValueError):
    """Data of a schema that is newer than this optprof: whole, as far as can be told from here."""


def require_version(version: object, read: int, kind: str) -> None:
    """Raise NewerError for a version above the one that is read here, ValueError for any other."""
    if version != read:
        newer = type(version) is int and version > read
        raise (NewerError if newer else ValueError)(
            f"{kind} {read} is read here, got {shown(version)}; use the optprof that wrote it"
        )


class Checked:
    """A dataclass whose instances hold what their annotations allow, however they are made."""

    def __post_init__(self) -> None:
        values = vars(self)
        for name, check_field, _ in _fields(type(self)):
            try:
                values[name] = check_field(values[name])
            except MisfitError as misfit:
                raise ValueError(misfit.told(name)) from None


def parse_json(text: str | bytes) -> Any:
    """The data of a JSON text; ValueError for one that is none, for NaN and Infinity, and for lists
    in lists without end.
    """
    # Whoever reads no JSON need not wait for it.
    import msgspec

    try:
        # Six times as fast as `json`, which says better what is wrong and takes more encodings.
        return msgspec.json.decode(text)
    except (ValueError, RecursionError):
        pass
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("lists or objects stand inside each other too deep") from None


def read(kind: type[T], data: Any) -> T:
    """The dataclass `kind` that `data`, a mapping, holds; ValueError names the first field that
    does not fit. Others are left out.
    """
    try:
        return _checker(kind)(data)
    except MisfitError as misfit:
        raise ValueError(misfit.told("" if misfit.place else kind.__name__.lower())) from None


def check(annotation: Any, value: Any, where: str) -> Any:
    """The value as the annotated type; ValueError says what `where` must be and what it is."""
    try:
        return _checker(annotation)(value)
    except MisfitError as misfit:
        raise ValueError(misfit.told(where)) from None


def shown(value: Any) -> str:
    """The value as an error tells it: short, whatever it holds."""
    if isinstance(value, int) and value.bit_length() > 64:
        # Python writes no number of more than 4,300 digits.
        return f"a number of {value.bit_length()} bits"
    try:
        return reprlib.repr(value)
    except ValueError:
        return f"a {type(value).__name__}"


def shortened(text: str, most: int = MOST_LETTERS) -> str:
    """The text as a record can hold it, with bytes that are no UTF-8 as \\xff, and the middle of a
    long one left out.
    """
    try:
        # The bytes of file names and arguments that are no UTF-8 come as surrogates.
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "backslashreplace")
    text = data.decode("utf-8", "backslashreplace")
    if len(text) <= most:
        return text
    half = (most - _MARK) // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} letters left out ...] {text[-half:]}"


def shortened_all(texts: Iterable[str], most: int = 1_000) -> list[str]:
    """Texts such as the arguments of a command, each shortened, and the middle of a long list left
    out.
    """
    found = list(texts)
    if len(found) > most:
        half = most // 2
        left_out = f"[... {len(found) - 2 * half:,} left out ...]"
        found = [*found[:half], left_out, *found[-half:]]
    return [shortened(text, 2_000) for text in found]


def require_records(count: int) -> None:
    """Raise ValueError where a run would have more records than can be read."""
    if count > MOST_RECORDS:
        raise ValueError(
            f"a run has at most {MOST_RECORDS} records, and would have {count}; ask for fewer, or"
            " name another folder with --out"
        )


@cache
def _checker(annotation: Any) -> _Check:
    """The check of one annotation, made once: a run has up to a hundred thousand records."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [each for each in arguments[1:] if isinstance(each, Between | Letters)]
        return _limited(arguments[0], limits[0]) if limits else _checker(arguments[0])
    if origin is Literal:
        return _one_of(arguments)
    if origin in (Union, UnionType):
        return _either(arguments)
    if origin is tuple:
        return _items(arguments[0], tuple)
    if origin in (list, Sequence):
        return _items(arguments[0], list)
    if origin in (dict, Mapping):
        return _mapping(_checker(arguments[1]))
    if is_dataclass(annotation) and isinstance(annotation, type):
        return _object(annotation)
    return _plain if annotation is Any else _scalar(annotation)


@cache
def _fields(kind: type) -> list[tuple[str, _Check, bool]]:
    """Name, check and necessity of each field of a dataclass."""
    hints = get_type_hints(kind, include_extras=True)
    return [
        (
            each.name,
            _checker(hints[each.name]),
            each.default is MISSING and each.default_factory is MISSING,
        )
        for each in fields(kind)  # pyright: ignore[reportArgumentType]
    ]


def _object(kind: type[Any]) -> _Check:
    # A class that checks itself is given the values as they are.
    own = issubclass(kind, Checked)

    def read_object(data: Any) -> Any:
        if isinstance(data, kind):
            if own:
                return data
            data = vars(data)
        if not isinstance(data, _MAPPINGS):
            raise MisfitError(f" must be an object, got {shown(data)}")
        values: dict[str, Any] = {}
        for name, check_field, is_needed in _fields(kind):
            if name in data:
                try:
                    values[name] = data[name] if own else check_field(data[name])
                except MisfitError as misfit:
                    raise misfit.inside(name) from None
            elif is_needed:
                raise MisfitError("", place=name, before="no ")
        return _made(kind, values)

    return read_object


def _made(kind: type[Any], values: Mapping[str, Any]) -> Any:
    try:
        return kind(**values)
    except ValueError as error:
        # It begins with the name of a field.
        place, _, words = str(error).partition(" ")
        raise MisfitError(f" {words}", place=place) from None


def _limited(kind: Any, limit: Between | Letters) -> _Check:
    plain = _checker(kind)
    if isinstance(limit, Letters):
        return lambda value: plain(_within_letters(value, limit.most))
    # A whole number too large for a float would be compared as infinite.
    least, most = kind(limit.least), kind(limit.most)

    def within(value: Any) -> Any:
        if type(value) is kind and least <= value <= most:
            return value
        found = plain(value)
        if least <= found <= most or (limit.or_zero and found == 0):
            return found
        if found < least:
            noun = "a whole number" if kind is int else "a number"
            # A least number that is there for arithmetic would say little.
            usual = ">= 0" if limit.or_zero else "> 0"
            bound = usual if 0 < least < 1 and found <= 0 else f">= {least}"
            raise MisfitError(f" must be {noun} {bound}, got {shown(found)}")
        raise MisfitError(f" is at most {most}, got {shown(found)}")

    return within


def _within_letters(text: Any, most: int) -> Any:
    if isinstance(text, str) and len(text) > most:
        raise MisfitError(f" has at most {most} letters, got {len(text)}")
    return text


def _one_of(allowed: tuple[Any, ...]) -> _Check:
    def one_of(value: Any) -> Any:
        if not isinstance(value, (str, int)) or value not in allowed:
            raise MisfitError(f" must be one of {', '.join(map(str, allowed))}, got {shown(value)}")
        return value

    return one_of


def _either(kinds: tuple[Any, ...]) -> _Check:
    checks = [_checker(kind) for kind in kinds if kind is not NoneType]
    allows_none = NoneType in kinds

    *others, last = checks

    def either(value: Any) -> Any:
        if value is None and allows_none:
            return None
        for check_kind in others:
            try:
                return check_kind(value)
            except MisfitError:
                continue
        return last(value)

    return either


def _items(annotation: Any, kind: Callable[[Sequence[Any]], Any]) -> _Check:
    check_item, limit = _checker(annotation), _limit_of_numbers(annotation)

    def items(value: Any) -> Any:
        if not isinstance(value, (list, tuple)):
            raise MisfitError(f" must be a list, got {shown(value)}")
        _limit(len(value))
        if limit is not None and _are_within(limit, value):
            # Samples are most of what a run holds.
            return kind(value)
        return kind([check_item(item) for item in value])

    return items


def _are_within(limit: Between, values: Sequence[Any]) -> bool:
    # NaN is in no order, so it is looked for first; a sum with one is one.
    are_finite = {*map(type, values)} == {float} and math.isfinite(sum(values))
    return are_finite and limit.least <= min(values) <= max(values) <= limit.most


def _limit_of_numbers(annotation: Any) -> Between | None:
    """The limit of an annotation that allows floats, None for others."""
    if annotation is float:
        return Between(-math.inf, math.inf)
    arguments = get_args(annotation)
    is_limited = get_origin(annotation) is Annotated and arguments[0] is float
    return arguments[1] if is_limited else None


def _mapping(check_item: _Check) -> _Check:
    if check_item is _plain:
        return _plain_mapping

    def mapping(value: Any) -> dict[str, Any]:
        if not isinstance(value, _MAPPINGS):
            raise MisfitError(f" must be an object, got {shown(value)}")
        _limit(len(value))
        found: dict[str, Any] = {}
        for key, item in value.items():
            try:
                found[_key(key)] = check_item(item)
            except MisfitError as misfit:
                raise misfit.inside(key[:80]) from None
        return found

    return mapping


def _plain_mapping(value: Any) -> dict[str, Any]:
    """A copy of a mapping of plain data, all of which counts as its items."""
    if not isinstance(value, _MAPPINGS):
        raise MisfitError(f" must be an object, got {shown(value)}")
    found: dict[str, Any] = {}
    count = 0
    for key, item in value.items():
        name = _key(key)
        try:
            found[name], inside = _plain_and_count(item)
        except MisfitError as misfit:
            raise misfit.inside(name[:80]) from None
        count += 1 + inside
        _limit(count)
    return found


def _plain(value: Any) -> Any:
    """The value as it is, when it is nothing but lists, objects, texts, numbers, truths and
    nulls.
    """
    return _plain_and_count(value)[0]


def _plain_and_count(value: Any) -> tuple[Any, int]:
    """The value, and the number of values inside; equal ones, as every record's machine, are
    one.
    """
    if not isinstance(value, (list, dict)):
        return (
            (_text(value), 0) if type(value) is str else (value, _require_plain(value, MOST_DEPTH))
        )
    try:
        # To a text, 1, 1.0 and True are three.
        text = repr(value)
    except (RecursionError, ValueError):
        text = ""
    known = _PLAIN.get(text)
    return known or _kept(_PLAIN, text, (value, _require_plain(value, MOST_DEPTH)))


def _require_plain(value: Any, depth: int) -> int:
    """Raise MisfitError for what JSON cannot hold; the number of values inside."""
    kind = type(value)
    if kind in _SCALARS:
        _SCALARS[kind](value)
        return 0
    if value is None:
        return 0
    if not isinstance(value, Mapping | list | tuple):
        raise MisfitError(f" must be plain data, got {shown(value)}")
    if depth == 0:
        raise MisfitError(f" holds lists or objects more than {MOST_DEPTH} deep")
    count = len(cast(Sequence[Any], value))
    _limit(count)
    if isinstance(value, Mapping):
        for key in value:
            _key(key)
        value = value.values()
    for item in value:
        count += _require_plain(item, depth - 1)
    _limit(count)
    return count


def _kept(known: dict[str, T], text: str, value: T) -> T:
    """Keep what was checked, as long as it is small and there is room for it."""
    if 0 < len(text) <= _MOST_KEPT_LETTERS:
        if len(known) >= _MOST_KEPT:
            known.clear()
        known[text] = value
    return value


def _key(key: Any) -> str:
    if type(key) is str and key in _TEXTS:
        return _TEXTS[key]
    if type(key) is not str:
        raise MisfitError(f" must have names that are texts, got {shown(key)}")
    return _text(key)


def _scalar(kind: Any) -> _Check:
    if kind not in _SCALARS:
        raise TypeError(f"the schema has no {kind!r}")
    return _SCALARS[kind]


def _text(value: Any) -> str:
    """The text; a parser makes the names that stand in every record anew for each of them."""
    if type(value) is not str:
        raise MisfitError(f" must be a text, got {shown(value)}")
    known = _TEXTS.get(value)
    if known is not None:
        return known
    _within_letters(value, MOST_LETTERS)
    # The one kind of letter that UTF-8 cannot hold; most texts are ASCII, which is known at once.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise MisfitError(
                f" must be text that UTF-8 can hold, got {ascii(value)[:40]}"
            ) from None
    return _kept(_TEXTS, value, value)


def _truth(value: Any) -> bool:
    if type(value) is not bool:
        raise MisfitError(f" must be true or false, got {shown(value)}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise MisfitError(f" must be a whole number, got {shown(value)}")
    if not -MOST_WHOLE <= value <= MOST_WHOLE:
        # The sign is not worth two limits.
        raise MisfitError(f" is at most {MOST_WHOLE}, got a number of {value.bit_length()} bits")
    return value


def _number(value: Any) -> float:
    # numpy's float64 is a float.
    if isinstance(value, float):
        if not math.isfinite(value):
            raise MisfitError(f" must be finite, got {value}")
        return float(value)
    if type(value) is not int:
        raise MisfitError(f" must be a number, got {shown(value)}")
    return float(_whole(value))


# What was read lately, and is read again in the next record.
_MOST_KEPT, _MOST_KEPT_LETTERS = 2_000, 1_000
_TEXTS: dict[str, str] = {}
_PLAIN: dict[str, tuple[Any, int]] = {}

_SCALARS: dict[Any, _Check] = {str: _text, bool: _truth, int: _whole, float: _number}


def _limit(count: int) -> None:
    if count > MOST_ITEMS:
        raise MisfitError(f" has at most {MOST_ITEMS} items, got {count}")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
