"""The picture of time against memory: a point for each optimizer, and the Pareto front."""

from collections.abc import Mapping, Sequence

from ..arithmetic.curves import COINCIDENT
from ..arithmetic.findings import Findings
from ..arithmetic.pareto import Tradeoff
from ..phrases import NOISE, noise_mark, nothing_text
from ..tables.table import Cell, Table, bytes_cell
from ..units import Sized, bytes_text, seconds_text
from ..words import clock_name
from .picture import ORIGINS, Axis, Key, Line, Picture, Plot, Point

# A page with more graphs is no longer looked at.
MOST_GRAPHS = 4
# More points only cover each other, and their names fill the graph.
MOST_POINTS = 64
INTERVAL = Key("bracket", "95 % interval of the median")
# The name of a setting, and the clock.
Group = tuple[str, str]


def describe(findings: Findings) -> list[Picture]:
    """Return a panel for each setting and clock of two optimizers or more, if there is one."""
    groups: dict[Group, list[Tradeoff]] = {}
    for point in findings.tradeoffs:
        groups.setdefault((findings.names[point.entry.setting], point.clock), []).append(point)
    groups = {
        name: points
        for name, points in groups.items()
        if len({point.entry.label for point in points}) > 1
    }
    drawn = [name for name, points in groups.items() if any(point.bytes for point in points)]
    if not drawn:
        return []
    shown = {name: groups[name] for name in drawn[:MOST_GRAPHS]}
    picture = Picture(
        name="pareto",
        title="Time against memory",
        context=findings.context,
        sentence=(
            "Left is faster, down is smaller. The broken line joins the Pareto front: what no other"
            " optimizer beats in both."
        ),
        table=_table(findings, [point for points in groups.values() for point in points]),
        panels=tuple(_plot(setting, clock, points) for (setting, clock), points in shown.items()),
        marks=findings.marks,
        notes=_notes(groups, shown),
        keys=(*ORIGINS, *([INTERVAL] if any(point.lower for point in findings.tradeoffs) else [])),
        apart=True,
    )
    return [picture]


def _notes(
    groups: Mapping[Group, Sequence[Tradeoff]], shown: Mapping[Group, Sequence[Tradeoff]]
) -> tuple[str, ...]:
    """Return what the graphs leave to the table."""
    empty = dict.fromkeys(
        point.entry.label for points in groups.values() for point in points if not point.bytes
    )
    few = f"The page draws {len(shown)} of {len(groups)} comparisons; the table has all."
    many = f"A graph shows {MOST_POINTS} optimizers at most; the table has all."
    return (
        *((nothing_text(list(empty)),) if empty else ()),
        *((few,) if len(shown) < len(groups) else ()),
        *((many,) if any(len(points) > MOST_POINTS for points in shown.values()) else ()),
        *((NOISE,) if any(_mark(point) for points in groups.values() for point in points) else ()),
    )


def _plot(setting: str, clock: str, points: Sequence[Tradeoff]) -> Plot:
    which = "at the peak of a training step" if points[0].is_peak else "of state"
    points = _by_time(points[:MOST_POINTS])
    return Plot(
        name=f"{setting}, {clock_name(clock)}",
        alt=f"Time of the step against bytes {which}, on {setting}. "
        + "; ".join(map(_spoken, points))
        + ".",
        x=Axis(
            title=f"time of the step, {clock_name(clock)}",
            kind="seconds",
            values=[point.seconds for point in points],
        ),
        y=Axis(title=which, kind="bytes", values=[point.bytes for point in points]),
        lines=[
            Line(
                label=point.entry.label,
                points=(_point(point),),
                # Of points that coincide the later ones are smaller, so that all can be seen.
                lane=sum(_coincide(point, other) for other in points[:number]),
                size=13,
            )
            for number, point in enumerate(points)
        ],
        height=420,
        front=[(point.seconds, point.bytes) for point in points if point.on_front],
        intervals="x",
    )


def _point(point: Tradeoff) -> Point:
    return Point(
        x=point.seconds,
        y=point.bytes,
        origin=point.shown_origin,
        words=Sized.of(
            lambda units: (
                f"\n{seconds_text(point.seconds)}{_mark(point)}, {point.origin}"
                f"\n{bytes_text(point.bytes, units)}, {point.entry.origin}"
                + ("\non the Pareto front" if point.on_front else "")
            )
        ),
        interval=(point.lower, point.upper) if point.lower and point.upper else None,
    )


def _coincide(one: Tradeoff, other: Tradeoff) -> bool:
    pairs = ((one.seconds, other.seconds), (one.bytes, other.bytes))
    return all(abs(a - b) <= COINCIDENT * max(a, b) for a, b in pairs)


def _by_time(points: Sequence[Tradeoff]) -> list[Tradeoff]:
    return sorted(points, key=lambda point: point.seconds)


def _spoken(point: Tradeoff) -> str:
    front = ", on the Pareto front" if point.on_front else ""
    return (
        f"{point.entry.label}: {seconds_text(point.seconds)}{_mark(point)} and"
        f" {bytes_text(point.bytes)}{front}"
    )


def _mark(point: Tradeoff) -> str:
    """Return the mark of a noisy time; an estimate for a GPU has none."""
    record = point.entry.times_from
    is_sampled = record is not None and record.scenario.device == point.clock
    return noise_mark(record) if record and is_sampled else ""


def _table(findings: Findings, points: Sequence[Tradeoff]) -> Table:
    head = (
        *("optimizer", "model", "clock", "step", "origin of the time", "bytes", "which"),
        *("origin of the bytes", "on the front"),
    )
    rows = (
        (
            Cell(text=point.entry.label, mark=point.entry.label, origin=point.shown_origin),
            Cell(text=findings.names[point.entry.setting]),
            Cell(text=clock_name(point.clock)),
            Cell(text=seconds_text(point.seconds) + _mark(point), number=True),
            Cell(text=point.origin),
            bytes_cell(point.bytes),
            Cell(text="peak" if point.is_peak else "state"),
            Cell(text=point.entry.origin),
            Cell(text="yes" if point.on_front else "no"),
        )
        for point in points
    )
    return Table(head=head, rows=tuple(rows))
