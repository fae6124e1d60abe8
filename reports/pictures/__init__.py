"""Pictures: each is described once, in a module of its own, and drawn by every renderer.

`drawing` draws PNG and SVG files by matplotlib, `charts` has what a page shows.
"""

from ..arithmetic.findings import Findings
from . import accumulation, icicle, pareto, peaks, savings, sizes, step_sizes, timelines, times
from .picture import Picture

__all__ = ["Picture", "pictures"]

# In the order of a report.
MODULES = (savings, sizes, peaks, icicle, timelines, times, step_sizes, pareto, accumulation)


def pictures(findings: Findings) -> list[Picture]:
    """Return every picture that the findings have data for."""
    return [picture for module in MODULES for picture in module.describe(findings)]
