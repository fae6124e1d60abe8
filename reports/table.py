"""Table: heads and cells of text, for whoever shows them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Cell:
    """The text of a cell; `exact` is the whole number of bytes behind it, `mark` the label whose mark stands before it."""

    text: str
    exact: str = ""
    mark: str = ""
    origin: str = ""
    number: bool = False


@dataclass(frozen=True, kw_only=True)
class Table:
    """Column heads and rows; the first cell of a row names it."""

    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]


def text_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> Table:
    """A table of bare texts; those that begin with a figure are numbers."""
    cells = [tuple(Cell(text=text, number=text[:1].isdigit()) for text in row) for row in rows]
    return Table(head=tuple(head), rows=tuple(cells))
