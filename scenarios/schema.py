"""Schema: the types and limits of fields, and how data are checked against them.

msgspec reads the annotations of our dataclasses and refuses what does not fit; this module words
the refusal. A scenario is checked when it is made, a record before its line is written and when it
is read. Nothing of the data is executed.
"""

import math
import re
import reprlib
import sys
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from difflib import get_close_matches
from types import NoneType, UnionType
from typing import (
    Annotated,
    Any,
    Literal,
    NoReturn,
    TypeVar,
    Union,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec
from msgspec import Meta

# The limits of a value, many times what optprof writes.
MOST_LETTERS = 20_000
MOST_ITEMS = 100_000
MOST_DEPTH = 12
# JSON has no limit; pandas, numpy and TOML have this one.
MOST_WHOLE = 2**63 - 1
# A name stands in every table and picture. The longest path of a file has 4,096 letters.
MOST_NAME = 1_000
# The limits of a line of `records.jsonl` and of the number of lines. A record of gpt2-xl has 6 kB.
# A training of MOST_ITEMS micro-batches, with a loss and the times of six phases each, takes 18 MB.
MOST_LINE_BYTES = 32 << 20
MOST_RECORDS = 100_000
# 31 years, and less than any clock measures: the ratio of two times stays finite.
LEAST_SECONDS, MOST_SECONDS = 1e-15, 1e9
# Losses of a training that diverges; the sum of all losses of a record stays finite.
MOST_LOSS = 1e100

# Letters reserved for the note that replaces the middle of a long text.
_NOTE_LETTERS = 48

Whole = Annotated[int, Meta(ge=-MOST_WHOLE, le=MOST_WHOLE)]
Count = Annotated[int, Meta(ge=0, le=MOST_WHOLE)]
Number = Annotated[float, Meta(ge=-sys.float_info.max, le=sys.float_info.max)]
Seconds = Annotated[float, Meta(ge=0.0, le=MOST_SECONDS)]
Loss = Annotated[float, Meta(ge=-MOST_LOSS, le=MOST_LOSS)]
Text = Annotated[str, Meta(max_length=MOST_LETTERS)]
Name = Annotated[str, Meta(max_length=MOST_NAME)]
Texts = Annotated[tuple[Text, ...], Meta(max_length=MOST_ITEMS)]
Counts = Annotated[Mapping[Text, Count], Meta(max_length=MOST_ITEMS)]
Samples = Annotated[tuple[Seconds, ...], Meta(max_length=MOST_ITEMS)]

_NOUNS = {
    "int": "a whole number",
    "float": "a number",
    "str": "a text",
    "bool": "true or false",
    "array": "a list",
    "object": "an object",
}
# As "Expected `int`, got `str` - at `$.memory.parameters`".
_REFUSED = re.compile(r"(?s)(.*?)(?: - at `(key` in `)?\$([^`]*)`)?")
_STEP = re.compile(r"\.([^.[]+)|\[(\d+|\.\.\.)\]")
_BOUND = re.compile(r"Expected `(?P<kind>\w+)`.* (?P<sign>>=|<=) (?P<bound>\S+)")

T = TypeVar("T")


class NewerError(ValueError):
    """Data of a schema that is newer than this optprof; they may be whole."""


def require_version(version: object, supported: int, kind: str) -> None:
    """Raise NewerError for a version above the supported one, ValueError for any other."""
    if version != supported:
        is_newer = type(version) is int and version > supported
        raise (NewerError if is_newer else ValueError)(
            f"{kind} {supported} is read here, got {shown(version)}; use the optprof that wrote it"
        )


def parse_json(text: str | bytes) -> Any:
    """Return the data of a JSON text; ValueError for any other text."""
    try:
        return msgspec.json.decode(text)
    except RecursionError:
        raise ValueError("lists or objects are nested too deep") from None


def check(annotation: Any, value: Any, where: str = "") -> Any:
    """Return the value as the annotated type; ValueError names `where` it does not fit.

    Fields that a dataclass does not have are left out.
    """
    try:
        return msgspec.convert(value, annotation)
    except msgspec.ValidationError as error:
        words, is_name, path = cast(re.Match[str], _REFUSED.fullmatch(str(error))).groups()
        _refuse(annotation, value, where, "a name" if is_name else words, _STEP.findall(path or ""))


def read(kind: type[T], data: Any) -> T:
    """Return the dataclass `kind` that `data`, a mapping, holds; ValueError names the misfit."""
    return check(kind, data)


def require_plain(value: Any, where: str = "") -> None:
    """Raise ValueError unless JSON can hold the value, within the limits; it names the misfit."""
    try:
        _count_inside(value, MOST_DEPTH)
    except ValueError as error:
        raise ValueError(f"{where}{error}".lstrip(" .")) from None


def require_seconds(samples: Iterable[float], where: str) -> None:
    """Raise ValueError for a time other than 0 that no clock measures."""
    least = min(filter(None, samples), default=MOST_SECONDS)
    if least < LEAST_SECONDS:
        raise ValueError(f"{where} must be 0 or a number >= {LEAST_SECONDS}, got {least}")


def shown(value: Any) -> str:
    """Return a short text of the value for an error."""
    if isinstance(value, int) and value.bit_length() > 64:
        # Python writes no number of more than 4,300 digits.
        return f"a number of {value.bit_length()} bits"
    try:
        return reprlib.repr(value)
    except ValueError:
        return f"a {type(value).__name__}"


def did_you_mean(name: str, names: Collection[str]) -> str:
    """Return a question about the names that are near, at most three, or else all names."""
    text = name.lower().replace(" ", "").replace("_", "-")
    plain = {known.replace("_", "-"): known for known in names}
    begun = [known for known in plain if len(text) > 1 and known.startswith(text)]
    near = [plain[each] for each in begun[:3] or get_close_matches(text, plain, 3, cutoff=0.66)]
    return f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names)}"


