"""SGD-SaI's fixes of its original: a parameter's ratio comes from its first nonzero gradient."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import SGDBoost, SGDSaI

WAYS = pytest.mark.parametrize("foreach", [False, True])


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def descend(param: Parameter, grads: list[Tensor], **options: Any) -> SGDSaI:
    optimizer = SGDSaI([param], **options)
    for grad in grads:
        param.grad = grad.clone()
        optimizer.step()
    return optimizer


@WAYS
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_gradients_of_zero_before_the_first_real_one_leave_no_trace(
    foreach: bool, momentum: float
) -> None:
    late, alone = Parameter(noise(0, 4, 3)), Parameter(noise(0, 4, 3))
    grads = [noise(step, 4, 3) for step in range(1, 4)]
    options = {"momentum": momentum, "weight_decay": 0.0, "foreach": foreach}
    first = descend(late, [torch.zeros(4, 3, dtype=torch.float64)] * 3 + grads, **options)
    second = descend(alone, grads, **options)
    torch.testing.assert_close(late, alone, rtol=0, atol=0)
    assert torch.equal(first.state[late]["gsnr"], second.state[alone]["gsnr"])


def test_the_ratio_is_never_taken_again() -> None:
    param = Parameter(noise(0, 5))
    optimizer = descend(param, [noise(1, 5)])
    first = optimizer.state[param]["gsnr"].clone()
    for seed in range(2, 5):
        param.grad = 100 * noise(seed, 5) + 3
        optimizer.step()
    loaded = SGDSaI([param])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded.step()
    assert torch.equal(loaded.state[param]["gsnr"], first)


def test_both_halves_of_a_lora_learn() -> None:
    torch.manual_seed(0)
    down, up = Parameter(torch.randn(2, 6)), Parameter(torch.zeros(4, 2))
    target = torch.randn(4, 6)
    optimizer = SGDSaI([down, up], lr=0.01, weight_decay=0.0)
    start = down.detach().clone()
    for _ in range(20):
        optimizer.zero_grad()
        (up @ down - target).square().mean().backward()
        optimizer.step()
    assert (down - start).abs().max() > 1e-3


@pytest.mark.parametrize("size", [1, 7])
def test_equal_elements_are_scaled_by_the_root_of_their_number(size: int) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        param = Parameter(torch.zeros(size, dtype=dtype))
        param.grad = torch.full_like(param, 0.3)
        optimizer = SGDSaI([param], lr=1.0, momentum=0.0)
        optimizer.step()
        torch.testing.assert_close(optimizer.state[param]["gsnr"].item(), size**0.5)
        torch.testing.assert_close(
            param.detach().double(),
            torch.full((size,), -0.3 * size**0.5, dtype=torch.float64),
            rtol=1e-2,
            atol=0,
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [2, 3, 7, 1000, 2**14, 2**18, 2**20 + 5])
def test_the_ratio_is_that_of_the_same_gradient_in_float64(dtype: torch.dtype, count: int) -> None:
    for distance in (0.0, 1.0, 3.0, 30.0, 1000.0, 10_000.0):
        # In float16 the least of these is a few of its smallest numbers.
        for scale in (1.0, 3e-6):
            grad = (scale * (noise(count, count) + distance)).to(dtype)
            param = Parameter(torch.zeros_like(grad))
            exact, wide = grad.double(), torch.promote_types(dtype, torch.float32)
            deviation = exact.std()
            right = (
                exact.norm() / (deviation + 1e-8)
                if deviation > 1e-12 * exact.mean()
                else torch.tensor(count**0.5)
            )
            ratio = descend(param, [grad]).state[param]["gsnr"]
            assert ratio.dtype is wide
            torch.testing.assert_close(ratio.double(), right.double(), rtol=2e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("count", [3, 1000, 2**20 + 5])
def test_equal_elements_show_no_noise_at_any_number(dtype: torch.dtype, count: int) -> None:
    for value in (0.1, 1 / 3, 123.456):
        param = Parameter(torch.zeros(count, dtype=dtype))
        ratio = descend(param, [torch.full_like(param, value)]).state[param]["gsnr"]
        assert ratio.item() == pytest.approx(count**0.5, rel=1e-6)


def test_one_element_that_differs_in_the_last_place_is_noise_in_half_precision() -> None:
    grad = torch.ones(2**16, dtype=torch.bfloat16)
    grad[7] = 1 + 2**-7
    param = Parameter(torch.zeros_like(grad))
    right = grad.double().norm() / (grad.double().std() + 1e-8)
    torch.testing.assert_close(
        descend(param, [grad]).state[param]["gsnr"].double(), right, rtol=1e-4, atol=0
    )


def test_a_noise_beyond_the_largest_number_of_half_precision_is_taken_in_float32() -> None:
    grad = torch.tensor([60000.0, -60000.0], dtype=torch.float16)
    param = Parameter(torch.zeros_like(grad))
    # |g| and the deviation are the same, 60000 * sqrt(2).
    assert descend(param, [grad], lr=1e-9).state[param]["gsnr"].item() == pytest.approx(1.0)


def test_a_gradient_that_is_not_contiguous_has_the_ratio_of_its_copy() -> None:
    grad = (noise(1, 300, 70) + 5).bfloat16().t()
    param = Parameter(torch.zeros(70, 300, dtype=torch.bfloat16))
    other = Parameter(param.detach().clone())
    ratio = descend(param, [grad]).state[param]["gsnr"]
    torch.testing.assert_close(ratio, descend(other, [grad.contiguous()]).state[other]["gsnr"])


def test_without_momentum_no_buffer_is_kept_and_momentum_can_come_later() -> None:
    param = Parameter(noise(0, 4))
    optimizer = descend(param, [noise(1, 4)], lr=1.0, momentum=0.0, weight_decay=0.0)
    assert set(optimizer.state[param]) == {"gsnr"}
    optimizer.param_groups[0]["momentum"] = 0.9
    before, ratio = param.detach().clone(), optimizer.state[param]["gsnr"].item()
    param.grad = noise(2, 4)
    optimizer.step()
    # The average starts with the first gradient that it sees.
    torch.testing.assert_close(param.detach(), before - ratio * noise(2, 4))
    assert torch.equal(optimizer.state[param]["momentum_buffer"], noise(2, 4))


def test_warmup_step_may_be_called_any_number_of_times() -> None:
    warmed, plain = Parameter(noise(0, 4)), Parameter(noise(0, 4))
    optimizer, other = SGDSaI([warmed]), SGDSaI([plain])
    for step in range(3):
        warmed.grad, plain.grad = noise(step, 4), noise(step, 4)
        for _ in range(2):
            optimizer.warmup_step()
        optimizer.step()
        other.step()
    torch.testing.assert_close(warmed, plain, rtol=0, atol=0)


def test_the_loop_of_the_seeds_readme_runs_as_it_is_printed() -> None:
    assert SGDBoost is SGDSaI
    model, loss_fn, lr, weight_decay, steps = (
        torch.nn.Linear(3, 2),
        torch.nn.functional.mse_loss,
        0.01,
        0.0,
        5,
    )
    input_ids, labels = torch.ones(4, 3), torch.zeros(4, 2)
    optimizer = SGDBoost(
        model.parameters(), lr=lr, momentum=0.9, eps=1e-08, weight_decay=weight_decay
    )
    for _ in range(steps):
        pred = model(input_ids)
        loss = loss_fn(pred, labels)
        loss.backward()
        if not hasattr(optimizer, "has_warmup") and hasattr(optimizer, "warmup_step"):
            optimizer.warmup_step()
            optimizer.has_warmup = True  # pyright: ignore[reportAttributeAccessIssue]
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    assert loss_fn(model(input_ids), labels) < loss  # pyright: ignore[reportPossiblyUnboundVariable]


def test_the_ratio_of_half_precision_is_kept_in_float32() -> None:
    param = Parameter(torch.zeros(1000, dtype=torch.float16))
    # Its norm is beyond float16.
    param.grad = 60000 * torch.cat((torch.ones(500), -torch.ones(500))).half()
    optimizer = SGDSaI([param], lr=1e-9)
    optimizer.step()
    assert optimizer.state[param]["gsnr"].dtype is torch.float32
    assert optimizer.state[param]["gsnr"].isfinite()


@pytest.mark.gpu
def test_the_host_does_not_wait_for_the_ratio() -> None:
    params = [Parameter(torch.randn(100, 10, device="cuda")) for _ in range(3)]
    optimizer = SGDSaI(params)
    torch.cuda.synchronize()
    mode = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for step in range(6):
            for param in params:
                param.grad = torch.zeros_like(param) if step < 2 else torch.randn_like(param)
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode(mode)
    assert all(optimizer.state[param]["gsnr"].item() > 0 for param in params)
