"""A timeline as a file: JSON under gzip, its columns as differences. What is read is checked, part
by part; nothing is unpickled.
"""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import accumulate, pairwise
from typing import Any

from optprof.scenarios import schema

from .timeline import HeldBlock, Stretch, Timeline

SCHEMA = 1

# What a file may hold, many times what a timeline has.
MOST_BYTES = 16 << 20
MOST = {"samples": 200_000, "phases": 20_000, "blocks": 1_000, "categories": 100}


def pack(timeline: Timeline, name: str = "") -> bytes:
    """The bytes of the file, the same for the same timeline; `name` is the scenario's, for
    files.
    """
    data = {
        "schema": SCHEMA,
        "of": name,
        "steps": timeline.steps,
        "phases": [list(asdict(stretch).values()) for stretch in timeline.phases],
        "places": _differences(timeline.places),
        "categories": {name: _differences(column) for name, column in timeline.categories.items()},
        "reserved": _differences(timeline.reserved),
        "peak": timeline.peak,
        "largest": [asdict(block) for block in timeline.largest],
    }
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)


def unpack(packed: bytes, name: str = "", peak: int | None = None) -> Timeline:
    """The timeline that `pack` wrote; ValueError says in one line what is wrong with bytes that are
    none.

    One of another `name` is refused. Older files have no name, and are held to the record's `peak`
    of allocated bytes.
    """
    data = _parsed(packed)
    if not isinstance(data, dict):
        raise ValueError(f"a timeline of schema {SCHEMA} is a JSON object, got {_shown(data)}")
    schema.require_version(data.get("schema"), SCHEMA, "a timeline of schema")
    try:
        found = Timeline(
            steps=_whole(data["steps"]),
            phases=tuple(map(_stretch, _list(data["phases"]))),
            places=_column(data["places"]),
            categories={
                _text(name): _column(column) for name, column in data["categories"].items()
            },
            reserved=_column(data["reserved"]),
            peak=_whole(data["peak"]),
            largest=tuple(map(_block, _list(data["largest"]))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a timeline: {error}") from error
    _check(found)
    of = str(data.get("of") or "")
    if (name and of and of != name) or (not of and peak not in (None, found.peak_allocated)):
        other = (
            _shown(of)
            if of
            else f"a record whose peak is {found.peak_allocated} bytes and not {peak}"
        )
        raise ValueError(f"the timeline of {other}")
    return found


def _check(timeline: Timeline) -> None:
    """Raise ValueError unless the parts fit together."""
    samples = sum(stretch.samples for stretch in timeline.phases)
    counts = {
        "phases": len(timeline.phases),
        "blocks": len(timeline.largest),
        "categories": len(timeline.categories),
    }
    for name, count in {"samples": samples, **counts}.items():
        if count > MOST[name]:
            raise ValueError(f"a timeline has at most {MOST[name]} {name}, got {count}")
    for name, column in {
        "places": timeline.places,
        "reserved": timeline.reserved,
        **timeline.categories,
    }.items():
        if len(column) != samples:
            raise ValueError(
                f"not a timeline: its phases have {samples} samples, its column {_shown(name)} has"
                f" {len(column)}"
            )
        if min(column, default=0) < 0:
            raise ValueError(f"not a timeline: its column {_shown(name)} falls below 0")
        if max(column, default=0) > schema.MOST_WHOLE:
            raise ValueError(
                f"not a timeline: its column {_shown(name)} rises above {schema.MOST_WHOLE}"
            )
    if timeline.peak not in range(len(timeline.allocated)) or timeline.peak_allocated != max(
        timeline.allocated
    ):
        raise ValueError(f"not a timeline: sample {timeline.peak} is not where it holds most")


def _parsed(packed: bytes) -> Any:
    if not packed:
        raise ValueError("not a timeline: an empty file")
    try:
        with gzip.open(io.BytesIO(packed)) as file:
            text = file.read(MOST_BYTES + 1)
        if len(text) > MOST_BYTES:
            raise ValueError(f"at most {MOST_BYTES} bytes of JSON, got more")
        return json.loads(text)
    except (OSError, EOFError, ValueError, RecursionError, zlib.error) as error:
        raise ValueError(f"not a timeline: {error}") from error


def _differences(column: Sequence[int]) -> list[int]:
    return [after - before for before, after in pairwise((0, *column))]


def _column(differences: Any) -> tuple[int, ...]:
    return tuple(accumulate(map(_whole, _list(differences))))


def _stretch(values: Any) -> Stretch:
    step, phase, events, samples = _list(values)
    if _whole(events) < 0 or _whole(samples) < 0:
        raise ValueError(f"counts of a phase are 0 or more, got {events} and {samples}")
    return Stretch(step=_whole(step), phase=_text(phase), events=events, samples=samples)


def _block(values: Any) -> HeldBlock:
    checks: dict[str, Callable[[Any], Any]] = {
        field.name: _whole if field.type is int else _text for field in fields(HeldBlock)
    }
    return HeldBlock(**{name: check(values[name]) for name, check in checks.items()})


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list belongs here, got {_shown(value)}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"a whole number belongs here, got {_shown(value)}")
    if not -schema.MOST_WHOLE <= value <= schema.MOST_WHOLE:
        raise ValueError(
            f"a number is at most {schema.MOST_WHOLE}, got one of {value.bit_length()} bits"
        )
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text belongs here, got {_shown(value)}")
    return schema.check(str, value, "a text of it")


def _shown(value: Any) -> str:
    return schema.shown(value)
