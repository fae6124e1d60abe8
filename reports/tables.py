"""Tables: the numbers of a run as rows of text, each cell with its exact bytes where it shows rounded ones."""

from collections.abc import Callable, Sequence

from profiler.record import Record, StepEstimate

from .entries import Entry, Setting, failures
from .findings import Findings
from .labels import byte_options
from .reproduction import Published, Reproduced
from .table import Cell, Table
from .units import (
    NOTHING,
    bytes_text,
    difference_text,
    exact_text,
    factor_text,
    gib_text,
    per_parameter_text,
    percent_text,
    range_text,
    seconds_text,
)
from .words import category_name, conditions, course_text, interval_text, origin_text, phase_name, source_text, throughput_text


def main_table(findings: Findings) -> Table:
    """Everything about every entry: bytes in GiB, times, and where they come from."""
    columns: list[tuple[str, Callable[[Entry], Cell]]] = [
        ("optimizer", lambda entry: Cell(text=entry.label, mark=entry.label, origin=entry.origin)),
        ("model", lambda entry: Cell(text=findings.names[entry.setting])),
        ("options that decide the bytes", lambda entry: Cell(text=byte_options(entry.scenario.options) or NOTHING)),
        ("implementation", lambda entry: Cell(text=_implementation(entry))),
        ("state, GiB", lambda entry: _gib(entry.state_bytes)),
        ("bytes a parameter", lambda entry: _number(entry.bytes_per_parameter, per_parameter_text)),
        ("state as allocated, GiB", lambda entry: _gib(entry.memory.optimizer_state_allocated if entry.memory else None)),
        ("peak allocated, GiB", lambda entry: _gib(entry.peak_bytes)),
        ("peak reserved, GiB", lambda entry: _gib(_peak_reserved(entry))),
        ("phase of the peak", lambda entry: Cell(text=_peak_phase(entry) or NOTHING)),
        ("step, median", lambda entry: _number(entry.step.median if entry.step else None, seconds_text)),
        ("step, 95 % interval", lambda entry: Cell(text=(interval_text(entry.step) if entry.step else "") or NOTHING, number=True)),
        ("step, quartiles", lambda entry: _quartiles(entry)),
        *(_throughput_column() if any(map(_throughput, findings.entries)) else []),
        *(_estimate_columns() if any(entry.estimate for entry in findings.entries) else []),
        ("origin", lambda entry: Cell(text=_origin(entry))),
    ]
    rows = [tuple(show(entry) for _, show in columns) for entry in findings.entries]
    return _without_lone_model(findings, Table(head=tuple(name for name, _ in columns), rows=tuple(rows)))


def key_table(findings: Findings) -> Table:
    """The bytes of each state by key and dtype, largest first."""
    rows = []
    for entry in findings.entries:
        by_key = entry.memory.state_by_key_dtype if entry.memory else {}
        parts = sorted(((key, dtype, count) for key, held in by_key.items() for dtype, count in held.items()), key=lambda part: -part[2])
        for key, dtype, count in parts:
            share = Cell(text=percent_text(count, entry.state_bytes or count), number=True)
            name = Cell(text=entry.label, mark=entry.label, origin=entry.origin)
            rows.append((name, Cell(text=findings.names[entry.setting]), Cell(text=key), Cell(text=dtype), _bytes(count), share))
    head = ("optimizer", "model", "key", "dtype", "bytes", "share of the state")
    return _without_lone_model(findings, Table(head=head, rows=tuple(rows)))


def block_tables(findings: Findings) -> list[tuple[str, Table]]:
    """The largest blocks at each peak, under a line that names the optimizer and the moment."""
    head = ("holds", "block", "asked for by", "operation", "line", "allocated in")
    several = len({course.setting for course in findings.courses}) > 1
    found = []
    for course in findings.courses:
        where = f" on {findings.name_of(course.setting)}" if several else ""
        rows = [
            (
                Cell(text=category_name(block.category)),
                _bytes(block.block_bytes),
                *(Cell(text=text or NOTHING) for text in (block.module, block.op, block.line)),
                Cell(text=f"{phase_name(block.phase)}, training step {block.step}" if block.step else phase_name(block.phase)),
            )
            for block in course.timeline.largest
        ]
        found.append((f"{course.label}{where}: {course_text(course)}", Table(head=head, rows=tuple(rows))))
    return found


def reproduction_table(rows: Sequence[Reproduced]) -> Table:
    """The published figures beside ours."""
    head = ("model", "optimizer", "published, GiB", "ours, GiB", "difference, GiB", "difference", "origin")
    return Table(head=head, rows=tuple(_reproduced(row) for row in rows))


def time_table(rows: Sequence[tuple[Published, Record]]) -> Table:
    """The published step times beside our estimates."""
    head = ("model", "optimizer", "implementation", "published", "estimated", "estimated / published", "floor")
    return Table(head=head, rows=tuple(_timed(row, record.estimate, record) for row, record in rows if record.estimate))


