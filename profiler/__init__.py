"""Profiler: turns a scenario into a record, by simulation or by measurement.

The first access to `simulate` or `measure` loads torch; `records` and `allocator` do not need it.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from .records.record import Memory, Record

if TYPE_CHECKING:
    from .measuring.measurement import measure
    from .simulating.simulation import simulate

__all__ = ["Memory", "Record", "measure", "simulate"]

_LATE = {"simulate": "simulating.simulation", "measure": "measuring.measurement"}


def __getattr__(name: str) -> Any:
    if name in _LATE:
        return getattr(import_module(f".{_LATE[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
