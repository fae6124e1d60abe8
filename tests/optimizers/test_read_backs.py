"""Optimizers that read values back: their simulated state is that of real steps on the CPU."""

# pyright: reportPrivateImportUsage=false

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from optprof import optimizers
from optprof.profiler import simulate
from optprof.profiler.tracing import samples
from optprof.profiler.training.optimizer import make_optimizer
from optprof.profiler.training.state import state_bytes
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

# Biases that begin at 0, a norm of ones, an embedding of which no batch sees every row, and a
# number.
MODEL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(300, 24, padding_idx=0)
        self.norm = torch.nn.LayerNorm(24)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(24, 160), torch.nn.Tanh(), torch.nn.Linear(160, 8)
        )
        self.scale = torch.nn.Parameter(torch.ones(()))
        torch.nn.init.zeros_(self.layers[0].bias)

    def forward(self, x):
        return (self.layers(self.norm(self.embedding(x))) * self.scale).square().sum()

class Number(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.number = torch.nn.Parameter(torch.randn(()))

    def forward(self, x):
        return self.number * x

def number(): return Number(), {"x": torch.ones((), device="cpu")}

def net(): return Net(), {"x": torch.randint(1, 300, (4, 100), device="cpu")}
"""


@pytest.fixture(autouse=True)
def _model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    (tmp_path / "read_back_model.py").write_text(MODEL)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield
    Rule.step_of = None


class Rule(torch.optim.Optimizer):
    """An optimizer that steps each parameter by a rule of the test."""

    step_of: Callable[[dict[str, Any], Tensor, Tensor], None] | None = None

    def __init__(self, params: Any, lr: float = 1e-4) -> None:
        super().__init__(params, {"lr": lr})

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        del closure
        assert self.step_of is not None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    type(self).step_of(self.state[parameter], parameter, parameter.grad)  # pyright: ignore[reportOptionalCall]
                    parameter.sub_(parameter.grad, alpha=group["lr"])


SCENARIO = Scenario(
    model="read_back_model:net", optimizer=f"{__name__}:Rule", implementation="loop", steps=3
)


def simulated_and_real(scenario: Scenario) -> tuple[dict[str, int], dict[str, int]]:
    """Return the state's bytes by key: simulated, and after as many real steps on the CPU."""
    memory = simulate(scenario).memory
    assert memory is not None
    return dict(memory.state_by_key), real(replace(scenario, device="cpu"))


def real(scenario: Scenario) -> dict[str, int]:
    workpiece = build(scenario, "cpu")
    named = dict(workpiece.model.named_parameters())
    optimizer = make_optimizer(scenario, list(named.values()), list(named))
    for _ in range(scenario.steps):
        workpiece.loss(workpiece.batch).backward()
        optimizer.step()
        optimizer.zero_grad()
    return state_bytes(optimizer, list(named.values())).by_key


def keeps_where_not_zero(state: dict[str, Any], parameter: Tensor, _: Tensor) -> None:
    if "start" not in state:
        state["start"] = (
            parameter.clone() if parameter.any() else torch.tensor(0.0, device=parameter.device)
        )


def keeps_where_gradient_is_finite(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    if torch.isfinite(gradient).all() and not torch.isnan(gradient.norm()):
        state["copy"] = gradient.clone()


def drops_what_overflowed(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    state["average"] = gradient.clone()
    if torch.isinf(gradient).any().item():
        del state["average"]


def begins_when_the_average_has_left_zero(
    state: dict[str, Any], parameter: Tensor, gradient: Tensor
) -> None:
    average = state.setdefault("average", torch.zeros_like(parameter))
    if average.abs().sum() > 0:
        state["second"] = gradient.clone()
    else:
        state[f"first {average.dim()}"] = gradient.clone()
    average.lerp_(gradient, 0.1)


def counts_on_the_device(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    count = state.setdefault("count", torch.zeros((), device=parameter.device))
    count += 1
    if count == 2:
        state["second"] = gradient.clone()
    if int(count) % 3 == 0:
        state["third"] = gradient.new_zeros(int(count))


def counts_with_a_tensor_of_a_number(
    state: dict[str, Any], parameter: Tensor, gradient: Tensor
) -> None:
    count = state.setdefault("count", torch.tensor(0, device=parameter.device))
    count.add_(1)
    if count.item() == 3:
        state["third"] = gradient.clone()


def compares_with_equal(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    start = state.setdefault("start", parameter.clone())
    if not torch.equal(start, parameter):
        state["moved"] = gradient.clone()
    if torch.allclose(gradient, torch.zeros_like(gradient)):
        state["flat"] = gradient.clone()


def reads_lists(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    norms = torch.stack([gradient.norm(), gradient.abs().max()])
    if min(norms.tolist()) > 0 and norms.cpu().numpy().sum() > 0:
        state["norms"] = norms


def guards_a_division(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    norm = float(gradient.norm())
    state["copy"] = gradient / norm if norm != 0.0 else torch.zeros(3, device=parameter.device)


def reads_what_foreach_made(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    squares = torch._foreach_mul([gradient], [gradient])
    torch._foreach_add_(squares, 1.0)
    if torch._foreach_norm(squares)[0].item() > 0 and (squares[0] >= 1).all():
        state["squares"] = squares[0]


def takes_places(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    state["places"] = torch.isfinite(gradient).nonzero()


def marks_one_of_a_few(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    flags = state.setdefault("flags", torch.zeros(4, device=parameter.device))
    if not flags.any():
        state["first"] = gradient.clone()
    flags[1] = 1
    if flags.any():
        state["after"] = gradient.clone()


def casts_by_a_types_name(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    state["cast"] = gradient.double().type(parameter.type())


KNOWN = (
    casts_by_a_types_name,
    keeps_where_not_zero,
    keeps_where_gradient_is_finite,
    drops_what_overflowed,
    begins_when_the_average_has_left_zero,
    counts_on_the_device,
    counts_with_a_tensor_of_a_number,
    compares_with_equal,
    reads_lists,
    guards_a_division,
    reads_what_foreach_made,
    takes_places,
    marks_one_of_a_few,
)


@pytest.mark.parametrize("rule", KNOWN, ids=lambda rule: rule.__name__)
def test_a_step_takes_the_branch_that_training_takes(rule: Any, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Rule, "step_of", staticmethod(rule))
    simulated, by_cpu = simulated_and_real(SCENARIO)
    assert simulated == by_cpu
    assert simulate(SCENARIO).warnings == ()


def keeps_above_a_threshold(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    if gradient.norm() > 1.0:
        state["large"] = gradient.clone()


def takes_a_rank_from_values(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
    state["rank"] = gradient.new_zeros(1 + int(gradient.abs().sum().item()) % 7)


def compares_two_norms(state: dict[str, Any], parameter: Tensor, gradient: Tensor) -> None:
    if gradient.norm() > parameter.norm():
        state["larger"] = gradient.clone()


@pytest.mark.parametrize(
    "rule",
    [keeps_above_a_threshold, takes_a_rank_from_values, compares_two_norms],
    ids=lambda rule: rule.__name__,
)
def test_a_state_that_depends_on_unknown_values_gives_a_warning(
    rule: Any, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(Rule, "step_of", staticmethod(rule))
    record = simulate(SCENARIO)
    assert record.memory is not None
    (warning,) = record.warnings
    line = rule.__code__.co_firstlineno + 1
    assert warning.startswith(
        f"test_read_backs.py, line {line}, reads a value back; the state depends on it: "
    )
    assert f"{record.memory.optimizer_state:,} B" in warning


def test_unknown_values_that_change_nothing_give_no_warning(monkeypatch: pytest.MonkeyPatch):
    def clips(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
        norm = gradient.norm().item()
        gradient.mul_(min(1.0, 1.0 / norm))
        state["norm"] = norm

    monkeypatch.setattr(Rule, "step_of", staticmethod(clips))
    assert simulate(SCENARIO).warnings == ()


def test_a_peak_that_depends_on_unknown_values_gives_a_warning(monkeypatch: pytest.MonkeyPatch):
    def copies(_: dict[str, Any], __: Tensor, gradient: Tensor) -> None:
        if gradient.sum() > 0:
            gradient.copy_(gradient.sin().cos())

    monkeypatch.setattr(Rule, "step_of", staticmethod(copies))
    (warning,) = simulate(SCENARIO).warnings
    assert "the peak of the step's own allocations depends on it" in warning


def test_a_step_that_reads_values_endlessly_is_refused(monkeypatch: pytest.MonkeyPatch):
    def waits(_: dict[str, Any], __: Tensor, gradient: Tensor) -> None:
        while gradient.norm() > 0:
            pass

    monkeypatch.setattr(Rule, "step_of", staticmethod(waits))
    monkeypatch.setattr(samples, "_MOST_READ_BACKS", 1000)
    with pytest.raises(
        ValueError,
        match=r"test_read_backs\.py, line \d+, reads back too many values in one step;"
        r" .* --device cpu",
    ):
        simulate(SCENARIO)


def test_a_value_outside_a_functions_domain_does_not_end_the_simulation(
    monkeypatch: pytest.MonkeyPatch,
):
    def roots(state: dict[str, Any], _: Tensor, gradient: Tensor) -> None:
        state["root"] = gradient.new_zeros(2 if math.sqrt(-gradient.sum().item()) > 0 else 3)

    monkeypatch.setattr(Rule, "step_of", staticmethod(roots))
    memory = simulate(replace(SCENARIO, model="read_back_model:number")).memory
    assert memory is not None
    assert memory.state_by_key == {"root": 8}


def test_a_number_that_torch_tensor_makes_is_a_block_of_the_device(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(Rule, "step_of", staticmethod(counts_with_a_tensor_of_a_number))
    memory = simulate(replace(SCENARIO, steps=2)).memory
    assert memory is not None
    # Eight parameters; whole numbers of 8 bytes.
    assert (memory.optimizer_state, memory.optimizer_state_allocated) == (8 * 8, 8 * 512)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [name for name in optimizers.available() if "torchao" not in name])
def test_the_state_of_every_optimizer_of_the_catalogue_is_that_of_real_steps(name: str):
    simulated, by_cpu = simulated_and_real(replace(SCENARIO, optimizer=name))
    assert simulated == by_cpu
    assert simulate(replace(SCENARIO, optimizer=name)).warnings == ()


CAPTURABLE = ("ASGD", "Adadelta", "Adam", "AdamW", "Adamax", "NAdam", "RAdam", "RMSprop", "Rprop")
# Numbers on the device other than moments: step counts, NAdam's product of momenta, ASGD's eta and
# mu.
NUMBERS = {"ASGD": 3, "NAdam": 2}
MOMENTS = {"ASGD": 1, "RMSprop": 1}


@pytest.mark.parametrize("implementation", ["loop", "foreach"])
@pytest.mark.parametrize("name", CAPTURABLE)
def test_capturable_steps_keep_their_counts_on_the_device(name: str, implementation: Any):
    scenario = replace(
        SCENARIO,
        optimizer=f"torch.optim:{name}",
        options={"capturable": True},
        implementation=implementation,
    )
    memory = simulate(replace(scenario, workload="state")).memory
    assert memory is not None
    parameters = [p.numel() for p in build(scenario, "cpu").model.parameters()]
    moments, numbers = MOMENTS.get(name, 2), NUMBERS.get(name, 1)
    assert memory.optimizer_state == sum(4 * moments * numel + 4 * numbers for numel in parameters)
    # The allocator's blocks are multiples of 512 bytes, also those of one number.
    assert memory.optimizer_state_allocated == sum(
        moments * -(-4 * numel // 512) * 512 + 512 * numbers for numel in parameters
    )


def test_a_closure_is_missing_in_a_simulated_training_step_and_not_in_the_state_alone():
    scenario = replace(SCENARIO, optimizer="torch.optim:LBFGS", options={"max_iter": 1})
    with pytest.raises(
        ValueError,
        match=(
            r"^torch\.optim:LBFGS takes a closure in step, .* --workload state, or --device cpu or"
            r" cuda$"
        ),
    ):
        simulate(scenario)
    memory = simulate(replace(scenario, workload="state")).memory
    assert memory is not None
    numel = sum(p.numel() for p in build(scenario, "cpu").model.parameters())
    # The direction, the gradient before it and a factor, which the first of its iterations makes.
    assert memory.optimizer_state == 2 * 4 * numel + 4
