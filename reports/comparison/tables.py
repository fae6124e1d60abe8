"""The tables of a comparison: one row a scenario and figure."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby, islice

from optprof.profiler.records.record import Record

from ..arithmetic.entries import Setting
from ..arithmetic.labels import OptimizerKey, labels, optimizer_key
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
    seconds_text,
)
from ..words import DEVICES
from .compare import Compared, MetricChange, Pair, Verdict
from .gate import Offence

HEAD = ("scenario", "figure", "before", "after", "difference", "ratio", "verdict")
# No reader looks through more scenarios, nor does a browser open a page of them; --json has all.
MOST_SHOWN = 1_000
VERDICTS: Mapping[str, Mapping[str, str]] = {
    "bytes": {"regressed": "regressed: more", "improved": "improved: less", "same": "the same"},
    "seconds": {
        "regressed": "regressed: slower",
        "improved": "improved: faster",
        "same": "no difference shown",
    },
}


@dataclass(frozen=True, kw_only=True)
class Names:
    """Names for the scenarios of a comparison, made of the traits by which they differ.

    `traits` are those that all of them share, `common` is the same in words.
    """

    labels: dict[OptimizerKey, str]
    traits: frozenset[str]
    common: str

    @classmethod
    def of(cls, records: Sequence[Record]) -> "Names":
        """Names for the scenarios of these records, a different one for each."""
        common = set(_traits(records[0])).intersection(*map(_traits, records)) if records else set()
        shared = [trait for trait in _traits(records[0]) if trait in common] if records else []
        return cls(labels=labels(records), traits=frozenset(common), common=" · ".join(shared))

    def __getitem__(self, record: Record) -> str:
        # Made on demand: of many scenarios few are shown.
        traits = [trait for trait in _traits(record) if trait not in self.traits]
        label = self.labels[optimizer_key(record.scenario)]
        return " · ".join((record.scenario.model, label, *traits))


def comparison_table(compared: Compared, names: Names, *, only_regressed: bool = False) -> Table:
    """Every figure of every scenario on both sides; a changed outcome comes before its figures.

    Of more than MOST_SHOWN scenarios, the first MOST_SHOWN that changed.
    """
    rows = []
    verdicts = ("regressed",) if only_regressed else ("regressed", "improved")
    pairs = compared.pairs
    if len(pairs) > MOST_SHOWN:
        changed = (pair for pair in pairs if any(has_verdict(pair, each) for each in verdicts))
        pairs = tuple(islice(changed, MOST_SHOWN))
    for pair in pairs:
        if pair.outcome_verdict in verdicts:
            rows.append(_outcome_row(pair, names))
        rows += [
            _change_row(pair, change, names)
            for change in pair.changes
            if change.verdict == "regressed" or not only_regressed
        ]
    return Table(head=HEAD, rows=tuple(rows))


def by_scenario(table: Table) -> list[tuple[str, Table]]:
    """A comparison's table, cut into one for each scenario, under its name."""
    groups = groupby(table.rows, key=lambda row: row[0].text)
    return [
        (name, Table(head=table.head[1:], rows=tuple(row[1:] for row in rows)))
        for name, rows in groups
    ]


def offence_table(stopped: Sequence[Offence], names: Names) -> Table:
    """Each gate with a row that it stops."""
    rows = (
        (Cell(text=offence.gate.text), *_offence_row(offence, names))
        for offence in stopped[:MOST_SHOWN]
    )
    return Table(head=("gate", *HEAD), rows=tuple(rows))


def one_side_table(compared: Compared, names: Names) -> Table:
    """The scenarios of one side only."""
    sides = (("before", compared.only_before), ("after", compared.only_after))
    rows = ((names[record], side, record.outcome) for side, records in sides for record in records)
    return _texts(("scenario", "only", "outcome"), rows)


def unfinished_table(compared: Compared, names: Names) -> Table:
    """The scenarios with a result on neither side, and the last error of each."""
    rows = (
        (names[pair.after], pair.before.outcome, pair.after.outcome, pair.after.error or NOTHING)
        for pair in compared.pairs
        if "ok" not in (pair.before.outcome, pair.after.outcome)
    )
    return _texts(("scenario", "before", "after", "error"), rows)


