"""Summary: a run as a short document, for a terminal, a pull request or a notebook."""

from collections.abc import Mapping

from optprof.profiler.records.record import Environment, Memory, Record, Watched

from .arithmetic.accumulations import is_about_accumulation
from .arithmetic.entries import Entry, Setting, by_setting
from .arithmetic.findings import Findings
from .document import Document, Note, Section
from .failing import FINDS, remedies, sentences, unfinished_text, unfits
from .phrases import missing_text, noise_note, ranks_notes, unlike_text, unpaced_text
from .tables.accumulation import accumulation_tables
from .tables.overview import failure_table
from .tables.ranks import each_tables, rank_table
from .tables.summary import cpu_table, summary_table, terminal_table
from .tables.table import varied
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
    # The warnings tell noise.
    watched = Watched(warnings=record.watched.warnings) if record.watched else None
    dropped = {
        "memory": memory,
        "times": times,
        "warmup": None,
        "watched": watched,
        "environment": Environment(),
    }
    return Record(**{**vars(record), **dropped})


def run_summary(findings: Findings) -> Document:
    """One row an optimizer, then ways to accumulate and scenarios without a result."""
    table = [summary_table(findings)] if _settings(findings) else []
    return Document(
        sections=[
            Section(
                blocks=[
                    *table,
                    Note(unfinished_text(findings.unfinished), "failed"),
                    *(Note(text, "failed") for text in sentences(findings)),
                    *map(Note, (*sources(findings), noise_note(findings))),
                ]
            ),
            *_ranks(findings),
            *_accumulations(findings),
            Section("Without a result", [failure_table(findings)]),
        ]
    )


def terminal_summary(findings: Findings, width: int) -> Document:
    """A table of bytes and one of CPU times for each setting, ways to accumulate, remarks, and
    scenarios without a result, for a terminal of this width.
    """
    notes = [
        unfinished_text(findings.unfinished),
        *sources(findings),
        missing_text(findings),
        unlike_text(findings.savings),
        unpaced_text(findings),
        noise_note(findings),
        *warning_lines(findings.records),
    ]
    unfit = [Note(text, "failed") for text in sentences(findings) if unfits(findings)]
    unfit += [Note(f"{command}  {FINDS}", "plain") for command in remedies(findings)]
    # The state alone fails for the same reason as whole steps.
    failed = dict.fromkeys(map(_failure, findings.unshown))
    tables = [
        Section(title, [table])
        for setting, group in _settings(findings).items()
        for title, table in (
            (" · ".join((setting.model, *setting.traits)), terminal_table(findings, group, width)),
            (f"{findings.names[setting]}: step on the CPU", cpu_table(findings, group, width)),
        )
    ]
    lines = Section(blocks=[*map(Note, notes), *unfit, *(Note(line, "failed") for line in failed)])
    sections = [*tables, *_ranks(findings), *_accumulations(findings), lines]
    return Document(sections=sections, marks=findings.marks)


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


def _ranks(findings: Findings) -> list[Section]:
    """Return the sections on ranks: a table of all, and one of each that differs."""
    if not findings.ranks:
        return []
    sides = [
        Section(f"Each rank: {name}", [each])
        for name, each in each_tables(findings, only_unlike=True).items()
    ]
    notes = map(Note, ranks_notes(findings))
    return [Section("Ranks", [varied(rank_table(findings)), *notes]), *sides]


def _accumulations(findings: Findings) -> list[Section]:
    return [
        Section(f"When to step: {name}", [part.summary, Note(part.verdict)])
        for name, part in accumulation_tables(findings.records).items()
    ]


def _failure(record: Record) -> str:
    scenario = record.scenario
    subject = f"{scenario.optimizer} on {scenario.model} ({conditions(record)})"
    return f"{record.outcome}: {subject}: {record.error or 'no reason recorded'}"
