"""Markdown: tables for a pull request, in GitHub's dialect; what comes from records stays text."""

import re
from collections.abc import Mapping, Sequence

from optprof.profiler.records.record import Environment, Memory, Record
from optprof.profiler.safety.plain import plain

from .arithmetic.findings import Findings
from .tables.accumulation import accumulation_tables
from .tables.overview import failure_table
from .tables.summary import summary_table
from .tables.table import Table
from .tables.verdict import sources

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>|#~!&@$])")
# After each of these the rest would be a link, a person, an issue, a commit or a picture: a scheme,
# www, @somebody and a@b.c, #1, !1 and GH-1, half a full hash, and :smile:.
_LINKED = re.compile(
    r"(?<=\w):(?=//)|(?:mailto|xmpp):|\bwww(?=\.)|@|[#!](?=\d)|\bGH-(?=\d)"
    r"|\b[0-9a-f]{20}(?=[0-9a-f]{20}\b)|:(?=(?:[a-z_+-][\w+-]*|100|1234|8ball):)",
    re.IGNORECASE,
)
# At the beginning of a paragraph: the number of a list, or what follows is a list, an underline or
# a rule.
_BLOCK = re.compile(r"^(?:\d{1,9}(?=[.)](?:\s|$))|(?=[-+](?:\s|$)|=+$|-{2,}$))")

# What the summary does not show of a record's memory.
NO_SPLITS: Mapping[str, Mapping[str, int]] = {
    "state_by_key": {},
    "state_by_key_dtype": {},
    "peak_by_category": {},
    "peak_by_phase": {},
}


def lean(record: Record) -> Record:
    """Return what the summary reads of a record: the samples of 100,000 records would take 1 GB."""
    memory, samples = record.memory, (record.times or {}).get("step")
    if record.course is not None:
        return record
    # `replace` takes three times as long.
    if memory is not None:
        memory = Memory(**{**vars(memory), **NO_SPLITS})
    times = {"step": samples} if samples else None
    dropped = {
        "memory": memory,
        "times": times,
        "warmup": None,
        "watched": None,
        "environment": Environment(),
    }
    return Record(**{**vars(record), **dropped})


def run_markdown(records: Sequence[Record]) -> str:
    """The summary of a run: a row an optimizer, then its accumulations and what has no result;
    ValueError for a run without records.
    """
    findings = Findings.of(records)
    failed = failure_table(findings)
    parts = [
        markdown_table(summary_table(findings)) if findings.entries else "",
        *map(escaped, sources(findings)),
    ]
    for name, part in accumulation_tables(findings.records).items():
        parts += [escaped(f"When to step: {name}"), markdown_table(part.summary)]
    parts += ["Without a result:", markdown_table(failed)] if failed.rows else []
    return "\n\n".join(part for part in parts if part) + "\n"


def markdown_table(table: Table) -> str:
    """The table, numbers to the right."""
    numbers = [bool(table.rows) and table.rows[0][place].number for place in range(len(table.head))]
    lines = [
        [escaped(name) for name in table.head],
        ["---:" if number else "---" for number in numbers],
    ]
    lines += [[escaped(cell.text) for cell in row] for row in table.rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def escaped(text: str) -> str:
    """Return the text on one line, with nothing in it that Markdown, HTML or GitHub would act on.

    GitHub looks for addresses, names and references in what Markdown has made of the text, where a
    backslash is gone; a space without width breaks them.
    """
    line = _SPECIAL.sub(r"\\\1", " ".join(plain(text).split()))
    return _BLOCK.sub(r"\g<0>\\", _LINKED.sub(r"\g<0>&#8203;", line))
