"""CUDA measured without a GPU: the code runs on the CPU, with fake counters and events."""

import pickle
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.autograd.profiler_util import FunctionEvent
from torch.profiler import ProfilerActivity, profile

from optprof.profiler import measure
from optprof.profiler.measuring import (
    cuda_memory,
    measurement,
    torch_profile,
    trainer,
    watching,
)
from optprof.profiler.measuring.cuda_memory import apply_alloc_conf, state_blocks
from optprof.profiler.measuring.files import Files
from optprof.profiler.records.record import GpuReading, StateBlocks
from optprof.scenarios import Scenario

SCENARIO = Scenario(
    model="resnet18",
    optimizer="sgd",
    implementation="loop",
    workload="state",
    device="cuda",
    steps=3,
)

SNAPSHOT = {
    "segments": [{"blocks": [{"frames": [{"filename": "train.py", "line": 1, "name": "step"}]}]}]
}


class Event:
    """An event, recorded 2 ms after the last one."""

    def __init__(self, ticks: Iterator[int], *, enable_timing: bool) -> None:
        assert enable_timing
        self._ticks = ticks

    def record(self) -> None:
        self.at = next(self._ticks)

    def synchronize(self) -> None:
        """Wait for nothing."""

    def elapsed_time(self, end: "Event") -> float:
        return 2.0 * (end.at - self.at)


class Device:
    """Counters that rise by one MiB in each step; their peak is one MiB higher."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps = 0
        self.idle = True
        self.calls: list[str] = []
        fakes = {
            "is_available": lambda: True,
            "is_initialized": lambda: False,
            "empty_cache": lambda: None,
            "synchronize": self.wait,
            "current_device": lambda: 0,
            "is_current_stream_capturing": lambda: False,
            "reset_peak_memory_stats": lambda _: self.calls.append("reset"),
            "memory_allocated": lambda _: self.steps << 20,
            "memory_stats": self.stats,
            "memory_snapshot": list,
            "get_device_name": lambda: "A GPU",
            "get_device_properties": lambda: SimpleNamespace(total_memory=1 << 34),
            "Event": partial(Event, count()),
        }
        for name, fake in fakes.items():
            monkeypatch.setattr(torch.cuda, name, fake)
        monkeypatch.setattr(torch.cuda.memory, "_record_memory_history", self.history)
        frames = [{"filename": f"{Path.home()}/secret/train.py", "line": 1, "name": "step"}]
        monkeypatch.setattr(
            torch.cuda.memory, "_snapshot", lambda: {"segments": [{"blocks": [{"frames": frames}]}]}
        )
        monkeypatch.setattr(measurement, "Trainer", self.run)
        monkeypatch.setattr(
            "optprof.profiler.machine.nvml.reading_gpu", lambda: nullcontext(self.reading)
        )

    def wait(self) -> None:
        self.idle = True

    def reading(self) -> GpuReading:
        """Return the clock of a busy or an idle GPU."""
        clock = 210 if self.idle else 1980
        return GpuReading(
            clock_mhz=clock,
            memory_clock_mhz=None,
            temperature_celsius=None,
            slowed_by=(),
            other_processes=0,
            process_bytes=None,
        )

    def run(self, scenario: Scenario, phase: Any) -> trainer.Trainer:
        made = trainer.Trainer(replace(scenario, device="cpu"), phase)
        step = made.optimizer.step

        def counted() -> None:
            step()
            self.steps += 1
            self.idle = False

        made.optimizer.step = counted  # pyright: ignore[reportAttributeAccessIssue]
        return made

    def stats(self, _: int) -> dict[str, int]:
        levels = {
            "allocated": self.steps << 20,
            "reserved": 20 << 20,
            "requested": (self.steps << 20) - 100,
            "active": self.steps << 20,
        }
        stats = {}
        for name, nbytes in levels.items():
            stats |= {
                f"{name}_bytes.all.current": nbytes,
                f"{name}_bytes.all.peak": nbytes + (1 << 20),
            }
        return stats

    def history(self, enabled: Any = "all", **_: Any) -> None:
        self.calls.append("history" if enabled else "no history")


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_SECONDS", 0.0)
    return Device(monkeypatch)


def test_memory_is_watched_in_two_steps_only(device: Device, tmp_path: Path):
    record = measure(SCENARIO, files=Files(snapshot=tmp_path / "snapshot.pickle"))
    assert device.calls == ["history", "reset", "reset", "no history"]
    assert pickle.loads((tmp_path / "snapshot.pickle").read_bytes()) == SNAPSHOT
    assert record.watched is not None
    levels = record.watched.memory["step"]
    assert {name: (level.end >> 20, level.peak >> 20) for name, level in levels.items()} == {
        "allocated": (2, 3),
        "reserved": (20, 21),
        "requested": (1, 2),
        "active": (2, 3),
    }
    assert record.memory is not None
    assert (
        record.memory.peak_allocated,
        record.memory.peak_phase,
        record.memory.peak_reserved,
    ) == (
        3 << 20,
        "step",
        21 << 20,
    )
    assert record.watched.state_blocks is not None
    assert record.watched.state_blocks.delta == 1 << 20


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize(("optimizer", "delta"), [("sgd", 1 << 20), ("adagrad", 2 << 20)])
def test_state_made_by_the_constructor_counts_like_that_of_the_first_step(
    optimizer: str, delta: int, monkeypatch: pytest.MonkeyPatch
):
    """As soon as there is state, it is one block of one MiB; the first step allocates one MiB."""
    storage = SimpleNamespace(
        device=torch.device("cuda"), data_ptr=lambda: 4096, nbytes=lambda: 1 << 20
    )
    monkeypatch.setattr(
        cuda_memory, "storages_of_state", lambda made, _: [storage] if made.state else []
    )
    blocks = [{"size": 1 << 20, "state": "active_allocated"}]
    monkeypatch.setattr(
        torch.cuda, "memory_snapshot", lambda: [{"address": 4096, "blocks": blocks}]
    )
    watched = measure(replace(SCENARIO, optimizer=optimizer)).watched
    assert watched is not None
    assert watched.state_blocks is not None
    assert (watched.state_blocks.delta, watched.state_blocks.allocated) == (delta, 1 << 20)


def test_whole_steps_have_peaks_by_phase(device: Device):
    record = measure(replace(SCENARIO, workload="train"))
    assert record.memory is not None
    # The second iteration has the higher peaks: with one step before it, and with its own step from
    # the phase "step" on.
    peaks = {"forward": 2, "backward": 2, "step": 3, "zero_grad": 3}
    assert (record.memory.peak_by_phase, record.memory.peak_phase) == (
        {phase: peak << 20 for phase, peak in peaks.items()},
        "step",
    )
    assert record.times is not None
    assert set(record.times) == {*peaks, "iteration"}
    assert device.calls.count("reset") == 2 * len(peaks)


@pytest.mark.parametrize("gives_closure", [False, True])
def test_a_user_s_loop_is_watched_on_the_device(
    device: Device, gives_closure: bool, monkeypatch: pytest.MonkeyPatch
):
    """The three MiB that the closure allocates do not count as the first step's."""
    monkeypatch.setattr("optprof.profiler.measuring.live_subject._device", lambda _: "cuda")

    class Counted(torch.optim.SGD):
        def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
            if closure is not None:
                closure()
            device.steps += 1

    def closure() -> None:
        device.steps += 3

    model = torch.nn.Linear(2, 2)
    optimizer = Counted(model.parameters(), lr=0.1)
    with watching.Watch(optimizer, model=model) as watch:
        for _ in range(4):
            optimizer.step(closure if gives_closure else None)
    (record,) = watch.records
    assert record.watched is not None
    assert record.watched.warnings == ("no parameter had a gradient when Counted stepped",)
    assert record.watched.state_blocks is not None
    assert record.watched.state_blocks.delta == 1 << 20
    assert record.memory is not None
    # The level at the end of the fourth step, plus one MiB.
    assert (record.memory.peak_allocated, record.memory.peak_phase) == (
        (17 if gives_closure else 5) << 20,
        "later_steps",
    )
    # Two ms between events; a closure has one before and one after it.
    steps, iterations = (0.004, 0.008) if gives_closure else (0.002, 0.004)
    assert record.times == {"step": (steps,) * 2, "iteration": (iterations,) * 2}


