"""Page: one self-contained HTML file that opens offline and asks the network for nothing."""

import base64
from collections.abc import Mapping, Sequence
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from profiler.record import Record
from profiler.timeline import Timeline

from .entries import Entry
from .figures.drawing import Drawing
from .findings import Findings
from .icons import icon_path
from .provenance import ORIGINS, commands, provenance
from .reproduction import COMMAND, COMMAND_GIVES, not_reproduced, reproduced_times, reproduction
from .savings import BASELINE, without_baseline
from .style import INK, LINE, MUTED, PAPER, TRACK, Mark
from .tables import block_tables, failure_table, key_table, main_table, reproduction_table, time_table
from .verdict import cards, sources, verdict
from .words import listed, warning_lines

SM3_NOTE = (
    "SM3 saves this much only without momentum, when it keeps one number for each row and each column of a weight. With momentum 0.9 "
    "it also keeps a buffer as large as the parameters, 4 more bytes a parameter in fp32 and 2 in bf16, and most of the saving is gone."
)
IMPLEMENTATION_NOTE = (
    "Where the implementation column names two, bytes and time of a row are of different ones: foreach is what torch chooses on CUDA, the "
    "loop what it chooses on a CPU."
)


def render_page(records: Sequence[Record], drawings: Sequence[Drawing], timelines: Mapping[str, Timeline] | None = None) -> str:
    """The page of a run as HTML text; every word that comes from a record is escaped."""
    findings = Findings.of(records, timelines)
    return styled_page(
        "report.html.j2",
        findings.marks,
        title=f"What an optimizer costs on {listed(findings.models)}",
        context=findings.context,
        sources=sources(findings),
        verdict=verdict(findings),
        cards=cards(findings),
        settings=len(findings.names),
        notes=_notes(findings),
        drawings=drawings,
        main=main_table(findings),
        warnings=warning_lines(records),
        keys=key_table(findings),
        blocks=block_tables(findings),
        reproduction=_reproduction(records),
        failures=failure_table(findings),
        commands=commands(records),
        provenance=provenance(records),
        origins=ORIGINS,
    )


def styled_page(template: str, marks: Mapping[str, Mark], **values: Any) -> str:
    """A template of this package filled in, every text escaped, with what the style of all pages asks for."""
    environment = Environment(
        loader=PackageLoader("reports"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"data_uri": _data_uri, "icon_path": icon_path}
    return environment.get_template(template).render(
        **values,
        marks=marks,
        classes={label: f"mark-{number}" for number, label in enumerate(marks)},
        colours={"paper": PAPER, "ink": INK, "muted": MUTED, "line": LINE, "track": TRACK},
    )


def _notes(findings: Findings) -> dict[str, str]:
    """What a reader must know beside the numbers, by the part of the page it belongs to; empty where there is nothing to say."""
    return {
        "baseline": _baseline_note(findings),
        "sm3": SM3_NOTE if any(entry.scenario.optimizer == "sm3" for entry in findings.entries) else "",
        "implementation": IMPLEMENTATION_NOTE if any(map(_mixes_implementations, findings.entries)) else "",
    }


def _baseline_note(findings: Findings) -> str:
    lacking = [findings.names[setting] for setting in without_baseline(findings.entries)]
    if not lacking:
        return ""
    return f"This run has no {BASELINE} record for {listed(lacking)}, so there is nothing to compare with; add {BASELINE} to --optimizers."


def _mixes_implementations(entry: Entry) -> bool:
    records = [record for record in (entry.bytes_from, entry.times_from) if record]
    return len({record.scenario.implementation for record in records}) > 1


def _reproduction(records: Sequence[Record]) -> dict[str, Any]:
    rows = reproduction(records)
    missing = not_reproduced(rows)
    return {
        "table": reproduction_table(rows),
        "times": time_table(reproduced_times(records)),
        "missing": "; ".join(f"{name} for {', '.join(missing[name])}" for name in COMMAND_GIVES if name in missing),
        "others": ", ".join(name for name in missing if name not in COMMAND_GIVES),
        "command": COMMAND,
    }


def _data_uri(svg: str) -> str:
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"
