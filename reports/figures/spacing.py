"""Spacing: labels along a line, moved as little as keeps them from overlapping."""

from collections.abc import Sequence
from itertools import pairwise


def spaced(centres: Sequence[float], sizes: Sequence[float], low: float, high: float) -> list[float]:
    """New centres, in the given order, for labels of those sizes between low and high; they overlap only where there is no room at all."""
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
    """The numbers of the labels to keep where only so many have room: the last, and every n-th before it."""
    step = -(-count // max(room, 1))
    return list(range(count - 1, -1, -step))[::-1]
