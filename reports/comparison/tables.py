"""The tables of a comparison: a row for each scenario and figure, and for each run of several."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import groupby, islice

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import scenario_key

from ..arithmetic.entries import Setting
from ..arithmetic.labels import OptimizerKey, labels, optimizer_key
from ..arithmetic.ratios import Ratio
from ..explain import METRICS
from ..tables.table import Cell, Table, bytes_cell
from ..units import (
    BINARY,
    MINUS,
    NOTHING,
    TIMES,
    Units,
    bytes_text,
    factor_text,
    percent_text,
    seconds_text,
)
from ..words import DEVICES
from .compare import BEFORE_AFTER, NOISY, Compared, MetricChange, Pair, Verdict
from .gate import Offence

HEAD = ("scenario", "figure", "before", "after", "difference", "ratio", "verdict")
# The head of several runs, each compared with the first.
RUNS_HEAD = ("scenario", "figure", "run", "value", "difference", "ratio", "verdict")
# No reader looks through more scenarios, nor does a browser open a page of them; --json has all.
MOST_SHOWN = 1_000


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


def comparison_table(
    compared: Sequence[Compared], names: Names, *, only_regressed: bool = False
) -> Table:
    """Every figure of every scenario on both sides; a changed outcome comes before its figures.

    Several comparisons with one first run have a row for each run. Of more than MOST_SHOWN
    scenarios, the first MOST_SHOWN that changed.
    """
    several = len(compared) > 1
    rows = [
        row
        for pairs in _by_scenario(compared, only_regressed=only_regressed)
        for row in (
            _rows_of_runs(pairs, names, only_regressed=only_regressed)
            if several
            else _rows(*pairs[0], names, only_regressed=only_regressed)
        )
    ]
    return Table(head=RUNS_HEAD if several else HEAD, rows=tuple(rows))


_Named = tuple[Compared, Pair]


def _by_scenario(compared: Sequence[Compared], *, only_regressed: bool) -> list[list[_Named]]:
    """The pairs of each scenario, of at most MOST_SHOWN scenarios."""
    verdicts = ("regressed",) if only_regressed else ("regressed", "improved")
    scenarios: dict[bytes, list[_Named]] = {}
    for each in compared:
        for pair in each.pairs:
            scenarios.setdefault(scenario_key(pair.scenario), []).append((each, pair))
    groups = iter(scenarios.values())
    if len(scenarios) > MOST_SHOWN:
        groups = (
            group
            for group in groups
            if any(has_verdict(pair, verdict) for _, pair in group for verdict in verdicts)
        )
    return list(islice(groups, MOST_SHOWN))


def _rows(
    compared: Compared, pair: Pair, names: Names, *, only_regressed: bool
) -> list[tuple[Cell, ...]]:
    """The rows of a scenario of two runs."""
    rows = []
    if _shows_outcome(pair, only_regressed=only_regressed):
        rows.append(_outcome_row(pair, names))
    return rows + [
        _change_row(pair, change, names, compared.threshold)
        for change in pair.changes
        if change.verdict == "regressed" or not only_regressed
    ]


def _rows_of_runs(
    pairs: Sequence[_Named], names: Names, *, only_regressed: bool
) -> list[tuple[Cell, ...]]:
    """The rows of a scenario of several runs: a figure of the first run, then of the others."""
    first, rows = pairs[0][0].names[0], []
    for compared, pair in pairs:
        if _shows_outcome(pair, only_regressed=only_regressed):
            row = _outcome_row(pair, names)
            rows.append((*row[:2], replace(row[2], text=compared.names[1]), *row[3:]))
    for metric in METRICS:
        changes = [
            (compared, pair, change)
            for compared, pair in pairs
            for change in pair.changes
            if change.metric == metric and (change.verdict == "regressed" or not only_regressed)
        ]
        is_alike = all(change.before == change.after for _, _, change in changes)
        for number, (compared, pair, change) in enumerate(changes):
            name, figure, before, *rest = _change_row(pair, change, names, compared.threshold)
            if is_alike and len(changes) == len(pairs):
                rows.append((name, figure, Cell(text="all"), *rest))
                break
            if not number:
                dash = Cell(text=NOTHING, number=True)
                last = Cell(text="first run")
                rows.append((name, figure, Cell(text=first), before, dash, dash, last))
            run = Cell(text=compared.names[1], tone=name.tone)
            rows.append((name, figure, run, *rest))
    return rows


def _shows_outcome(pair: Pair, *, only_regressed: bool) -> bool:
    verdict = pair.outcome_verdict
    return verdict == "regressed" or (verdict == "improved" and not only_regressed)


def by_scenario(table: Table) -> list[tuple[str, Table]]:
    """A comparison's table, cut into one for each scenario, under its name."""
    groups = groupby(table.rows, key=lambda row: row[0].text)
    return [
        (name, Table(head=table.head[1:], rows=tuple(row[1:] for row in rows)))
        for name, rows in groups
    ]


