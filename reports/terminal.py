"""Terminal: a document as text, readable at 80 columns."""

from typing import TextIO

from rich.table import Table as Grid
from rich.text import Text

from .document import Document, Note
from .streams import console_on
from .tables.table import Cell, Table
from .units import Words

STYLES = {"heading": "bold", "failed": "red", "stopped": "bold red", "plain": ""}
# Columns of words up to this length stay on one line, as numbers do.
SHORT = 9
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
            if isinstance(block, Table):
                console.print(_grid(document, block, block.title or title))
            elif isinstance(block, Note):
                if title:
                    console.print(Text(title, style="bold"))
                console.print(
                    Text(_plain(block.text), style=STYLES.get(block.style, "dim")),
                    # A terminal wraps these itself, and copies them as one line.
                    soft_wrap=block.style in ("plain", "stopped"),
                )
            title = ""


def _grid(document: Document, table: Table, title: str) -> Grid:
    """A table; numbers and short words stay on one line."""
    grid = Grid(
        title=Text(title) if title else None,
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for place, head in enumerate(table.head):
        is_number = bool(table.rows) and table.rows[0][place].number
        is_short = place > 0 and all(len(row[place].text) <= SHORT for row in table.rows)
        grid.add_column(
            Text(head),
            justify="right" if is_number else "left",
            no_wrap=is_number or is_short,
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
