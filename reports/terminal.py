"""Terminal: the summary of a run as one table a setting, readable at 80 columns."""

from collections.abc import Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from optprof.profiler.records.record import Record

from .arithmetic.entries import Entry, by_setting, failures
from .arithmetic.findings import Findings
from .arithmetic.labels import shortened
from .arithmetic.savings import BASELINE, Saving
from .phrases import missing_text, throughput_text, unlike_text
from .streams import console_on
from .tables.accumulation import accumulation_tables
from .tables.table import Table as Rows
from .tables.verdict import sources
from .units import (
    NOTHING,
    around_text,
    factor_text,
    gib_text,
    per_parameter_text,
    percent_text,
    seconds_text,
)
from .words import conditions, phase_name, warning_lines

# Columns of text below which the table leaves the per cent to the page.
WIDE = 96
# And below which it leaves the confidence interval and the throughput there.
ROOMY = 124


def render(records: Sequence[Record], output: TextIO, *, width: int | None = None) -> None:
    """Print the summary of a run, in `width` columns or the terminal's; ValueError for a run
    without records.
    """
    findings = Findings.of(records)
    console = console_on(output, width=width)
    for setting, group in by_setting(findings.entries).items():
        console.print(
            _table(
                findings, " · ".join((setting.model, *setting.traits)), group, width=console.width
            )
        )
        console.print()
    for name, part in accumulation_tables(findings.records).items():
        console.print(_plain_table(f"When to step: {name}", part.summary))
        console.print()
    for line in _remarks(findings):
        console.print(Text(line, style="dim"))
    # The state alone fails for the same reason as whole steps.
    for line in dict.fromkeys(map(_failure, failures(records))):
        console.print(Text(line, style="red"))


def _failure(record: Record) -> str:
    scenario = record.scenario
    subject = f"{scenario.optimizer} on {scenario.model} ({conditions(record)})"
    return f"{record.outcome}: {subject}: {record.error or 'no reason recorded'}"


def _table(findings: Findings, title: str, group: Sequence[Entry], *, width: int) -> Table:
    wide, roomy = width >= WIDE, width >= ROOMY
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("optimizer", overflow="fold")
    for name in (
        "state GiB",
        "B/param",
        f"vs {BASELINE}",
        *(["saved"] if wide else []),
        "peak GiB",
    ):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("in", no_wrap=True)
    table.add_column("step", justify="right", no_wrap=True)
    throughput = roomy and any(
        entry.times_from and throughput_text(entry.times_from) for entry in group
    )
    interval = roomy and any(entry.step and entry.step.interval for entry in group)
    if interval:
        table.add_column("95 %", justify="right", no_wrap=True)
    if throughput:
        table.add_column("training", justify="right", no_wrap=True)
    gpu = next((entry.estimate.gpu for entry in group if entry.estimate), None)
    if gpu:
        table.add_column(f"on {gpu}", justify="right", no_wrap=True)
    savings = {id(saving.entry): saving for saving in findings.savings}
    for entry in group:
        mark, saving = findings.marks[entry.label], savings.get(id(entry))
        name = Text.assemble(
            (f"{mark.glyph(entry.origin)} ", mark.colour.dark),
            shortened(entry.label, 40 if wide else 24),
        )
        share = [
            NOTHING
            if saving is None or saving.is_baseline
            else percent_text(saving.saved_bytes, saving.baseline_bytes)
        ]
        bytes_cells = (
            *_state_cells(entry),
            _factor_cell(saving),
            *(share if wide else []),
            *_peak_cells(entry),
        )
        more = [
            *([_interval_cell(entry)] if interval else []),
            *([_throughput_cell(entry)] if throughput else []),
        ]
        table.add_row(
            name, *bytes_cells, _step_cell(entry), *more, *([_estimate_cell(entry)] if gpu else [])
        )
    return table


def _plain_table(title: str, found: Rows) -> Table:
    """A table of the page as it stands, numbers to the right."""
    table = Table(
        title=Text(title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    for place, name in enumerate(found.head):
        table.add_column(
            name, justify="right" if found.rows[0][place].number else "left", overflow="fold"
        )
    for row in found.rows:
        table.add_row(*(Text(cell.text) for cell in row))
    return table


def _state_cells(entry: Entry) -> tuple[str, str]:
    value = entry.bytes_per_parameter
    state = NOTHING if entry.state_bytes is None else gib_text(entry.state_bytes)
    return state, NOTHING if value is None else per_parameter_text(value)


def _factor_cell(saving: Saving | None) -> str:
    if saving is None:
        return NOTHING
    return factor_text(1 if saving.is_baseline else saving.factor)


def _peak_cells(entry: Entry) -> tuple[str, str]:
    if entry.memory is None or entry.peak_bytes is None:
        return NOTHING, ""
    return gib_text(entry.peak_bytes, upper=entry.peak_upper), phase_name(entry.memory.peak_phase)


def _step_cell(entry: Entry) -> str:
    if entry.step is None or entry.times_from is None:
        return NOTHING
    # A tilde marks what was not measured whole; the line below the tables says what it stands on.
    return ("" if entry.times_from.origin == "measured" else "~") + seconds_text(entry.step.median)


def _interval_cell(entry: Entry) -> str:
    """How far the 95 % confidence interval reaches from the median."""
    found = entry.step.interval if entry.step else None
    return (
        NOTHING
        if entry.step is None or found is None
        else around_text(found.lower, entry.step.median, found.upper)
    )


def _throughput_cell(entry: Entry) -> str:
    return (throughput_text(entry.times_from) if entry.times_from else "") or NOTHING


def _estimate_cell(entry: Entry) -> str:
    return f"~{seconds_text(entry.estimate.seconds)}" if entry.estimate else NOTHING


def _remarks(findings: Findings) -> list[str]:
    notes = [missing_text(findings), unlike_text(findings.savings)]
    return sources(findings) + [note for note in notes if note] + warning_lines(findings.records)
