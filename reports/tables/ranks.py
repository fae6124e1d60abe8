"""Tables of ranks: their state, what each of them holds, and what they exchange in a step."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

from optprof.profiler.records.record import Exchange, RankBytes

from ..arithmetic.findings import Findings
from ..arithmetic.ranks import RankRow, sent_bytes
from ..units import DECIMAL, NOTHING, bytes_text, exact_text
from ..words import origin_text, phase_name
from .table import Cell, Table, bytes_cell

# The names of the bytes of a rank, and their fields.
_PARTS = {
    "parameters": "parameters",
    "gradients": "gradients",
    "state": "optimizer_state",
    "peak allocated": "peak_allocated",
    "peak reserved": "peak_reserved",
}


def rank_table(findings: Findings) -> Table:
    """One row an optimizer and record: which rank of how many, its state, and that of all."""
    several = len(findings.names) > 1
    exchange = any(row.record.ranks and row.record.ranks.exchanges for row in findings.ranks)
    head = (
        *("optimizer", *(("model",) if several else ()), "origin", "rank", "by", "ranks"),
        *("state", "state of all ranks", *(("sent a step",) if exchange else ())),
    )
    rows = (
        (
            Cell(text=row.entry.label, mark=row.entry.label, origin=row.record.origin),
            *((Cell(text=findings.names[row.entry.setting]),) if several else ()),
            Cell(text=origin_text(row.record)),
            Cell(text=f"{row.rank:,} of {row.count:,}"),
            Cell(text=row.record.scenario.parallel or NOTHING),
            Cell(text=_alike(row)),
            bytes_cell(row.record.memory.optimizer_state if row.record.memory else None),
            _total(row),
            *((bytes_cell(row.sent),) if exchange else ()),
        )
        for row in findings.ranks
    )
    return Table(head=head, rows=tuple(rows), title="Ranks")


def _alike(row: RankRow) -> str:
    """Return whether the state of ranks differs."""
    ranks = row.record.ranks
    if ranks is None or not (ranks.elements or len(ranks.each) > 1):
        return NOTHING
    return "differ" if row.differ else "alike"


def _total(row: RankRow) -> Cell:
    cell = bytes_cell(row.total)
    if row.total is None or not row.is_bound:
        return cell
    return Cell(
        text=f"at most {cell.text}",
        exact=f"at most {exact_text(row.total)}",
        decimal=f"at most {bytes_text(row.total, DECIMAL)}",
        number=True,
        value=row.total,
    )


def exchange_tables(findings: Findings) -> dict[str, Table]:
    """Return a table of a step's exchanges for each model and group of optimizers, by their names.

    Optimizers with the same exchanges share a table.
    """
    groups: dict[tuple[str, tuple[Exchange, ...]], list[str]] = {}
    for row in findings.ranks:
        exchanges = row.record.ranks.exchanges if row.record.ranks else ()
        if exchanges:
            name = findings.names[row.entry.setting] if len(findings.names) > 1 else ""
            groups.setdefault((name, exchanges), []).append(row.entry.label)
    return {
        " · ".join(filter(None, (name, ", ".join(dict.fromkeys(labels))))): _exchange_table(each)
        for (name, each), labels in groups.items()
    }


def _exchange_table(exchanges: Sequence[Exchange]) -> Table:
    head = ("phase", "operation", "ranks", "calls", "bytes of the tensors", "sent by a rank")
    rows = [
        (
            Cell(text=phase_name(each.phase)),
            Cell(text=each.operation.replace("_", " ")),
            _number(each.group),
            _number(each.calls),
            bytes_cell(each.bytes),
            bytes_cell(sent_bytes(each)),
        )
        for each in exchanges
    ]
    sent = [sent_bytes(each) for each in exchanges]
    total = None if None in sent else sum(each or 0 for each in sent)
    last = (
        Cell(text="whole step"),
        Cell(text=""),
        Cell(text="", number=True),
        _number(sum(each.calls for each in exchanges)),
        bytes_cell(sum(each.bytes for each in exchanges)),
        bytes_cell(total),
    )
    return Table(head=head, rows=(*rows, last))


def each_tables(findings: Findings, *, only_unlike: bool = False) -> dict[str, Table]:
    """Return a table of the ranks of each measured training, side by side, by its name.

    `only_unlike` leaves out trainings whose ranks hold the same.
    """
    several = len(findings.names) > 1
    tables: dict[str, Table] = {}
    for row in findings.ranks:
        unlike = len({replace(one, rank=0) for one in row.each}) > 1
        if len(row.each) > 1 and (unlike or not only_unlike):
            name = findings.names[row.entry.setting] if several else ""
            tables[" · ".join(filter(None, (name, row.entry.label)))] = _each_table(row)
    return tables


def _each_table(row: RankRow) -> Table:
    parts = {
        name: field
        for name, field in _PARTS.items()
        if any(getattr(one, field) is not None for one in row.each)
    }
    slowest = row.record.ranks.slowest if row.record.ranks else None
    rows = [
        (
            Cell(text=_rank_text(one, row, slowest)),
            *(bytes_cell(getattr(one, field)) for field in parts.values()),
        )
        for one in row.each
    ]
    summary = [
        (Cell(text=name), *(_end(row.each, field, pick) for field in parts.values()))
        for name, pick in (("least", min), ("most", max))
    ]
    return Table(head=("rank", *parts), rows=(*summary, *rows))


def _rank_text(one: RankBytes, row: RankRow, slowest: int | None) -> str:
    is_fullest = one.rank == row.rank and one.weight > min(other.weight for other in row.each)
    words = [
        *(("fullest",) if is_fullest else ()),
        *(("slowest",) if one.rank == slowest else ()),
    ]
    return f"{one.rank:,}" + (f" ({', '.join(words)})" if words else "")


def _end(each: Sequence[RankBytes], field: str, pick: Callable[[Iterable[int]], int]) -> Cell:
    """The least or the most of a field, and the first rank that has it."""
    values = {one.rank: getattr(one, field) for one in each if getattr(one, field) is not None}
    value = pick(values.values())
    ranks = [rank for rank, count in values.items() if count == value]
    cell = bytes_cell(value)
    where = "all ranks" if len(ranks) == len(values) else f"rank {ranks[0]:,}"
    return Cell(
        text=f"{cell.text}, {where}",
        exact=cell.exact,
        decimal=f"{cell.decimal}, {where}",
        number=True,
        value=value,
    )


def _number(count: int) -> Cell:
    return Cell(text=f"{count:,}", number=True, value=count)
