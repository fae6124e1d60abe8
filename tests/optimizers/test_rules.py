"""Each optimizer against its paper's rule, written here in float64, one tensor at a time."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI

SHAPES = [(), (1,), (7,), (3, 5), (2, 3, 4), (4, 3, 2, 2)]
STEPS = 30


def normal(seed: int, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in SHAPES
    ]


def trained(
    optimizer: Callable[..., Any], dtype: torch.dtype = torch.float64, **options: Any
) -> list[Tensor]:
    params = [torch.nn.Parameter(value) for value in normal(0, dtype)]
    stepper = optimizer(params, **options)
    for step in range(1, STEPS + 1):
        for param, grad in zip(params, normal(step, dtype), strict=True):
            param.grad = grad
        stepper.step()
    return [param.detach() for param in params]


def expected(
    rule: Callable[..., Tensor],
    scale: Callable[[list[Tensor]], Any] = lambda _: 1.0,
    **options: Any,
) -> list[Tensor]:
    history = [
        [grad * scale(grads) for grad in grads] for grads in map(normal, range(1, STEPS + 1))
    ]
    return [
        rule(w.clone(), list(grads), **options)
        for w, *grads in zip(normal(0), *history, strict=True)
    ]


def sgd_sai(
    w: Tensor, grads: list[Tensor], lr: float, momentum: float, eps: float, weight_decay: float
) -> Tensor:
    n, first = w.numel(), grads[0]
    r = n**0.5
    if n > 1:
        sigma = torch.sqrt(torch.sum((first - first.mean()) ** 2) / (n - 1))
        r = torch.sqrt(torch.sum(first * first)) / (sigma + eps)
    m = first
    for t, g in enumerate(grads):
        m = g if t == 0 else momentum * m + (1 - momentum) * g
        w = (1 - lr * weight_decay) * w - lr * r * m
    return w


def sm3(
    w: Tensor, grads: list[Tensor], lr: float, momentum: float, beta: float, eps: float
) -> Tensor:
    axes = range(w.dim())
    accumulators = [torch.zeros(size, dtype=w.dtype) for size in w.shape]
    total, b = torch.zeros_like(w), torch.zeros_like(w)
    for g in grads:
        if accumulators:
            spread = [
                a.reshape([-1 if d == i else 1 for d in axes]).expand(w.shape)
                for i, a in enumerate(accumulators)
            ]
            total = torch.stack(spread).amin(0)
        total = (beta * total if beta else total) + (1 - beta) * g * g
        accumulators = [
            total.movedim(i, 0).reshape(size, -1).amax(1) for i, size in enumerate(w.shape)
        ]
        u = g / torch.sqrt(total + eps)
        b = momentum * b + (1 - momentum) * u if momentum else u
        w = w - lr * b
    return w


def lamb(
    w: Tensor,
    grads: list[Tensor],
    lr: float,
    weight_decay: float,
    corrected: bool = True,
    clamp: float = torch.inf,
    adapts: bool = True,
) -> Tensor:
    (beta1, beta2), eps = (0.9, 0.999), 1e-6
    m, v = torch.zeros_like(w), torch.zeros_like(w)
    for t, g in enumerate(grads, 1):
        m, v = beta1 * m + (1 - beta1) * g, beta2 * v + (1 - beta2) * g * g
        first, second = (m / (1 - beta1**t), v / (1 - beta2**t)) if corrected else (m, v)
        r = first / (torch.sqrt(second) + eps) + weight_decay * w
        weight_norm, norm = (
            min(float(torch.sqrt(torch.sum(w * w))), clamp),
            float(torch.sqrt(torch.sum(r * r))),
        )
        phi = weight_norm / norm if adapts and weight_norm and norm else 1.0
        w = w - lr * phi * r
    return w


def lamb16(
    w: Tensor, grads: list[Tensor], lr: float, weight_decay: float, trust_scale: float
) -> Tensor:
    (beta1, beta2), eps, n = (0.9, 0.999), 1e-6, w.numel()
    coded_m = coded_v = torch.zeros_like(w)
    scale_m = scale_v = torch.ones((), dtype=w.dtype)
    for g in grads:
        m = beta1 * (coded_m * scale_m) + (1 - beta1) * g
        v = beta2 * (coded_v * scale_v) + (1 - beta2) * g * g
        scale_m, scale_v = (torch.sqrt(torch.sum((x * x).clamp(max=10))) / n + eps for x in (m, v))
        coded_m = (m / scale_m).clamp(-15, 15).to(torch.float8_e4m3fn).double()
        coded_v = (v.clamp(0, 10) / scale_v).to(torch.float8_e5m2).double()
        r = m / (torch.sqrt(v) + eps) + weight_decay * w
        size_w, size_r = (torch.sqrt(torch.sum((x * x).clamp(eps, 1))) / n for x in (w, r))
        w = w - lr * ((size_w / size_r * 1e-3 / lr) ** trust_scale).clamp(0, 2) * r
    return w


def global_clip(grads: list[Tensor]) -> Tensor:
    return 1 / torch.cat([grad.reshape(-1) for grad in grads]).norm().clamp(min=1)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_sgd_sai_follows_its_rule(foreach: bool, momentum: float, weight_decay: float) -> None:
    options: dict[str, Any] = {
        "lr": 1e-3,
        "momentum": momentum,
        "eps": 1e-8,
        "weight_decay": weight_decay,
    }
    assert_same(trained(SGDSaI, foreach=foreach, **options), expected(sgd_sai, **options))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("beta", [0.0, 0.9])
def test_sm3_follows_its_rule(foreach: bool, momentum: float, beta: float) -> None:
    options: dict[str, Any] = {"lr": 0.1, "momentum": momentum, "beta": beta, "eps": 1e-30}
    assert_same(trained(SM3, foreach=foreach, **options), expected(sm3, **options))


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    ("preset", "choices"),
    [
        ("paper", {}),
        ("cybertronai", {"corrected": False, "clamp": 10.0}),
        ("nvidia", {"scale": global_clip, "adapts": None}),
    ],
)
def test_lamb_follows_the_rule_of_its_lineage(
    foreach: bool, weight_decay: float, preset: str, choices: dict[str, Any]
) -> None:
    if "adapts" in choices:
        choices = {**choices, "adapts": bool(weight_decay)}
    options: dict[str, Any] = {"lr": 0.1, "weight_decay": weight_decay}
    assert_same(
        trained(LAMB, foreach=foreach, preset=preset, **options),
        expected(lamb, **choices, **options),
    )


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("lr", [1e-3, 1e-2])
def test_lamb16_follows_its_original(foreach: bool, weight_decay: float, lr: float) -> None:
    # float32 against float64: where a moment lies on the edge between two float8 numbers the two
    # may store different ones. With other seeds such a flip can move its weight by 1e-5; without
    # one, as here, they agree to float32's precision.
    options: dict[str, Any] = {"lr": lr, "weight_decay": weight_decay, "trust_scale": 0.382}
    weights = trained(LAMB16, torch.float32, scale="upstream", foreach=foreach, **options)
    wanted = expected(
        lambda w, grads, **arguments: lamb16(
            w.float().double(), [g.float().double() for g in grads], **arguments
        ),
        **options,
    )
    assert_same([w.double() for w in weights], wanted, tolerance=1e-5)


def assert_same(weights: list[Tensor], wanted: list[Tensor], tolerance: float = 1e-12) -> None:
    for w, reference in zip(weights, wanted, strict=True):
        torch.testing.assert_close(w, reference, rtol=tolerance, atol=tolerance)


def one_step(
    optimizer: Callable[..., Any], w: Any, g: Any, **options: Any
) -> tuple[Tensor, dict[str, Tensor]]:
    param = torch.nn.Parameter(torch.tensor(w, dtype=torch.float64))
    param.grad = torch.tensor(g, dtype=torch.float64)
    stepper = optimizer([param], **options)
    stepper.step()
    return param.detach(), stepper.state[param]


def test_sgd_sai_by_hand() -> None:
    # |g| = sqrt(1 + 9), std = sqrt(((1 - 2)^2 + (3 - 2)^2) / 1) = sqrt(2): the ratio is sqrt(5).
    w, state = one_step(SGDSaI, [1.0, 1.0], [1.0, 3.0], lr=0.1, eps=0.0, weight_decay=1.0)
    torch.testing.assert_close(state["gsnr"].item(), 5**0.5)
    torch.testing.assert_close(w.tolist(), [0.9 - 0.1 * 5**0.5, 0.9 - 0.3 * 5**0.5])


def test_sm3_by_hand() -> None:
    # The first step divides each gradient by its own size; then each row and column keeps its
    # largest square.
    w, state = one_step(SM3, [[0.0, 0.0], [0.0, 0.0]], [[1.0, -2.0], [3.0, 4.0]], lr=0.5)
    assert w.tolist() == [[-0.5, 0.5], [-0.5, -0.5]]
    assert state["accumulator_0"].tolist() == [[4.0], [16.0]]
    assert state["accumulator_1"].tolist() == [[9.0, 16.0]]


def test_lamb_by_hand() -> None:
    # Corrected, Adam's first direction is (1, -1) of norm sqrt(2), and the weights have norm 5.
    w, _ = one_step(LAMB, [3.0, 4.0], [2.0, -7.0], lr=0.1, eps=0.0)
    torch.testing.assert_close(w.tolist(), [3 - 0.5 / 2**0.5, 4 + 0.5 / 2**0.5])


def test_lamb_steps_by_the_learning_rate_where_a_norm_is_zero() -> None:
    w, _ = one_step(LAMB, [0.0, 0.0], [2.0, -7.0], lr=0.1, eps=0.0)
    torch.testing.assert_close(w.tolist(), [-0.1, 0.1])


def test_lamb16_stores_the_first_moment_over_its_scale() -> None:
    # m = (0.1, 0.2), s_m = sqrt(0.05) / 2 = 0.1118: q_m = (0.894, 1.789), in e4m3fn (0.875, 1.75).
    _, state = one_step(LAMB16, [1.0, 1.0], [1.0, 2.0], scale="upstream")
    torch.testing.assert_close(state["exp_avg_scale"].item(), 0.05**0.5 / 2, rtol=1e-4, atol=0)
    assert state["exp_avg"].float().tolist() == [0.875, 1.75]


def test_sm3_accumulators_keep_growing_in_half_precision() -> None:
    param = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.bfloat16))
    param.grad = torch.ones_like(param)
    stepper = SM3([param])
    for _ in range(300):
        stepper.step()
    # bfloat16 would have stopped at 256.
    assert stepper.state[param]["accumulator_0"].tolist() == [[300.0], [300.0]]


def test_sm3_forgets_where_beta_is_positive() -> None:
    param = torch.nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
    stepper = SM3([param], beta=0.5)
    for size in [1.0] * 5 + [0.0] * 15:
        param.grad = torch.full_like(param, size)
        stepper.step()
    assert stepper.state[param]["accumulator_0"].max() < 1e-4


def test_lamb16_stands_still_at_a_learning_rate_of_zero() -> None:
    w, _ = one_step(LAMB16, [1.0, 2.0], [1.0, 2.0], lr=0.0)
    assert w.tolist() == [1.0, 2.0]
