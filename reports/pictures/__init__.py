"""Pictures: each is described once, in a module of its own, and drawn by every renderer.

`drawing` draws PNG and SVG files by matplotlib, `charts` has what a page shows.
"""

from ..arithmetic.accumulations import is_about_accumulation
from ..arithmetic.findings import Findings
from . import (
    accumulation,
    icicle,
    pareto,
    peaks,
    savings,
    sizes,
    step_sizes,
    timelines,
    times,
    ways,
)
from .picture import Picture

__all__ = ["Picture", "pictures"]

# In the order of a report.
MODULES = (savings, sizes, peaks, icicle, timelines, ways, times, step_sizes, pareto, accumulation)
# These compare optimizers; a run that compares ways to accumulate has the same state for all.
OF_OPTIMIZERS = (savings, sizes)


def pictures(findings: Findings) -> list[Picture]:
    """Return every picture that the findings have data for."""
    left_out = OF_OPTIMIZERS if is_about_accumulation(findings.records) else ()
    return [
        picture
        for module in MODULES
        if module not in left_out
        for picture in module.describe(findings)
    ]
