"""Memory of tensors on the CPU while a scenario is measured, counted by hand."""

from pathlib import Path

import pytest
from torch.profiler import ProfilerActivity, profile

from optprof.profiler import measure
from optprof.profiler.records.record import Record
from optprof.scenarios import Scenario

OWN = """
import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile


class Line(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1000, 10))
        self.register_buffer("scale", torch.ones(7))

    def forward(self, x):
        return (self.weight * x["left"][0]).sum()


class Profiled(Line):
    def forward(self, x):
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True):
            return super().forward(x)


def line(): return Line(), {"x": {"left": [torch.ones(10)]}}
def profiled(): return Profiled(), {"x": {"left": [torch.ones(10)]}}


class Compiled(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["buffer"] = torch.zeros_like(p)
                torch.compile(update, fullgraph=True, backend="eager")(p, p.grad, state["buffer"])


def update(p, grad, buffer):
    buffer.add_(grad)
    p.sub_(buffer)


class Early(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        self.masters = [p.detach().double() for group in self.param_groups for p in group["params"]]


TABLE = []

class Hiding(torch.optim.SGD):
    is_fresh = True

    @torch.no_grad()
    def step(self, closure=None):
        if self.is_fresh:
            TABLE.append([torch.zeros_like(p) for p in self.param_groups[0]["params"]])
            self.is_fresh = False

class Wasteful(torch.optim.SGD):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.median()
"""
WEIGHT = 4 * 1000 * 10
BUFFER, BATCH = 28, 40


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "live_models.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)


def measured(optimizer: str, model: str = "line") -> Record:
    return measure(
        Scenario(
            model=f"live_models:{model}",
            optimizer=optimizer,
            implementation="loop",
            device="cpu",
            steps=2,
        )
    )


def test_a_step_that_is_compiled_as_one_graph_is_measured() -> None:
    record = measured("live_models:Compiled")
    assert record.memory is not None
    assert record.watched is not None
    assert record.memory.optimizer_state == WEIGHT
    step = record.watched.memory["step"]["tensors"]
    assert step.end == 3 * WEIGHT + BUFFER + BATCH
    assert record.watched.memory["zero_grad"]["tensors"].end == 2 * WEIGHT + BUFFER + BATCH
    assert record.watched.tensors_at_peak["optimizer_state"] == WEIGHT


def test_state_from_before_the_first_step_is_counted() -> None:
    watched = measured("live_models:Early").watched
    assert watched is not None
    assert watched.tensors_at_peak["optimizer_state"] == 2 * WEIGHT
    assert watched.memory["zero_grad"]["tensors"].end == 3 * WEIGHT + BUFFER + BATCH


def test_state_that_the_optimizer_does_not_refer_to_is_a_warning() -> None:
    record = measured("live_models:Hiding")
    assert record.watched is not None
    assert record.memory is not None
    assert record.memory.optimizer_state == 0
    warning = "steps left 40,000 B that the optimizer does not refer to; they are not in its state"
    assert warning in record.watched.warnings
    assert record.watched.memory["zero_grad"]["tensors"].end == 2 * WEIGHT + BUFFER + BATCH


@pytest.mark.parametrize(
    "optimizer", ["adamw", "sm3", "lamb16", "torch.optim:LBFGS", "live_models:Compiled"]
)
def test_steps_that_keep_all_in_their_state_leave_nothing_else(optimizer: str) -> None:
    watched = measured(optimizer).watched
    assert watched is not None
    assert not any("does not refer to" in warning for warning in watched.warnings)


def test_a_kernel_s_own_memory_is_counted() -> None:
    """The median is one number, and its kernel sorts a copy of the weight."""
    watched = measured("live_models:Wasteful").watched
    assert watched is not None
    step = watched.memory["step"]["tensors"]
    assert step.end + WEIGHT <= step.peak < step.end + WEIGHT + 64


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_profiler_of_the_user_has_precedence() -> None:
    with profile(activities=[ProfilerActivity.CPU]) as own:
        outside = measured("sgd").watched
    assert any(event.key == "aten::mul" for event in own.key_averages())
    inside = measured("sgd", "profiled").watched
    for watched, reason in (
        (outside, "a profiler was running already"),
        (inside, "a profiler inside the training"),
    ):
        assert watched is not None
        assert watched.tensors_at_peak == {}
        assert set(watched.memory["step"]) == {"resident"}
        assert reason in watched.warnings[0]
