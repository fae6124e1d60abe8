"""Markdown: tables for a pull request, in GitHub's dialect; what comes from records stays text."""

import re
from collections.abc import Sequence

from profiler.record import Record

from .compare import Compared
from .compare_tables import Names, comparison_table, offence_table, one_side_table, remarks, summary, unfinished_table
from .findings import Findings
from .gate import Offence
from .summary import summary_table
from .table import Table
from .tables import failure_table
from .verdict import sources

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!&@$])")


def run_markdown(records: Sequence[Record]) -> str:
    """The summary of a run: one row an optimizer, then what ended without a result; ValueError for a run without records."""
    findings = Findings.of(records)
    failed = failure_table(findings)
    parts = [markdown_table(summary_table(findings)) if findings.entries else "", *map(escaped, sources(findings))]
    parts += ["Without a result:", markdown_table(failed)] if failed.rows else []
    return "\n\n".join(part for part in parts if part) + "\n"


def comparison_markdown(compared: Compared, stopped: Sequence[Offence], *, only_regressed: bool = False) -> str:
    """A comparison: what the gates stop first, then the figures, then the scenarios of one side."""
    names = Names.of(compared.scenarios)
    table = comparison_table(compared, names, only_regressed=only_regressed)
    stop = offence_table(stopped, names)
    parts = [f"**{escaped(summary(compared))}**", escaped(names.common)]
    parts += ["Stopped by a gate:", markdown_table(stop)] if stop.rows else []
    parts += [markdown_table(table)] if table.rows else []
    if not only_regressed:
        for title, found in (("one side only", one_side_table(compared, names)), ("no result", unfinished_table(compared, names))):
            parts += [f"{title}:".capitalize(), markdown_table(found)] if found.rows else []
    return "\n\n".join(part for part in (*parts, *map(escaped, remarks(compared))) if part) + "\n"


def markdown_table(table: Table) -> str:
    """The table, numbers to the right."""
    numbers = [bool(table.rows) and table.rows[0][place].number for place in range(len(table.head))]
    lines = [[escaped(name) for name in table.head], ["---:" if number else "---" for number in numbers]]
    lines += [[escaped(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """The text on one line, with nothing in it that Markdown or HTML would take for its own, and nobody called by an @."""
    # A backslash does not keep GitHub from calling a person by name; a character's number does.
    return _SPECIAL.sub(lambda found: "&#64;" if found[0] == "@" else f"\\{found[0]}", " ".join(text.split()))
