"""Summary: a run as a short document, for a terminal, a pull request or a notebook."""

from collections.abc import Mapping

from optprof.profiler.records.record import Environment, Memory, Record

from .arithmetic.accumulations import is_about_accumulation
from .arithmetic.entries import Entry, Setting, by_setting, failures
from .arithmetic.findings import Findings
from .document import Document, Note, Section
from .phrases import missing_text, unlike_text
from .tables.accumulation import accumulation_tables
from .tables.overview import failure_table
from .tables.summary import summary_table, terminal_table
from .tables.verdict import sources
from .words import conditions, warning_lines

# The parts of a record's memory that no summary and no comparison shows.
NO_SPLITS: Mapping[str, Mapping[str, int]] = {
    "state_by_key": {},
    "state_by_key_dtype": {},
    "peak_by_category": {},
    "peak_by_phase": {},
}


def lean(record: Record) -> Record:
    """Return what `run_summary` reads of a record: the samples of 100,000 records would take
    1 GB.
    """
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


def run_summary(findings: Findings) -> Document:
    """One row an optimizer, then ways to accumulate and scenarios without a result."""
    table = [summary_table(findings)] if _settings(findings) else []
    return Document(
        sections=[
            Section(blocks=[*table, *map(Note, sources(findings))]),
            *_accumulations(findings),
            Section("Without a result", [failure_table(findings)]),
        ]
    )


def terminal_summary(findings: Findings, width: int) -> Document:
    """One table a setting, ways to accumulate, remarks, and scenarios without a result, for a
    terminal of this width.
    """
    notes = [
        *sources(findings),
        missing_text(findings),
        unlike_text(findings.savings),
        *warning_lines(findings.records),
    ]
    # The state alone fails for the same reason as whole steps.
    failed = dict.fromkeys(map(_failure, failures(findings.records)))
    tables = [
        Section(
            " · ".join((setting.model, *setting.traits)), [terminal_table(findings, group, width)]
        )
        for setting, group in _settings(findings).items()
    ]
    lines = Section(blocks=[*map(Note, notes), *(Note(line, "failed") for line in failed)])
    return Document(sections=[*tables, *_accumulations(findings), lines], marks=findings.marks)


def _settings(findings: Findings) -> dict[Setting, list[Entry]]:
    """The entries by setting; ways to accumulate differ in no number but a peak."""
    settings = by_setting(findings.entries)
    if not is_about_accumulation(findings.records):
        return settings
    return {
        setting: entries
        for setting, entries in settings.items()
        if any(entry.peak_bytes is not None for entry in entries)
    }


def _accumulations(findings: Findings) -> list[Section]:
    return [
        Section(f"When to step: {name}", [part.summary, Note(part.verdict)])
        for name, part in accumulation_tables(findings.records).items()
    ]


def _failure(record: Record) -> str:
    scenario = record.scenario
    subject = f"{scenario.optimizer} on {scenario.model} ({conditions(record)})"
    return f"{record.outcome}: {subject}: {record.error or 'no reason recorded'}"
