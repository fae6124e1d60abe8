"""Suites: many scenarios in a few lines of TOML, by a name that comes with optprof or as a file of
one's own.

    description = "What bf16 saves, from small to large"
    [[scenarios]]
    model = ["gpt2", "gpt2-xl"]
    optimizer = ["adamw", "sm3:momentum=0.9"]
    dtype = ["fp32", "bf16"]

The keys are the fields of `Scenario`; a list is an axis, and each combination a scenario. A file is
data: it is checked against the fields, and runs nobody's code.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import product
from math import prod
from pathlib import Path
from types import NoneType
from typing import Any, Literal, get_args, get_type_hints

from . import schema
from .models import require_size
from .spec import Device, Scenario

MOST_BYTES = 256 << 10
MOST_SCENARIOS = 2_000
MOST_LETTERS = 500

_NAMED = Path(__file__).parent / "named"
# The model's trace is shared by those that differ in these alone, so they follow each other.
_LAST = ("alloc_conf", "implementation", "optimizer")
_FIELDS: dict[str, Any] = {
    **{
        name: kind
        for name, kind in get_type_hints(Scenario, include_extras=True).items()
        if name not in (*_LAST, "options")
    },
    **{name: get_type_hints(Scenario, include_extras=True)[name] for name in _LAST},
    "device": Literal["auto", *get_args(Device)],
}
# In a configuration from a file a text is a plain word: no path, no address, no name of something
# to be fetched.
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A list of questions: for each the fields of a scenario that it sets, its optimizer as a text
    with options (`sm3:momentum=0.9`).

    `device` may be "auto" as well.
    """

    name: str
    description: str
    questions: tuple[Mapping[str, Any], ...]


def available() -> tuple[str, ...]:
    """The names of the suites that come with optprof."""
    return tuple(sorted(path.stem for path in _NAMED.glob("*.toml")))


def load(name: str) -> Suite:
    """A suite by its name, or from a file whose name ends in .toml; ValueError says in one line
    what is wrong with it.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif name in available():
        path = _NAMED / f"{name}.toml"
    else:
        near = get_close_matches(name, available(), n=3) or available()
        raise ValueError(
            f"no suite is named {name!r}; did you mean {', '.join(near)}? (a file of your own ends"
            " in .toml)"
        )
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    try:
        return read(path.stem, data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read(name: str, data: bytes) -> Suite:
    """The suite that a file's bytes hold; ValueError for bytes that hold none."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"a suite has at most {MOST_BYTES} bytes, got more")
    found = _parsed(data)
    description, tables = found.pop("description", ""), found.pop("scenarios", None)
    if found:
        raise ValueError(
            f"a suite has description and [[scenarios]], got {schema.shown(next(iter(found)))}"
        )
    if not isinstance(tables, list) or not tables:
        raise ValueError("a suite has one [[scenarios]] table or more, got none")
    axes = [_axes(number, table) for number, table in enumerate(tables, start=1)]
    count = sum(prod(map(len, each.values())) for each in axes)
    if count > MOST_SCENARIOS:
        raise ValueError(f"a suite has at most {MOST_SCENARIOS} scenarios, got {count}")
    questions = tuple(question for each in axes for question in _combinations(each))
    return Suite(
        name=name,
        description=schema.check(schema.Text, description, "description"),
        questions=questions,
    )


def _parsed(data: bytes) -> dict[str, Any]:
    try:
        return tomllib.loads(data.decode())
    except RecursionError:
        raise ValueError("lists or tables stand inside each other too deep") from None
    except UnicodeDecodeError:
        raise ValueError("a suite is text in UTF-8") from None


def _axes(number: int, table: Any) -> dict[str, list[Any]]:
    where = f"scenarios {number}"
    if not isinstance(table, Mapping):
        raise ValueError(f"{where} must be a table, got {schema.shown(table)}")
    for key in table:
        if key not in _FIELDS:
            told = (
                "; options are written into the optimizer's text, as in sm3:momentum=0.9"
                if key == "options"
                else ""
            )
            near = get_close_matches(key, _FIELDS, n=1)
            raise ValueError(
                f"{where} has no field {key[:40]!r}{f'; did you mean {near[0]}?' if near else told}"
            )
    if "model" not in table:
        raise ValueError(f"{where} names no model")
    axes = {
        name: _values(name, table[name], f"{where}, {name}") for name in _FIELDS if name in table
    }
    for question in _combinations({name: values[:1] for name, values in axes.items()}):
        # What no combination could be is told now, with the field's own words.
        Scenario(
            **{
                name: value
                for name, value in question.items()
                if value != "auto" and name != "optimizer"
            }
        )
    return axes


def _values(name: str, value: Any, where: str) -> list[Any]:
    values = value if isinstance(value, list) else [value]
    if not values:
        raise ValueError(f"{where} is an empty list")
    return [_value(name, each, where) for each in values]


def _value(name: str, value: Any, where: str) -> Any:
    if value == "none" and NoneType in get_args(_FIELDS[name]):
        return None
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        raise ValueError(f"{where} has at most {MOST_LETTERS} letters, got {len(value)}")
    checked = schema.check(_FIELDS[name], value, where)
    if name == "config":
        _check_config(checked, where)
    return checked


def _check_config(config: Mapping[str, Any], where: str) -> None:
    require_size(config, where, " from a file")
    for key, value in config.items():
        if not key.isidentifier() or key.startswith("_") or "implementation" in key:
            raise ValueError(f"{where} from a file cannot set {key[:40]!r}")
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, bool | int | float | str) or (
                isinstance(each, str) and not _WORD.fullmatch(each)
            ):
                raise ValueError(
                    f"{where}.{key[:40]} from a file is a number, true, false, a plain word or a"
                    " list of them"
                )


def _combinations(axes: Mapping[str, list[Any]]) -> Iterator[dict[str, Any]]:
    for values in product(*axes.values()):
        yield dict(zip(axes, values, strict=True))
