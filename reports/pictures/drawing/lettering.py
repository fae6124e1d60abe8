"""Lettering: widths of text in the font that matplotlib brings, and lines that fit a width."""

from functools import lru_cache

from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from optprof.profiler.safety.plain import plain

from ...arithmetic.labels import shortened

# matplotlib brings it, so that a picture has the same widths on every machine.
FONT = "DejaVu Sans"


def one_line(text: str) -> str:
    """Return text from elsewhere as it is drawn: on one line, without unprintable characters."""
    return " ".join(plain(text).split())


@lru_cache(maxsize=8192)
def width(text: str, size: float, *, bold: bool = False) -> float:
    """Return the width of a line of text in inches; `size` is in points."""
    font = FontProperties(family=FONT, size=size, weight="bold" if bold else "normal")
    return text_to_path.get_text_width_height_descent(one_line(text), font, ismath=False)[0] / 72


def fitted(text: str, size: float, inches: float, *, bold: bool = False) -> str:
    """Return the text, cut in its middle until it is no wider."""
    text = shortened(text, 200)
    while len(text) > 2 and (wide := width(text, size, bold=bold)) > inches:
        text = shortened(text, min(len(text) - 1, max(int(len(text) * inches / wide), 2)))
    return text


def wrapped(
    text: str, size: float, inches: float, *, bold: bool = False, most: int = 3
) -> list[str]:
    """Return the lines of a text, at most so many; what is too long is cut in its middle.

    They break at points like these · if all that is between has room on a line.
    """
    text, mark = shortened(text, 400), " · "
    if any(width(each, size, bold=bold) > inches for each in text.split(mark)):
        mark = " "
    first, *rest = text.split(mark)
    lines = [first]
    for number, each in enumerate(rest):
        longer = f"{lines[-1]}{mark}{each}"
        if width(longer, size, bold=bold) <= inches:
            lines[-1] = longer
        elif len(lines) < most:
            lines.append(each)
        else:
            lines[-1] = mark.join((lines[-1], *rest[number:]))
            break
    return [fitted(line, size, inches, bold=bold) for line in lines]
