"""Table: cells of text in rows, cards and facts, for every medium."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar

from optprof.profiler.records.record import Record

from ..arithmetic.capacity import lacking
from ..arithmetic.entries import Entry
from ..arithmetic.times import Spread, noise
from ..phrases import noise_mark
from ..units import (
    BINARY,
    DECIMAL,
    NOTHING,
    Words,
    bytes_text,
    exact_text,
    seconds_text,
)

Row = TypeVar("Row")
# Words at the top of a page say these if they are the same for the whole run.
SAID_ABOVE = ("model", "dtype", "implementation", "origin", "parts", "on GPU")


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The text of a cell, and what media add to it.

    `exact` is the whole number of bytes behind a rounded text, `decimal` the same text in powers of
    1,000, `value` the number that the cell sorts by. The mark of the label `mark` stands before the
    text, `remark` below it. `shade` colours the cell, by up to 100 per cent: blue for a saving,
    orange where it is negative.
    """

    text: str
    exact: str = ""
    decimal: str = ""
    mark: str = ""
    origin: str = ""
    number: bool = False
    value: float | None = None
    remark: str = ""
    shade: float | None = None
    tone: Literal["", "good", "bad", "muted"] = ""


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows; the first cell of a row names it.

    A page shows a table under the words `fold` only on request, and lets readers sort a `sortable`
    one by any column.
    """

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    title: str = ""
    fold: Words = ""
    sortable: bool = False


@dataclass(frozen=True)
class Facts:
    """Terms and their texts."""

    pairs: tuple[tuple[str, Words], ...]


@dataclass(frozen=True, kw_only=True)
class Card:
    """The costs of one optimizer in one setting; each line is a name and a value."""

    label: str
    origin: str
    headline: Cell
    lines: tuple[tuple[str, Cell], ...]


def filled(columns: Sequence[tuple[str, Callable[[Row], Cell]]], rows: Iterable[Row]) -> Table:
    """A table of these columns, each a head and the function that makes its cells."""
    return Table(
        head=tuple(head for head, _ in columns),
        rows=tuple(tuple(cell(row) for _, cell in columns) for row in rows),
    )


def varied(table: Table) -> Table:
    """The table without the columns that say in every row the same as the top of the page."""
    kept = [
        place
        for place, name in enumerate(table.head)
        if name not in SAID_ABOVE or len({row[place].text for row in table.rows}) != 1
    ]
    return columns_of(table, kept)


def columns_of(table: Table, places: Sequence[int]) -> Table:
    """The table with the columns at these places alone."""
    return replace(
        table,
        head=tuple(table.head[place] for place in places),
        rows=tuple(tuple(row[place] for place in places) for row in table.rows),
    )


def text_table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table of cells and bare texts; a text that begins with a digit is a number."""
    cells = [
        tuple(
            Cell(text=each, number=each[:1].isdigit()) if isinstance(each, str) else each
            for each in row
        )
        for row in rows
    ]
    return Table(head=tuple(head), rows=tuple(cells))


def number_cell(value: float | None, show: Callable[[float], str]) -> Cell:
    """A number as `show` writes it, sorted by its value."""
    return Cell(text=NOTHING if value is None else show(value), number=True, value=value)


def time_cell(record: Record, phase: str = "step") -> Cell:
    """The median of a phase; noise is marked by its reach, with the reasons behind it (hover).

    A tilde marks an estimate.
    """
    samples = (record.times or {}).get(phase)
    if not samples:
        return Cell(text=NOTHING, number=True)
    spread, reasons = Spread.of(samples), noise(record, phase)
    text = f"{'' if record.origin == 'measured' else '~'}{seconds_text(spread.median)}"
    return Cell(
        text=text + noise_mark(record, phase),
        exact=f"noisy: {reasons}" if reasons else "",
        number=True,
        value=spread.median,
        tone="muted" if reasons else "",
    )


def unfit_cell(entry: Entry) -> Cell:
    """The place of a peak whose simulated GPU ran out of memory, with the missing bytes (hover)."""
    lack, gpu = lacking(entry.bytes_from), entry.scenario.gpu
    return Cell(
        text="does not fit",
        exact="" if lack is None else f"{exact_text(lack)} more needed on {gpu}",
        tone="bad",
    )


def bytes_cell(count: int | None, upper: int | None = None) -> Cell:
    """Bytes in the unit that suits them; with `upper` a range, sorted by its lower end."""
    if count is None:
        return Cell(text=NOTHING, number=True)
    return Cell(
        text=bytes_text(count, BINARY, upper),
        exact=exact_text(count, upper),
        decimal=bytes_text(count, DECIMAL, upper),
        number=True,
        value=count,
    )
