"""Table: heads and cells of text, for whoever shows them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..units import BINARY, DECIMAL, NOTHING, Units, bytes_text, exact_text, gib_text


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The text of a cell; `exact` is the whole number of bytes behind it, `mark` the label whose
    mark stands before it.

    `decimal` is the text in powers of 1,000 where it is a size, `value` the number that the cell is
    sorted by.
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
    """A table of bare texts, of which those that begin with a figure are numbers, and of cells as
    they are.
    """
    cells = [
        tuple(
            Cell(text=each, number=each[:1].isdigit()) if isinstance(each, str) else each
            for each in row
        )
        for row in rows
    ]
    return Table(head=tuple(head), rows=tuple(cells))


def gib_cell(count: int | None, upper: int | None = None) -> Cell:
    """Bytes as GiB, for a column whose head names the unit; with `upper` a range."""
    return _size_cell(gib_text, count, upper)


def bytes_cell(count: int | None, upper: int | None = None) -> Cell:
    """Bytes in the unit that suits them; with `upper` a range."""
    return _size_cell(bytes_text, count, upper)


def _size_cell(
    write: Callable[[int, Units, int | None], str], count: int | None, upper: int | None
) -> Cell:
    """Bytes as `write` writes them, sorted by the lower end of a range."""
    if count is None:
        return Cell(text=NOTHING, number=True)
    return Cell(
        text=write(count, BINARY, upper),
        exact=exact_text(count, upper),
        decimal=write(count, DECIMAL, upper),
        number=True,
        value=count,
    )