def shortened(text: str, most: int = MOST_LETTERS) -> str:
    r"""Return the text as a record can hold it.

    Bytes that are not UTF-8 are written as \xff, and the middle of a long text is left out.
    """
    try:
        # In file names and arguments, bytes that are not UTF-8 come as surrogates.
        data = text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        data = text.encode("utf-8", "backslashreplace")
    text = data.decode("utf-8", "backslashreplace")
    if len(text) <= most:
        return text
    half = (most - _NOTE_LETTERS) // 2
    return f"{text[:half]} [... {len(text) - 2 * half:,} letters left out ...] {text[-half:]}"


def shortened_all(texts: Iterable[str], most: int = 1_000) -> list[str]:
    """Return shortened texts, such as a command's arguments, without the middle of a long list."""
    words = list(texts)
    if len(words) > most:
        half = most // 2
        left_out = f"[... {len(words) - 2 * half:,} left out ...]"
        words = [*words[:half], left_out, *words[-half:]]
    return [shortened(text, 2_000) for text in words]


def require_records(count: int) -> None:
    """Raise ValueError if a run would have more records than can be read."""
    if count > MOST_RECORDS:
        raise ValueError(
            f"a run has at most {MOST_RECORDS} records, and would have {count}; ask for fewer, or"
            " name another folder with --out"
        )


def _refuse(
    annotation: Any, value: Any, where: str, words: str, steps: Iterable[tuple[str, str]]
) -> NoReturn:
    """Raise ValueError in our words for what msgspec refuses at the end of these steps."""
    for name, place in steps:
        annotation, container = _bare(annotation), value
        if name:
            annotation = get_type_hints(annotation, include_extras=True)[name]
            value, where = container[name], _within(where, name)
        elif place == "...":
            annotation = get_args(annotation)[1]
            for key, item in container.items():
                check(annotation, item, _within(where, shown(key)[1:-1]))
            words = "a name"
        else:
            annotation, value = get_args(annotation)[0], container[int(place)]
    raise ValueError(_refusal(_bare(annotation), value, where, words).strip())


