"""Spacing: labels along a line, moved as little as keeps them from overlapping."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise


def spaced(
    centres: Sequence[float], sizes: Sequence[float], low: float, high: float
) -> list[float]:
    """New centres, in the given order, for labels of those sizes between low and high; they overlap
    only where there is no room at all.
    """
    order = sorted(range(len(centres)), key=lambda number: centres[number])
    places = list(centres)
    edge = low
    for number in order:
        places[number] = max(places[number], edge + sizes[number] / 2)
        edge = places[number] + sizes[number] / 2
    edge = high
    for number in reversed(order):
        places[number] = min(places[number], edge - sizes[number] / 2)
        edge = places[number] - sizes[number] / 2
    return places


def crowded(centres: Sequence[float], sizes: Sequence[float]) -> bool:
    """Whether labels of those sizes would overlap where they are."""
    order = sorted(range(len(centres)), key=lambda number: centres[number])
    return any(centres[b] - centres[a] < (sizes[a] + sizes[b]) / 2 for a, b in pairwise(order))


def thinned(count: int, room: int) -> list[int]:
    """The numbers of the labels to keep where only so many have room: the last, and every n-th
    before it.
    """
    step = -(-count // max(room, 1))
    return list(range(count - 1, -1, -step))[::-1]


@dataclass(frozen=True)
class Box:
    """A rectangle, y downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def overlap(self, other: "Box") -> float:
        """The area that both cover."""
        width = min(self.right, other.right) - max(self.left, other.left)
        height = min(self.bottom, other.bottom) - max(self.top, other.top)
        return max(width, 0.0) * max(height, 0.0)


def free_place(
    point: tuple[float, float],
    width: float,
    height: float,
    away: float,
    taken: Sequence[Box],
    bounds: Box,
) -> Box:
    """Of the places around a point, the first that covers least of what is taken; right, left,
    above, below, then the corners.

    Each is `away` from the point and moved into the bounds.
    """
    x, y = point
    sides = ((1, 0), (-1, 0), (0, -1), (0, 1), (1, -1), (1, 1), (-1, -1), (-1, 1))
    centres = (
        (x + across * (away + width / 2), y + down * (away + height / 2)) for across, down in sides
    )
    boxes = [
        _within(Box(cx - width / 2, cy - height / 2, cx + width / 2, cy + height / 2), bounds)
        for cx, cy in centres
    ]
    return min(boxes, key=lambda box: sum(box.overlap(other) for other in taken))


def _within(box: Box, bounds: Box) -> Box:
    across = max(bounds.left - box.left, 0.0) + min(bounds.right - box.right, 0.0)
    down = max(bounds.top - box.top, 0.0) + min(bounds.bottom - box.bottom, 0.0)
    return Box(box.left + across, box.top + down, box.right + across, box.bottom + down)
