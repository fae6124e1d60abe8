"""A timeline as a file: JSON under gzip, its columns as differences. What is read is checked, part by part; nothing is unpickled."""

import gzip
import io
import json
import zlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, fields
from itertools import accumulate, pairwise
from typing import Any

from .timeline import HeldBlock, Stretch, Timeline

SCHEMA = 1

# What a file may hold, many times what a timeline has.
MOST_BYTES = 16 << 20
MOST = {"samples": 200_000, "phases": 20_000, "blocks": 1_000}


def pack(timeline: Timeline) -> bytes:
    """The bytes of the file, the same for the same timeline."""
    data = {
        "schema": SCHEMA,
        "steps": timeline.steps,
        "phases": [list(asdict(stretch).values()) for stretch in timeline.phases],
        "places": _differences(timeline.places),
        "categories": {name: _differences(column) for name, column in timeline.categories.items()},
        "reserved": _differences(timeline.reserved),
        "peak": timeline.peak,
        "largest": [asdict(block) for block in timeline.largest],
    }
    return gzip.compress(json.dumps(data, separators=(",", ":")).encode(), mtime=0)


def unpack(packed: bytes) -> Timeline:
    """The timeline that `pack` wrote; ValueError says in one line what is wrong with bytes that are none."""
    data = _parsed(packed)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        raise ValueError(f"a timeline of schema {SCHEMA} is read here, got {_shown(data)}; use the optprof that wrote it")
    try:
        found = Timeline(
            steps=_whole(data["steps"]),
            phases=tuple(map(_stretch, _list(data["phases"]))),
            places=_column(data["places"]),
            categories={name: _column(column) for name, column in data["categories"].items()},
            reserved=_column(data["reserved"]),
            peak=_whole(data["peak"]),
            largest=tuple(map(_block, _list(data["largest"]))),
        )
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a timeline: {error}") from error
    _check(found)
    return found


def _check(timeline: Timeline) -> None:
    """Raise ValueError unless the parts fit together."""
    samples = sum(stretch.samples for stretch in timeline.phases)
    for name, count in (("samples", samples), ("phases", len(timeline.phases)), ("blocks", len(timeline.largest))):
        if count > MOST[name]:
            raise ValueError(f"a timeline has at most {MOST[name]} {name}, got {count}")
    for name, column in {"places": timeline.places, "reserved": timeline.reserved, **timeline.categories}.items():
        if len(column) != samples:
            raise ValueError(f"not a timeline: its phases have {samples} samples, its column {name!r} has {len(column)}")
        if any(value < 0 for value in column):
            raise ValueError(f"not a timeline: its column {name!r} falls below 0")
    if timeline.peak not in range(len(timeline.allocated)) or timeline.peak_allocated != max(timeline.allocated):
        raise ValueError(f"not a timeline: sample {timeline.peak} is not where it holds most")


def _parsed(packed: bytes) -> Any:
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
    checks: dict[str, Callable[[Any], Any]] = {field.name: _whole if field.type is int else _text for field in fields(HeldBlock)}
    return HeldBlock(**{name: check(values[name]) for name, check in checks.items()})


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list belongs here, got {_shown(value)}")
    return value


def _whole(value: Any) -> int:
    if type(value) is not int:
        raise TypeError(f"a whole number belongs here, got {_shown(value)}")
    return value


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text belongs here, got {_shown(value)}")
    return value


def _shown(value: Any) -> str:
    return repr(value)[:40]
