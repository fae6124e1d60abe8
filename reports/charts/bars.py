"""Bars: what is saved, what a peak is made of, and the share of an iteration that the step
takes.
"""

from collections.abc import Hashable, Iterable, Sequence
from dataclasses import replace
from itertools import accumulate, groupby

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.labels import optimizer_key
from ..arithmetic.peaks import Peak, in_stack_order
from ..arithmetic.savings import BASELINE, Saving
from ..arithmetic.times import PHASES, Timing
from ..phrases import peak_text, saving_text, share_text
from ..style import PHASE_COLOURS, block_colour
from ..units import Sized, gib_text, seconds_text
from ..words import category_name
from .chart import Bar, BarGroup, BlockKey, Chart, Part

# A category below this share of every peak is thinner than a line, and no key explains it.
VISIBLE = 0.002


def savings_chart(findings: Findings, chart: Chart) -> Chart:
    """Each state as a share of the baseline's."""
    rows, _ = pictured(findings.savings, lambda row: row.entry.setting)
    most = max(1.0, *(row.share_kept for row in rows))
    shares = (0, 0.25, 0.5, 0.75, 1) if most <= 1.5 else (0, 1, most)
    ticks = tuple((100 * share / most, f"{100 * share:.0f} %") for share in shares)
    groups = grouped(
        findings,
        [(findings.names[row.entry.setting], _saving(findings, row, most)) for row in rows],
        ticks,
    )
    return replace(
        chart,
        groups=groups,
        block_keys=(BlockKey(colour="var(--track)", text=f"the state of {BASELINE}"),),
    )


def peak_chart(findings: Findings, chart: Chart) -> Chart:
    """Each peak in blocks of what holds it; the peaks of one model are drawn in one scale."""
    rows, _ = pictured(findings.peaks, lambda row: row.entry.setting)
    scale = _largest(
        (row.entry.setting, max(row.allocated, row.reserved or 0, row.split)) for row in rows
    )
    groups = grouped(
        findings,
        [(findings.names[row.entry.setting], _peak(row, scale[row.entry.setting])) for row in rows],
    )
    visible = {
        name
        for row in findings.peaks
        for name, count in row.parts
        if count >= VISIBLE * row.allocated
    }
    keys = [_block_key(name) for name in in_stack_order(visible)]
    if any(row.reserved for row in rows):
        keys.append(BlockKey(colour="", text="reserved, not allocated"))
    return replace(chart, groups=groups, block_keys=tuple(keys))


def iteration_chart(findings: Findings, chart: Chart) -> Chart:
    """Forward, backward and step, one after another."""
    whole = [timing for timing in findings.timings if timing.iteration]
    rows, _ = pictured(whole, findings.setting_of)
    scale = _largest((findings.setting_of(row), _parts_seconds(row)) for row in rows)
    groups = grouped(
        findings,
        [
            (findings.setting_of(row), _iteration(findings, row, scale[findings.setting_of(row)]))
            for row in rows
        ],
    )
    return replace(chart, groups=groups, block_keys=tuple(_block_key(phase) for phase in PHASES))


def grouped(
    findings: Findings, rows: Sequence[tuple[str, Bar]], ticks: Iterable[tuple[float, str]] = ()
) -> tuple[BarGroup, ...]:
    """The bars under the names of their groups; in a run of one setting they need none."""
    groups = [
        (name, tuple(bar for _, bar in members))
        for name, members in groupby(rows, key=lambda row: row[0])
    ]
    return tuple(
        BarGroup(name=name if len(findings.names) > 1 else "", bars=bars, ticks=tuple(ticks))
        for name, bars in groups
    )


def _saving(findings: Findings, row: Saving, most: float) -> Bar:
    own = Part(
        left=0,
        width=100 * row.share_kept / most,
        colour=f"var(--{findings.colour_name(row.entry.label)})",
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
        parts=(Part(left=0, width=100 / most, colour="var(--track)"), own),
    )


def _peak(row: Peak, scale: float) -> Bar:
    texts = [Sized.of(lambda units, count=count: gib_text(count, units)) for _, count in row.parts]
    return Bar(
        label=row.entry.label,
        mark=row.entry.label,
        origin=row.parts_origin,
        value=Sized.of(lambda units: peak_text(row, units)),
        parts=_stacked(row.parts, texts, scale),
        outline=None if row.reserved is None else 100 * row.reserved / scale,
    )


def _iteration(findings: Findings, row: Timing, scale: float) -> Bar:
    parts = [(phase, row.phases[phase].median) for phase in PHASES]
    texts = [Sized.of(lambda _, seconds=seconds: seconds_text(seconds)) for _, seconds in parts]
    share = share_text(row)
    return Bar(
        label=findings.timing_label(row),
        mark=findings.labels[optimizer_key(row.record.scenario)],
        origin=row.record.origin,
        value=Sized(binary=share, decimal=share),
        parts=_stacked(parts, texts, scale),
    )


def _stacked(
    parts: Sequence[tuple[str, float]], texts: Sequence[Sized], scale: float
) -> tuple[Part, ...]:
    lefts = accumulate((size for _, size in parts), initial=0.0)
    return tuple(
        Part(
            left=100 * left / scale,
            width=100 * size / scale,
            colour=block_colour(name).light,
            text=written,
        )
        for (name, size), left, written in zip(parts, lefts, texts, strict=False)
    )


def _parts_seconds(row: Timing) -> float:
    return sum(row.phases[phase].median for phase in PHASES)


def _largest(sizes: Iterable[tuple[Hashable, float]]) -> dict[Hashable, float]:
    """The largest size of each key, never 0."""
    found: dict[Hashable, float] = {}
    for key, size in sizes:
        found[key] = max(found.get(key, 1e-12), size)
    return found


def _block_key(name: str) -> BlockKey:
    text = name if name in PHASE_COLOURS else category_name(name)
    return BlockKey(colour=block_colour(name).light, text=text)
