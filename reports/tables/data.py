"""Data tables: every number of a run, as tables for a page and as rows for a program."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from optprof.profiler.records.record import Record, StepEstimate

from ..arithmetic.entries import Entry, Setting
from ..arithmetic.findings import Findings
from ..arithmetic.labels import byte_options, optimizer_key
from ..arithmetic.ratios import Ratio
from ..arithmetic.times import samples_per_second, tokens_per_second
from ..phrases import interval_text, pace_text, throughput_text
from ..units import NOTHING, per_parameter_text, range_text, seconds_text
from ..words import PLACES, listed, phase_name, source_text
from .overview import without_lone_model
from .table import Cell, Table, bytes_cell, filled, number_cell, time_cell, unfit_cell

Columns = Sequence[tuple[str, Callable[[Entry], Cell]]]


def memory_table(findings: Findings) -> Table:
    """The bytes of each entry, then the records without a result."""
    columns: Columns = [
        *_names(findings),
        (
            "options for the bytes",
            lambda entry: Cell(text=byte_options(entry.record) or NOTHING),
        ),
        ("state", lambda entry: bytes_cell(entry.state_bytes)),
        (
            "bytes a parameter",
            lambda entry: number_cell(entry.bytes_per_parameter, per_parameter_text),
        ),
        (
            "state as allocated",
            lambda entry: bytes_cell(
                entry.memory.optimizer_state_allocated if entry.memory else None
            ),
        ),
        (
            "peak allocated",
            lambda entry: (
                replace(unfit_cell(entry), number=True)
                if entry.ran_out
                else bytes_cell(entry.peak_bytes, entry.peak_upper)
            ),
        ),
        (
            "peak reserved",
            lambda entry: bytes_cell(peak_reserved(entry), peak_reserved_upper(entry)),
        ),
        ("phase of the peak", lambda entry: Cell(text=_peak_phase(entry) or NOTHING)),
        (
            "origin",
            lambda entry: Cell(text=_bytes_source(entry)),
        ),
    ]
    table = filled(columns, findings.entries)
    failed = tuple(_failed(findings, record, len(columns)) for record in findings.unshown)
    return _sortable(findings, replace(table, rows=table.rows + failed), "Memory")


def time_tables(findings: Findings) -> list[Table]:
    """The times of the step that the run has, a table for each clock, GPUs first."""
    tables = [
        estimate_table(findings),
        step_table(findings, "cuda"),
        step_table(findings, "cpu"),
    ]
    return [table for table in tables if table.rows]


def step_table(findings: Findings, device: str) -> Table:
    """The step times of each entry that was timed on the device."""
    timed = [
        entry
        for entry in findings.entries
        if entry.step and entry.times_from and entry.times_from.scenario.device == device
    ]
    against = {id(entry): ratio for entry, ratio in findings.paces}
    columns: Columns = [
        *_names(findings, timed=True),
        (
            "step, median",
            lambda entry: (
                time_cell(entry.times_from) if entry.times_from else number_cell(None, str)
            ),
        ),
        ("95 % interval", _interval),
        ("quartiles", _quartiles),
        (f"against {findings.baseline}", lambda entry: _pace(against.get(id(entry)))),
        *(
            [("training", _throughput)]
            if any(_throughput(entry).text != NOTHING for entry in timed)
            else []
        ),
        (
            "origin",
            lambda entry: Cell(text=source_text(entry.times_from) if entry.times_from else NOTHING),
        ),
    ]
    return _sortable(findings, filled(columns, timed), f"Time of the step {PLACES[device]}")


def estimate_table(findings: Findings) -> Table:
    """The estimated step times on the GPU of each record's estimate."""

    def column(
        read: Callable[[StepEstimate], float], show: Callable[[Any], str]
    ) -> Callable[[Entry], Cell]:
        return lambda entry: number_cell(read(entry.estimate) if entry.estimate else None, show)

    columns: Columns = [
        *_names(findings),
        ("on GPU", lambda entry: Cell(text=entry.estimate.gpu if entry.estimate else NOTHING)),
        ("step there, estimated", column(lambda estimate: estimate.seconds, seconds_text)),
        ("its floor", column(lambda estimate: estimate.floor_seconds, seconds_text)),
        (
            "moved",
            lambda entry: bytes_cell(entry.estimate.moved_bytes if entry.estimate else None),
        ),
        ("launches", column(lambda estimate: estimate.launches, "{:,}".format)),
        ("waits", column(lambda estimate: estimate.synchronisations, "{:,}".format)),
    ]
    table = filled(columns, [entry for entry in findings.entries if entry.estimate])
    return _sortable(
        findings, table, f"Time of the step on {listed(findings.estimated_gpus)}, estimated"
    )


def _sortable(findings: Findings, table: Table, title: str) -> Table:
    return replace(without_lone_model(findings, table), title=title, sortable=True)


def data_rows(findings: Findings) -> list[dict[str, Any]]:
    """The rows of `memory_table` with exact bytes and unrounded seconds; None for unknown ones."""
    rows = [_data(entry) for entry in findings.entries]
    names = dict.fromkeys(rows[0] if rows else ())
    return rows + [names | _data_of_failure(findings, record) for record in findings.unshown]


