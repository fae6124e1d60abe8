"""Drawing: one picture of a report in all its forms, with the words that go with it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

from matplotlib.figure import Figure

from ..table import Table
from .canvas import Frame
from .render import drawing, png, svg

# A file shrinks to a paper's column and stays legible; a wide picture is half a page, a narrow one as wide as a phone.
FILE = Frame(width=4.6, size=9.0, titled=True)
WIDE = Frame(width=5.5, size=9.0)
NARROW = Frame(width=3.6, size=8.5)


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture: PNG bytes for files, SVG text for pages (light and dark, wide and for a phone), and what it shows in words."""

    name: str
    title: str
    sentence: str
    alt: str
    table: Table
    notes: tuple[str, ...]
    png: bytes
    light: str
    dark: str
    light_narrow: str
    dark_narrow: str


def render(
    draw: Callable[[Frame], Figure], *, name: str, title: str, sentence: str, alt: str, table: Table, notes: tuple[str, ...] = ()
) -> Drawing:
    """Draw a picture in all its forms."""
    with drawing():
        return Drawing(
            name=name,
            title=title,
            sentence=sentence,
            alt=alt,
            table=table,
            notes=notes,
            png=png(draw(FILE)),
            light=svg(draw(WIDE)),
            dark=svg(draw(replace(WIDE, scheme="dark"))),
            light_narrow=svg(draw(NARROW)),
            dark_narrow=svg(draw(replace(NARROW, scheme="dark"))),
        )
