"""The document of a history, for every medium, and its JSON."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TextIO

from optprof.profiler.safety.disk import write_text

from ..arithmetic.provenance import shell
from ..document import Document, Medium, Note, Section
from ..explain import METRICS
from ..pictures.charts import Chart
from ..tables.table import Cell, Table
from ..units import NOTHING
from ..words import listed
from .compare import NOISY
from .comparing import change_data
from .document import MOST_DAMAGE, legend, many, rows_of
from .history import History, Point, Series
from .history_pictures import history_pictures
from .tables import Names, figure_cell, ratio_text, toned, verdict_text

SCHEMA = 1
BLOCKS = "▁▂▃▄▅▆▇█"
# Columns of a terminal that a curve may take: the last runs count.
MOST_BLOCKS = 16
MOST_RUNS = 40
MOST_NAMED = 3


def history_document(history: History, medium: Medium, *, command: Sequence[str] = ()) -> Document:
    """The history: a line for each scenario, the runs in order, and on a page the picture."""
    names = history_names(history)
    verdict, common = history_verdict(history, names), names.common
    lines = [legend(history.threshold), *_alike(history), *_damage(history)]
    summary = Section("", [series_table(history, names)], "scenarios")
    runs = Section(
        "Runs",
        [runs_table(history, None if medium == "page" else MOST_RUNS)],
        "runs",
        "In the order of the times that their records have.",
    )
    if medium != "page":
        last = [Note(verdict, "verdict" if medium == "markdown" else "muted"), *map(Note, lines)]
        blocks = [Note(common)] if medium == "terminal" else [*last[:1], Note(common)]
        rest = last[::-1] if medium == "terminal" else last[1:]
        return Document(sections=[Section(blocks=blocks), summary, runs, Section(blocks=rest)])
    pictures = history_pictures(history, names)
    points = points_table(history, names)
    sections = [
        Section("Verdict", [Note(f"{verdict}.", "verdict")], "verdict"),
        *(
            Section(picture.title, [Chart.of(picture)], picture.name, picture.sentence)
            for picture in pictures
        ),
        Section(
            "Scenarios",
            [series_table(history, names)],
            "scenarios",
            "The first and the last figure of each scenario, and the runs in which it got worse.",
        ),
        Section("All points", [*(Note(line, "says") for line in lines), points], "table"),
        runs,
        Section("How to repeat it", [Note(shell(command), "code")], "repeat"),
    ]
    return Document(
        title=f"History: {METRICS[history.metric].title}",
        context=[*filter(None, (common, _span(history)))],
        sections=sections,
        marks=pictures[0].marks if pictures else {},
        rows=rows_of(points),
    )


def history_names(history: History) -> Names:
    """Names for the series that are shown, made of what they do not share."""
    return Names.of([series.record for series in history.distinct])


def history_verdict(history: History, names: Names) -> str:
    """The history in one sentence, with the first regressions by name."""
    title = METRICS[history.metric].title
    texts = [
        f"{names[series.record]} in {history.runs[point.run].name}"
        for series in history.distinct
        for point in series.regressed
    ]
    scenarios, runs = many(len(history.series), "scenario"), many(len(history.runs), "run")
    counts = f"{title.capitalize()} of {scenarios} over {runs}"
    if texts:
        return f"{counts}: {many(len(texts), 'regression')}: {listed(texts, MOST_NAMED)}"
    if not any(len(series.results) > 1 for series in history.series):
        return f"{counts}: no scenario has results in two runs"
    return f"{counts}: no regression"


def _alike(history: History) -> list[str]:
    if len(history.distinct) == len(history.series):
        return []
    return ["Scenarios of one optimizer that have the same bytes in every run are shown once."]


def series_table(history: History, names: Names) -> Table:
    """A row for each scenario, with a curve of its figure."""
    rows = [_series_row(history, names[each.record], each) for each in history.distinct]
    return Table(
        head=("scenario", "history", "first", "last", "ratio", "verdict"), rows=tuple(rows)
    )


def _series_row(history: History, name: str, series: Series) -> tuple[Cell, ...]:
    results, overall = series.results, series.overall
    ratio = overall.ratio if overall else None
    events = [
        f"{point.verdict} in {history.runs[point.run].name}"
        for point in series.points
        if point.verdict in ("regressed", "improved")
    ]
    without = verdict_text(overall, history.threshold) if overall else "in one run only"
    verdict = listed(events) if events else without
    first, last = (
        figure_cell(history.metric, each.value or 0) for each in (results[0], results[-1])
    )
    # A single byte is a difference.
    least = 0.0 if METRICS[history.metric].kind == "bytes" else float(history.threshold)
    lost = series.points[-1].value is None
    tone = "regressed" if lost else overall.verdict if overall else "same"
    return toned(
        tone,
        Cell(text=name),
        Cell(text=curve([each.value or 0 for each in results], least)),
        first,
        last,
        Cell(text=ratio_text(ratio) if ratio else NOTHING, number=True),
        Cell(text=verdict),
    )


def curve(values: Sequence[float], least: float) -> str:
    """Values as blocks from the least to the largest; flat if they are within `least` of each
    other.
    """
    values = values[-MOST_BLOCKS:]
    low, high = min(values), max(values)
    if high <= low * (1 + least):
        return BLOCKS[3] * len(values)
    top = len(BLOCKS) - 1
    return "".join(BLOCKS[round(top * (value - low) / (high - low))] for value in values)


def runs_table(history: History, most: int | None = None) -> Table:
    """The last runs in order, with the time and the commit of optprof that their records have."""
    rows = [
        (
            Cell(text=run.name),
            Cell(text=(run.time or NOTHING)[:16].replace("T", " ")),
            Cell(text=run.commit or NOTHING),
        )
        for run in history.runs[-(most or len(history.runs)) :]
    ]
    return Table(head=("run", "time", "optprof at commit"), rows=tuple(rows))


def points_table(history: History, names: Names) -> Table:
    """A row for each scenario and run, for a page to sort and filter."""
    rows = tuple(
        _point_row(history, names[series.record], point)
        for series in history.distinct
        for point in series.points
    )
    head = ("scenario", "run", "time", METRICS[history.metric].title, "ratio", "verdict")
    return Table(head=head, rows=rows, sortable=True)


def _point_row(history: History, name: str, point: Point) -> tuple[Cell, ...]:
    run, change = history.runs[point.run], point.change
    ratio = change.ratio if change else None
    verdict = verdict_text(change, history.threshold) if change else ""
    if point.value is None:
        verdict = (
            f"{point.verdict}: {point.record.outcome}" if point.verdict else point.record.outcome
        )
    if point.noise:
        verdict = (
            f"{verdict} ({point.noise})" if NOISY in verdict else f"{verdict}; noisy: {point.noise}"
        )
    return toned(
        point.verdict or "same",
        Cell(text=name),
        Cell(text=run.name),
        Cell(text=(run.time or NOTHING)[:16].replace("T", " ")),
        Cell(text=NOTHING, number=True)
        if point.value is None
        else figure_cell(history.metric, point.value),
        Cell(text=ratio_text(ratio), number=True, value=ratio.value)
        if ratio
        else Cell(text=NOTHING, number=True),
        Cell(text=verdict.removeprefix("; ")),
    )


def _span(history: History) -> str:
    times = [run.time[:10] for run in history.runs if run.time]
    return f"{len(history.runs)} runs" + (f", {times[0]} to {times[-1]}" if times else "")


def _damage(history: History) -> list[str]:
    lines = [f"left out, because it cannot be read: {each}" for each in history.damage]
    more = len(lines) - MOST_DAMAGE
    return lines[:MOST_DAMAGE] + ([f"left out: {more} more"] if more > 0 else [])


def write_json(history: History, output: TextIO) -> None:
    """Write the history as JSON: bytes are whole, times in seconds, runs by their number from 0."""
    content = {
        "schema": SCHEMA,
        "metric": history.metric,
        "threshold": float(history.threshold),
        "damage": list(history.damage),
        "runs": [dict(vars(run)) for run in history.runs],
        "series": [
            {
                "scenario": dict(vars(series.scenario)),
                "overall": series.overall and change_data(series.overall),
                "points": [_point_data(point) for point in series.points],
            }
            for series in history.series
        ],
    }
    output.write(json.dumps(content, indent=1, allow_nan=False) + "\n")


def _point_data(point: Point) -> dict[str, Any]:
    return {
        "run": point.run,
        "outcome": point.record.outcome,
        "value": point.value,
        "interval": point.interval,
        "noise": point.noise,
        "verdict": point.verdict,
        "change": point.change and change_data(point.change),
    }


def print_history(
    history: History, output: TextIO, *, as_markdown: bool = False, width: int | None = None
) -> None:
    """Print the history for a terminal of this width, or as Markdown for a pull request."""
    from .. import markdown, terminal

    if as_markdown:
        output.write(markdown.render(history_document(history, "markdown")))
    else:
        terminal.render(history_document(history, "terminal"), output, width=width)


def write_page(history: History, page: Path, command: Sequence[str]) -> None:
    """Write the history as one HTML file, over an older one; OSError if it cannot be written."""
    from .. import html

    write_text(page, html.render(history_document(history, "page", command=command)))


def write_figures(history: History, folder: Path) -> list[Path]:
    """Write the picture as PNG and SVG into a folder; return the paths.

    ValueError if no scenario has results in two runs.
    """
    pictures = history_pictures(history, history_names(history))
    if not pictures:
        raise ValueError(
            f"there is nothing to draw: {history_verdict(history, history_names(history))}"
        )
    # matplotlib loads slowly, and only a file needs it.
    from ..pictures.drawing import FOR_PAPER, draw, write_drawing

    return [
        path for picture in pictures for path in write_drawing(draw(picture, FOR_PAPER), folder)
    ]
