"""Terminal: a document as text, readable at 60 columns.

A table that is too wide continues below, with its first column again, as pandas prints frames.
"""

from collections.abc import Iterator
from typing import TextIO

from rich.cells import cell_len
from rich.table import Table as Grid
from rich.text import Text

from .document import Document, Note
from .streams import console_on
from .tables.table import Cell, Table, columns_of
from .units import Words

STYLES = {"heading": "bold", "failed": "red", "stopped": "bold red", "plain": ""}
# Columns of words up to this length stay on one line, as numbers do.
SHORT = 9
# Columns of longer words are wrapped at this width if the terminal is narrow.
LONG = 20
# Blanks between two columns.
GAP = 2
TONES = {"good": "green", "bad": "bold red", "muted": "dim", "": ""}


def columns(output: TextIO, width: int | None = None) -> int:
    """The width of a terminal, or the given one."""
    return console_on(output, width=width).width


def render(document: Document, output: TextIO, *, width: int | None = None) -> None:
    """Print the sections, a blank line between two, in `width` columns or the terminal's."""
    console = console_on(output, width=width)
    for number, section in enumerate(document.shown):
        if number:
            console.print()
        title = section.title
        for block in section.shown:
            if not isinstance(block, Table | Note):
                continue
            if isinstance(block, Table):
                title = block.title or title
            if title:
                # By itself: a title of the grid would be wrapped where a narrow table ends.
                console.print(Text(title, style="bold"))
                title = ""
            if isinstance(block, Table):
                for part in _parts(document, block, console.width):
                    console.print(_grid(document, part))
            else:
                console.print(
                    Text(_plain(block.text), style=STYLES.get(block.style, "dim")),
                    # A terminal wraps these itself, and copies them as one line.
                    soft_wrap=block.style in ("plain", "stopped"),
                )


def _parts(document: Document, table: Table, width: int) -> Iterator[Table]:
    """Yield the table in parts of some columns, each as wide as the terminal at most."""
    first, *others = (_least_width(document, table, place) for place in range(len(table.head)))
    places, used = [0], first
    for place, least in enumerate(others, start=1):
        if used + GAP + least > width and len(places) > 1:
            yield columns_of(table, places)
            places, used = [0], first
        places.append(place)
        used += GAP + least
    yield columns_of(table, places)


def _least_width(document: Document, table: Table, place: int) -> int:
    """Return the width in which a column reads well: numbers and short words on one line."""
    widths = [cell_len(_text(document, row[place]).plain) for row in table.rows]
    if _is_whole(table, place):
        return max(cell_len(table.head[place]), *widths)
    return max(min(cell_len(table.head[place]), LONG), *(min(each, LONG) for each in widths))


def _is_whole(table: Table, place: int) -> bool:
    """Return whether a column is never wrapped: numbers, and short words behind the first."""
    is_short = place > 0 and all(len(row[place].text) <= SHORT for row in table.rows)
    return is_short or (bool(table.rows) and table.rows[0][place].number)


def _grid(document: Document, table: Table) -> Grid:
    """A table; numbers and short words stay on one line."""
    grid = Grid(
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for place, head in enumerate(table.head):
        is_number = bool(table.rows) and table.rows[0][place].number
        grid.add_column(
            Text(head),
            justify="right" if is_number else "left",
            no_wrap=_is_whole(table, place),
            overflow="fold",
        )
    for row in table.rows:
        grid.add_row(*(_text(document, cell) for cell in row))
    return grid


def _text(document: Document, cell: Cell) -> Text:
    text = Text(cell.text, style=TONES[cell.tone])
    if not cell.mark:
        return text
    mark = document.marks[cell.mark]
    return Text.assemble((f"{mark.glyph(cell.origin)} ", mark.colour.dark), text)


def _plain(words: Words) -> str:
    return words if isinstance(words, str) else words.binary
