"""Curves of a value that changes from event to event: as corners, and with no more of them than can
be seen.
"""

from collections.abc import Sequence

Point = tuple[float, float]


def stairs(places: Sequence[float], values: Sequence[float], narrow: float) -> list[Point]:
    """The corners of a curve from 0 to 1 that keeps each value until the next; over less than
    `narrow` a straight line does.
    """
    corners = [(places[0], values[0])]
    for place, value in zip(places[1:], values[1:], strict=True):
        before, held = corners[-1]
        if place - before > narrow:
            corners.append((place, held))
        corners.append((place, value))
    return [*corners, (1.0, values[-1])]


def simplified(points: Sequence[Point], unit: float, tolerance: float) -> list[Point]:
    """Some of these points; no other is further than `tolerance` from the lines through them, with
    `unit` the y that looks like 1 of x.

    The algorithm of Ramer, Douglas and Peucker.
    """
    kept = {0, len(points) - 1}
    spans = [(0, len(points) - 1)]
    while spans:
        first, last = spans.pop()
        between = range(first + 1, last)
        furthest = max(
            between,
            key=lambda number: _distance(points[number], points[first], points[last], unit),
            default=None,
        )
        if (
            furthest is not None
            and _distance(points[furthest], points[first], points[last], unit) > tolerance
        ):
            kept.add(furthest)
            spans += [(first, furthest), (furthest, last)]
    return [points[number] for number in sorted(kept)]


def _distance(point: Point, start: Point, end: Point, unit: float) -> float:
    """How far a point is from a line between two others."""
    across, up = end[0] - start[0], (end[1] - start[1]) / unit
    x, y = point[0] - start[0], (point[1] - start[1]) / unit
    length = across * across + up * up
    share = min(max((x * across + y * up) / length, 0.0), 1.0) if length else 0.0
    return ((x - share * across) ** 2 + (y - share * up) ** 2) ** 0.5
