"""Checkpoints of wrappers with changed values: loaded exactly or refused in one line."""

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import SGD

from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import (
    Accumulation,
    GradientNormThreshold,
)

SPECS = (
    "gnts:threshold=0.001",
    "gns:tolerance=0.001",
    "gns:tolerance=0.001,estimator=mccandlish",
    "mht:error=1e-6",
    "sbc:batch_size=64",
)
EACH = pytest.mark.parametrize("spec", SPECS)


def drawn(spec: str, draws: range = range(3)) -> tuple[Accumulation, list[Parameter]]:
    """Return a wrapper in the middle of a window."""
    params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(3))]
    wrapper = accumulation.create(spec, SGD(params, lr=1.0))
    draw(wrapper, params, draws)
    return wrapper, params


def draw(wrapper: Accumulation, params: list[Parameter], draws: range) -> None:
    for seed in draws:
        torch.cat([param * (seed + 1.0) for param in params]).sum().backward()
        wrapper.step(loss=seed + 1.0)


def changed(wrapper: Accumulation, **values: Any) -> dict[str, Any]:
    state_dict = copy.deepcopy(wrapper.state_dict())
    state_dict["accumulation"].update(values)
    return state_dict


@EACH
@pytest.mark.parametrize(
    "turn",
    [float, np.float64, torch.tensor, lambda value: torch.tensor([value], dtype=torch.float64)],
)
def test_numbers_of_any_kind_are_taken(spec: str, turn: Any) -> None:
    wrapper, params = drawn(spec)
    assert wrapper.num_draws
    numbers = {
        name: turn(value)
        for name, value in wrapper.state_dict()["accumulation"].items()
        if isinstance(value, int | float)
    }
    others = copy.deepcopy(params)
    twin = accumulation.create(spec, SGD(others, lr=1.0))
    twin.load_state_dict(changed(wrapper, **numbers))
    assert twin.statistics() == pytest.approx(wrapper.statistics())
    draw(wrapper, params, range(3, 6))
    draw(twin, others, range(3, 6))
    assert all(map(torch.equal, others, params))
    assert {
        name: type(value) for name, value in twin.statistics().items() if name.startswith("num_")
    } == {name: int for name in twin.statistics() if name.startswith("num_")}


WRONG = [
    None,
    "3\nand more",
    True,
    [1.0],
    {},
    torch.zeros(2),
    1j,
    float("nan"),
    np.array(["a"]),
    torch.zeros((), device="meta"),
]
OPTIONAL = ("last_num_draws", "last_grad_norm", "running_mean", "_noise", "_signal")


@EACH
def test_values_that_do_not_fit_are_refused_and_change_nothing(spec: str) -> None:
    wrapper, params = drawn(spec)
    before = wrapper.statistics()
    for name in wrapper.state_dict()["accumulation"]:
        for value in WRONG:
            if (value is None and name in OPTIONAL) or (name == "history" and value == [1.0]):
                continue
            with pytest.raises(
                ValueError, match=f"cannot load '{name}' of 'accumulation': found .*, expected"
            ) as refusal:
                wrapper.load_state_dict(changed(wrapper, **{name: value}))
            assert len(str(refusal.value).splitlines()) == 1
        missing = changed(wrapper)
        del missing["accumulation"][name]
        with pytest.raises(ValueError, match=f"cannot load '{name}' of 'accumulation': found only"):
            wrapper.load_state_dict(missing)
    assert wrapper.statistics() == before
    twin, others = drawn(spec)
    for each, trained in ((wrapper, params), (twin, others)):
        draw(each, trained, range(3, 5))
    assert all(map(torch.equal, params, others))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("num_draws", count) for count in (-1, 1.5)],
        *[("_scale", scale) for scale in (0.0, -2.0)],
        ("_weight", -1.0),
        ("sum", [torch.zeros(2)]),
        ("sum", [torch.zeros(2), torch.zeros(4)]),
        ("sum", [torch.zeros(2), 0.0]),
        ("history", [1.0, "a"]),
        ("target", {"lr": "low"}),
    ],
)
def test_impossible_values_are_refused(name: str, value: Any) -> None:
    wrapper, _ = drawn("gnts:threshold=0.001")
    with pytest.raises(
        ValueError,
        match=f"GradientNormThreshold cannot load '{name}' of 'accumulation': found .*, expected",
    ):
        wrapper.load_state_dict(changed(wrapper, **{name: value}))


@pytest.mark.parametrize(
    "state_dict", [None, [], {}, {"state": {}}, {"state": {}, "param_groups": None}]
)
def test_other_objects_than_a_state_dict_are_refused(state_dict: Any) -> None:
    wrapper, _ = drawn("gnts")
    with pytest.raises(ValueError, match="an optimizer's state_dict is a"):
        wrapper.load_state_dict(state_dict)


def test_a_threshold_of_infinity_is_loaded() -> None:
    wrapper = GradientNormThreshold(SGD([Parameter(torch.zeros(2))]), threshold=torch.inf)
    wrapper.load_state_dict(wrapper.state_dict())
    assert wrapper.target.value == torch.inf


def test_a_window_begun_in_inference_mode_goes_on_outside_of_it() -> None:
    weights: list[Tensor] = []
    for mode in (torch.inference_mode, torch.no_grad):
        param = Parameter(torch.zeros(2))
        wrapper = GradientNormThreshold(
            SGD([param], lr=1.0), threshold=1e-9, max_draws=2, buffered=True
        )
        with mode():
            param.grad = torch.ones(2)
            wrapper.step()
        param.grad = torch.full((2,), 3.0)
        wrapper.step()
        weights.append(param.detach().clone())
    assert torch.equal(*weights)
    assert weights[0].tolist() == [-2.0, -2.0]
