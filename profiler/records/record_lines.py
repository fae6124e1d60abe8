"""Record lines: the lines of records.jsonl, of which a damaged one costs itself alone."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count, pairwise
from typing import BinaryIO

from optprof.scenarios import schema

from .record import Record

_CHUNK_BYTES = 1 << 20
# How a record begins; inside of a text its quotes would be escaped.
_BEGINNING = re.compile(rb'\{"schema": ')
_MOST_PIECES = 100


@dataclass(frozen=True, kw_only=True)
class Line:
    """A line of the file, from byte `start` to `end`, with its end of line.

    `records` are those in it, `kept` their bytes as lines, and `damage` says why the rest is no
    record; it is empty for a whole line, which holds a single record. A line `is_newer` when a
    newer optprof wrote all of it: there is no record to be read here, and nothing that is damaged.
    """

    number: int
    start: int
    end: int
    records: tuple[Record, ...]
    kept: bytes
    damage: str
    is_newer: bool = False


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """The lines of a file, in order; ValueError for more than a run has."""
    start = 0
    for number in count(1):
        data = file.readline(schema.MOST_LINE_BYTES + 1)
        if not data:
            return
        if number > schema.MOST_RECORDS:
            raise ValueError(
                f"a run has at most {schema.MOST_RECORDS} records, got more; split it into several"
            )
        rest = (
            _rest_of_line(file)
            if len(data) > schema.MOST_LINE_BYTES and not data.endswith(b"\n")
            else 0
        )
        yield _read(data, number, start, start + len(data) + rest)
        start += len(data) + rest


def parse_line(data: bytes) -> Record:
    """The record of a line; ValueError says in one line what is wrong."""
    if len(data) > schema.MOST_LINE_BYTES:
        raise ValueError(f"a record has at most {schema.MOST_LINE_BYTES} bytes, got more")
    if not data.endswith(b"\n"):
        raise ValueError(f"torn after {len(data)} bytes, without an end of line")
    if not data.strip(b"\0 \t\r\n"):
        raise ValueError(f"{data.count(0)} zero bytes" if 0 in data else "blank")
    return Record.from_dict(schema.parse_json(data))


def _read(data: bytes, number: int, start: int, end: int) -> Line:
    try:
        return Line(
            number=number, start=start, end=end, records=(parse_line(data),), kept=data, damage=""
        )
    except ValueError as error:
        is_newer = isinstance(error, schema.NewerError)
        whole = [(None, data)] if is_newer else _whole_pieces(data)
        return Line(
            number=number,
            start=start,
            end=end,
            records=tuple(record for record, _ in whole if record),
            kept=b"".join(piece for _, piece in whole),
            damage=" ".join(str(error).split()),
            is_newer=is_newer,
        )


def _whole_pieces(data: bytes) -> list[tuple[Record | None, bytes]]:
    """The whole records at the end of others that are none, as where an end of line was lost.

    None stands for one that a newer optprof wrote.
    """
    starts = [found.start() for found in _BEGINNING.finditer(data) if found.start()]
    whole: list[tuple[Record | None, bytes]] = []
    if len(data) > schema.MOST_LINE_BYTES or not data.endswith(b"\n") or len(starts) > _MOST_PIECES:
        return whole
    for start, end in pairwise((0, *starts, len(data))):
        piece = data[start:end].rstrip(b"\n") + b"\n"
        try:
            whole.append((parse_line(piece), piece))
        except schema.NewerError:
            whole.append((None, piece))
        except ValueError:
            continue
    return whole


def _rest_of_line(file: BinaryIO) -> int:
    """Read to the end of the line; returns how many bytes that were."""
    length = 0
    while data := file.readline(_CHUNK_BYTES):
        length += len(data)
        if data.endswith(b"\n"):
            break
    return length
