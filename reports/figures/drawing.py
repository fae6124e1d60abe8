"""Drawing: one picture of a report in all its forms, with the words that go with it."""

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure
from matplotlib.text import Text

from optprof.profiler.safety.plain import plain

from ..tables.table import Table
from ..units import Words
from .canvas import Frame
from .render import drawing, png, svg


@dataclass(frozen=True, kw_only=True)
class Style:
    """Where pictures are to be shown: their frame, and the pixels that an inch of it has as PNG."""

    frame: Frame
    pixels_per_inch: int


# A paper's column is 3.35 inches wide; a slide is twice the frame's width, so its type is twice as
# large.
STYLES = {
    "paper": Style(frame=Frame(width=3.35, size=7.5), pixels_per_inch=300),
    "slides": Style(frame=Frame(width=6.4, size=9.5), pixels_per_inch=300),
}
FOR_PAPER = STYLES["paper"]


def style_named(name: str) -> Style:
    """The style of that name; ValueError for a name that is none."""
    if name not in STYLES:
        raise ValueError(f"no style is named {name!r}; there is {' and '.join(STYLES)}")
    return STYLES[name]


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """A picture: PNG bytes and SVG text, and what it shows in words."""

    name: str
    title: str
    sentence: str
    alt: str
    table: Table
    notes: tuple[Words, ...]
    png: bytes
    svg: str


def render(
    draw: Callable[[Frame], Figure],
    style: Style,
    *,
    name: str,
    title: str,
    sentence: str,
    alt: str,
    table: Table,
    notes: tuple[Words, ...] = (),
) -> Drawing:
    """Draw a picture in both forms."""
    with drawing():
        figure = draw(style.frame)
        for words in figure.findobj(Text):
            assert isinstance(words, Text)
            # An SVG with a control character in it is no XML.
            words.set_text(plain(words.get_text()))
        return Drawing(
            name=name,
            title=title,
            sentence=sentence,
            alt=alt,
            table=table,
            notes=notes,
            png=png(figure, style.pixels_per_inch),
            svg=svg(figure),
        )
