"""A simulated device that runs out of memory: its record, with exact bytes up to that moment."""

from dataclasses import replace
from pathlib import Path

import pytest

from optprof.profiler import Memory, Record, simulate
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.records.store import RunStore
from optprof.profiler.running.runner import run
from optprof.profiler.simulating.replay import replay
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario, hardware

MIB, GIB = 1 << 20, 1 << 30


def stream(*sizes: int) -> Allocations:
    count = len(sizes)
    return Allocations(
        list(sizes), ["activation"] * count, [Source("h.0", "aten::mul", "model.py:7")] * count
    )


def test_counts_are_those_up_to_the_failed_request():
    segments = [
        Segment("build", [0]),
        Segment("forward", [1, ~1, 2]),
        Segment("backward", [~2, 3, 4]),
    ]
    allocations = stream(10 * MIB, 30 * MIB, 12 * MIB, 16 * MIB, 22 * MIB)
    replayed = replay(
        segments, allocations, [0], CachingAllocator(total=64 * MIB, occupied=4 * MIB)
    )
    # 10 and 30 are reserved. 12 and then 16 are allocated in the free 30. 22 fit neither into the
    # remaining 14 nor into the device's last 20.
    assert (
        replayed.error
        == "out of memory in backward of step 1, for activation of 22.00 MiB (aten::mul, h.0):"
        " tried to allocate 22.00 MiB; the device has a total capacity of 64.00 MiB of which"
        " 20.00 MiB is free; 26.00 MiB is allocated, 14.00 MiB is reserved but unallocated"
    )
    assert (replayed.peak_allocated, replayed.peak_phase, replayed.peak_reserved) == (
        40 * MIB,
        "forward",
        40 * MIB,
    )
    assert replayed.peak_by_phase == {"build": 10 * MIB, "forward": 40 * MIB, "backward": 26 * MIB}
    assert replayed.peak_by_category == {"activation": 40 * MIB}
    assert replayed.kept is None


def test_kept_bytes_are_those_of_the_last_whole_step_before_a_failure():
    segments = [Segment("step", [0]), Segment("step", [1])]
    replayed = replay(
        segments, stream(10 * MIB, 30 * MIB), [0, 1], CachingAllocator(total=32 * MIB)
    )
    assert replayed.error is not None
    assert replayed.error.startswith("out of memory in step 2, for")
    assert replayed.kept == 10 * MIB


def test_a_device_too_small_for_the_first_allocation_has_counts_of_0():
    replayed = replay(
        [Segment("build", [0])], stream(10 * MIB), [0], CachingAllocator(total=8 * MIB)
    )
    assert replayed.error is not None
    assert replayed.error.startswith("out of memory in build, for ")
    assert (
        replayed.peak_allocated,
        replayed.peak_reserved,
        replayed.peak_by_category,
        replayed.peak_by_phase,
    ) == (0, 0, {}, {"build": 0})


def on_gpu(monkeypatch: pytest.MonkeyPatch, memory_bytes: int, **fields: object) -> Record:
    # The compute capability is the default one, which decides the size of cuBLAS's workspaces.
    monkeypatch.setitem(
        hardware._CATALOGUE, "h200", replace(hardware.describe("h200"), memory_bytes=memory_bytes)
    )
    return simulate(Scenario(model="gpt2", sequence_length=64, gpu="h200", **fields))  # pyright: ignore[reportArgumentType]


def memory_of(record: Record) -> Memory:
    assert record.memory is not None
    return record.memory


def test_a_scenario_that_fits_is_the_same_with_and_without_a_gpu(monkeypatch: pytest.MonkeyPatch):
    endless = memory_of(simulate(Scenario(model="gpt2", sequence_length=64)))
    assert endless.peak_reserved is not None
    just_enough = on_gpu(monkeypatch, endless.peak_reserved + hardware.CONTEXT_BYTES)
    assert (just_enough.outcome, just_enough.error, just_enough.memory) == ("ok", None, endless)


def test_a_step_that_runs_out_has_a_record_with_the_bytes_that_it_needs(
    monkeypatch: pytest.MonkeyPatch,
):
    endless = memory_of(simulate(Scenario(model="gpt2", sequence_length=64)))
    assert endless.peak_allocated is not None
    total = endless.peak_allocated - 1 + hardware.CONTEXT_BYTES
    record = on_gpu(monkeypatch, total)
    memory = memory_of(record)
    assert record.outcome == "out-of-memory"
    assert record.error is not None
    assert record.error.startswith("out of memory in step 1, for ")
    assert "\n" not in record.error
    assert (memory.parameters, memory.optimizer_state) == (
        endless.parameters,
        endless.optimizer_state,
    )
    assert memory.peak_reserved is not None
    assert memory.peak_reserved <= total - hardware.CONTEXT_BYTES
    assert (
        memory.peak_allocated
        == sum(memory.peak_by_category.values())
        == max(memory.peak_by_phase.values())
    )
    assert set(memory.peak_by_phase) == {"build", "forward", "backward", "step"}
    assert memory.optimizer_state_allocated is None
    assert memory.needed == endless.peak_reserved
    assert endless.needed is None
    assert Record.from_dict(record.to_dict()) == record


def test_a_step_may_fit_only_with_expandable_segments(
    monkeypatch: pytest.MonkeyPatch,
):
    expandable = memory_of(
        simulate(Scenario(model="gpt2", sequence_length=64, alloc_conf="expandable_segments:True"))
    )
    assert expandable.peak_reserved is not None
    total = expandable.peak_reserved + hardware.CONTEXT_BYTES
    assert on_gpu(monkeypatch, total, alloc_conf="expandable_segments:True").outcome == "ok"
    assert on_gpu(monkeypatch, total).outcome == "out-of-memory"


def test_a_run_continues_after_a_device_that_ran_out(tmp_path: Path):
    scenarios = [
        Scenario(model="gpt2-xl", optimizer="sgd", workload="state", dtype="fp32", gpu=gpu)
        for gpu in ("rtx3060", "rtx3090")
    ]
    records = run(scenarios, RunStore.create(tmp_path / "run"), lambda _place, _scenario: None)
    # Parameters, gradients and momentum are 3 times 5.93 GiB: too much for 12 GB, not for 24.
    assert [record.outcome for record in records] == ["out-of-memory", "ok"]
    assert RunStore(tmp_path / "run").read() == records


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gpu": "rtx3009"}, "no GPU is named 'rtx3009'; did you mean rtx3090"),
        (
            {"alloc_conf": "max_split_size:64"},
            "alloc_conf has no setting 'max_split_size'; did you mean max_split_size_mb",
        ),
    ],
)
def test_an_unknown_device_is_refused_before_a_trace(fields: dict[str, str], message: str):
    with pytest.raises(ValueError, match=message):
        simulate(Scenario(model="llama2-13b", **fields))  # pyright: ignore[reportArgumentType]
