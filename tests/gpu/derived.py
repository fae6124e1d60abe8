"""Derive the constants of estimates and of the catalogue from a campaign's raw samples.

Constants without samples are left out.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from statistics import median
from typing import Any

MIB = 1 << 20
# Tensors of this size are larger than any cache.
LARGE_BYTES = 256 * MIB

_Groups = Mapping[str, Mapping[str, Any]]


def derive(groups: _Groups) -> dict[str, Any]:
    """Return the constants by name, times in seconds and memory in bytes."""
    constants: dict[str, Any] = {}
    for name, rule in _RULES.items():
        with suppress(KeyError, IndexError, ValueError, ZeroDivisionError):
            constants[name] = rule(groups)
    return constants


def _copy_bandwidth(groups: _Groups) -> float:
    return max(_rates(groups, "copy"))


def _bandwidths(groups: _Groups) -> dict[str, float]:
    kinds = next(iter(groups["bandwidth"].values()))
    return {kind: max(_rates(groups, kind)) for kind in kinds}


def _rates(groups: _Groups, kind: str) -> Iterator[float]:
    """Yield bytes per second of one kind of kernel on each size of large tensors."""
    streams = [streams[kind] for streams in groups["bandwidth"].values()]
    large = [stream for stream in streams if stream["bytes"] >= LARGE_BYTES]
    return (stream["bytes"] / median(stream["seconds"]) for stream in large or streams)


def _launch(name: str, of: str) -> Callable[[_Groups], float]:
    return lambda groups: median(groups["launches"][f"launch {name}"][of])


def _per_tensor(groups: _Groups) -> float:
    few, many = (_launch(f"foreach_add_ {count}", "host")(groups) for count in (8, 512))
    return (many - few) / 504


def _kernel(of: str) -> Callable[[_Groups], float]:
    return lambda groups: 1e-6 * median(groups["launches"]["kernels"][of])


def _wait(name: str) -> Callable[[_Groups], float]:
    return lambda groups: median(groups["launches"]["waits"][name])


def _kept(name: str) -> Callable[[_Groups], int]:
    return lambda groups: groups["workspaces"][name]["kept"]


def _contexts(groups: _Groups) -> dict[str, int]:
    steps = groups["context"].items()
    return {name: value["outside"] for name, value in steps if isinstance(value, dict)}


def _small_steps(groups: _Groups) -> dict[str, dict[str, float]]:
    """Return the host's seconds for a step and for each further tensor, by optimizer."""
    seconds = {}
    for name, times in groups["small-steps"].items():
        few, many = (median(times[count]["host"]) for count in ("16", "128"))
        seconds[name] = {"step_of_16": few, "each_tensor": (many - few) / 112}
    return seconds


def _staging(groups: _Groups) -> dict[str, int]:
    """Return the bytes that a reduction allocates in addition to its result."""
    cases = groups["reductions"].items()
    return {name: value["peak"] - value["result"] for name, value in cases}


_RULES: dict[str, Callable[[_Groups], Any]] = {
    "device": lambda groups: dict(groups["device"]["properties"]),
    "torch": lambda groups: groups["device"]["torch"],
    "compute_capability": lambda groups: groups["device"]["capability"],
    "memory_bytes": lambda groups: int(groups["device"]["properties"]["total_memory"]),
    "multiprocessors": lambda groups: int(groups["device"]["properties"]["multi_processor_count"]),
    "threads_per_multiprocessor": lambda groups: int(
        groups["device"]["properties"]["max_threads_per_multi_processor"]
    ),
    "copy_bandwidth": _copy_bandwidth,
    "bandwidths": _bandwidths,
    "launch_seconds": _launch("add_", "host"),
    "kernel_period_seconds": _launch("add_", "device"),
    "waited_kernel_seconds": _launch("add_", "waited"),
    "foreach_seconds_per_tensor": _per_tensor,
    "smallest_kernel_seconds": _kernel("microseconds"),
    "kernel_gap_seconds": _kernel("gaps"),
    "item_seconds": _wait("item"),
    "item_behind_kernel_seconds": _wait("item_behind_kernel"),
    "synchronize_seconds": _wait("synchronize"),
    "workspace_bytes": _kept("fp32"),
    "workspace_bytes_of_another_thread": _kept("another thread"),
    "context_bytes": _contexts,
    "small_steps": _small_steps,
    "staging_bytes": _staging,
    "temporaries": lambda groups: dict(groups["temporaries"]),
    "attention": lambda groups: dict(groups["attention"]),
    "recurrent": lambda groups: dict(groups["recurrent"]),
}


def catalogue_lines(constants: Mapping[str, Any], peak_bandwidth: float | None) -> list[str]:
    """Return the constants as lines for scenarios/hardware.py and simulating/estimate.py."""
    lines = [
        f"{name}={constants[name]:_},"
        if isinstance(constants[name], int)
        else f"{name}={constants[name]},"
        for name in ("memory_bytes", "multiprocessors", "threads_per_multiprocessor")
        if name in constants
    ]
    if "compute_capability" in constants:
        lines.append(f"compute_capability={tuple(constants['compute_capability'])},")
    if "copy_bandwidth" in constants and peak_bandwidth:
        lines.append(f"ACHIEVED_BANDWIDTH = {constants['copy_bandwidth'] / peak_bandwidth:.3f}")
    names = {
        "LAUNCH_SECONDS": "launch_seconds",
        "SMALLEST_KERNEL_SECONDS": "smallest_kernel_seconds",
        "KERNEL_GAP_SECONDS": "kernel_gap_seconds",
        "ITEM_SECONDS": "item_seconds",
    }
    lines += [
        f"{title} = {constants[name]:.2e}" for title, name in names.items() if name in constants
    ]
    if constants.get("context_bytes"):
        lines.append(f"CONTEXT_BYTES = {max(constants['context_bytes'].values()):_}")
    if "workspace_bytes" in constants:
        lines.append(f"cuBLAS workspace: {constants['workspace_bytes']:_} bytes")
    return lines
