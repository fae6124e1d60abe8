"""What fits, on the terminal: one table of GPUs and optimizers, and below it what would make the
others fit.
"""

from collections.abc import Sequence
from typing import TextIO

from rich.table import Table
from rich.text import Text

from optprof.profiler.records.fits import Fit

from ..arithmetic.labels import shortened
from ..streams import console_on
from ..units import gib_text
from .fits import LEGEND, FitFindings, change_text, short_text


def render_fits(fits: Sequence[Fit], output: TextIO, *, width: int | None = None) -> None:
    """Print the answers; ValueError for none."""
    findings = FitFindings.of(fits)
    console = console_on(output, width=width)
    console.print(_table(findings))
    console.print()
    for line in (LEGEND, "simulated for CUDA, training steps on the memory of each GPU"):
        console.print(Text(line, style="dim"))
    for label, error in findings.errors.items():
        console.print(Text(f"{label} could not be simulated: {error}"), soft_wrap=True)
    lacking = [fit for fit in fits if fit.changes]
    if lacking:
        console.print()
        console.print(
            Text("what makes a step fit, the cheapest change, and what it leaves", style="bold")
        )
    for fit in lacking:
        change = fit.changes[0]
        line = (
            f"{fit.scenario.gpu} {findings.label(fit)}: {change_text(change, fit.scenario)}"
            f" ({gib_text(change.left)} GiB)"
        )
        console.print(Text(line), soft_wrap=True)


def _table(findings: FitFindings) -> Table:
    table = Table(
        title=Text(findings.title),
        title_justify="left",
        title_style="bold",
        box=None,
        pad_edge=False,
        header_style="dim",
    )
    table.add_column("GPU", no_wrap=True)
    for label in findings.labels.values():
        table.add_column(
            Text.assemble(
                (f"{findings.marks[label].hollow} ", findings.marks[label].colour.dark),
                shortened(label, 24),
            )
        )
    for gpu in findings.gpus:
        table.add_row(
            gpu,
            *(Text(short_text(fit), style="" if fit.fits else "dim") for fit in findings.at(gpu)),
        )
    return table
