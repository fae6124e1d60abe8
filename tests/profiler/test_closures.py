"""Optimizers that need more than `step()`: a closure, or `train()` before it."""

from pathlib import Path
from typing import Any

import pytest

from optprof.profiler import measure
from optprof.scenarios import Scenario

OWN = """
import time

import torch
from torch import nn


class Slow(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(5))

    def forward(self, x):
        time.sleep(0.01)
        return (self.weight * x).square().sum()


def slow(): return Slow(), {"x": torch.arange(1.0, 6.0)}


class Searching(torch.optim.SGD):
    def step(self, closure):
        losses = [closure() for _ in range(3)]
        assert all(isinstance(loss, torch.Tensor) and not loss.requires_grad for loss in losses)
        return losses[-1]


class Perturbing(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        assert closure is not None
        for group in self.param_groups:
            for p in group["params"]:
                assert p.grad is not None
                p.add_(p.grad, alpha=1e-3)
        closure()
        super().step()


class Scheduled(torch.optim.SGD):
    modes = []

    def train(self): self.modes.append("train")

    def eval(self): self.modes.append("eval")

    def step(self, closure=None):
        assert self.modes[-1] == "train", "call train() before training"
        return super().step(closure)
"""


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "closing.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)


def scenario(optimizer: str, **changes: Any) -> Scenario:
    usual: dict[str, Any] = {
        "model": "closing:slow",
        "implementation": "loop",
        "device": "cpu",
        "steps": 2,
    }
    return Scenario(**{**usual, "optimizer": optimizer, **changes})


@pytest.mark.parametrize(
    ("optimizer", "passes"), [("closing:Searching", 3), ("closing:Perturbing", 2)]
)
def test_the_passes_of_a_closure_are_not_in_the_step_s_phase(optimizer: str, passes: int) -> None:
    record = measure(scenario(optimizer))
    assert record.times is not None
    for forward, step, iteration in zip(
        record.times["forward"], record.times["step"], record.times["iteration"], strict=True
    ):
        assert forward >= passes * 0.01
        assert step < 0.01
        assert iteration >= forward + step
    assert record.memory is not None
    assert record.memory.gradients == 20


def test_the_history_of_lbfgs_is_measured() -> None:
    """Two steps of two iterations leave pairs of 20-byte differences, and a number per pair."""
    memory = measure(scenario("torch.optim:LBFGS", options={"max_iter": 2, "lr": 1e-3})).memory
    assert memory is not None
    assert (
        memory.state_by_key["old_dirs"]
        == memory.state_by_key["old_stps"]
        == 5 * memory.state_by_key["ro"]
    )
    assert {key: memory.state_by_key[key] for key in ("d", "prev_flat_grad")} == {
        "d": 20,
        "prev_flat_grad": 20,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"workload": "state"},
            ("steps with a closure that runs the model; it cannot step alone, use workload train"),
        ),
        (
            {"amp": "fp16"},
            "steps with a closure, which fp16 autocast cannot give it; leave out fp16 autocast",
        ),
        (
            {"accumulate": "gnr"},
            "steps with a closure, which accumulate cannot give it; leave out accumulate",
        ),
    ],
)
def test_options_that_exclude_a_closure_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        measure(scenario("closing:Perturbing", **changes))


@pytest.mark.parametrize("workload", ["train", "state"])
def test_an_optimizer_with_modes_is_in_training_mode(workload: str) -> None:
    memory = measure(
        scenario("closing:Scheduled", options={"momentum": 0.9}, workload=workload)
    ).memory
    assert memory is not None
    assert memory.optimizer_state == 20


def test_a_training_run_evaluates_in_evaluation_mode() -> None:
    record = measure(
        scenario("closing:Scheduled", model="tiny", accumulate="gnr", steps=4, sequence_length=32)
    )
    assert record.course is not None
    import closing  # pyright: ignore[reportMissingImports]

    readings = len(record.course.held_out)
    assert closing.Scheduled.modes[-2 * readings :] == ["eval", "train"] * readings
