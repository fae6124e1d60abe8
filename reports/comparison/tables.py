"""A comparison as words and tables: one row a scenario and figure, the same on the terminal, in
Markdown and on a page.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby, islice

from optprof.profiler.records.record import Record

from ..arithmetic.entries import Setting
from ..arithmetic.labels import OptimizerKey, optimizer_key, scenario_labels
from ..arithmetic.ratios import Ratio
from ..explain import METRICS
from ..tables.table import Cell, Table
from ..units import (
    MINUS,
    NOTHING,
    TIMES,
    bytes_text,
    exact_text,
    factor_text,
    percent_text,
    seconds_text,
)
from ..words import DEVICES, warnings_of
from .compare import Change, Compared, Pair
from .gate import Offence

HEAD = ("scenario", "figure", "before", "after", "difference", "ratio", "verdict")
# What cannot be read is counted beyond so many lines.
MOST_DAMAGE = 10
# No reader looks through more scenarios, nor does a browser open a page of them; --json has all.
MOST_SHOWN = 1_000
LEGEND = (
    "Bytes are compared exactly. A time differs only when the whole 95 % interval of its ratio, in"
    " brackets, is more than {threshold} away from 1; an estimate, which has no noise, when it is"
    " so itself."
)


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names of the scenarios of a comparison, by what tells them apart.

    `traits` are what all of them share, `common` is the same in words.
    """

    labels: dict[OptimizerKey, str]
    traits: frozenset[str]
    common: str

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Names":
        """Names for the scenarios of these records, a different one for each."""
        labels = scenario_labels(record.scenario for record in records)
        common = set(_traits(records[0])).intersection(*map(_traits, records)) if records else set()
        shared = [trait for trait in _traits(records[0]) if trait in common] if records else []
        return cls(labels=labels, traits=frozenset(common), common=" · ".join(shared))

    def __getitem__(self, record: Record) -> str:
        # Made when it is shown, which few of many are.
        telling = [trait for trait in _traits(record) if trait not in self.traits]
        label = self.labels[optimizer_key(record.scenario)]
        return " · ".join((record.scenario.model, label, *telling))


def comparison_table(compared: Compared, names: Names, *, only_regressed: bool = False) -> Table:
    """Every figure of every scenario that both sides have; changed outcomes stand first in their
    scenario.

    Of more than MOST_SHOWN scenarios, the first MOST_SHOWN that changed.
    """
    rows = []
    for pair in shown_pairs(compared, only_regressed=only_regressed):
        if pair.outcome_verdict != "same" and not (
            only_regressed and pair.outcome_verdict != "regressed"
        ):
            rows.append(outcome_row(pair, names))
        rows += [
            change_row(pair, change, names)
            for change in pair.changes
            if change.verdict == "regressed" or not only_regressed
        ]
    return Table(head=HEAD, rows=tuple(rows))


def shown_pairs(compared: Compared, *, only_regressed: bool = False) -> Sequence[Pair]:
    """Return the scenarios that a table has rows for."""
    verdicts = ("regressed",) if only_regressed else ("regressed", "improved")
    if len(compared.pairs) <= MOST_SHOWN:
        return compared.pairs
    changed = (pair for pair in compared.pairs if any(_has(pair, verdict) for verdict in verdicts))
    return list(islice(changed, MOST_SHOWN))


def by_scenario(table: Table) -> list[tuple[str, Table]]:
    """A comparison's table, cut into one for each scenario, under its name."""
    groups = groupby(table.rows, key=lambda row: row[0].text)
    return [
        (name, Table(head=table.head[1:], rows=tuple(row[1:] for row in rows)))
        for name, rows in groups
    ]


def offence_table(found: Sequence[Offence], names: Names) -> Table:
    """What the gates stop: the gate, then the row that it stops."""
    rows = (
        (Cell(text=offence.gate.text), *_offence_row(offence, names))
        for offence in found[:MOST_SHOWN]
    )
    return Table(head=("gate", *HEAD), rows=tuple(rows))


