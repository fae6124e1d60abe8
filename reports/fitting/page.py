"""The page of what fits: one self-contained HTML file, in the style of a run's report."""

from collections.abc import Sequence

from optprof.profiler.records.fits import Fit
from optprof.scenarios import hardware

from ..arithmetic.provenance import ORIGINS, shell
from ..html import styled_page
from ..tables.table import Cell, Table
from ..units import bytes_text, exact_text, gib_text
from .fits import LEGEND, FitFindings, fit_table, overview_table, verdict


def render_fit_page(fits: Sequence[Fit], command: Sequence[str]) -> str:
    """The page as HTML text; `command` are the words of the command line that found the answers."""
    findings = FitFindings.of(fits)
    return styled_page(
        "fit.html.j2",
        findings.marks,
        title=f"What {fits[0].scenario.model} fits on",
        context=findings.title,
        verdict=verdict(findings),
        legend=LEGEND,
        overview=overview_table(findings),
        table=fit_table(findings),
        gpus=_gpu_table(findings.gpus),
        occupied=bytes_text(hardware.CONTEXT_BYTES),
        command=shell(command),
        simulated=ORIGINS["simulated"],
    )


def _gpu_table(names: Sequence[str]) -> Table:
    head = ("GPU", "name", "memory, GiB", "where that was printed", "bandwidth and rates")
    return Table(head=head, rows=tuple(_gpu_row(hardware.describe(name)) for name in names))


def _gpu_row(gpu: hardware.Gpu) -> tuple[Cell, ...]:
    memory = Cell(text=gib_text(gpu.memory_bytes), exact=exact_text(gpu.memory_bytes), number=True)
    return (
        Cell(text=gpu.name),
        Cell(text=gpu.title),
        memory,
        Cell(text=gpu.memory_source),
        Cell(text=gpu.source),
    )
