"""Suites: many scenarios in a few lines of TOML, in a file of your own or one of optprof's.

    description = "What bf16 saves, from small to large"
    [[scenarios]]
    model = ["gpt2", "gpt2-xl"]
    optimizer = ["adamw", "sm3:momentum=0.9"]
    dtype = ["fp32", "bf16"]

The keys are the fields of `Scenario`. A list is an axis; each combination is a scenario. A file is
data: it is checked against the fields and runs no code.
"""

import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod
from pathlib import Path
from typing import Any, Literal, get_args, get_type_hints

from . import schema
from .models import require_size
from .spec import Device, Scenario, usual

MOST_BYTES = 256 << 10
MOST_SCENARIOS = 2_000
MOST_LETTERS = 500

_NAMED = Path(__file__).parent / "named"
# Scenarios that differ only in these fields share the model's trace, so they follow each other.
_LAST = ("alloc_conf", "implementation", "optimizer")
_HINTS = get_type_hints(Scenario, include_extras=True)
_NAMES = [name for name in _HINTS if name not in (*_LAST, "options")] + [*_LAST]
_FIELDS = {name: _HINTS[name] for name in _NAMES} | {"device": Literal["auto", *get_args(Device)]}
# A text in a file's configuration is a plain word: no path, no address, nothing to download.
_WORD = re.compile(r"[A-Za-z0-9_.+-]*")


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A list of questions, as `optprof.profiler.running.plan` takes them."""

    name: str
    description: str
    questions: tuple[Mapping[str, Any], ...]


def available() -> tuple[str, ...]:
    """Return the names of the suites that come with optprof."""
    return tuple(sorted(path.stem for path in _NAMED.glob("*.toml")))


def load(name: str) -> Suite:
    """Return the suite with this name, or from a file whose name ends in .toml.

    Raises ValueError with one line for whatever is wrong.
    """
    if name.endswith(".toml"):
        path = Path(name)
    elif name in available():
        path = _NAMED / f"{name}.toml"
    else:
        raise ValueError(
            f"no suite is named {name!r}; {schema.did_you_mean(name, available())} (a file of your"
            " own ends in .toml)"
        )
    with path.open("rb") as file:
        data = file.read(MOST_BYTES + 1)
    try:
        return read(path.stem, data)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def read(name: str, data: bytes) -> Suite:
    """Return the suite in a file's bytes; raise ValueError if there is none."""
    if len(data) > MOST_BYTES:
        raise ValueError(f"a suite has at most {MOST_BYTES} bytes, got more")
    content = _parsed(data)
    description, tables = content.pop("description", ""), content.pop("scenarios", None)
    if content:
        raise ValueError(
            f"a suite has description and [[scenarios]], got {schema.shown(next(iter(content)))}"
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
            advice = f"; {schema.did_you_mean(key, _FIELDS)}"
            if key == "options":
                advice = "; options are written into the optimizer's text, as in sm3:momentum=0.9"
            raise ValueError(f"{where} has no field {key[:40]!r}{advice}")
    if "model" not in table:
        raise ValueError(f"{where} names no model")
    axes = {
        name: _values(name, table[name], f"{where}, {name}") for name in _FIELDS if name in table
    }
    for question in _combinations({name: values[:1] for name, values in axes.items()}):
        # Report a combination that cannot exist now, in the field's own words.
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
    if value == "none" and getattr(Scenario, name, "") is None:
        return None
    if isinstance(value, str) and len(value) > MOST_LETTERS:
        raise ValueError(f"{where} has at most {MOST_LETTERS} letters, got {len(value)}")
    checked = schema.check(_FIELDS[name], usual(name, value), where)
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
