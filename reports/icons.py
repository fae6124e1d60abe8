"""Icons: the marks of pictures as SVG paths, which a page shows before a name."""

import math
from collections.abc import Callable, Iterable


def icon_path(shape: str) -> str:
    """Return the outline of one of matplotlib's shapes as an SVG path.

    It reaches about five units from (0, 0) to each side.
    """
    if shape == "o":
        return "M-4.5 0a4.5 4.5 0 1 0 9 0a4.5 4.5 0 1 0 -9 0z"
    return _closed(OUTLINES.get(shape, OUTLINES["s"])())


def _closed(points: Iterable[tuple[float, float]]) -> str:
    return "M" + "L".join(f"{x:.2f} {y:.2f}" for x, y in points) + "z"


def _regular(corners: int, turn: float, radius: float = 5.0) -> list[tuple[float, float]]:
    """Return a regular polygon; its first corner is `turn` degrees right of the top."""
    angles = [math.radians(turn + 360 * corner / corners) for corner in range(corners)]
    return [(radius * math.sin(angle), -radius * math.cos(angle)) for angle in angles]


def _star() -> list[tuple[float, float]]:
    outer, inner = _regular(5, 0, 5.8), _regular(5, 36, 2.5)
    return [point for pair in zip(outer, inner, strict=True) for point in pair]


OUTLINES: dict[str, Callable[[], list[tuple[float, float]]]] = {
    "s": lambda: _regular(4, 45, 5.8),
    "D": lambda: _regular(4, 0, 5.4),
    "^": lambda: [(0, -4.8), (5, 4.2), (-5, 4.2)],
    "v": lambda: [(0, 4.8), (5, -4.2), (-5, -4.2)],
    "<": lambda: [(-4.8, 0), (4.2, -5), (4.2, 5)],
    ">": lambda: [(4.8, 0), (-4.2, 5), (-4.2, -5)],
    "p": lambda: _regular(5, 0),
    "h": lambda: _regular(6, 0),
    "*": _star,
}
