"""The document of a comparison of two runs or more, for every medium."""

from collections.abc import Sequence
from dataclasses import replace
from fractions import Fraction
from typing import Any

from optprof.profiler.records.record import Record

from ..arithmetic.provenance import shell
from ..document import Document, Medium, Note, Section, Style
from ..pictures.charts import Chart
from ..tables.table import Table
from ..units import percent_text
from ..words import warnings_of
from .compare import Compared
from .disjoint import disjoint_text
from .gate import Offence
from .pictures import changes_pictures, run_marks
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
    "A ratio is the new figure divided by the old one: a step of 1.25\u00d7 takes 1.25 times as"
    " long. Bytes are compared exactly. A time has changed if the whole 95 % interval of its ratio"
    " is more than {threshold} away from 1, and has not if the whole interval is nearer; otherwise"
    " it is noisy and not judged. An estimate has no noise."
)


def comparison_document(
    compared: Sequence[Compared],
    stopped: Sequence[Offence],
    left_open: Sequence[Offence],
    medium: Medium,
    *,
    command: Sequence[str] = (),
    only_regressed: bool = False,
) -> Document:
    """The comparison in the order of a medium: a terminal shows its end, a page its beginning.

    Several comparisons have the same first run. `command` are the words of the command line that
    compared them, for the page.
    """
    names = Names.of([record for each in compared for record in each.records])
    figures = comparison_table(compared, names, only_regressed=only_regressed)
    threshold = compared[0].threshold
    offences = offence_table(stopped, names, threshold)
    lines = [line for each in compared for line in remarks(each)]
    lines = list(dict.fromkeys(lines))
    stop = Section(
        "Stopped by a gate",
        [offences] if medium != "terminal" else _offence_lines(offences),
        "stopped",
        "Figures that grew by more than was allowed, and scenarios that lost their result.",
    )
    opens = offence_table(left_open, names, threshold)
    unjudged = Section(
        "Not judged by a gate",
        [opens] if medium != "terminal" else _offence_lines(opens, "failed"),
        "unjudged",
        "Figures that a gate can neither pass nor stop. Measure again, on a quiet machine or with"
        " more samples, or allow more.",
    )
    one_side = Section(
        "On one side only" if len(compared) == 1 else "Not in both runs",
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
    apart = disjoint_text(compared)
    if apart:
        # Rules of a comparison explain nothing where nothing is compared.
        lines = lines[1:]
    title, verdicts = "What changed", [apart] if apart else summaries(compared)
    if medium == "terminal":
        tables = [Section(name, [each]) for name, each in by_scenario(figures)]
        first = Section(blocks=[Note(apart, "failed"), Note(names.common)])
        last = Section(blocks=[*map(Note, (*lines, *([] if apart else verdicts)))])
        sections = [first, *tables, *rest, last, unjudged, stop]
        return Document(title=title, sections=sections)
    if medium == "markdown":
        blocks = [*(Note(verdict, "verdict") for verdict in verdicts), Note(names.common)]
        last = Section(blocks=[*map(Note, lines)])
        sections = [Section(blocks=blocks), stop, unjudged, Section("", [figures]), *rest, last]
        return Document(title=title, sections=sections)
    return _page(
        compared,
        names,
        verdicts,
        [stop, unjudged],
        figures,
        [*rest, _repeat(command)],
        lines,
        only_regressed=only_regressed,
    )


def _page(
    compared: Sequence[Compared],
    names: Names,
    verdicts: Sequence[str],
    gates: Sequence[Section],
    figures: Table,
    rest: Sequence[Section],
    lines: Sequence[str],
    *,
    only_regressed: bool,
) -> Document:
    """The page: verdict, gates, pictures of what changed, and a table to sort and filter."""
    nothing = "Nothing regressed." if only_regressed else "No scenario has figures on both sides."
    pictures = changes_pictures(compared, names)
    sections = [
        Section(
            "Verdict",
            [Note(f"{verdict}.", "verdict") for verdict in verdicts],
            "verdict",
            "Scenarios whose fields are all equal, from one run to another.",
        ),
        *gates,
        *(
            Section(picture.title, [Chart.of(picture)], picture.name, picture.sentence)
            for picture in pictures
        ),
        Section(
            "What regressed" if only_regressed else "All figures",
            [
                *(Note(line, "says") for line in lines),
                replace(figures, sortable=True) if figures.rows else Note(nothing, "plain"),
            ],
            "table",
        ),
        *rest,
    ]
    sides_of = dict.fromkeys(
        f"{name}: {sides(records)}"
        for each in compared
        for name, records in (
            (each.names[0], [*(pair.before for pair in each.pairs), *each.only_before]),
            (each.names[1], [*(pair.after for pair in each.pairs), *each.only_after]),
        )
    )
    return Document(
        title="What changed",
        context=[*filter(None, (names.common, *sides_of))],
        sections=sections,
        marks=run_marks(compared),
        rows=rows_of(figures) or None,
    )


def rows_of(table: Table) -> list[dict[str, Any]]:
    """The rows of the page's table as data: numbers are exact bytes, seconds and ratios."""
    return [
        {
            head: cell.text if cell.value is None else cell.value
            for head, cell in zip(table.head, row, strict=True)
        }
        for row in table.rows
    ]


def _repeat(command: Sequence[str]) -> Section:
    return Section(
        "How to repeat it",
        [Note(shell(command), "code")],
        "repeat",
        "The command that compared the runs.",
    )


def _offence_lines(table: Table, style: Style = "stopped") -> list[Note]:
    """A line for each row: state>0: gpt2 · adamw: state 949 MiB → 1.158 GiB, regressed: ..."""
    rows = (tuple(cell.text for cell in row) for row in table.rows)
    return [
        Note(f"{gate}: {name}: {figure} {before} → {after}, {verdict}", style)
        for gate, name, figure, before, after, _, _, verdict in rows
    ]


def summaries(compared: Sequence[Compared]) -> list[str]:
    """The comparison in one sentence for each run."""
    if len(compared) == 1:
        return [summary(compared[0])]
    return [f"{each.names[1]} against {each.names[0]}: {summary(each)}" for each in compared]


def summary(compared: Compared) -> str:
    """The comparison in one sentence."""
    regressed = sum(has_verdict(pair, "regressed") for pair in compared.pairs)
    improved = sum(has_verdict(pair, "improved") for pair in compared.pairs)
    noisy = sum(has_verdict(pair, "not judged") for pair in compared.pairs)
    parts = [
        f"{many(len(compared.pairs), 'scenario')} on both sides",
        f"{regressed} regressed",
        f"{improved} improved",
        *([f"{noisy} with noisy times that are not judged"] if noisy else []),
    ]
    for side, records in zip(
        compared.names, (compared.only_before, compared.only_after), strict=True
    ):
        parts += [f"{len(records)} only {side}"] if records else []
    return ", ".join(parts)


def legend(threshold: Fraction) -> str:
    """The meaning of ratios and verdicts."""
    return LEGEND.format(threshold=percent_text(float(threshold), 1))


def remarks(compared: Compared) -> list[str]:
    """The meaning of the verdicts, and the limits of this comparison."""
    lines = [legend(compared.threshold)]
    lines += _warnings(compared)
    if max(len(compared.pairs), len(compared.only_before) + len(compared.only_after)) > MOST_SHOWN:
        lines.append(
            f"of more than {MOST_SHOWN:,} scenarios, tables show the first {MOST_SHOWN:,} that"
            " changed; --json and --fail-on look at all"
        )
    if compared.superseded:
        older = many(compared.superseded, "older record")
        lines.append(f"{older} of the same scenarios passed over: the last one of each side counts")
    damage = compared.damage
    lines += [f"left out, because it cannot be read: {each}" for each in damage[:MOST_DAMAGE]]
    if len(damage) > MOST_DAMAGE:
        lines.append(f"left out: {len(damage) - MOST_DAMAGE} more")
    return lines


def _warnings(compared: Compared) -> list[str]:
    """The warnings of the records on times and counts, each once a side."""
    before, after = compared.names
    sides = {
        before: (pair.before for pair in compared.pairs),
        after: (pair.after for pair in compared.pairs),
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


def many(count: int, word: str) -> str:
    """A number of things: 1 run, 2 runs."""
    return f"{count} {word}{'' if count == 1 else 's'}"
