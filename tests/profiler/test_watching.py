"""Watching a user's training: bytes counted by hand, times on a test clock, and no leftovers."""

import gc
import subprocess
import sys
import time
import weakref
from pathlib import Path

import pytest
import torch

import optprof
from optprof.optimizers import SM3
from optprof.profiler.measuring.watching import Watch
from optprof.profiler.records.store import RunStore


def train(
    model: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int, pause: float = 0.0
) -> None:
    for _ in range(steps):
        model(torch.ones(4, 8)).square().mean().backward()
        time.sleep(pause)
        optimizer.step()
        optimizer.zero_grad()


def layers() -> torch.nn.Module:
    """Return layers of 8 x 16 and 16 x 2, without biases: 160 parameters, 640 bytes."""
    return torch.nn.Sequential(
        torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 2, bias=False)
    )


def test_the_state_of_a_loop_is_exact_to_the_byte():
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    with Watch(optimizer, model=model, batch_size=4) as watch:
        train(model, optimizer, 5)
    record, memory = watch.records[0], watch.records[0].memory
    assert memory is not None
    # Two moments of 640 bytes, and a float32 step count for each of the two weights.
    assert (memory.optimizer_state, memory.state_by_key) == (
        1_288,
        {"exp_avg": 640, "exp_avg_sq": 640, "step": 8},
    )
    assert (memory.parameters, memory.gradients, record.parameter_count) == (640, 640, 160)
    assert (record.origin, record.outcome, record.error) == ("measured", "ok", None)
    scenario = record.scenario
    assert (scenario.model, scenario.optimizer, scenario.implementation) == (
        "torch.nn.modules.container:Sequential",
        "adamw",
        "loop",
    )
    assert (scenario.device, scenario.dtype, scenario.batch_size, scenario.options["lr"]) == (
        "cpu",
        "fp32",
        4,
        1e-3,
    )


def test_optimizers_are_recorded_by_their_names():
    model = layers()
    with Watch(SM3(model.parameters())) as ours:
        pass
    with Watch(type("Mine", (torch.optim.SGD,), {})(model.parameters(), lr=0.1)) as theirs:
        pass
    assert ours.records[0].scenario.optimizer == "sm3"
    assert ours.records[0].scenario.model == "own:model"
    assert theirs.records[0].scenario.optimizer == f"{__name__}:Mine"


def test_two_steps_are_the_warm_up_and_an_iteration_includes_the_loop_s_code():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    start = time.perf_counter()
    with Watch(optimizer) as watch:
        train(model, optimizer, 6, pause=0.01)
    passed = time.perf_counter() - start
    times, warmup = watch.records[0].times, watch.records[0].warmup
    assert times is not None
    assert warmup is not None
    assert {name: len(samples) for name, samples in times.items()} == {"step": 4, "iteration": 4}
    assert {name: len(samples) for name, samples in warmup.items()} == {"step": 2, "iteration": 2}
    assert all(
        0 < step < 0.01 <= iteration
        for step, iteration in zip(times["step"], times["iteration"], strict=True)
    )
    assert sum(times["iteration"]) + sum(warmup["iteration"]) <= passed


def test_two_steps_are_only_a_warm_up_and_no_steps_are_a_record_too():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Watch(optimizer) as watch:
        train(model, optimizer, 2)
    assert (watch.records[0].times, list(watch.records[0].warmup or {})) == (
        None,
        ["step", "iteration"],
    )
    with Watch(optimizer) as idle:
        pass
    assert (idle.records[0].outcome, idle.records[0].times, idle.records[0].warmup) == (
        "failed",
        None,
        None,
    )
    assert idle.records[0].memory is not None
    assert idle.records[0].memory.optimizer_state == 640


def test_memory_that_the_process_takes_between_steps_is_recorded():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Watch(optimizer) as watch:
        for _ in range(3):
            buffer = torch.ones(32 << 20, dtype=torch.uint8)
            train(model, optimizer, 1)
            del buffer
    watched = watch.records[0].watched
    assert watched is not None
    levels = {phase: counters["resident"] for phase, counters in watched.memory.items()}
    assert list(levels) == ["between_steps", "step", "later_steps"]
    assert levels["later_steps"].peak >= levels["later_steps"].end
    assert levels["between_steps"].peak >= 32 << 20


