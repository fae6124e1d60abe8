"""Symbols: marks, filled or hollow, and the keys that explain them."""

from dataclasses import dataclass
from typing import Any

from ..style import MUTED, PAPER, Colour, Mark

# Shapes of one size do not look it.
OPTICAL_SIZE = {
    "^": 1.12,
    "v": 1.12,
    "D": 0.86,
    "*": 1.4,
    "p": 1.15,
    "h": 1.15,
    "<": 1.12,
    ">": 1.12,
    "s": 0.95,
}


@dataclass(frozen=True)
class Key:
    """One item of a legend: a "block" of colour, an "outline", a "tick", a "line", or a mark by its
    shape.
    """

    symbol: str
    text: str
    colour: Colour = MUTED
    filled: bool = True


ORIGINS = (Key("o", "measured"), Key("o", "simulated or estimated", filled=False))


def mark_style(mark: Mark, origin: str, size: float) -> dict[str, Any]:
    """matplotlib's arguments for a mark of that size in points: filled for what was measured,
    hollow for the rest.
    """
    return shape_style(mark.shape, mark.colour, filled=origin == "measured", size=size)


def shape_style(shape: str, colour: Colour, *, filled: bool, size: float) -> dict[str, Any]:
    """matplotlib's arguments for a shape in one colour."""
    return {
        "marker": shape,
        "markersize": size * OPTICAL_SIZE.get(shape, 1),
        "markerfacecolor": (colour if filled else PAPER).light,
        "markeredgecolor": colour.light,
        "markeredgewidth": 0.17 * size,
        "linestyle": "none",
    }
