"""Speeds: the copy bandwidth, and the times to launch, run and wait for small kernels.

The samples are raw seconds, which absorb.py reads.
"""

import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from place import PLACE
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]

MIB = 1 << 20
# torch exports these only under private names.
_foreach_add_: Callable[..., None] = torch._foreach_add_  # pyright: ignore
_foreach_sqrt: Callable[..., Any] = torch._foreach_sqrt  # pyright: ignore
REPEATS = 7
# A host can launch about a thousand kernels before it must wait for the device.
BATCH = 500
# Cycles that keep the device busy while the host launches a batch or one kernel: 20 ms and 10 us
# at 2 GHz.
AHEAD_CYCLES = 40_000_000
LAUNCH_CYCLES = 20_000


def bandwidth(say: Any) -> None:
    """Time kernels that stream tensors by size; `bytes` is what one call reads and writes."""
    sizes = (1, 4, 16, 64, 256, 1024, 4096) if PLACE.device == "cuda" else (1,)
    for mebibytes in sizes:
        say.attempt(f"streams of {mebibytes} MiB", _streams, mebibytes)


def _streams(mebibytes: int) -> dict[str, Any]:
    nbytes = mebibytes * MIB
    source, other, target = (torch.ones(nbytes // 4, device=PLACE.device) for _ in range(3))
    # A few milliseconds at least between two events.
    inner = max(3, min(200, (8 << 30) // nbytes)) if PLACE.device == "cuda" else 1
    runs: dict[str, tuple[int, Callable[[], Any]]] = {
        "copy": (2, lambda: target.copy_(source)),
        "add_number": (2, lambda: target.add_(1.0)),
        "add_tensor": (3, lambda: target.add_(source)),
        "add_out": (3, lambda: torch.add(source, other, out=target)),
        "addcmul": (4, lambda: target.addcmul_(source, other)),
        "sqrt": (2, lambda: torch.sqrt(source, out=target)),
        "fill": (1, lambda: target.fill_(1.0)),
        "sum": (1, lambda: source.sum()),
        "foreach_add": (3, lambda: _foreach_add_([target], [source])),
    }
    return {
        name: {"bytes": times * nbytes, "seconds": device_seconds(run, inner)}
        for name, (times, run) in runs.items()
    }


def device_seconds(run: Callable[[], Any], inner: int) -> list[float]:
    """Return samples of the device's seconds per call, each over `inner` calls."""
    run()
    seconds = []
    for _ in range(REPEATS):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        torch.cuda._sleep(inner * LAUNCH_CYCLES)
        start.record()
        for _ in range(inner):
            run()
        end.record()
        torch.cuda.synchronize()
        seconds.append(start.elapsed_time(end) / 1000 / inner)
    return seconds


def launches(say: Any) -> None:
    """Time the host and the device on kernels with almost no work."""
    x, y = (torch.ones(16, device=PLACE.device) for _ in range(2))
    calls: dict[str, Callable[[], Any]] = {
        "add_": lambda: x.add_(1.0),
        "mul_": lambda: x.mul_(1.0),
        "add": lambda: x + y,
        "sqrt": lambda: x.sqrt(),
        "addcdiv_": lambda: x.addcdiv_(y, y, value=0.5),
        "copy_": lambda: x.copy_(y),
        "zeros_like": lambda: torch.zeros_like(x),
        "norm": lambda: x.norm(),
        "nothing": lambda: None,
    }
    for count in (1, 8, 64, 512):
        many = [torch.ones(16, device=PLACE.device) for _ in range(count)]
        calls[f"foreach_add_ {count}"] = lambda many=many: _foreach_add_(many, 1.0)
        calls[f"foreach_sqrt {count}"] = lambda many=many: _foreach_sqrt(many)
    for name, call in calls.items():
        say.attempt(f"launch {name}", _launch, call, BATCH // 10 if "foreach" in name else BATCH)
    say.attempt("graph", _graph)
    say.attempt("kernels", _kernels)
    say.attempt("waits", _waits)


def _launch(call: Callable[[], Any], batch: int) -> dict[str, list[float]]:
    """Return seconds per call: of the host running ahead, with a wait, and of the device."""
    batch = batch if PLACE.device == "cuda" else 2
    for _ in range(min(20, batch)):
        call()
    seconds: dict[str, list[float]] = {"host": [], "waited": [], "device": []}
    for _ in range(REPEATS):
        torch.cuda.synchronize()
        seconds["host"].append(_seconds(call, batch))
        torch.cuda.synchronize()
        seconds["waited"].append(
            _seconds(lambda: (call(), torch.cuda.synchronize()), min(50, batch))
        )
        seconds["device"].append(_behind_work(call, batch))
    return seconds


def _seconds(call: Callable[[], Any], count: int) -> float:
    start = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - start) / count


def _behind_work(call: Callable[[], Any], batch: int) -> float:
    """Return seconds between kernels that are all launched before the first runs."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    for _ in range(batch):
        call()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000 / batch


def _graph() -> dict[str, list[float]]:
    """Return seconds per kernel of a graph, which the host launches once, by elements."""
    by_count = {}
    for count in (16, 1 << 12, 1 << 16, 1 << 18, 1 << 20, 1 << 22):
        x = torch.ones(count, device=PLACE.device)
        graph, kernels = torch.cuda.CUDAGraph(), 200
        with torch.cuda.graph(graph):
            for _ in range(kernels):
                x.add_(1.0)
        by_count[str(count)] = [seconds / kernels for seconds in device_seconds(graph.replay, 5)]
    return by_count


def _kernels() -> dict[str, list[float]]:
    """Return microseconds of single kernels and of the gaps between them, from CUPTI."""
    from torch.profiler import ProfilerActivity, profile

    x = torch.ones(16, device=PLACE.device)
    cuda = PLACE.device == "cuda"
    activities = [ProfilerActivity.CUDA] if cuda else [ProfilerActivity.CPU]
    with profile(activities=activities) as profiler:
        torch.cuda._sleep(AHEAD_CYCLES)
        for _ in range(200):
            x.add_(1.0)
        torch.cuda.synchronize()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    events = [event for event in profiler.events() or () if event.device_type == kind]
    ranges = sorted((event.time_range.start, event.time_range.end) for event in events)[-200:]
    gaps = [after[0] - before[1] for before, after in pairwise(ranges)]
    return {"microseconds": [end - start for start, end in ranges], "gaps": gaps}


def _waits() -> dict[str, list[float]]:
    """Return seconds of one wait and of one number read back."""
    x = torch.ones(1, device=PLACE.device)
    event = torch.cuda.Event(enable_timing=True)
    calls: dict[str, Callable[[], Any]] = {
        "item": lambda: x.item(),
        "item_behind_kernel": lambda: (x + 1).item(),
        "bool": lambda: bool(x.isinf().any()),
        "synchronize": torch.cuda.synchronize,
        "record_event": event.record,
        "from_host": lambda: torch.tensor(1.0, device=PLACE.device),
    }
    by_call: dict[str, list[float]] = {}
    for name, call in calls.items():
        torch.cuda.synchronize()
        by_call[name] = [_seconds(call, 100) for _ in range(REPEATS)]
    return by_call
