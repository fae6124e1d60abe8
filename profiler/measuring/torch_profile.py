"""A few iterations under torch.profiler: a trace file, and the time of the step's operations."""

import errno
import gzip
import re
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from torch.profiler import ProfilerActivity, profile, record_function, schedule

from ..records.record import StepOperation
from ..safety import disk
from .files import Files
from .harness import Harness

# Iterations under the profiler: the first is dropped, because the profiler's first calls are slow.
DROPPED, KEPT = 1, 2
MOST_OPERATIONS = 10
# The parts of a trace that describe the machine: its name, on one line, and the folders of files.
_HOST = re.compile(rb'\s*"host_name": "[^"]*",?\s*')
_FOLDERS = re.compile(rb'(": ")/(?:[^"\\]|\\.)*/([^"/]*")')


def record_trace(
    harness: Harness,
    iterate: Callable[[], None],
    optimizer: str,
    files: Files,
    folder: Path,
    device: str,
) -> list[StepOperation]:
    """Run iterations, write their trace for Perfetto and TensorBoard into the folder.

    Return the step's longest operations, without bytes.
    """
    step, operations = f"Optimizer.step#{optimizer}", []

    def finished(profiler: profile) -> None:
        operations.extend(_operations(profiler.events() or (), step, on_device=device == "cuda"))
        path = (
            folder / f"{re.sub('[^A-Za-z0-9.]+', '-', optimizer)}.{time.time_ns()}.pt.trace.json.gz"
        )
        with files.writing(path):
            _write(profiler, path, files.run)

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device == "cuda" else [])]
    plan = schedule(wait=0, warmup=DROPPED, active=KEPT, repeat=1)
    with (
        harness.handing_phases_to(lambda name: record_function(step if name == "step" else name)),
        profile(
            activities=activities,
            schedule=plan,
            on_trace_ready=finished,
            record_shapes=True,
            profile_memory=True,
        ) as profiler,
    ):
        for _ in range(DROPPED + KEPT):
            iterate()
            profiler.step()
    return operations


def _write(profiler: profile, path: Path, run: Path | None) -> None:
    """Write the trace as gzip; raise OSError if it is not whole."""
    with TemporaryDirectory() as folder:
        # torch writes many times the packed bytes, and does not report a full disk.
        raw = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(raw))
        with (
            disk.writing(path, below=run) as file,
            gzip.GzipFile("", "wb", fileobj=file, mtime=0) as packed,
        ):
            packed.writelines(_without_machine(raw))


def _without_machine(trace: Path) -> Iterator[bytes]:
    """Yield a trace's lines without the machine's name and folders; raise OSError if it was cut."""
    line = b""
    with trace.open("rb") as lines:
        for line in lines:
            if not _HOST.fullmatch(line):
                yield _FOLDERS.sub(rb"\1\2", line)
    if not line.rstrip().endswith(b"}"):
        raise OSError(errno.ENOSPC, f"torch's trace was cut in {trace.parent.parent}", str(trace))


def _operations(events: Iterable[Any], step: str, *, on_device: bool) -> list[StepOperation]:
    """Return the operations inside the ranges named `step`, longest first, per iteration.

    A closure divides one step into several ranges.
    """
    seconds: Counter[str] = Counter()
    calls: Counter[str] = Counter()
    events = list(events)
    ranges = [
        event.time_range
        for event in events
        if event.name == step and event.device_type.name == "CPU"
    ]
    for event in events:
        inside = any(
            one.start <= event.time_range.start and event.time_range.end <= one.end
            for one in ranges
        )
        if inside and event.name.startswith("aten::"):
            name = event.name.removeprefix("aten::")
            spent = event.self_device_time_total if on_device else event.self_cpu_time_total
            seconds[name] += spent
            calls[name] += 1
    return [
        StepOperation(name=name, calls=calls[name] // KEPT, seconds=spent * 1e-6 / KEPT, bytes=None)
        for name, spent in seconds.most_common(MOST_OPERATIONS)
        if spent > 0
    ]


def with_bytes(
    operations: Iterable[StepOperation], nbytes: Mapping[str, int]
) -> tuple[StepOperation, ...]:
    """Return the operations with `nbytes`, the bytes of each name in one step."""
    return tuple(replace(one, bytes=nbytes.get(one.name)) for one in operations)
