"""The picture of savings: each optimizer's state as a share of the baseline's."""

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.savings import BASELINE, Saving
from ..phrases import saving_text
from ..tables.table import Table, bytes_cell, text_table
from ..units import Sized, exact_text, factor_text, gib_text, per_parameter_text, percent_text
from .bars import grouped
from .picture import ORIGINS, Bar, Key, Part, Picture


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a setting has a baseline and an optimizer to compare with it."""
    rows, notes = pictured(findings.savings, lambda row: row.entry.setting)
    if all(row.is_baseline for row in rows):
        return []
    most = max(1.0, *(row.share_kept for row in rows))
    shares = (0, 0.25, 0.5, 0.75, 1) if most <= 1.5 else (0, 1, most)
    ticks = tuple((100 * share / most, f"{100 * share:.0f} %") for share in shares)
    bars = ((findings.names[row.entry.setting], _bar(findings, row, most), ticks) for row in rows)
    picture = Picture(
        name="savings",
        title="State saved against AdamW",
        context=findings.context,
        sentence=(
            f"How much less state each optimizer keeps than {BASELINE} for the same model, in"
            " bytes, as a factor and in per cent."
        ),
        table=_table(findings),
        panels=grouped(findings, bars),
        marks=findings.marks,
        notes=notes,
        keys=(Key("block", f"the state of {BASELINE}", "@track"), *ORIGINS),
    )
    return [picture]


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
            lambda units: (
                f"{gib_text(row.state_bytes, units)} {units.giga} · {saving_text(row, units)}"
            )
        ),
        parts=(
            Part(
                left=0,
                width=100 / most,
                colour="@track",
                words=f"{BASELINE}: {exact_text(row.baseline_bytes)}",
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
