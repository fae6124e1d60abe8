"""Any optimizer that steps on the CPU can be simulated, with the state of real steps."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from optprof.profiler import measure, simulate
from optprof.profiler.measuring import harness
from optprof.scenarios import Scenario

SMALL = """
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        first, last = torch.nn.Linear(24, 40, bias=False), torch.nn.Linear(40, 8, bias=False)
        self.layers = torch.nn.Sequential(first, torch.nn.Tanh(), last)
    def forward(self, x):
        return self.layers(x).square().sum()

def net(): return Net(), {"x": torch.ones(4, 24)}
"""
# LBFGS needs a closure, SparseAdam sparse gradients.
TORCH = sorted(
    name
    for name, member in vars(torch.optim).items()
    if isinstance(member, type)
    and issubclass(member, torch.optim.Optimizer)
    and name not in ("Optimizer", "LBFGS", "SparseAdam")
)
ZOO = (
    "Lion",
    "Prodigy",
    "AdaBelief",
    "AdamP",
    "Adan",
    "CAME",
    "DAdaptAdam",
    "Lamb",
    "NovoGrad",
    "Ranger21",
    "ScheduleFreeAdamW",
    "Tiger",
)


@pytest.fixture(autouse=True)
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "small_model.py").write_text(SMALL)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(harness, "WARM_UP_SECONDS", 0.0)


def test_torch_has_the_optimizers_that_are_known():
    assert {
        "Adadelta",
        "Adafactor",
        "Adagrad",
        "Adam",
        "AdamW",
        "Adamax",
        "ASGD",
        "Muon",
        "NAdam",
        "RAdam",
        "RMSprop",
        "Rprop",
        "SGD",
    } <= set(TORCH)


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    "optimizer",
    [*(f"torch.optim:{name}" for name in TORCH), *(f"pytorch_optimizer:{name}" for name in ZOO)],
)
def test_the_simulated_state_is_that_of_real_steps(optimizer: str):
    options = {"num_iterations": 10} if optimizer.endswith("Ranger21") else {}
    scenario = Scenario(
        model="small_model:net",
        optimizer=optimizer,
        options=options,
        implementation="loop",
        steps=2,
    )
    simulated, real = simulate(scenario).memory, measure(replace(scenario, device="cpu")).memory
    assert simulated is not None
    assert real is not None
    assert simulated.state_by_key_dtype == real.state_by_key_dtype
    assert simulated.optimizer_state == real.optimizer_state
    assert (
        simulated.parameters_by_dtype
        == real.parameters_by_dtype
        == {"float32": 4 * (24 * 40 + 40 * 8)}
    )
