"""SM3's learning-rate schedules, by hand and under torch's schedulers."""

import pickle
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.lr_scheduler import LambdaLR

from optprof import optimizers
from optprof.optimizers.schedules import FinalDecay, QuadraticWarmUp, WarmUpAndDecay


def test_the_warm_up_is_quadratic_and_then_over() -> None:
    warm_up = QuadraticWarmUp(warm_up_steps=4)
    assert [warm_up(step) for step in range(6)] == [0, 1 / 16, 4 / 16, 9 / 16, 1, 1]


def test_no_warm_up_is_none() -> None:
    assert QuadraticWarmUp(warm_up_steps=0)(0) == 1


def test_the_decay_takes_the_last_tenth_and_ends_at_zero() -> None:
    decay = FinalDecay(total_steps=40)
    assert [decay(step) for step in (0, 35, 36, 37, 38, 39, 40, 41)] == [
        1,
        1,
        1,
        0.75,
        0.5,
        0.25,
        0,
        0,
    ]


def test_the_decay_may_take_another_share() -> None:
    assert [FinalDecay(total_steps=8, fraction=0.5)(step) for step in (4, 6, 8)] == [1, 0.5, 0]


def test_together_they_give_the_smaller_factor() -> None:
    both = WarmUpAndDecay(warm_up_steps=2, total_steps=20)
    assert [both(step) for step in (0, 1, 2, 10, 18, 19, 20)] == [0, 0.25, 1, 1, 1, 0.5, 0]
    crossing = WarmUpAndDecay(warm_up_steps=8, total_steps=10, fraction=1.0)
    assert crossing(6) == 0.4  # (10 - 6) / 10, below (6 / 8)^2 = 0.5625


def scheduled() -> tuple[torch.optim.Optimizer, LambdaLR]:
    param = Parameter(torch.ones(2, 3))
    param.grad = torch.ones_like(param)
    optimizer = optimizers.create("sm3:lr=0.5", [param])
    return optimizer, LambdaLR(optimizer, WarmUpAndDecay(warm_up_steps=2, total_steps=20))


def rates(optimizer: torch.optim.Optimizer, scheduler: LambdaLR, steps: int) -> list[float]:
    values = []
    for _ in range(steps):
        values.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return values


def test_an_optimizer_follows_its_schedule() -> None:
    assert rates(*scheduled(), steps=21) == [0, 0.125, *[0.5] * 17, 0.25, 0]


def test_a_scheduler_can_be_pickled_and_its_state_carries_the_schedule() -> None:
    optimizer, scheduler = scheduled()
    rates(optimizer, scheduler, steps=1)
    twin = pickle.loads(pickle.dumps(scheduler))
    assert rates(twin.optimizer, twin, steps=3) == [0.125, 0.5, 0.5]
    other, loaded = scheduled()
    setattr(loaded.lr_lambdas[0], "total_steps", 7)  # noqa: B010 - torch's types call it a function
    loaded.load_state_dict(scheduler.state_dict())
    assert loaded.lr_lambdas == [WarmUpAndDecay(warm_up_steps=2, total_steps=20)]
    assert loaded.last_epoch == 1
    del other


@pytest.mark.parametrize(
    ("kind", "options", "value"),
    [
        (QuadraticWarmUp, {"warm_up_steps": -1}, "-1"),
        (FinalDecay, {"total_steps": 0}, "0"),
        (FinalDecay, {"total_steps": 10, "fraction": 1.5}, "1.5"),
        (FinalDecay, {"total_steps": 10, "fraction": 0.0}, "0.0"),
        (WarmUpAndDecay, {"warm_up_steps": 10, "total_steps": 10}, "10 and 10"),
    ],
)
def test_an_impossible_schedule_is_refused_with_the_value(
    kind: Any, options: dict[str, Any], value: str
) -> None:
    with pytest.raises(ValueError, match=value):
        kind(**options)
