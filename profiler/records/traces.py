"""Traces: the events of torch.profiler's files, read within limits.

`optprof profile --trace` writes such files, and so does `export_chrome_trace` of torch.profiler.
Times are in microseconds, as the files have them.
"""

import gzip
import zlib
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, Raw, UnsetType, field

from ..safety import disk

# A trace of 512 MiB has 1.5 million events, and takes 1.4 GB of memory while it is read.
MOST_BYTES = 512 << 20
_GZIP = b"\x1f\x8b"
# Three centuries in microseconds.
_Time = Annotated[float, Meta(ge=-1e16, le=1e16)]
_Duration = Annotated[float, Meta(ge=0, le=1e16)]

HOST_CALLS = ("cuda_runtime", "cuda_driver", "xpu_runtime", "privateuse1_runtime")
ON_DEVICE = ("kernel", "gpu_memcpy", "gpu_memset")
_KINDS = {"cpu_op", "user_annotation", *HOST_CALLS, *ON_DEVICE}


class Details(msgspec.Struct, gc=False, frozen=True):
    """Arguments of an event that reports show; other versions of torch may write other types."""

    correlation: Any = None
    device: Any = None
    shapes: Raw | UnsetType = field(name="Input Dims", default=UNSET)
    grid: Any = None
    block: Any = None
    occupancy: Any = field(name="est. achieved occupancy %", default=None)
    blocks_per_sm: Any = field(name="blocks per SM", default=None)
    device_type: Any = field(name="Device Type", default=None)
    device_id: Any = field(name="Device Id", default=None)
    allocated: Any = field(name="Total Allocated", default=None)
    reserved: Any = field(name="Total Reserved", default=None)


NO_DETAILS = Details()


class Event(msgspec.Struct, gc=False, frozen=True):
    """An event of a trace: `ts` is its start, `cat` its kind."""

    name: Annotated[str, Meta(max_length=100_000)] = ""
    ph: str = ""
    cat: str | None = None
    pid: int | str | None = None
    tid: int | str | None = None
    ts: _Time = 0.0
    dur: _Duration = 0.0
    args: Details | None = None

    @property
    def end(self) -> float:
        """The end of the event."""
        return self.ts + self.dur

    @property
    def details(self) -> Details:
        """The arguments that reports show."""
        return self.args or NO_DETAILS


class Device(msgspec.Struct, gc=False, frozen=True):
    """A GPU that a trace names."""

    id: Any = None
    name: Any = None


class TraceFile(msgspec.Struct, gc=False):
    """The events of a trace that reports show, and the GPUs of its machine."""

    events: list[Event] = field(name="traceEvents", default_factory=list)
    devices: list[Device] = field(name="deviceProperties", default_factory=list)


def read_trace(path: Path, *, below: Path | None = None) -> TraceFile:
    """Read a trace as JSON, also under gzip; no link is followed below the folder `below`.

    ValueError says in one line why a file is not a trace of torch.profiler, OSError why it cannot
    be opened.
    """
    with disk.open_to_read(path, below=below) as file:
        is_packed = file.read(2) == _GZIP
        file.seek(0)
        try:
            text = (gzip.GzipFile(fileobj=file) if is_packed else file).read(MOST_BYTES + 1)
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is damaged: {error}; record the trace again") from error
    if len(text) > MOST_BYTES:
        raise ValueError(
            f"{path} has more than {MOST_BYTES >> 20} MiB of JSON; record fewer iterations, or"
            " leave out with_stack"
        )
    try:
        trace = msgspec.json.decode(text, type=TraceFile)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ValueError(
            f"{path} is not a trace of torch.profiler, or is damaged: {error}"
        ) from error
    trace.events = [event for event in trace.events if _is_shown(event)]
    if not any(event.cat in ("cpu_op", *ON_DEVICE) for event in trace.events):
        raise ValueError(
            f"{path} has no operator and no kernel of torch.profiler; name a file that"
            " `export_chrome_trace` or `optprof profile --trace` has written"
        )
    return trace


def _is_shown(event: Event) -> bool:
    return event.name == "[memory]" or (event.ph == "X" and event.cat in _KINDS)