def peak_reserved(entry: Entry) -> int | None:
    """The most bytes that a training step reserved."""
    return entry.peak.peak_reserved if entry.peak else None


def peak_reserved_upper(entry: Entry) -> int | None:
    """The upper end of a range of reserved bytes."""
    return entry.peak.peak_reserved_upper if entry.peak else None


def _names(findings: Findings, *, timed: bool = False) -> Columns:
    """The columns that name a row: by the record of its bytes, or of its times."""

    def origin(entry: Entry) -> str:
        return entry.times_from.origin if timed and entry.times_from else entry.origin

    def implementation(entry: Entry) -> str:
        record = entry.times_from if timed and entry.times_from else entry.record
        return record.scenario.implementation

    return [
        ("optimizer", lambda entry: Cell(text=entry.label, mark=entry.label, origin=origin(entry))),
        ("model", lambda entry: Cell(text=findings.names[entry.setting])),
        ("implementation", lambda entry: Cell(text=implementation(entry))),
    ]


def _failed(findings: Findings, record: Record, columns: int) -> tuple[Cell, ...]:
    label, scenario = findings.labels[optimizer_key(record.scenario)], record.scenario
    name = findings.name_of(Setting.of(scenario, record.memory))
    named = (
        Cell(text=label, mark=label, origin=record.origin),
        Cell(text=name),
        Cell(text=scenario.implementation),
    )
    unknown = (
        Cell(text=byte_options(record) or NOTHING),
        *[Cell(text=NOTHING, number=True)] * (columns - 6),
    )
    return (*named, *unknown, Cell(text=NOTHING), Cell(text=record.outcome))


def _data(entry: Entry) -> dict[str, Any]:
    memory, step, timed, estimate = entry.memory, entry.step, entry.times_from, entry.estimate
    return {
        "optimizer": entry.label,
        "model": entry.setting.model,
        "setting": " · ".join(entry.setting.traits),
        "outcome": entry.record.outcome,
        "parameters": entry.record.parameter_count,
        "implementation": entry.scenario.implementation,
        "bytes_origin": source_text(entry.bytes_from) if entry.bytes_from else None,
        "state_bytes": entry.state_bytes,
        "state_allocated_bytes": memory.optimizer_state_allocated if memory else None,
        "peak_allocated_bytes": entry.peak_bytes,
        "peak_reserved_bytes": peak_reserved(entry),
        "peak_allocated_upper_bytes": entry.peak_upper,
        "peak_reserved_upper_bytes": peak_reserved_upper(entry),
        "peak_phase": _peak_phase(entry) or None,
        "step_origin": source_text(timed) if timed else None,
        "step_implementation": timed.scenario.implementation if timed else None,
        "step_seconds": step.median if step else None,
        "step_lower_seconds": step.interval.lower if step and step.interval else None,
        "step_upper_seconds": step.interval.upper if step and step.interval else None,
        "step_samples": len(step.samples) if step else None,
        "gpu": estimate.gpu if estimate else None,
        "gpu_step_seconds": estimate.seconds if estimate else None,
        "error": entry.record.error,
    }


def _data_of_failure(findings: Findings, record: Record) -> dict[str, Any]:
    setting = Setting.of(record.scenario, record.memory)
    return {
        "optimizer": findings.labels[optimizer_key(record.scenario)],
        "model": setting.model,
        "setting": " · ".join(setting.traits),
        "outcome": record.outcome,
        "parameters": record.parameter_count,
        "implementation": record.scenario.implementation,
        "error": record.error,
    }


def _bytes_source(entry: Entry) -> str:
    if entry.bytes_from is None:
        return NOTHING
    source = source_text(entry.bytes_from)
    return f"{source}, {entry.bytes_from.outcome}" if entry.ran_out else source


def _peak_phase(entry: Entry) -> str:
    return phase_name(entry.peak.peak_phase) if entry.peak else ""


def _interval(entry: Entry) -> Cell:
    interval = entry.step.interval if entry.step else None
    text = interval_text(entry.step) if entry.step else ""
    return _sorted(text, interval.lower if interval else None)


def _quartiles(entry: Entry) -> Cell:
    step = entry.step
    return (
        _sorted(range_text(step.lower, step.upper), step.lower)
        if step and len(step.samples) > 1
        else _sorted("", None)
    )


def _pace(ratio: Ratio | None) -> Cell:
    return Cell(
        text=pace_text(ratio) if ratio else NOTHING,
        number=True,
        value=ratio.value if ratio else None,
    )


def _throughput(entry: Entry) -> Cell:
    record = entry.times_from
    if record is None:
        return _sorted("", None)
    tokens = tokens_per_second(record)
    return _sorted(
        throughput_text(record), samples_per_second(record) if tokens is None else tokens
    )


def _sorted(text: str, value: float | None) -> Cell:
    """A text of several numbers, sorted by the first."""
    return Cell(text=text or NOTHING, number=True, value=value)