def offence_table(offences: Sequence[Offence], names: Names, threshold: Fraction) -> Table:
    """Each gate with a row that it stops, or cannot judge."""
    rows = (
        (Cell(text=offence.gate.text), *_offence_row(offence, names, threshold))
        for offence in offences[:MOST_SHOWN]
    )
    return Table(head=("gate", *HEAD), rows=tuple(rows))


def one_side_table(compared: Sequence[Compared], names: Names) -> Table:
    """The scenarios of one side only."""
    several = len(compared) > 1
    rows = (
        (names[record], f"{here}, not {there}" if several else here, record.outcome)
        for each in compared
        for here, there, records in (
            (*each.names, each.only_before),
            (*each.names[::-1], each.only_after),
        )
        for record in records
    )
    return _texts(("scenario", "only in" if several else "only", "outcome"), rows)


def unfinished_table(compared: Sequence[Compared], names: Names) -> Table:
    """The scenarios with a result on neither side, and the last error of each."""
    rows = (
        (names[pair.after], pair.before.outcome, pair.after.outcome, pair.after.error or NOTHING)
        for each in compared
        for pair in each.pairs
        if "ok" not in (pair.before.outcome, pair.after.outcome)
    )
    return _texts(("scenario", "before", "after", "error"), rows)


def _texts(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Table:
    """A table of the first rows of text."""
    shown = islice(rows, MOST_SHOWN)
    return Table(head=head, rows=tuple(tuple(Cell(text=text) for text in row) for row in shown))


def _change_row(
    pair: Pair, change: MetricChange, names: Names, threshold: Fraction
) -> tuple[Cell, ...]:
    """One figure of one scenario."""
    before, after = (figure_cell(change.metric, each) for each in (change.before, change.after))
    ratio = change.ratio
    return toned(
        change.verdict,
        Cell(text=names[pair.after]),
        Cell(text=METRICS[change.metric].title),
        before,
        after,
        Cell(text=NOTHING, number=True)
        if change.verdict == "not compared"
        else _difference(change),
        Cell(text=ratio_text(ratio), number=True, value=ratio.value)
        if ratio
        else Cell(text=NOTHING, number=True),
        Cell(text=verdict_text(change, threshold)),
    )


def _outcome_row(pair: Pair, names: Names) -> tuple[Cell, ...]:
    """A scenario whose outcome changed, with its error."""
    outcomes = pair.before.outcome, pair.after.outcome
    return _outcomes(names[pair.after], outcomes, pair.outcome_verdict, pair.after.error)


def ratio_text(ratio: Ratio) -> str:
    """The ratio: 1.05 times; different bytes never read as 1."""
    if ratio.value == 1 or ratio.low is not None:
        return factor_text(ratio.value)
    digits = 2
    # A few bytes among gigabytes are a difference too.
    while digits < 12 and round(ratio.value, digits) == 1:
        digits += 1
    return factor_text(ratio.value) if digits == 2 else f"{ratio.value:.{digits}f}{TIMES}"


def explained(change: MetricChange) -> str:
    """The ratio in words: 1.50 times as much; takes 1.889 to 2.118 times as long."""
    ratio = change.ratio
    if ratio is None:
        return ""
    if METRICS[change.metric].kind == "bytes":
        return f"{_number(ratio)} times as much"
    if ratio.low is None or ratio.high is None:
        return f"takes {_number(ratio)} times as long"
    return f"takes {ratio.low:.3f} to {ratio.high:.3f} times as long"


def verdict_text(change: MetricChange, threshold: Fraction) -> str:
    """The verdict on a figure, with its ratio in words if it changed or is not judged."""
    is_size = METRICS[change.metric].kind == "bytes"
    if change.verdict == "same":
        within = f"no change beyond {percent_text(float(threshold), 1)}"
        return "the same" if is_size or change.before == change.after else within
    if change.verdict == "not compared":
        return f"not compared: {change.note}" if change.note else "not compared"
    if change.verdict == "not judged":
        # Remarks below a table name the disturbance; the ratio of disturbed times says nothing.
        words = [NOISY, "disturbed" if change.is_disturbed else explained(change)]
        return f"not judged: {', '.join(words)}"
    return f"{change.verdict}: {explained(change) or 'was 0'}"


def _number(ratio: Ratio) -> str:
    return ratio_text(ratio).removesuffix(TIMES)


def _offence_row(offence: Offence, names: Names, threshold: Fraction) -> tuple[Cell, ...]:
    subject, after = offence.subject, offence.names[1]
    if isinstance(subject, Record):
        outcomes = subject.outcome, "missing"
        return _outcomes(names[subject], outcomes, "regressed", f"{after} does not have it")
    row = (
        _change_row(subject, offence.change, names, threshold)
        if offence.change
        else _outcome_row(subject, names)
    )
    if offence.reason and offence.change:
        words = [offence.reason, explained(offence.change)]
        last = f"not judged: {', '.join(filter(None, words))}"
        row = (*(replace(cell, tone="") for cell in row[:-1]), Cell(text=last))
    if offence.names != BEFORE_AFTER:
        row = (replace(row[0], text=f"{after}: {row[0].text}"), *row[1:])
    return row


def _outcomes(
    name: str, outcomes: tuple[str, str], verdict: Verdict, reason: str | None
) -> tuple[Cell, ...]:
    figures = (Cell(text=text, number=True) for text in (*outcomes, NOTHING, NOTHING))
    last = Cell(text=f"{verdict}: {reason}" if reason else verdict)
    return toned(verdict, Cell(text=name), Cell(text="outcome"), *figures, last)


def toned(verdict: Verdict, *row: Cell) -> tuple[Cell, ...]:
    """The row in the tone of its verdict."""
    if verdict not in ("regressed", "improved"):
        return row
    return tuple(replace(cell, tone="bad" if verdict == "regressed" else "good") for cell in row)


def _difference(change: MetricChange) -> Cell:
    difference = change.after - change.before
    if difference == 0:
        return Cell(text="0", number=True, value=0)
    cell = figure_cell(change.metric, abs(difference))
    sign = "+" if difference > 0 else MINUS
    return Cell(
        text=sign + cell.text,
        exact=sign + cell.exact if cell.exact else "",
        decimal=sign + cell.decimal if cell.decimal else "",
        number=True,
        value=difference,
    )


def figure_text(metric: str, value: float, units: Units = BINARY) -> str:
    """A figure in its unit: 1.01 MiB, 1.39 ms."""
    is_size = METRICS[metric].kind == "bytes"
    return bytes_text(int(value), units) if is_size else seconds_text(value)


def figure_cell(metric: str, value: float) -> Cell:
    """A figure that sorts by its value."""
    if METRICS[metric].kind == "bytes":
        return bytes_cell(int(value))
    return Cell(text=seconds_text(value), number=True, value=value)


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
