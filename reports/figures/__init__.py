"""Figures: the pictures of a run, as PNG and SVG files."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from profiler.record import Record
from profiler.timeline import Timeline

from ..findings import Findings
from .drawing import Drawing
from .iterations import draw_iterations
from .peak_bars import draw_peaks
from .savings_bars import draw_savings
from .size_curve import draw_sizes
from .step_times import draw_steps
from .timelines import draw_timelines

__all__ = ["Drawing", "draw_all"]


def draw_all(records: Sequence[Record], folder: Path, timelines: Mapping[str, Timeline] | None = None) -> list[Drawing]:
    """Draw every picture that records and timelines have data for; each is written into the folder as PNG and SVG, and returned."""
    findings = Findings.of(records, timelines)
    bars, times = (draw_savings, draw_sizes, draw_peaks), (draw_steps, draw_iterations)
    drawn = [*(draw(findings) for draw in bars), *draw_timelines(findings), *(draw(findings) for draw in times)]
    drawings = [drawing for drawing in drawn if drawing]
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
        (folder / f"{drawing.name}.svg").write_text(drawing.svg, encoding="utf-8")
    return drawings
