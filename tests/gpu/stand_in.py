"""A stand-in for CUDA, for rehearsals: training runs on the CPU, at a tiny size.

The allocator's events come from our simulation of the same scenario, so that a recording replays
and compares like a real one. It proves nothing about a GPU.
"""

import time
from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import torch
from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.out_of_memory import OutOfMemoryError
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.measuring import measurement, torch_profile
from optprof.profiler.measuring.trainer import Trainer
from optprof.profiler.simulating.replay import play
from optprof.profiler.simulating.simulation import run_simulation, simulated_allocator
from optprof.profiler.simulating.snapshot import DeviceHistory
from optprof.scenarios import Scenario, hardware, models, workpiece
from place import PLACE

GPU = hardware.describe("h100-80")
TINY: dict[str, dict[str, Any]] = {
    "gpt2": {"n_embd": 32, "n_layer": 1, "n_head": 2, "vocab_size": 128, "n_positions": 64},
    "llama": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "vocab_size": 128,
    },
    "vit": {
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 32,
    },
    "resnet": {"depths": [1, 1], "hidden_sizes": [8, 16], "embedding_size": 8},
}
# A batch of more sequences than this runs out of memory.
FITS = 16


class Event:
    """An event that the device reaches at once."""

    def __init__(self, *, enable_timing: bool = False) -> None:
        assert enable_timing
        self._at = 0.0

    def record(self) -> None:
        """Note the time."""
        self._at = time.perf_counter()

    def synchronize(self) -> None:
        """Wait for nothing."""

    def elapsed_time(self, end: "Event") -> float:
        """Return the milliseconds until another event, at least a nanosecond."""
        return max(1e-6, 1000 * (end._at - self._at))


class Graph:
    """A graph without kernels."""

    def replay(self) -> None:
        """Do nothing."""


class Script:
    """torch's answers about the allocator, phase by phase, from our simulation."""

    def __init__(self, scenario: Scenario) -> None:
        simulated = replace(scenario, device="sim", gpu=GPU.name)
        simulation = run_simulation(simulated)
        self._expandable = AllocatorSettings.parse(scenario.alloc_conf).expandable_segments
        self._history = DeviceHistory(expandable=self._expandable)
        allocator = simulated_allocator(simulated, self._history)
        blocks: dict[int, Block] = {}
        allocations = simulation.allocations
        # A recording has one phase for the model and the optimizer.
        self._ends: list[tuple[int, dict[str, int]]] = []
        for place, segment in enumerate(simulation.segments):
            if scenario.batch_size > FITS and segment.phase == "forward":
                self._run_out(allocator)
                break
            for event, block in play(segment, allocations, allocator, blocks):
                if event >= 0:
                    category = allocations.categories[event]
                    self._history.allocate(event, block, category, [], segment.phase)
                else:
                    self._history.free(~event)
            if place > 0:
                self._ends.append((len(self._history.entries), allocator.statistics()))
        self._phase = 0

    def _run_out(self, allocator: CachingAllocator) -> None:
        """Request more memory than there is, which ends the phase."""
        try:
            allocator.malloc(1 << 50)
        except OutOfMemoryError:
            entry = {"action": "oom", "size": 1 << 50, "device_free": 0, "stream": 0}
            self._history.entries.append(entry)
        self._ends.append((len(self._history.entries), allocator.statistics()))

    def statistics(self) -> dict[str, int]:
        """Return the statistics at the end of the current phase."""
        return self._ends[self._phase][1]

    def snapshot(self) -> dict[str, Any]:
        """Return the history until the end of the current phase, and go to the next phase."""
        at = min(self._phase, len(self._ends) - 1)
        self._phase += 1
        return {
            "device_traces": [self._history.entries[: self._ends[at][0]]],
            "allocator_settings": {"expandable_segments": self._expandable},
        }


_script: list[Script] = []


def prepare(scenario: Scenario) -> Scenario:
    """Return the scenario at a tiny size, and prepare its script."""
    entry = models.describe(scenario.model)
    assert entry is not None
    reads_text = entry.positions is not None
    tiny = replace(
        scenario,
        config={**scenario.config, **TINY[entry.architecture]},
        batch_size=scenario.batch_size if scenario.batch_size > FITS else 2,
        sequence_length=16 if reads_text else None,
    )
    _script[:] = [Script(tiny)] if tiny.workload == "train" else []
    return tiny


def install() -> None:
    """Replace torch.cuda's functions in this process and its forks."""
    PLACE.device, PLACE.prepare = "cpu", prepare
    for name, fake in _fakes().items():
        setattr(torch.cuda, name, fake)
    torch.cuda.memory._record_memory_history = lambda *_, **__: None
    torch.cuda.memory._snapshot = lambda *_, **__: _script[0].snapshot()  # pyright: ignore
    torch.cuda.memory._dump_snapshot = lambda *_: None
    torch._C._accelerator_setAllocatorSettings = lambda *_: None
    measurement.Trainer = lambda scenario, phase: Trainer(  # pyright: ignore
        replace(scenario, device="cpu"), phase
    )
    torch_profile.profile = _profile_on_the_cpu  # pyright: ignore
    workpiece.Workpiece.loss = _loss_until_full(workpiece.Workpiece.loss)


def _profile_on_the_cpu(*, activities: Any, **options: Any) -> Any:
    del activities
    return torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], **options)


def _loss_until_full(loss: Any) -> Any:
    """Wrap the loss function, which runs out of memory with a large batch."""

    def limited(self: workpiece.Workpiece, batch: Any) -> torch.Tensor:
        # Without a limit while the scenario's own script is made.
        if _script and len(next(iter(batch.values()))) > FITS:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1024.00 TiB")
        return loss(self, batch)

    return limited


def _fakes() -> dict[str, Any]:
    properties = SimpleNamespace(
        name="a stand-in", total_memory=GPU.memory_bytes, multi_processor_count=132, uuid="none"
    )
    free = GPU.memory_bytes - hardware.CONTEXT_BYTES

    def nothing(*_: Any, **__: Any) -> None:
        return None

    return {
        **dict.fromkeys(("init", "synchronize", "empty_cache", "_sleep"), nothing),
        **dict.fromkeys(("reset_peak_memory_stats",), nothing),
        **dict.fromkeys(("memory_allocated", "memory_reserved", "max_memory_allocated"), _no_bytes),
        "is_available": lambda: True,
        "is_initialized": lambda: False,
        "is_current_stream_capturing": lambda: False,
        "current_device": lambda: 0,
        "mem_get_info": lambda: (free, GPU.memory_bytes),
        "memory_stats": _statistics,
        "memory_snapshot": list,
        "get_device_name": lambda: properties.name,
        "get_device_capability": lambda: GPU.compute_capability,
        "get_device_properties": lambda *_: properties,
        "device_memory_used": lambda: GPU.memory_bytes - free,
        "Event": Event,
        "CUDAGraph": Graph,
        "graph": lambda *_: nullcontext(),
    }


def _no_bytes(*_: Any) -> int:
    return 0


def _statistics(*_: Any) -> dict[str, int]:
    """Return the script's statistics, or zeros without a script."""
    names = ("allocated", "reserved", "requested", "active")
    none = {f"{name}_bytes.all.{end}": 0 for name in names for end in ("current", "peak")}
    return {**none, **(_script[0].statistics() if _script else {})}
