"""The document of a comparison, for every medium."""

from collections.abc import Sequence
from dataclasses import replace

from optprof.profiler.records.record import Record

from ..arithmetic.provenance import shell
from ..document import Document, Medium, Note, Section
from ..tables.table import Table
from ..units import percent_text
from ..words import warnings_of
from .compare import Compared
from .gate import Offence
from .tables import (
    MOST_SHOWN,
    Names,
    by_scenario,
    comparison_table,
    has_verdict,
    offence_table,
    one_side_table,
    unfinished_table,
)

# Beyond so many lines, damage is only counted.
MOST_DAMAGE = 10
LEGEND = (
    "Bytes are compared exactly. A time differs only when the whole 95 % interval of its ratio, in"
    " brackets, is more than {threshold} away from 1; an estimate, which has no noise, when it is"
    " so itself."
)


def comparison_document(
    compared: Compared,
    stopped: Sequence[Offence],
    medium: Medium,
    *,
    command: Sequence[str] = (),
    only_regressed: bool = False,
) -> Document:
    """The comparison in the order of a medium: a terminal shows its end, a page its beginning.

    `command` are the words of the command line that compared the two sides, for the page.
    """
    names = Names.of(compared.records)
    figures = comparison_table(compared, names, only_regressed=only_regressed)
    offences, lines = offence_table(stopped, names), remarks(compared)
    stop = Section(
        "Stopped by a gate",
        [offences] if medium != "terminal" else _offence_lines(offences),
        "stopped",
        "Figures that grew by more than was allowed, and scenarios that lost their result.",
    )
    one_side = Section(
        "On one side only",
        [one_side_table(compared, names)],
        "one-side",
        "Scenarios without a counterpart whose fields are all equal.",
    )
    unfinished = Section(
        "Without a result on both sides",
        [unfinished_table(compared, names)],
        "unfinished",
        "Scenarios that ran out of memory, failed or were ended before and after.",
    )
    rest = [] if only_regressed and medium != "page" else [one_side, unfinished]
    title, verdict = "What changed", summary(compared)
    if medium == "terminal":
        tables = [Section(name, [each]) for name, each in by_scenario(figures)]
        first = Section(blocks=[Note(names.common)])
        last = Section(blocks=[*map(Note, (*lines, verdict))])
        return Document(title=title, sections=[first, *tables, *rest, last, stop])
    if medium == "markdown":
        first = Section(blocks=[Note(verdict, "verdict"), Note(names.common)])
        last = Section(blocks=[*map(Note, lines)])
        return Document(title=title, sections=[first, stop, Section("", [figures]), *rest, last])
    nothing = "Nothing regressed." if only_regressed else "No scenario has figures on both sides."
    tables = [
        block
        for name, each in by_scenario(figures)
        for block in (Note(name, "heading"), replace(each, title=name))
    ]
    sections = [
        Section(
            "Verdict",
            [Note(f"{verdict}.", "verdict")],
            "verdict",
            "Scenarios whose fields are all equal, from one side to the other.",
        ),
        stop,
        Section(
            "What regressed" if only_regressed else "All figures",
            [*(Note(line, "says") for line in lines), *(tables or [Note(nothing, "plain")])],
            "table",
        ),
        *rest,
        Section(
            "How to repeat it",
            [Note(shell(command), "code")],
            "repeat",
            "The command that compared the two sides.",
        ),
    ]
    before = [pair.before for pair in compared.pairs] + list(compared.only_before)
    after = [pair.after for pair in compared.pairs] + list(compared.only_after)
    context = (names.common, f"before: {sides(before)}", f"after: {sides(after)}")
    return Document(title=title, context=[*filter(None, context)], sections=sections)


def _offence_lines(table: Table) -> list[Note]:
    """A line for each row: state>0: gpt2 · adamw: state 949 MiB → 1.158 GiB, 1.25 times."""
    rows = (tuple(cell.text for cell in row) for row in table.rows)
    return [
        Note(f"{gate}: {name}: {figure} {before} → {after}, {ratio}", "stopped")
        for gate, name, figure, before, after, _, ratio, _ in rows
    ]


def summary(compared: Compared) -> str:
    """The comparison in one sentence."""
    regressed = sum(has_verdict(pair, "regressed") for pair in compared.pairs)
    improved = sum(has_verdict(pair, "improved") for pair in compared.pairs)
    parts = [
        f"{_many(len(compared.pairs), 'scenario')} on both sides",
        f"{regressed} regressed",
        f"{improved} improved",
    ]
    for side, records in (("before", compared.only_before), ("after", compared.only_after)):
        parts += [f"{len(records)} only {side}"] if records else []
    return ", ".join(parts)


def remarks(compared: Compared) -> list[str]:
    """The meaning of the verdicts, and the limits of this comparison."""
    lines = [LEGEND.format(threshold=percent_text(float(compared.threshold), 1))]
    lines += _warnings(compared)
    if max(len(compared.pairs), len(compared.only_before) + len(compared.only_after)) > MOST_SHOWN:
        lines.append(
            f"of more than {MOST_SHOWN:,} scenarios, tables show the first {MOST_SHOWN:,} that"
            " changed; --json and --fail-on look at all"
        )
    if compared.superseded:
        older = _many(compared.superseded, "older record")
        lines.append(f"{older} of the same scenarios passed over: the last one of each side counts")
    damage = compared.damage
    lines += [f"left out, because it cannot be read: {each}" for each in damage[:MOST_DAMAGE]]
    if len(damage) > MOST_DAMAGE:
        lines.append(f"left out: {len(damage) - MOST_DAMAGE} more")
    return lines


def _warnings(compared: Compared) -> list[str]:
    """The warnings of the records on times and counts, each once a side."""
    sides = {
        "before": (pair.before for pair in compared.pairs),
        "after": (pair.after for pair in compared.pairs),
    }
    return list(
        dict.fromkeys(
            f"{side}: {warning}"
            for side, records in sides.items()
            for record in records
            for warning in warnings_of(record)
        )
    )


def sides(records: Sequence[Record]) -> str:
    """The commits of optprof and the versions of torch that made the records of a side."""
    commits = dict.fromkeys(record.environment.git_commit for record in records)
    torch = dict.fromkeys(record.environment.versions.get("torch") for record in records)
    named = [
        *(f"optprof at {commit}" for commit in commits if commit),
        *(f"torch {version}" for version in torch if version),
    ]
    return ", ".join(named) or "environment unknown"


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"