def _texts(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table of the first rows of text."""
    shown = islice(rows, MOST_SHOWN)
    return Table(head=head, rows=tuple(tuple(Cell(text=text) for text in row) for row in shown))


def _change_row(pair: Pair, change: MetricChange, names: Names) -> tuple[Cell, ...]:
    """One figure of one scenario."""
    size = METRICS[change.metric].kind == "bytes"
    show = _bytes_cell if size else _seconds_cell
    return _toned(
        change.verdict,
        Cell(text=names[pair.after]),
        Cell(text=METRICS[change.metric].title),
        show(change.before),
        show(change.after),
        Cell(text=NOTHING, number=True)
        if change.verdict == "not compared"
        else _difference(change, show),
        Cell(text=ratio_text(change.ratio) if change.ratio else NOTHING, number=True),
        Cell(text=verdict_text(change)),
    )


def _outcome_row(pair: Pair, names: Names) -> tuple[Cell, ...]:
    """A scenario whose outcome changed, with its error."""
    outcomes = pair.before.outcome, pair.after.outcome
    return _outcomes(names[pair.after], outcomes, pair.outcome_verdict, pair.after.error)


def ratio_text(ratio: Ratio) -> str:
    """The ratio with its interval: 1.050 times [1.021, 1.083]; different bytes never read as 1."""
    if ratio.low is None or ratio.high is None:
        return _factor(ratio.value)
    return f"{ratio.value:.3f}{TIMES} [{ratio.low:.3f}, {ratio.high:.3f}]"


def verdict_text(change: MetricChange) -> str:
    """The verdict in the words of the figure."""
    if change.verdict == "not compared":
        return f"not compared: {change.note}" if change.note else "not compared"
    return VERDICTS[METRICS[change.metric].kind or "seconds"][change.verdict]


def _offence_row(offence: Offence, names: Names) -> tuple[Cell, ...]:
    subject = offence.subject
    if isinstance(subject, Record):
        outcomes = subject.outcome, "missing"
        return _outcomes(names[subject], outcomes, "regressed", "the second side does not have it")
    if offence.change:
        return _change_row(subject, offence.change, names)
    return _outcome_row(subject, names)


def _outcomes(
    name: str, outcomes: tuple[str, str], verdict: Verdict, reason: str | None
) -> tuple[Cell, ...]:
    figures = (Cell(text=text, number=True) for text in (*outcomes, NOTHING, NOTHING))
    last = Cell(text=f"{verdict}: {reason}" if reason else verdict)
    return _toned(verdict, Cell(text=name), Cell(text="outcome"), *figures, last)


def _toned(verdict: Verdict, *row: Cell) -> tuple[Cell, ...]:
    """The row in the tone of its verdict."""
    if verdict not in ("regressed", "improved"):
        return row
    return tuple(replace(cell, tone="bad" if verdict == "regressed" else "good") for cell in row)


def _difference(change: MetricChange, show: Callable[[float], Cell]) -> Cell:
    difference = change.after - change.before
    if difference == 0:
        return Cell(text="0", number=True)
    size, sign = show(abs(difference)), "+" if difference > 0 else MINUS
    return Cell(text=sign + size.text, exact=sign + size.exact if size.exact else "", number=True)


def _factor(value: float) -> str:
    if value == 1:
        return factor_text(1)
    digits = 2
    # A few bytes among gigabytes are a difference too.
    while digits < 12 and round(value, digits) == 1:
        digits += 1
    return factor_text(value) if digits == 2 else f"{value:.{digits}f}{TIMES}"


def _bytes_cell(count: float) -> Cell:
    return Cell(text=bytes_text(int(count)), exact=exact_text(int(count)), number=True)


def _seconds_cell(seconds: float) -> Cell:
    return Cell(text=seconds_text(seconds), number=True)


def has_verdict(pair: Pair, verdict: str) -> bool:
    """Return whether the pair's outcome or one of its figures has that verdict."""
    return verdict == pair.outcome_verdict or any(
        change.verdict == verdict for change in pair.changes
    )


def _traits(record: Record) -> tuple[str, ...]:
    """The fields of the record's scenario in words, without model and optimizer."""
    scenario = record.scenario
    return (
        *Setting.of(scenario).traits,
        f"workload {scenario.workload}",
        DEVICES[scenario.device],
        scenario.implementation,
        *(() if record.is_of_own_loop else (f"{scenario.steps} steps", f"seed {scenario.seed}")),
    )