def test_times_are_those_between_events_on_the_stream(device: Device):
    assert device.steps == 0
    record = measure(SCENARIO)
    assert record.times == {"step": (0.002, 0.002, 0.002)}


def test_the_gpu_is_read_while_it_works(device: Device):
    assert device.idle
    watched = measure(replace(SCENARIO, steps=30)).watched
    assert watched is not None
    # With the first three samples; equal times need only six.
    assert [reading.clock_mhz for reading in watched.gpu] == [1980] * 3
    assert not any("clock" in warning for warning in watched.warnings)


@pytest.fixture(
    params=[
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
        RuntimeError("CUDA error: out of memory"),
    ]
)
def full(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> type[Exception]:
    """Let the first iteration raise an error of a full device, and return its type."""

    class Full(trainer.Trainer):
        def iterate(self) -> None:
            raise request.param

    monkeypatch.setattr(
        measurement,
        "Trainer",
        lambda scenario, phase: Full(replace(scenario, device="cpu"), phase),
    )
    return type(request.param)


def test_a_snapshot_is_written_when_memory_runs_out(
    device: Device, full: type[Exception], tmp_path: Path
):
    path = tmp_path / "snapshots" / "full.pickle"
    with pytest.raises(full, match="out of memory"):
        measure(SCENARIO, files=Files(snapshot=tmp_path / "none.pickle", when_full=path))
    assert pickle.loads(path.read_bytes()) == SNAPSHOT
    assert not (tmp_path / "none.pickle").exists()
    assert device.calls == ["history", "no history"]


@pytest.mark.usefixtures("device")
def test_a_failed_snapshot_does_not_hide_that_memory_ran_out(full: type[Exception], tmp_path: Path):
    (tmp_path / "file").touch()
    files = Files(when_full=tmp_path / "file" / "full.pickle")
    with pytest.raises(full, match="out of memory"):
        measure(SCENARIO, files=files)
    assert files.lost == [(tmp_path / "file" / "full.pickle", "Not a directory")]


def test_a_failed_snapshot_does_not_end_the_measurement(device: Device, tmp_path: Path):
    (tmp_path / "file").touch()
    files = Files(snapshot=tmp_path / "file" / "snapshot.pickle")
    assert measure(SCENARIO, files=files).times
    assert len(files.lost) == 1
    assert device.calls[-1] == "no history"


@pytest.mark.usefixtures("device")
def test_a_trace_on_cuda_records_kernels_and_their_times(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    """Without CUDA torch records no kernels; here those of each operation take 7 us."""
    recorded: list[ProfilerActivity] = []

    def on_the_cpu(*, activities: list[ProfilerActivity], **options: Any) -> profile:
        recorded.extend(activities)
        return profile(activities=[ProfilerActivity.CPU], **options)

    monkeypatch.setattr(torch_profile, "profile", on_the_cpu)
    monkeypatch.setattr(FunctionEvent, "self_device_time_total", property(lambda _: 7.0))
    record = measure(SCENARIO, files=Files(trace=tmp_path / "trace"))
    assert recorded == [ProfilerActivity.CPU, ProfilerActivity.CUDA]
    assert record.watched is not None
    assert record.watched.operations
    assert all(one.seconds == pytest.approx(one.calls * 7e-6) for one in record.watched.operations)
    assert [file.suffixes[-2:] for file in (tmp_path / "trace").iterdir()] == [[".json", ".gz"]]


def test_the_allocator_is_set_before_cuda_starts_and_not_after(monkeypatch: pytest.MonkeyPatch):
    settings: list[str] = []
    started = False
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)
    monkeypatch.delenv("PYTORCH_CUDA_ALLOC_CONF", raising=False)
    monkeypatch.setattr(cuda_memory, "_applied", None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: started)
    monkeypatch.setattr(torch._C, "_accelerator_setAllocatorSettings", settings.append)
    apply_alloc_conf("")
    apply_alloc_conf("expandable_segments:True")
    with pytest.raises(
        ValueError,
        match=("would keep expandable_segments; set that in alloc_conf 'max_split_size_mb:64' too"),
    ):
        apply_alloc_conf("max_split_size_mb:64")
    started = True
    apply_alloc_conf("expandable_segments:True")
    assert settings == ["expandable_segments:True"]
    with pytest.raises(
        ValueError,
        match="must be set before CUDA starts; measure this scenario in a process of its own",
    ):
        apply_alloc_conf("max_split_size_mb:64")


def test_settings_of_the_environment_are_not_applied_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setattr(cuda_memory, "_applied", None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    apply_alloc_conf("expandable_segments:True")


def test_settings_of_only_the_environment_are_refused(monkeypatch: pytest.MonkeyPatch):
    """The scenario would run with settings that its record does not have."""
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    monkeypatch.setattr(cuda_memory, "_applied", None)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: False)
    with pytest.raises(
        ValueError,
        match="torch has the settings 'expandable_segments:True' and would keep expandable_seg",
    ):
        apply_alloc_conf("")


def test_blocks_of_the_state_are_found_by_their_addresses(monkeypatch: pytest.MonkeyPatch):
    """Two moments of 1,000 bytes are in blocks of 1,024; a step count of 4 bytes is on the host."""
    first, second, steps = (
        SimpleNamespace(
            device=torch.device(kind), data_ptr=lambda at=at: at, nbytes=lambda size=size: size
        )
        for kind, at, size in (("cuda", 4096, 1000), ("cuda", 4096 + 1536, 1000), ("cpu", 4096, 4))
    )
    monkeypatch.setattr(cuda_memory, "storages_of_state", lambda *_: [first, second, steps])
    blocks = [
        {"size": 1024, "state": "active_allocated"},
        {"size": 512, "state": "inactive"},
        {"size": 1024, "state": "active_allocated"},
    ]
    monkeypatch.setattr(
        torch.cuda, "memory_snapshot", lambda: [{"address": 4096, "blocks": blocks}]
    )
    blocks = state_blocks(torch.optim.SGD([torch.zeros(1)]), delta=2048 + 8192)
    assert blocks == StateBlocks(tensors=2004, on_host=4, rounding=48, delta=10_240)
    # `other` is a workspace of 8 KiB.
    assert (blocks.allocated, blocks.other) == (2048, 8192)
