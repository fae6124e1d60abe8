"""Drawing: one picture of a report in all its forms, with the words that go with it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from ..table import Table
from .canvas import Frame
from .render import drawing, png, svg

# A file shrinks to a paper's column and stays legible.
FILE = Frame(width=4.6, size=9.0, titled=True)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture: PNG bytes and SVG text, and what it shows in words."""

    name: str
    title: str
    sentence: str
    alt: str
    table: Table
    notes: tuple[str, ...]
    png: bytes
    svg: str


def render(
    draw: Callable[[Frame], Figure], *, name: str, title: str, sentence: str, alt: str, table: Table, notes: tuple[str, ...] = ()
) -> Drawing:
    """Draw a picture in both forms."""
    with drawing():
        figure = draw(FILE)
        return Drawing(
            name=name,
            title=title,
            sentence=sentence,
            alt=alt,
            table=table,
            notes=notes,
            png=png(figure),
            svg=svg(figure),
        )
