"""A training step, compared with torch.profiler's events of a real step on the CPU."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from itertools import groupby
from typing import Any

import pytest
import torch
import torch.utils.checkpoint

from optprof.profiler.tracing.autocast import cuda_autocast
from optprof.profiler.tracing.kernels import foreach_on_meta
from optprof.profiler.tracing.samples import Samples
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.training.iteration import Iteration, needs_closure
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import Workpiece


class Network(torch.nn.Module):
    """Three layers, with or without checkpointing."""

    def __init__(self, checkpointing: bool) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList([torch.nn.Linear(64, 64) for _ in range(3)])
        self.checkpointing = checkpointing

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            block = torch.nn.Sequential(layer, torch.nn.Tanh())
            x = (
                torch.utils.checkpoint.checkpoint(block, x, use_reentrant=False)
                if self.checkpointing
                else block(x)
            )
        return x.float().sum()


def iterate(
    scenario: Scenario, model: torch.nn.Module, batch: Mapping[str, Any], phase: Any, device: str
) -> None:
    """Run two whole training steps; SGD without momentum allocates nothing itself."""
    optimizer = torch.optim.SGD(model.parameters(), foreach=False)
    iteration = Iteration(
        scenario, Workpiece(model=model, batch=batch), batch, optimizer, phase, device
    )
    for _ in range(2):
        iteration.gradients()
        iteration.step()
        with phase("zero_grad"):
            optimizer.zero_grad(scenario.set_to_none)


def measured(scenario: Scenario) -> list[int]:
    """Return the bytes of allocations, negative for a free, without those not on a device."""
    model, x = Network(scenario.checkpointing), torch.randn(16, 64)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as real:
        iterate(scenario, model, {"x": x}, lambda _: torch.profiler.record_function("phase"), "cpu")
    assert real.profiler is not None
    assert real.profiler.kineto_results is not None
    events = real.profiler.kineto_results.events()
    sizes = [event.nbytes() for event in events if event.name() == "[memory]"]  # pyright: ignore[reportAttributeAccessIssue]
    random_state = torch.get_rng_state().nbytes
    return on_a_device([size for size in sizes if abs(size) != random_state])


def on_a_device(stream: list[int]) -> list[int]:
    """Return the stream without scalars: on the CPU a Python number becomes a tensor."""
    return in_order([size for size in stream if abs(size) > 8])


def in_order(stream: list[int]) -> list[int]:
    """Sort consecutive frees by size: autocast frees its copies in the order of a hash table."""
    runs = groupby(stream, key=lambda size: size < 0)
    return [size for is_free, run in runs for size in (sorted(run) if is_free else run)]


def traced(scenario: Scenario) -> list[int]:
    """Return the same events from a recording."""
    with torch.device("meta"):
        model, x = Network(scenario.checkpointing), torch.empty(16, 64)
    recorder = Recorder(samples=Samples())
    with recorder.phase("build"):
        for tensor in (*model.parameters(), x):
            recorder.allocate(tensor, "parameter")
    recorder.segments.clear()

    def phase(name: Any) -> AbstractContextManager[None]:
        return recorder.phase(name)

    with foreach_on_meta(), cuda_autocast():
        iterate(scenario, model, {"x": x}, phase, "cuda")
    nbytes = recorder.allocations.nbytes
    events = [event for segment in recorder.segments for event in segment.events]
    return on_a_device([nbytes[event] if event >= 0 else -nbytes[~event] for event in events])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"micro_batches": 3},
        {"set_to_none": False},
        {"micro_batches": 2, "set_to_none": False},
        {"checkpointing": True},
        {"checkpointing": True, "micro_batches": 2},
        {"max_grad_norm": 1.0},
        {"amp": "bf16"},
        {"amp": "bf16", "checkpointing": True},
        {"amp": "bf16", "micro_batches": 2, "set_to_none": False},
        {"amp": "fp16"},
        {"amp": "fp16", "max_grad_norm": 1.0, "checkpointing": True},
    ],
)
@pytest.mark.usefixtures("without_onednn")
def test_the_events_are_those_of_a_real_run(options: dict[str, Any]):
    scenario = Scenario(model="gpt2", **options)
    assert traced(scenario) == measured(scenario)


class Step(torch.optim.SGD):
    """A base for optimizers with other steps."""

    def __init__(self) -> None:
        super().__init__([torch.nn.Parameter(torch.zeros(1))])


class Asserting(Step):
    def step(self, closure: Any = None) -> Any:
        assert closure is not None, "no closure"
        return closure()


class Raising(Step):
    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        with torch.enable_grad():
            if closure is None:
                raise RuntimeError("no closure")
            return closure()


class Calling(Step):
    def step(self, closure: Any = None) -> Any:
        closure = torch.enable_grad()(closure)
        return closure()


class Around(Step):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Asserting()

    def step(self, closure: Any = None) -> Any:
        return self.inner.step(closure)


class Asking(Step):
    def step(self, closure: Any = None) -> Any:
        loss = None if closure is None else closure()
        if closure is not None:
            loss = closure()
        return loss


class Replacing(Step):
    def step(self, closure: Any = None) -> Any:
        if closure is None:
            closure = float
        return closure()


class Either(Step):
    def step(self, closure: Any = None, metric: float | None = 1.0) -> Any:
        if closure is None and metric is None:
            raise ValueError("neither closure nor metric")
        return metric if closure is None else closure()


@pytest.mark.parametrize("kind", [Asserting, Raising, Calling, Around])
def test_a_step_that_fails_without_a_closure_needs_one(kind: type[Step]) -> None:
    assert needs_closure(kind())


def test_the_signature_of_lbfgs_shows_that_it_needs_a_closure() -> None:
    assert needs_closure(torch.optim.LBFGS([torch.nn.Parameter(torch.zeros(1))]))


@pytest.mark.parametrize("kind", [Step, Asking, Either, Replacing])
def test_a_step_that_runs_without_a_closure_needs_none(kind: type[Step]) -> None:
    assert not needs_closure(kind())


def test_fp16_weights_are_refused_with_a_scaler():
    model = Network(checkpointing=False)
    model.layers[0].requires_grad_(False).half()
    # Frozen weights have no gradients to scale.
    iterate(
        Scenario(model="tiny", amp="fp16"),
        model,
        {"x": torch.randn(2, 64)},
        lambda _: nullcontext(),
        "cpu",
    )
    model.layers[1].half()
    with pytest.raises(
        ValueError,
        match=r"amp fp16 scales no gradients in fp16, and layers.1.weight and 1 more are fp16; use",
    ):
        iterate(Scenario(model="tiny", amp="fp16"), model, {}, lambda _: nullcontext(), "cpu")