def _refusal(kind: Any, value: Any, where: str, words: str) -> str:
    """Return our words for msgspec's."""
    if words == "a name":
        return f"{where} must have names that are texts of at most {MOST_LETTERS} letters"
    bound = _BOUND.match(words)
    if type(value) is float and not math.isfinite(value):
        return f"{where} must be finite, got {value}"
    if get_origin(kind) is Literal:
        allowed = ", ".join(map(str, get_args(kind)))
        return f"{where} must be one of {allowed}, got {shown(value)}"
    if missing := re.match("Object missing required field `(.*)`", words):
        return f"no {_within(where, missing[1])}"
    if " of length " in words and bound:
        noun = "letters" if bound["kind"] == "str" else "items"
        count = len(value)  # pyright: ignore[reportArgumentType]
        return f"{where} has at most {bound['bound']} {noun}, got {count}"
    if bound and bound["sign"] == "<=":
        return f"{where} is at most {bound['bound']}, got {shown(value)}"
    if bound:
        # A least number that is there for arithmetic would say little.
        is_usual = value <= 0 < float(bound["bound"]) < 1
        least = "> 0" if is_usual else f">= {bound['bound']}"
        return f"{where} must be {_NOUNS[bound['kind']]} {least}, got {shown(value)}"
    if expected := re.match(r"Expected `(\w+)", words):
        return f"{where} must be {_NOUNS.get(expected[1], expected[1])}, got {shown(value)}"
    # An error that a dataclass has raised begins with the name of one of its fields.
    return _within(where, words)


def _bare(annotation: Any) -> Any:
    """Return the annotation without limits and without None."""
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return _bare(arguments[0])
    if origin in (Union, UnionType):
        return _bare(next(kind for kind in arguments if kind is not NoneType))
    return annotation


def _within(where: str, name: str) -> str:
    return f"{where}.{name[:80]}" if where else name[:500]


def _count_inside(value: Any, depth: int) -> int:
    """Return the number of values in a value that is plain data; errors begin behind its name."""
    if require := _SCALARS.get(type(value)):
        require(value)
        return 0
    if not isinstance(value, dict | list | tuple):
        raise ValueError(f" must be plain data, got {shown(value)}")
    if depth == 0:
        raise ValueError(f" holds lists or objects more than {MOST_DEPTH} deep")
    items = cast(Sequence[Any], value)
    count = len(items)
    if not isinstance(value, dict):
        count += sum(_count_inside(item, depth - 1) for item in items)
    else:
        for name, item in cast(dict[Any, Any], value).items():
            if type(name) is not str:
                raise ValueError(f" must have names that are texts, got {shown(name)}")
            try:
                _require_text(name)
                # Most are scalars, and a run has 100,000 scenarios: that spares a call for each.
                if require := _SCALARS.get(type(item)):
                    require(item)
                else:
                    count += _count_inside(item, depth - 1)
            except ValueError as error:
                raise ValueError(f".{name[:80]}{error}") from None
    if count > MOST_ITEMS:
        raise ValueError(f" has at most {MOST_ITEMS} items, got {count}")
    return count


def _require_text(value: str) -> None:
    if len(value) > MOST_LETTERS:
        raise ValueError(f" has at most {MOST_LETTERS} letters, got {len(value)}")
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f" must be text that UTF-8 can hold, got {ascii(value)[:40]}"
            ) from None


def _require_number(value: float) -> None:
    if not -MOST_WHOLE <= value <= MOST_WHOLE:
        if type(value) is int:
            raise ValueError(f" is at most {MOST_WHOLE}, got {shown(value)}")
        if not math.isfinite(value):
            raise ValueError(f" must be finite, got {value}")


_SCALARS: dict[type, Callable[[Any], object]] = {
    str: _require_text,
    int: _require_number,
    float: _require_number,
    bool: bool,
    NoneType: bool,
}
