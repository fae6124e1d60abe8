"""Measurements on the CPU: whole, and reduced when memory is short."""

import sys
from collections import namedtuple
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch

from optprof.profiler import measure
from optprof.profiler.measuring.slices import take_slices
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

GIB = 1 << 30
TINY = {
    "model": "resnet18",
    "optimizer": "sgd",
    "implementation": "loop",
    "device": "cpu",
    "steps": 3,
}


@pytest.fixture(autouse=True)
def brief(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let one iteration be the warm-up."""
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], int]:
    """Return a function that writes a user module, under a name that no other test has."""
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return lambda name, text: (tmp_path / f"{name}.py").write_text(text)


def with_free_memory(monkeypatch: pytest.MonkeyPatch, nbytes: int) -> None:
    monkeypatch.setattr(
        psutil, "virtual_memory", lambda: namedtuple("Memory", "available total")(nbytes, nbytes)
    )


def test_a_model_that_fits_is_trained_and_every_phase_timed():
    record = measure(Scenario(**TINY))
    assert (record.origin, record.scenario.workload) == ("measured", "train")
    assert record.times is not None
    phases = ("forward", "backward", "step", "zero_grad", "iteration")
    assert {phase: len(samples) for phase, samples in record.times.items()} == dict.fromkeys(
        phases, 3
    )
    assert record.warmup is not None
    assert set(record.warmup) == set(record.times)
    assert all(seconds > 0 for samples in record.times.values() for seconds in samples)


def test_on_the_cpu_living_tensors_are_counted_by_category():
    """SGD with momentum has a state as large as the weights, and temporaries of one tensor."""
    watched = measure(Scenario(**{**TINY, "options": {"momentum": 0.9}})).watched
    assert watched is not None
    assert (watched.samples, watched.tokens) == (1, None)
    parameters = 4 * 11_689_512
    buffers = sum(b.nbytes for b in build(Scenario(model="resnet18"), "meta").model.buffers())
    batch = 4 * 3 * 224 * 224 + 8
    ends = {phase: counters["tensors"].end for phase, counters in watched.memory.items()}
    # The loss is gone after the backward pass. The step ends with parameters, gradients, state,
    # buffers and batch.
    assert ends["backward"] == ends["step"] == 3 * parameters + buffers + batch
    assert ends["zero_grad"] == 2 * parameters + buffers + batch
    at_peak = watched.tensors_at_peak
    assert sum(at_peak.values()) == max(
        counters["tensors"].peak for counters in watched.memory.values()
    )
    assert (
        at_peak["parameter"],
        at_peak["optimizer_state"],
        at_peak["buffer"],
        at_peak["input"],
    ) == (parameters, parameters, buffers, batch)
    # The process has all of these bytes and more.
    assert all(
        counters["resident"].peak >= counters["resident"].end > counters["tensors"].end
        for counters in watched.memory.values()
    )


STEEP = """
import torch

class Steep(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        return 100 * self.layer(x).float().sum()

def build():
    return Steep(), {"x": torch.ones(2, 8)}
"""


def test_under_fp16_a_steep_loss_does_not_skip_the_first_step(own: Callable[[str, str], int]):
    """Gradients of 100 overflow fp16 if GradScaler multiplies them by its usual 65,536."""
    own("steep_model", STEEP)
    memory = measure(
        Scenario(**{**TINY, "model": "steep_model:build", "optimizer": "adamw", "amp": "fp16"})
    ).memory
    assert memory is not None
    assert memory.optimizer_state == 2 * 4 * (8 * 8 + 8) + 2 * 4


def test_without_a_reset_of_the_peak_no_phase_has_that_of_the_process(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr("optprof.profiler.measuring.resident.reset_peak", lambda: False)
    monkeypatch.setattr("optprof.profiler.measuring.resident.peak_bytes", lambda: 1 << 60)
    watched = measure(Scenario(**{**TINY, "workload": "state"})).watched
    assert watched is not None
    assert watched.memory["step"]["resident"].peak < 1 << 60


def test_without_memory_for_activations_only_the_step_is_timed(monkeypatch: pytest.MonkeyPatch):
    with_free_memory(monkeypatch, 2 * 3 * 11_689_512 * 4 + 1000)
    record = measure(Scenario(**TINY))
    assert (record.origin, record.scenario) == ("measured", Scenario(**TINY))
    assert record.times is not None
    assert set(record.times) == {"step"}
    assert record.memory is not None
    assert record.memory.optimizer_state == 11_689_512 * 4


def test_without_memory_for_the_state_slices_are_timed_and_scaled(monkeypatch: pytest.MonkeyPatch):
    with_free_memory(monkeypatch, 2 * GIB)
    record = measure(Scenario(**{**TINY, "model": "gpt2-xl"}))
    assert record.origin == "estimated"
    assert record.memory is None
    layer, room = 12 * 1600**2 + 13 * 1600, (384 << 20) / 12
    rows = int(50257 * room / ((50257 + 1024 + 2) * 1600))
    rest = rows * 1600 + int(1024 * rows / 50257) * 1600
    assert record.measured_share == pytest.approx((layer + rest) / 1_557_611_200, rel=1e-3)
    assert record.times is not None
    assert set(record.times) == {"step"}


def test_a_loop_for_want_of_a_compiler_says_so(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    scenario = Scenario(**{**TINY, "model": "tiny", "optimizer": "sm3", "workload": "state"})
    (warning,) = measure(scenario).warnings
    assert warning == (
        "the step ran as a loop: fused=True, which is faster, needs a C++ compiler with OpenMP;"
        " install g++, or set CXX"
    )


@pytest.mark.compiler
def test_a_step_that_is_fused_only_on_the_cpu_is_reduced_too(
    monkeypatch: pytest.MonkeyPatch,
):
    with_free_memory(monkeypatch, 2 * GIB)
    record = measure(
        Scenario(**{**TINY, "model": "gpt2-xl", "optimizer": "lamb16", "implementation": "fused"})
    )
    assert (record.origin, record.scenario.implementation) == ("estimated", "fused")
    assert record.measured_share is not None
    assert record.measured_share < 0.1


def test_without_memory_for_one_layer_it_runs_out(monkeypatch: pytest.MonkeyPatch):
    with_free_memory(monkeypatch, 100 << 20)
    with pytest.raises(
        MemoryError, match="a slice of gpt2-xl with sgd needs 351 MiB, 100 MiB are free"
    ):
        measure(Scenario(**{**TINY, "model": "gpt2-xl"}))


def test_a_slice_has_whole_layers_within_the_budget_and_at_least_one():
    model = build(Scenario(model="gpt2", workload="state"), "meta").model
    layer = 12 * 768**2 + 13 * 768
    for budget, layers in ((0, 1), (16 * layer * 5, 5), (16 * layer * 6 - 1, 5), (1 << 40, 12)):
        part = take_slices(model, bytes_per_parameter=16, budget=budget)[0]
        assert (part.count, part.scale) == (layers * layer, 12 / layers)


def test_parameters_outside_layers_are_a_slice_with_as_many_rows_as_fit():
    model = build(Scenario(model="gpt2", workload="state"), "meta").model
    outside = (50257 + 1024 + 2) * 768
    whole, half = (
        take_slices(model, bytes_per_parameter=16, budget=budget)[1]
        for budget in (16 * outside, 8 * outside)
    )
    assert (whole.count, whole.scale) == (outside, 1)
    assert [tuple(shape) for shape, _ in half.tensors] == [(25128, 768), (512, 768), (384,), (384,)]
    assert half.scale == outside / half.count


def test_slices_scaled_up_are_the_whole_model():
    for name in ("gpt2-xl", "llama2-7b", "vit-h14", "resnet50"):
        model = build(Scenario(model=name, workload="state"), "meta").model
        parts = take_slices(model, bytes_per_parameter=16, budget=384 << 20)
        assert sum(part.count * part.scale for part in parts) == pytest.approx(
            sum(p.numel() for p in model.parameters())
        )


def test_cuda_without_a_gpu_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match="no CUDA device on this machine; use --device sim or cpu"):
        measure(Scenario(model="gpt2", device="cuda"))


@pytest.mark.gpu
def test_cuda_measures_what_the_simulator_says_of_the_tensors():
    memory = measure(Scenario(model="gpt2", device="cuda", sequence_length=64)).memory
    assert memory is not None
    assert memory.optimizer_state == sum(
        8 * p.numel() + 4
        for p in build(Scenario(model="gpt2", workload="state"), "meta").model.parameters()
    )
    assert memory.peak_allocated is not None
    assert memory.peak_allocated > memory.resident
