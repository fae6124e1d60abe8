"""The choices of LAMB's lineages, one by one."""

from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import LAMB


def step(w: Any, g: Any, dtype: torch.dtype = torch.float64, **options: Any) -> Tensor:
    param = Parameter(torch.tensor(w, dtype=dtype))
    param.grad = torch.tensor(g, dtype=dtype)
    LAMB([param], eps=0.0, **options).step()
    return (param.detach() - torch.tensor(w, dtype=dtype)).double()


# Adam's first direction is (1, -1) of norm sqrt(2), corrected; the weights have norm 30.
W, G = [18.0, 24.0], [2.0, -7.0]
UNIT = torch.tensor([-1.0, 1.0], dtype=torch.float64) / 2**0.5


@pytest.mark.parametrize(
    ("options", "length"),
    [
        ({}, 30.0),
        ({"max_weight_norm": 10.0}, 10.0),
        ({"trust_clip": 1.0}, 2**0.5),
        ({"adapts_without_decay": False}, 2**0.5),
        ({"preset": "cybertronai"}, 10.0),
        ({"preset": "cybertronai", "max_weight_norm": inf}, 30.0),
        ({"preset": "nvidia"}, 2**0.5),
        ({"preset": "nvidia", "adapts_without_decay": True}, 30.0),
    ],
)
def test_an_explicit_choice_wins_over_the_preset(options: dict[str, Any], length: float) -> None:
    torch.testing.assert_close(step(W, G, lr=0.1, **options), 0.1 * length * UNIT)


def test_without_bias_correction_the_first_direction_is_longer() -> None:
    # 0.1 / sqrt(0.001), and the step is not adapted.
    change = step(W, G, lr=0.1, bias_correction=False, adapts_without_decay=False)
    torch.testing.assert_close(change, 0.1 * 0.1 / 0.001**0.5 * 2**0.5 * UNIT)


def test_gradients_of_all_groups_are_clipped_together() -> None:
    params = [Parameter(torch.ones(2)), Parameter(torch.ones(2))]
    for param in params:
        param.grad = torch.full((2,), 2.0)
    optimizer = LAMB([{"params": params[:1]}, {"params": params[1:]}], max_grad_norm=1.0)
    optimizer.step()
    # Their norm is 4: each element counts for a half.
    for param in params:
        torch.testing.assert_close(optimizer.state[param]["exp_avg"], torch.full((2,), 0.05))


def test_norms_of_half_precision_do_not_overflow() -> None:
    change = step([300.0] * 100000, [1.0] * 100000, dtype=torch.float16, lr=0.01)
    # |w| = 300 sqrt(n) is beyond float16, and phi is 300.
    torch.testing.assert_close(change, torch.full_like(change, -3.0))


@pytest.mark.parametrize("option", ["max_weight_norm", "max_grad_norm", "trust_clip"])
def test_a_limit_must_be_above_zero(option: str) -> None:
    with pytest.raises(ValueError, match=f"Invalid {option}: 0.0"):
        LAMB([Parameter(torch.ones(1))], **{option: 0.0})  # pyright: ignore[reportArgumentType]


def test_bias_correction_can_come_later() -> None:
    param = Parameter(torch.ones(3))
    param.grad = torch.ones(3)
    optimizer = LAMB([param], preset="cybertronai")
    optimizer.step()
    assert "step" not in optimizer.state[param]
    optimizer.param_groups[0]["preset"] = "paper"
    optimizer.step()
    assert optimizer.state[param]["step"] == 1.0


def test_the_second_moment_of_a_half_precision_parameter_fades() -> None:
    # In bfloat16, 0.999 v rounds back to v: one large gradient would have made every later step
    # small.
    param = Parameter(torch.ones(4, dtype=torch.bfloat16))
    optimizer = LAMB([param])
    for step in range(1000):
        param.grad = torch.full_like(param, 8.0 if step == 0 else 0.0)
        optimizer.step()
    state = optimizer.state[param]
    assert {state[key].dtype for key in ("exp_avg", "exp_avg_sq")} == {torch.float32}
    torch.testing.assert_close(
        state["exp_avg_sq"], torch.full((4,), 0.001 * 64 * 0.999**999), rtol=1e-3, atol=0
    )


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("small", [1e-4, 1e-7])
def test_small_gradients_move_half_precision_as_large_ones_do(small: float, foreach: bool) -> None:
    # The squares of both are 0 in float16, and m / eps has no bound there.
    change = step([1.0] * 4, [small] * 4, dtype=torch.float16, lr=0.125, foreach=foreach)
    torch.testing.assert_close(change, torch.full_like(change, -0.125))
