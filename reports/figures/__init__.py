"""Figures: the pictures of a run, as PNG and SVG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline
from optprof.profiler.safety.disk import write_bytes, write_text

from ..arithmetic.findings import Findings
from .drawing import FOR_PAPER, STYLES, Drawing, Style, style_named
from .iterations import draw_iterations
from .pareto import draw_pareto
from .peak_bars import draw_peaks
from .published import draw_published
from .savings_bars import draw_savings
from .size_curve import draw_sizes
from .step_times import draw_steps
from .timelines import draw_timelines

__all__ = [
    "STYLES",
    "Drawing",
    "Style",
    "draw_all",
    "draw_published",
    "style_named",
    "write_drawing",
]


def draw_all(
    records: Sequence[Record],
    folder: Path,
    timelines: Mapping[str, Timeline] | None = None,
    style: Style = FOR_PAPER,
) -> list[Drawing]:
    """Draw every picture that records and timelines have data for; each is written into the folder
    as PNG and SVG, and returned.
    """
    findings = Findings.of(records, timelines)
    bars, times = (draw_savings, draw_sizes, draw_peaks), (draw_steps, draw_iterations)
    drawn = [
        *(draw(findings, style) for draw in bars),
        *draw_timelines(findings, style),
        *(draw(findings, style) for draw in times),
    ]
    drawings = [drawing for drawing in [*drawn, *draw_pareto(findings, style)] if drawing]
    for drawing in drawings:
        write_drawing(drawing, folder)
    return drawings


def write_drawing(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a picture into the folder as PNG and SVG, over an older one; returns the paths.

    ValueError where the folder, or a picture in it, is a symbolic link.
    """
    written = [folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"]
    write_bytes(written[0], drawing.png, below=folder.parent)
    write_text(written[1], drawing.svg, below=folder.parent)
    return written
