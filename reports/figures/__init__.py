"""Figures: the pictures of a run, as PNG files and as SVG for pages."""

from collections.abc import Sequence
from pathlib import Path

from profiler.record import Record

from ..findings import Findings
from .drawing import Drawing
from .iterations import draw_iterations
from .peak_bars import draw_peaks
from .savings_bars import draw_savings
from .size_curve import draw_sizes
from .step_times import draw_steps

__all__ = ["Drawing", "draw_all"]

PICTURES = (draw_savings, draw_sizes, draw_peaks, draw_steps, draw_iterations)


def draw_all(records: Sequence[Record], folder: Path) -> list[Drawing]:
    """Draw every picture that these records have data for; each is written as a PNG file into the folder and returned."""
    findings = Findings.of(records)
    drawings = [drawing for draw in PICTURES if (drawing := draw(findings))]
    folder.mkdir(parents=True, exist_ok=True)
    for drawing in drawings:
        (folder / f"{drawing.name}.png").write_bytes(drawing.png)
    return drawings
