"""Table: heads and cells of text, for whoever shows them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ..units import DECIMAL, NOTHING, bytes_text, exact_text, gib_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The text of a cell; `exact` is the whole number of bytes behind it, `mark` the label whose mark stands before it.

    `decimal` is the text in powers of 1,000 where it is a size, `value` the number that the cell is sorted by.
    """

    text: str
    exact: str = ""
    decimal: str = ""
    mark: str = ""
    origin: str = ""
    number: bool = False
    value: float | None = None


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows; the first cell of a row names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def text_table(head: Sequence[str], rows: Iterable[Sequence[str | Cell]]) -> Table:
    """A table of bare texts, of which those that begin with a figure are numbers, and of cells as they are."""
    cells = [tuple(Cell(text=each, number=each[:1].isdigit()) if isinstance(each, str) else each for each in row) for row in rows]
    return Table(head=tuple(head), rows=tuple(cells))


def gib_cell(count: int | None) -> Cell:
    """Bytes as GiB, for a column whose head names the unit."""
    if count is None:
        return Cell(text=NOTHING, number=True)
    return Cell(text=gib_text(count), exact=exact_text(count), decimal=gib_text(count, DECIMAL), number=True, value=count)


def bytes_cell(count: int | None) -> Cell:
    """Bytes in the unit that suits them."""
    if count is None:
        return Cell(text=NOTHING, number=True)
    return Cell(text=bytes_text(count), exact=exact_text(count), decimal=bytes_text(count, DECIMAL), number=True, value=count)
