"""Frame: records as a data frame of pandas, a row each."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from optprof.profiler.records.record import Record

from .arithmetic.labels import dtype_name
from .arithmetic.times import Spread

if TYPE_CHECKING:
    from pandas import DataFrame

SCENARIO = (
    "model",
    "optimizer",
    "options",
    "implementation",
    "device",
    "workload",
    "dtype",
    "batch_size",
    "sequence_length",
    "gpu",
)
MEMORY = {
    "state_bytes": "optimizer_state",
    "state_allocated_bytes": "optimizer_state_allocated",
    "peak_allocated_bytes": "peak_allocated",
    "peak_reserved_bytes": "peak_reserved",
    "peak_allocated_upper_bytes": "peak_allocated_upper",
    "peak_reserved_upper_bytes": "peak_reserved_upper",
    "peak_phase": "peak_phase",
}
SECONDS = ("step_seconds", "step_seconds_low", "step_seconds_high", "estimated_step_seconds")
COLUMNS = (
    *SCENARIO,
    "origin",
    "outcome",
    "parameters",
    *MEMORY,
    "peak_resident_bytes",
    *SECONDS,
    "estimated_gpu",
    "error",
)
# Nullable numbers: a missing value would make floats of whole numbers, and large ones inexact.
TYPES = {
    name: "Int64"
    for name in COLUMNS
    if name.endswith("_bytes") or name in ("batch_size", "sequence_length", "parameters")
} | dict.fromkeys(SECONDS, "Float64")


def frame(records: Sequence[Record]) -> "DataFrame":
    """Return a row a record; bytes are exact (nullable) whole numbers, times are in seconds."""
    import pandas

    rows = [_row(record) for record in records]
    return pandas.DataFrame(rows, columns=[*COLUMNS], dtype=object).astype(TYPES).infer_objects()


def _row(record: Record) -> dict[str, Any]:
    scenario, memory = record.scenario, record.memory
    return {
        **{name: getattr(scenario, name) for name in SCENARIO},
        "dtype": dtype_name(scenario, memory),
        "origin": record.origin,
        "outcome": record.outcome,
        "parameters": record.parameter_count,
        **{column: getattr(memory, name, None) for column, name in MEMORY.items()},
        "peak_resident_bytes": _peak_resident(record),
        **_step(record),
        "estimated_step_seconds": record.estimate.seconds if record.estimate else None,
        "estimated_gpu": record.estimate.gpu if record.estimate else None,
        "error": record.error,
    }


def _step(record: Record) -> dict[str, float]:
    """The median of the step, and its 95 % interval where samples are enough for one."""
    samples = (record.times or {}).get("step")
    if not samples:
        return {}
    spread = Spread.of(samples)
    interval = spread.interval
    ends = (
        {"step_seconds_low": interval.lower, "step_seconds_high": interval.upper}
        if interval
        else {}
    )
    return {"step_seconds": spread.median, **ends}


def _peak_resident(record: Record) -> int | None:
    """The largest resident set of the process, where it was measured on a CPU."""
    levels = record.watched.memory.values() if record.watched else ()
    return max(
        (counters["resident"].peak for counters in levels if "resident" in counters), default=None
    )
