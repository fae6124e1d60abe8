"""The picture of peaks: the memory of a training step at its highest moment, by category."""

from collections.abc import Sequence

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.peaks import Peak, in_stack_order
from ..phrases import peak_text
from ..style import block_colour
from ..tables.table import Table, bytes_cell, text_table
from ..units import GIB, Sized, bytes_text, exact_text
from ..words import category_name, phase_name
from .bars import VISIBLE, grouped, row_scales, stacked
from .picture import ORIGINS, Bar, Key, Picture
from .scales import gib_ticks


def describe(findings: Findings) -> list[Picture]:
    """Return the picture if a record has a peak; the peaks of one setting share a scale."""
    rows, notes = pictured(findings.peaks, lambda row: row.entry.setting)
    if not rows:
        return []
    scale = row_scales(
        ((row.entry.setting, max(row.allocated, row.reserved or 0, row.split)) for row in rows),
        GIB,
    )
    bars = (
        (
            findings.names[row.entry.setting],
            _bar(row, scale[row.entry.setting]),
            gib_ticks(scale[row.entry.setting]),
        )
        for row in rows
    )
    picture = Picture(
        name="peak",
        title="What the peak is made of",
        context=findings.context,
        sentence=(
            "The most that a training step holds at once, split by what holds it, and the phase in"
            " which that moment comes."
        ),
        table=_table(findings),
        panels=grouped(findings, bars),
        marks=findings.marks,
        notes=notes,
        keys=(*_keys(findings), *ORIGINS),
    )
    return [picture]


def category_keys(categories: Sequence[str]) -> list[Key]:
    """Return the keys of categories of bytes."""
    return [Key("block", category_name(name), block_colour(name).light) for name in categories]


def _keys(findings: Findings) -> list[Key]:
    keys = category_keys(_categories(findings, VISIBLE))
    if any(row.reserved for row in findings.peaks):
        keys.append(Key("empty", "reserved, not allocated"))
    return keys


def _categories(findings: Findings, least: float = 0) -> list[str]:
    """Return the categories that have at least that share of some peak."""
    return in_stack_order(
        {
            name
            for row in findings.peaks
            for name, count in row.parts
            if count >= least * row.allocated
        }
    )


def _bar(row: Peak, scale: float) -> Bar:
    texts = [
        Sized.of(lambda units, count=count: bytes_text(count, units)) for _, count in row.parts
    ]
    return Bar(
        label=row.entry.label,
        mark=row.entry.label,
        origin=row.parts_origin,
        value=Sized.of(lambda units: peak_text(row, units)),
        parts=stacked(row.parts, texts, scale, [exact_text(count) for _, count in row.parts]),
        outline=None if row.reserved is None else 100 * row.reserved / scale,
        words=""
        if row.reserved is None
        else f"reserved: {exact_text(row.reserved, row.reserved_upper)}",
    )


def _table(findings: Findings) -> Table:
    categories = _categories(findings)
    head = (
        *("optimizer", "model", "origin", "phase", "peak", "reserved", "parts"),
        *map(category_name, categories),
        "peak less parts",
    )
    rows = (
        (
            row.entry.label,
            findings.names[row.entry.setting],
            row.entry.origin,
            phase_name(row.phase),
            bytes_cell(row.allocated, row.allocated_upper),
            bytes_cell(row.reserved, row.reserved_upper),
            row.parts_origin,
            *(bytes_cell(dict(row.parts).get(category, 0)) for category in categories),
            bytes_cell(row.residual),
        )
        for row in findings.peaks
    )
    return text_table(head, rows)
