"""The SGD-SaI paper's figure again: the published numbers next to those of a run."""

from collections.abc import Sequence

from optprof.profiler.records.record import Record

from ..arithmetic.reproduction import (
    Published,
    Reproduced,
    published,
    reproduced_times,
    reproduction,
    residuals,
)
from ..style import marks
from ..tables.table import Table, text_table
from ..units import GIB, NOTHING, gib
from .picture import Axis, Key, Kind, Line, Picture, Plot, Point

NAME = "sgd-sai-4"
# A published row, the parameters of its model, bytes or seconds, and their origin.
_Value = tuple[Published, float, float, str]


def published_picture(records: Sequence[Record]) -> Picture | None:
    """Return the picture; None if the run has no state that was published too."""
    rows = reproduction(records)
    if not rows:
        return None
    return Picture(
        name=NAME,
        title="State and step, published and ours",
        context="fp32 · A100 80 GB · “No More Adam”, arXiv 2412.11768",
        sentence=(
            "The memory and speed figure of the SGD-SaI paper on its left, the same optimizers and"
            " models from this run on its right."
        ),
        table=_numbers(rows),
        panels=(*_states(rows), *_times(records)),
        marks=marks(row.optimizer for row in published()),
        notes=(residuals(rows),),
        keys=(
            Key("sample full", "measured"),
            Key("sample", "simulated, estimated or extrapolated (*)"),
        ),
        across=2,
        draws_table=True,
    )


def _states(rows: Sequence[Reproduced]) -> tuple[Plot, ...]:
    counts = {row.published.model: row.record.parameter_count or 0 for row in rows}
    theirs = [
        (row, counts.get(row.model, row.parameters), row.state_gib * GIB, _origin(row))
        for row in published()
    ]
    ours = [
        (row.published, row.record.parameter_count or 0, row.allocated_bytes, row.record.origin)
        for row in rows
    ]
    return _panels("bytes", "of state", theirs, ours)


def _times(records: Sequence[Record]) -> tuple[Plot, ...]:
    """Return the panels of step times if the run has estimates for the figure's GPU."""
    # The first record of a model and optimizer counts.
    ours = {
        (row.model, row.optimizer): (
            row,
            record.parameter_count or 0,
            record.estimate.seconds,
            "estimated",
        )
        for row, record in reversed(reproduced_times(records))
        if record.estimate
    }
    if not ours:
        return ()
    theirs = [(row, row.parameters, row.step_seconds, _origin(row)) for row in published()]
    return _panels("seconds", "time of the step", theirs, list(ours.values()))


def _origin(row: Published) -> str:
    return "estimated" if row.extrapolated else "measured"


def _panels(
    kind: Kind, title: str, theirs: Sequence[_Value], ours: Sequence[_Value]
) -> tuple[Plot, ...]:
    """Return both sides on the same axes."""
    values = [*theirs, *ours]
    x = Axis(title="parameters", kind="parameters", values=[count for _, count, _, _ in values])
    y = Axis(title=title, kind=kind, values=[value for _, _, value, _ in values])
    return tuple(
        Plot(name=name, alt="", x=x, y=y, lines=_lines(side), height=220)
        for name, side in (("published", theirs), ("ours", ours))
    )


def _lines(values: Sequence[_Value]) -> list[Line]:
    """Return a line for each optimizer, the later ones with smaller marks."""
    names = dict.fromkeys(row.optimizer for row in published())
    points = {
        name: sorted(
            (count, value, origin) for row, count, value, origin in values if row.optimizer == name
        )
        for name in names
    }
    return [
        Line(
            label=name,
            points=tuple(
                Point(x=count, y=value, origin=origin, words="")
                for count, value, origin in points[name]
            ),
            size=12 - 1.8 * lane,
        )
        for lane, name in enumerate(names)
    ]


def _numbers(rows: Sequence[Reproduced]) -> Table:
    """Return theirs | ours in GiB, a row for each optimizer and a column for each model."""
    ours = {(row.published.optimizer, row.published.model): row.allocated_bytes for row in rows}
    cells: dict[str, list[str]] = {}
    for row in published():
        count = ours.get((row.optimizer, row.model))
        theirs = f"{row.state_gib:.2f}{'*' if row.extrapolated else ''}"
        text = f"{theirs} | {NOTHING if count is None else f'{gib(count):.2f}'}"
        cells.setdefault(row.optimizer, []).append(text)
    models = dict.fromkeys(row.model for row in published())
    return text_table(("GiB", *models), ((name, *texts) for name, texts in cells.items()))