def one_side_table(compared: Compared, names: Names) -> Table:
    """The scenarios that one side alone has."""
    sides = (("before", compared.only_before), ("after", compared.only_after))
    one_sided = ((side, record) for side, found in sides for record in found)
    rows = [
        (Cell(text=names[record]), Cell(text=side), Cell(text=record.outcome))
        for side, record in islice(one_sided, MOST_SHOWN)
    ]
    return Table(head=("scenario", "only", "outcome"), rows=tuple(rows))


def unfinished_table(compared: Compared, names: Names) -> Table:
    """The scenarios that ended well on neither side, with the last words of each."""
    pairs = (
        pair for pair in compared.pairs if "ok" not in (pair.before.outcome, pair.after.outcome)
    )
    rows = [
        (names[pair.after], pair.before.outcome, pair.after.outcome, pair.after.error or NOTHING)
        for pair in islice(pairs, MOST_SHOWN)
    ]
    return Table(
        head=("scenario", "before", "after", "error"),
        rows=tuple(tuple(Cell(text=text) for text in row) for row in rows),
    )


def summary(compared: Compared) -> str:
    """The comparison in one sentence."""
    regressed = sum(_has(pair, "regressed") for pair in compared.pairs)
    improved = sum(_has(pair, "improved") for pair in compared.pairs)
    parts = [
        f"{_many(len(compared.pairs), 'scenario')} on both sides",
        f"{regressed} regressed",
        f"{improved} improved",
    ]
    for side, found in (("before", compared.only_before), ("after", compared.only_after)):
        parts += [f"{len(found)} only {side}"] if found else []
    return ", ".join(parts)


def remarks(compared: Compared) -> list[str]:
    """What a reader must know beside the rows."""
    threshold = percent_text(float(compared.threshold), 1)
    older = _many(compared.superseded, "older record")
    return [
        LEGEND.format(threshold=threshold),
        *_warnings(compared),
        *_left_out(compared),
        *(
            [f"{older} of the same scenarios passed over: the last one of each side counts"]
            if compared.superseded
            else []
        ),
        *(f"left out, because it cannot be read: {each}" for each in compared.damage[:MOST_DAMAGE]),
        *(
            [f"left out: {len(compared.damage) - MOST_DAMAGE} more"]
            if len(compared.damage) > MOST_DAMAGE
            else []
        ),
    ]


def _left_out(compared: Compared) -> list[str]:
    """Say where tables show less than there is."""
    most = max(len(compared.pairs), len(compared.only_before) + len(compared.only_after))
    if most <= MOST_SHOWN:
        return []
    return [
        (
            f"of more than {MOST_SHOWN:,} scenarios, tables show the first {MOST_SHOWN:,} that"
            " changed; --json and --fail-on look at all"
        )
    ]


def change_row(pair: Pair, change: Change, names: Names) -> tuple[Cell, ...]:
    """One figure of one scenario."""
    size = METRICS[change.metric].kind == "bytes"
    show = _bytes_cell if size else _seconds_cell
    return (
        Cell(text=names[pair.after]),
        Cell(text=METRICS[change.metric].title),
        show(change.before),
        show(change.after),
        (
            _difference(change, show)
            if change.verdict != "not compared"
            else Cell(text=NOTHING, number=True)
        ),
        Cell(text=ratio_text(change.ratio) if change.ratio else NOTHING, number=True),
        Cell(text=verdict_text(change)),
    )


def outcome_row(pair: Pair, names: Names) -> tuple[Cell, ...]:
    """A scenario whose outcome changed, with its last words."""
    error = f": {pair.after.error}" if pair.after.error else ""
    return _outcomes(
        names[pair.after], pair.before.outcome, pair.after.outcome, f"{pair.outcome_verdict}{error}"
    )


