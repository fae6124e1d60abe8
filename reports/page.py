"""Page: one self-contained HTML file that opens offline and asks the network for nothing."""

import base64
import gzip
from collections.abc import Mapping, Sequence
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline

from .arithmetic.agreement import agreements
from .arithmetic.agreement import summary as agreement_summary
from .arithmetic.findings import Findings
from .arithmetic.provenance import ORIGINS, commands, provenance
from .arithmetic.reproduction import (
    COMMAND,
    COMMAND_GIVES,
    not_reproduced,
    reproduced_times,
    reproduction,
)
from .charts import Chart, charts
from .charts.accumulation import accumulation_chart
from .figures.drawing import Drawing
from .html import styled_page
from .phrases import missing_text, unlike_text
from .tables.accumulation import AccumulationPart, accumulation_tables
from .tables.agreement import agreement_table
from .tables.capacity import LEGEND as CAPACITY_LEGEND
from .tables.capacity import capacity_tables
from .tables.data import data_rows, estimate_table, memory_table, step_table
from .tables.heat_map import heat_map
from .tables.overview import block_tables, failure_table, key_table, reproduction_table, time_table
from .tables.sight import sight_tables
from .tables.verdict import cards, sources, verdict
from .tables.watched import watched_tables
from .units import DECIMAL, Sized
from .words import listed

SM3_NOTE = (
    "SM3 saves this much only without momentum, when it keeps one number for each row and each"
    " column of a weight. With momentum 0.9 it also keeps a buffer as large as the parameters, 4"
    " more bytes a parameter in fp32 and 2 in bf16, and most of the saving is gone."
)

# The charts that stand before and after the heat map.
CHART_PLACES = (
    ("savings",),
    ("state-by-size", "peak", "timeline", "step-time", "step-by-size", "iteration", "pareto"),
)


def render_page(
    records: Sequence[Record],
    drawings: Sequence[Drawing],
    timelines: Mapping[str, Timeline] | None = None,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
) -> str:
    """The page of a run as HTML text; every word that comes from a record is escaped.

    `damage` names what of the run could not be read, `total` is how many records the run has where
    these are the first of more.
    """
    findings = Findings.of(records, timelines)
    found = charts(findings, drawings)
    parts = _accumulations(findings)
    graphs = {
        f"graph-{chart.name}-{number}": graph.data
        for chart in [*found, *(chart for _, chart in parts.values())]
        for number, graph in enumerate(chart.graphs, 1)
    }
    return styled_page(
        "report.html.j2",
        findings.marks,
        title=f"What an optimizer costs on {listed(findings.models)}",
        context=findings.context,
        sources=[*sources(findings), *_left_out(len(records), total)],
        verdict=Sized.of(lambda units: verdict(findings, units)),
        cards=cards(findings),
        settings=len(findings.names),
        notes=_notes(findings),
        damage=damage,
        damaged_timelines=[each for each in damage if each.startswith("timelines")],
        charts=[[chart for chart in found if chart.kind in kinds] for kinds in CHART_PLACES],
        heat=heat_map(findings),
        accumulations=parts,
        rooms=capacity_tables(findings),
        rooms_legend=CAPACITY_LEGEND,
        sights=sight_tables(findings),
        watched=watched_tables(findings),
        agreement=_agreement(records),
        graphs=graphs,
        plotly=packed_plotly() if graphs else "",
        tables={
            "memory": memory_table(findings),
            "steps": step_table(findings),
            "estimates": estimate_table(findings),
        },
        data=data_rows(findings),
        keys=key_table(findings),
        blocks=block_tables(findings),
        reproduction=_reproduction(records),
        failures=failure_table(findings),
        commands=commands(records),
        provenance=_provenance(records),
        origins=ORIGINS,
    )


def _left_out(shown: int, total: int | None) -> list[str]:
    if total is None or total <= shown:
        return []
    return [
        (
            f"this page shows the first {shown:,} of {total:,} records; records.csv and"
            " records.json have all"
        )
    ]


def _accumulations(findings: Findings) -> dict[str, tuple[AccumulationPart, Chart]]:
    """The tables and graphs of each model and optimizer that trained under accumulations, by its
    name.
    """
    parts = accumulation_tables(findings.records)
    return {
        name: (
            part,
            accumulation_chart(
                findings, f"accumulation-{number}", name if len(parts) > 1 else "", part
            ),
        )
        for number, (name, part) in enumerate(parts.items(), 1)
    }


def _agreement(records: Sequence[Record]) -> dict[str, Any]:
    found = agreements(records)
    return {"table": agreement_table(found), "summary": agreement_summary(found)}


def _provenance(records: Sequence[Record]) -> list[tuple[str, Sized]]:
    pairs = zip(provenance(records), provenance(records, DECIMAL), strict=True)
    return [(name, Sized(binary=text, decimal=decimal)) for (name, text), (_, decimal) in pairs]


def _notes(findings: Findings) -> dict[str, str]:
    """What a reader must know beside the numbers, by the part of the page it belongs to; empty
    where there is nothing to say.
    """
    return {
        "baseline": missing_text(findings),
        "unlike": unlike_text(findings.savings),
        "sm3": (
            SM3_NOTE if any(entry.scenario.optimizer == "sm3" for entry in findings.entries) else ""
        ),
    }


def _reproduction(records: Sequence[Record]) -> dict[str, Any]:
    rows = reproduction(records)
    missing = not_reproduced(rows)
    return {
        "table": reproduction_table(rows),
        "times": time_table(reproduced_times(records)),
        "missing": "; ".join(
            f"{name} for {', '.join(missing[name])}" for name in COMMAND_GIVES if name in missing
        ),
        "others": ", ".join(name for name in missing if name not in COMMAND_GIVES),
        "command": COMMAND,
    }


@cache
def packed_plotly() -> str:
    """plotly's script, from its package: gzip in base64, which browsers unpack, and a page is 3 MB
    smaller.
    """
    package = find_spec("plotly")
    if package is None or package.origin is None:
        raise ModuleNotFoundError(
            "the page's graphs need the package plotly; pip install plotly", name="plotly"
        )
    script = Path(package.origin).parent / "package_data" / "plotly.min.js"
    return base64.b64encode(gzip.compress(script.read_bytes(), mtime=0)).decode()
