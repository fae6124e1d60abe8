"""Lines of records.jsonl: a damaged one costs only its own record."""

import re
from collections.abc import Iterator
from itertools import count, pairwise
from typing import BinaryIO, NamedTuple

from optprof.scenarios import schema

from .record import Record

_CHUNK_BYTES = 1 << 20
# A record of any schema begins like this; inside of a text its quotes would be escaped.
_START = re.compile(rb'\{"schema": ')
_MOST_PIECES = 100


class Line(NamedTuple):
    """A line of the file, from byte `start` to `end`, with its end of line.

    A whole line has one record and no `damage`. For any other line, `damage` says why it is not a
    record, `records` are those inside of it, and `kept` are their bytes as lines. A line `is_newer`
    if a newer optprof wrote all of it: no record can be read, and nothing is damaged.
    """

    number: int
    start: int
    end: int
    records: tuple[Record, ...]
    kept: bytes
    damage: str
    is_newer: bool = False


def read_lines(file: BinaryIO) -> Iterator[Line]:
    """Yield the lines of a file in order; ValueError if it has more than a run may have."""
    start = 0
    for number in count(1):
        data = file.readline(schema.MOST_LINE_BYTES + 1)
        if not data:
            return
        if number > schema.MOST_RECORDS:
            raise ValueError(
                f"a run has at most {schema.MOST_RECORDS} records, got more; split it into several"
            )
        is_cut = len(data) > schema.MOST_LINE_BYTES and not data.endswith(b"\n")
        end = start + len(data) + (_pass_over(file) if is_cut else 0)
        yield _line(data, number, start, end)
        start = end


def _line(data: bytes, number: int, start: int, end: int) -> Line:
    try:
        records = (_record(data),)
        return Line(number=number, start=start, end=end, records=records, kept=data, damage="")
    except ValueError as error:
        is_newer = isinstance(error, schema.NewerError)
        pieces = [(None, data)] if is_newer else _whole_pieces(data)
        return Line(
            number=number,
            start=start,
            end=end,
            records=tuple(record for record, _ in pieces if record),
            kept=b"".join(piece for _, piece in pieces),
            damage=" ".join(str(error).split()),
            is_newer=is_newer,
        )


def _record(data: bytes) -> Record:
    if len(data) <= schema.MOST_LINE_BYTES:
        if not data.endswith(b"\n"):
            raise ValueError(f"torn after {len(data)} bytes, without an end of line")
        if not data.strip(b"\0 \t\r\n"):
            raise ValueError(f"{data.count(0)} zero bytes" if 0 in data else "blank")
    return Record.from_line(data)


def _whole_pieces(data: bytes) -> list[tuple[Record | None, bytes]]:
    """Return the whole records inside of a damaged line, as if an end of line was lost.

    None stands for a record that a newer optprof wrote.
    """
    starts = [match.start() for match in _START.finditer(data) if match.start()]
    whole: list[tuple[Record | None, bytes]] = []
    if len(data) > schema.MOST_LINE_BYTES or not data.endswith(b"\n") or len(starts) > _MOST_PIECES:
        return whole
    for start, end in pairwise((0, *starts, len(data))):
        piece = data[start:end].rstrip(b"\n") + b"\n"
        try:
            whole.append((_record(piece), piece))
        except schema.NewerError:
            whole.append((None, piece))
        except ValueError:
            continue
    return whole


def _pass_over(file: BinaryIO) -> int:
    """Read to the end of the line; return the number of bytes."""
    length = 0
    while data := file.readline(_CHUNK_BYTES):
        length += len(data)
        if data.endswith(b"\n"):
            break
    return length