def failure_table(findings: Findings) -> Table:
    """What ended without a result, and why."""
    rows = []
    for record in failures(findings.records):
        scenario = record.scenario
        where = ", ".join((conditions(record), scenario.workload, *Setting.of(scenario).traits))
        cells = (scenario.optimizer, scenario.model, where, record.outcome, record.error or NOTHING)
        rows.append(tuple(Cell(text=text) for text in cells))
    return Table(head=("optimizer", "model", "scenario", "outcome", "error"), rows=tuple(rows))


def _without_lone_model(findings: Findings, table: Table) -> Table:
    """The table without the column "model" where there is only one."""
    if len(findings.names) > 1:
        return table
    kept = [number for number, name in enumerate(table.head) if name != "model"]
    rows = [tuple(row[number] for number in kept) for row in table.rows]
    return Table(head=tuple(table.head[number] for number in kept), rows=tuple(rows))


def _reproduced(row: Reproduced) -> tuple[Cell, ...]:
    published = f"{row.published.state_gib:.2f}"
    return (
        Cell(text=row.published.model),
        Cell(text=row.published.optimizer),
        Cell(text=f"{published}, extrapolated" if row.published.extrapolated else published, number=True),
        _gib(row.allocated_bytes),
        Cell(text=difference_text(row.difference_gib), number=True),
        Cell(text=f"{difference_text(row.difference_percent, 1)} %", number=True),
        Cell(text=origin_text(row.record)),
    )


def _timed(row: Published, estimate: StepEstimate, record: Record) -> tuple[Cell, ...]:
    published = seconds_text(row.step_seconds)
    return (
        Cell(text=row.model),
        Cell(text=row.optimizer),
        Cell(text=record.scenario.implementation),
        Cell(text=f"{published}, extrapolated" if row.extrapolated else published, number=True),
        Cell(text=seconds_text(estimate.seconds), number=True),
        Cell(text=factor_text(estimate.seconds / row.step_seconds), number=True),
        Cell(text=seconds_text(estimate.floor_seconds), number=True),
    )


def _estimate_columns() -> list[tuple[str, Callable[[Entry], Cell]]]:
    """What the step would take on the GPU that was asked for."""

    def column(show: Callable[[StepEstimate], str]) -> Callable[[Entry], Cell]:
        return lambda entry: Cell(text=show(entry.estimate) if entry.estimate else NOTHING, number=True)

    return [
        ("on GPU", lambda entry: Cell(text=entry.estimate.gpu if entry.estimate else NOTHING)),
        ("step there, estimated", column(lambda estimate: seconds_text(estimate.seconds))),
        ("its floor", column(lambda estimate: seconds_text(estimate.floor_seconds))),
        ("moved, GiB", column(lambda estimate: gib_text(estimate.moved_bytes))),
        ("launches", column(lambda estimate: f"{estimate.launches:,}")),
        ("waits", column(lambda estimate: f"{estimate.synchronisations:,}")),
    ]


def _throughput_column() -> list[tuple[str, Callable[[Entry], Cell]]]:
    return [("training", lambda entry: Cell(text=_throughput(entry) or NOTHING, number=True))]


def _throughput(entry: Entry) -> str:
    return throughput_text(entry.times_from) if entry.times_from else ""


def _implementation(entry: Entry) -> str:
    """The implementation, and that of the times where it is another."""
    timed = entry.times_from.scenario.implementation if entry.times_from else entry.scenario.implementation
    return entry.scenario.implementation + (f"; step: {timed}" if timed != entry.scenario.implementation else "")


def _origin(entry: Entry) -> str:
    sources = {"bytes": entry.bytes_from, "step": entry.times_from}
    return "; ".join(f"{name} {source_text(record)}" for name, record in sources.items() if record)


def _peak_reserved(entry: Entry) -> int | None:
    return entry.memory.peak_reserved if entry.memory and entry.peak_bytes is not None else None


def _peak_phase(entry: Entry) -> str:
    return phase_name(entry.memory.peak_phase) if entry.memory and entry.peak_bytes is not None else ""


def _quartiles(entry: Entry) -> Cell:
    step = entry.step
    return Cell(text=range_text(step.lower, step.upper) if step and len(step.samples) > 1 else NOTHING, number=True)


def _gib(count: int | None) -> Cell:
    return Cell(text=NOTHING, number=True) if count is None else Cell(text=gib_text(count), exact=exact_text(count), number=True)


def _bytes(count: int) -> Cell:
    return Cell(text=bytes_text(count), exact=exact_text(count), number=True)


def _number(value: float | None, show: Callable[[float], str]) -> Cell:
    return Cell(text=NOTHING if value is None else show(value), number=True)
