"""Timing rows: what the pictures of time share: a row a timing, its numbers as a table, and the
conditions all were taken under.
"""

from collections.abc import Sequence

from ..arithmetic.findings import Findings
from ..arithmetic.labels import optimizer_key
from ..arithmetic.times import PHASES, Timing
from ..phrases import spread_text
from ..tables.table import Table, text_table
from ..units import range_text
from ..words import conditions, origin_text, shared
from .rows import Row


def timing_row(findings: Findings, timing: Timing, value: str) -> Row:
    """The row of a timing; device and implementation stand in its label where the timings differ in
    them.
    """
    record = timing.record
    mark = findings.marks[findings.labels[optimizer_key(record.scenario)]]
    return Row(
        group=findings.setting_of(timing),
        mark=mark,
        origin=record.origin,
        label=findings.timing_label(timing),
        value=value,
    )


def spoken(findings: Findings, timing: Timing, value: str) -> str:
    """A timing as part of an alternative text."""
    row = timing_row(findings, timing, value)
    return f"{row.label} on {row.group}: {value}"


def axis_text(unit: str, timings: Sequence[Timing]) -> str:
    """The axis of a picture of time: its unit, and the conditions that all timings share."""
    common = shared(conditions(timing.record) for timing in timings)
    return f"{unit} on {common} implementation" if common else unit


def timing_table(findings: Findings, timings: Sequence[Timing]) -> Table:
    """The medians and quartiles of every phase, with how many samples they stand on."""
    phases = [phase for phase in PHASES if any(phase in timing.phases for timing in timings)]
    rows = []
    for timing in timings:
        row, found = timing_row(findings, timing, ""), timing.phases
        times = [spread_text(found[phase]) if phase in found else "" for phase in phases]
        extremes = range_text(timing.step.smallest, timing.step.largest)
        rows.append(
            (
                row.label,
                row.group,
                *times,
                extremes,
                str(len(timing.step.samples)),
                origin_text(timing.record),
            )
        )
    return text_table(
        ("optimizer", "model", *phases, "fastest to slowest step", "samples", "origin"), rows
    )
