"""The picture of savings: each optimizer's state as a share of the baseline's."""

import math

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.labels import shortened
from ..arithmetic.savings import Saving
from ..phrases import saving_text
from ..tables.table import Table, bytes_cell, text_table
from ..units import Sized, bytes_text, exact_text, factor_text, per_parameter_text, percent_text
from .bars import Ticks, grouped
from .picture import ORIGINS, Bar, Key, Part, Picture

# With a state larger than this many baselines, per cents would be long and 100 % lie on 0 %.
MULTIPLES = 5
# Up to this many, each quarter has a tick.
QUARTERS = 1.5


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a setting has a baseline and an optimizer to compare with it."""
    if not findings.has_savings:
        return []
    rows, notes = pictured(findings.savings, lambda row: row.entry.setting)
    most = max(1.0, *(row.share_kept for row in rows))
    if most <= QUARTERS:
        # The ticks enclose every bar.
        most = math.ceil(4 * most) / 4
    ticks = _ticks(most)
    bars = ((findings.names[row.entry.setting], _bar(findings, row, most), ticks) for row in rows)
    picture = Picture(
        name="savings",
        title=f"State kept, compared with {shortened(findings.baseline)}",
        context=findings.context,
        sentence=(
            f"The state of each optimizer as a share of {findings.baseline}'s for the same model."
        ),
        table=_table(findings),
        panels=grouped(findings, bars),
        marks=findings.marks,
        notes=notes,
        keys=(Key("block", f"the state of {shortened(findings.baseline)}", "@track"), *ORIGINS),
    )
    return [picture]


def _ticks(most: float) -> Ticks:
    """Return places and shares of the baseline; as multiples of it if it is the small one."""
    if most > MULTIPLES:
        return (0, "0"), (50, factor_text(most / 2)), (100, factor_text(most))
    shares = [part / 4 for part in range(int(4 * most) + 1)] if most <= QUARTERS else [0, 1, most]
    return tuple((100 * share / most, f"{100 * share:.0f} %") for share in shares)


def _bar(findings: Findings, row: Saving, most: float) -> Bar:
    share = Part(
        left=0,
        width=100 * row.share_kept / most,
        colour=f"@{findings.colour_name(row.entry.label)}",
        words=f"{row.entry.label}: {exact_text(row.state_bytes)}",
    )
    return Bar(
        label=row.entry.label,
        mark=row.entry.label,
        origin=row.entry.origin,
        value=Sized.of(
            lambda units: f"{bytes_text(row.state_bytes, units)} · {saving_text(row, units)}"
        ),
        parts=(
            Part(
                left=0,
                width=100 / most,
                colour="@track",
                words=f"{row.baseline.label}: {exact_text(row.baseline_bytes)}",
            ),
            share,
        ),
    )


def _table(findings: Findings) -> Table:
    head = ("optimizer", "model", "state", "bytes a parameter", "saved", "factor", "per cent")
    rows = (
        (
            row.entry.label,
            findings.names[row.entry.setting],
            bytes_cell(row.state_bytes),
            per_parameter_text(row.entry.bytes_per_parameter or 0),
            bytes_cell(row.saved_bytes),
            factor_text(row.factor),
            percent_text(row.saved_bytes, row.baseline_bytes),
        )
        for row in findings.savings
    )
    return text_table(head, rows)
