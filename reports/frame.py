"""Frame: records as a data frame of pandas, a row each, with what was asked and the main
figures.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optprof.profiler.records.record import Record

from .arithmetic.labels import dtype_name
from .arithmetic.times import Spread

if TYPE_CHECKING:
    from pandas import DataFrame

# The columns of a frame: pandas' dtype for those that count, text as it comes.
COLUMNS: dict[str, str] = {
    "model": "",
    "optimizer": "",
    "options": "",
    "implementation": "",
    "device": "",
    "workload": "",
    "dtype": "",
    "batch_size": "Int64",
    "sequence_length": "Int64",
    "gpu": "",
    "origin": "",
    "outcome": "",
    "parameters": "Int64",
    "state_bytes": "Int64",
    "state_allocated_bytes": "Int64",
    "peak_allocated_bytes": "Int64",
    "peak_reserved_bytes": "Int64",
    "peak_allocated_upper_bytes": "Int64",
    "peak_reserved_upper_bytes": "Int64",
    "peak_phase": "",
    "peak_resident_bytes": "Int64",
    "step_seconds": "Float64",
    "step_seconds_low": "Float64",
    "step_seconds_high": "Float64",
    "estimated_step_seconds": "Float64",
    "error": "",
}


def frame(records: Sequence[Record]) -> "DataFrame":
    """A row a record; bytes are exact (nullable) whole numbers, times are in seconds. ValueError
    where pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise ValueError(
            "a frame needs the package pandas, which is not installed; pip install pandas"
        ) from error
    rows = [_row(record) for record in records]
    columns: dict[str, Any] = {name: [row.get(name) for row in rows] for name in COLUMNS}
    # Through floats, as a missing number would lead, large counts are not exact.
    return pandas.DataFrame(
        {
            name: pandas.array(columns[name], dtype=kind) if kind else columns[name]
            for name, kind in COLUMNS.items()
        }
    )


def _row(record: Record) -> dict[str, Any]:
    scenario, memory = record.scenario, record.memory
    asked = (
        "model",
        "optimizer",
        "options",
        "implementation",
        "device",
        "workload",
        "batch_size",
        "sequence_length",
        "gpu",
    )
    row: dict[str, Any] = {name: getattr(scenario, name) for name in asked}
    row |= {
        "dtype": dtype_name(scenario, memory),
        "origin": record.origin,
        "outcome": record.outcome,
        "parameters": record.parameter_count,
        "error": record.error,
    }
    if memory is not None:
        row |= {
            "state_bytes": memory.optimizer_state,
            "state_allocated_bytes": memory.optimizer_state_allocated,
            "peak_allocated_bytes": memory.peak_allocated,
            "peak_reserved_bytes": memory.peak_reserved,
            "peak_allocated_upper_bytes": memory.peak_allocated_upper,
            "peak_reserved_upper_bytes": memory.peak_reserved_upper,
            "peak_phase": memory.peak_phase,
        }
    row["peak_resident_bytes"] = _peak_resident(record)
    row["estimated_step_seconds"] = record.estimate.seconds if record.estimate else None
    return row | _step(record)


def _step(record: Record) -> dict[str, float]:
    """The median of the step, and its 95 % interval where there are samples enough for one."""
    samples = (record.times or {}).get("step")
    if not samples:
        return {}
    spread = Spread.of(samples)
    interval = (
        {"step_seconds_low": spread.interval.lower, "step_seconds_high": spread.interval.upper}
        if spread.interval
        else {}
    )
    return {"step_seconds": spread.median, **interval}


def _peak_resident(record: Record) -> int | None:
    """The most that the process held, where it was measured on a CPU."""
    levels = record.watched.memory.values() if record.watched else ()
    return max(
        (counters["resident"].peak for counters in levels if "resident" in counters), default=None
    )