def ratio_text(ratio: Ratio) -> str:
    """The ratio, and its interval where it has one: 1.050 times [1.021, 1.083]. Bytes that differ
    never read as 1.
    """
    if ratio.low is None or ratio.high is None:
        return _factor(ratio.value)
    return f"{ratio.value:.3f}{TIMES} [{ratio.low:.3f}, {ratio.high:.3f}]"


def verdict_text(change: Change) -> str:
    """The verdict in the words of the figure."""
    if change.verdict == "not compared":
        return f"not compared: {change.note}" if change.note else "not compared"
    if METRICS[change.metric].kind == "bytes":
        return {"regressed": "regressed: more", "improved": "improved: less", "same": "the same"}[
            change.verdict
        ]
    return {
        "regressed": "regressed: slower",
        "improved": "improved: faster",
        "same": "no difference shown",
    }[change.verdict]


def _offence_row(offence: Offence, names: Names) -> tuple[Cell, ...]:
    if isinstance(offence.found, Record):
        return _outcomes(
            names[offence.found],
            offence.found.outcome,
            "missing",
            "regressed: nobody asked for it again",
        )
    return (
        change_row(offence.found, offence.change, names)
        if offence.change
        else outcome_row(offence.found, names)
    )


def _outcomes(name: str, before: str, after: str, verdict: str) -> tuple[Cell, ...]:
    nothing = (Cell(text=NOTHING, number=True),) * 2
    return (
        Cell(text=name),
        Cell(text="outcome"),
        Cell(text=before, number=True),
        Cell(text=after, number=True),
        *nothing,
        Cell(text=verdict),
    )


def _warnings(compared: Compared) -> list[str]:
    """List what the records say has spoiled their times or counts, each once a side."""
    sides = (
        ("before", [pair.before for pair in compared.pairs]),
        ("after", [pair.after for pair in compared.pairs]),
    )
    told = (
        (side, warning)
        for side, found in sides
        for record in found
        for warning in warnings_of(record)
    )
    return list(dict.fromkeys(f"{side}: {warning}" for side, warning in told))


def _difference(change: Change, show: Callable[[float], Cell]) -> Cell:
    difference = change.after - change.before
    if difference == 0:
        return Cell(text="0", number=True)
    size, sign = show(abs(difference)), "+" if difference > 0 else MINUS
    return Cell(text=sign + size.text, exact=sign + size.exact if size.exact else "", number=True)


def _factor(value: float) -> str:
    if value == 1:
        return factor_text(1)
    digits = 2
    # A handful of bytes among gigabytes is a difference too.
    while digits < 12 and round(value, digits) == 1:
        digits += 1
    return factor_text(value) if digits == 2 else f"{value:.{digits}f}{TIMES}"


def _bytes_cell(count: float) -> Cell:
    return Cell(text=bytes_text(int(count)), exact=exact_text(int(count)), number=True)


def _seconds_cell(seconds: float) -> Cell:
    return Cell(text=seconds_text(seconds), number=True)


def _has(pair: Pair, verdict: str) -> bool:
    return verdict == pair.outcome_verdict or any(
        change.verdict == verdict for change in pair.changes
    )


def _many(count: int, word: str) -> str:
    return f"{count} {word}{'' if count == 1 else 's'}"


def _traits(record: Record) -> tuple[str, ...]:
    """All that the record's scenario asks for beside model and optimizer, in words."""
    scenario = record.scenario
    return (
        *Setting.of(scenario).traits,
        f"workload {scenario.workload}",
        DEVICES[scenario.device],
        scenario.implementation,
        *(() if record.is_of_own_loop else (f"{scenario.steps} steps", f"seed {scenario.seed}")),
    )


def sides(records: Sequence[Record]) -> str:
    """Where one side comes from: the commits and the versions of torch that its records tell."""
    commits = dict.fromkeys(record.environment.git_commit for record in records)
    torch = dict.fromkeys(record.environment.versions.get("torch") for record in records)
    named = [
        *(f"optprof at {commit}" for commit in commits if commit),
        *(f"torch {version}" for version in torch if version),
    ]
    return ", ".join(named) or "environment unknown"