@pytest.mark.parametrize("fails", [False, True])
def test_the_optimizer_has_no_hooks_after_the_watch(fails: bool):
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters())
    before = dict(vars(optimizer))
    watch = Watch(optimizer)
    try:
        with watch:
            train(model, optimizer, 3)
            if fails:
                raise KeyError("mine")
    except KeyError:
        assert fails
    assert vars(optimizer).keys() == before.keys()
    assert not optimizer._optimizer_step_pre_hooks
    assert not optimizer._optimizer_step_post_hooks
    train(model, optimizer, 2)
    assert len((watch.records[0].times or {})["step"]) == 1
    gone = weakref.ref(optimizer)
    del optimizer, watch, before
    gc.collect()
    assert gone() is None


def test_an_exception_reaches_the_caller_and_is_a_record(tmp_path: Path):
    model = layers()
    optimizer = torch.optim.AdamW(model.parameters())

    def trains_and_fails(error: BaseException) -> None:
        with optprof.watch(optimizer, out=tmp_path):
            train(model, optimizer, 4)
            raise error

    with pytest.raises(ZeroDivisionError):
        trains_and_fails(ZeroDivisionError("by hand"))
    with pytest.raises(MemoryError):
        trains_and_fails(MemoryError())
    lost, full = RunStore(tmp_path).read()
    assert lost.outcome == "failed"
    assert lost.error is not None
    assert lost.error.startswith("ZeroDivisionError: by hand (")
    assert "test_watching.py, line " in lost.error
    assert full.outcome == "out-of-memory"
    assert lost.memory is not None
    assert lost.watched is not None
    assert lost.memory.optimizer_state == 1_288
    # The results so far stay.
    assert {phase: len(samples) for phase, samples in (lost.times or {}).items()} == {
        "step": 2,
        "iteration": 2,
    }
    assert list(lost.watched.memory) == ["between_steps", "step", "later_steps"]


def test_sizes_of_a_model_are_different_scenarios_and_lengths_of_a_loop_are_not(
    tmp_path: Path,
):
    for width, steps in ((8, 3), (16, 3), (16, 5)):
        model = torch.nn.Linear(8, width, bias=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        with optprof.watch(optimizer, model=model, out=tmp_path):
            train(model, optimizer, steps)
    small, large = optprof.read_run(tmp_path).records
    assert (small.parameter_count, large.parameter_count) == (64, 128)
    assert len((large.times or {})["step"]) == 3


def test_the_ranks_of_a_training_may_write_into_one_folder(tmp_path: Path):
    code = (
        "import sys, torch, optprof\n"
        "optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(int(sys.argv[1])))], lr=0.1)\n"
        "sys.stdin.read()\n"
        "with optprof.watch(optimizer, out=sys.argv[2]): optimizer.step()\n"
    )
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", code, str(rank), str(tmp_path / "run")], stdin=subprocess.PIPE
        )
        for rank in (1, 2, 3)
    ]
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
    assert [rank.wait() for rank in ranks] == [0, 0, 0]
    assert sorted(record.parameter_count or 0 for record in RunStore(tmp_path / "run").read()) == [
        1,
        2,
        3,
    ]


def test_a_step_that_raises_and_is_caught_does_not_end_the_watch():
    model = layers()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    def closure() -> float:
        raise ValueError("no loss")

    with Watch(optimizer) as watch:
        with pytest.raises(ValueError, match="no loss"):
            optimizer.step(closure)
        train(model, optimizer, 4)
    assert len((watch.records[0].times or {})["step"]) == 2


@pytest.mark.parametrize(
    ("optimizer", "error"),
    [
        (torch.nn.Linear(2, 2), "watch takes a torch.optim.Optimizer, got Linear"),
        (torch.optim.SGD([torch.zeros(2, device="meta")], lr=0.1), "got parameters on meta"),
    ],
)
def test_an_optimizer_that_cannot_be_watched_is_refused_before_training(
    optimizer: torch.optim.Optimizer, error: str
):
    with pytest.raises(ValueError, match=error):
        Watch(optimizer)


@pytest.mark.gpu
def test_on_cuda_the_state_s_blocks_and_the_allocator_s_peaks_are_recorded():
    model = torch.nn.Linear(1024, 1024, bias=False, device="cuda")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    with Watch(optimizer, model=model) as watch:
        for _ in range(5):
            model(torch.ones(4, 1024, device="cuda")).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    memory, watched = watch.records[0].memory, watch.records[0].watched
    assert memory is not None
    assert watched is not None
    assert (memory.optimizer_state, memory.optimizer_state_allocated) == (4 << 20, 4 << 20)
    assert memory.peak_allocated is not None
    assert memory.peak_allocated >= 12 << 20
    assert memory.peak_reserved is not None
    assert memory.peak_reserved >= memory.peak_allocated
    assert watch.records[0].scenario.implementation == "foreach"
    assert len((watch.records[0].times or {})["step"]) == 3
