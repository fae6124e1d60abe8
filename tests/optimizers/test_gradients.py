"""Parameters and gradients of every dtype, layout and value, over the catalogue."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from optprof import optimizers

OURS = (
    "lamb",
    "lamb:preset=nvidia",
    "lamb16",
    "sgd-sai",
    "sgd-sai:momentum=0",
    "sm3",
    "sm3:momentum=0.9,beta=0.9",
)
ZOO, LOW_BIT = (
    optimizers.available("pytorch_optimizer"),
    optimizers.available("bitsandbytes", "torchao"),
)
# With their default rank of 128 they would project none of the small matrices of these tests.
LOW_RANK = tuple(f"{name}:rank=2" for name in ("apollo", "fira", "galore") if name in ZOO)
SPECS = (*optimizers.available("torch"), *OURS, *ZOO, *LOW_BIT, *LOW_RANK)
TORCHS_FUSED = tuple(
    f"{spec} fused"
    for spec in optimizers.available("torch")
    if "fused" in optimizers.implementations(spec, "cpu")
)
EMPTY = {
    "adafactor": "divides by the number of elements, 0 in an empty tensor",
    "scion": "divides by the number of elements, 0 in an empty tensor",
}


def every(failing: dict[str, str]) -> pytest.MarkDecorator:
    """Parametrize over every optimizer; `failing` gives known failures with reasons."""
    return pytest.mark.parametrize(
        "spec", [pytest.param(spec, marks=_marks(spec, failing)) for spec in SPECS]
    )


def every_way(failing: dict[str, str]) -> pytest.MarkDecorator:
    """Parametrize over all optimizers' loop, foreach and fused; a failure may name "racs loop"."""
    ways = [
        (spec, way)
        for spec in SPECS
        for way in ("loop", "foreach", "fused")
        if way in optimizers.implementations(spec, "cpu")
    ]
    marks = {pair: _marks(pair[0], failing) or _marks(" ".join(pair), failing) for pair in ways}
    given = [pytest.param(*pair, marks=[*marks[pair], *_needing(pair[1])]) for pair in ways]
    return pytest.mark.parametrize(("spec", "implementation"), given)


def _needing(way: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.compiler] if way == "fused" else []


def _marks(name: str, failing: dict[str, str]) -> list[pytest.MarkDecorator]:
    return [pytest.mark.xfail(reason=failing[name], strict=True)] if name in failing else []


SHAPES = [(), (1,), (0,), (5,), (1, 1), (3, 4), (4, 0), (2, 3, 2, 2)]


def parameters(dtype: torch.dtype = torch.float32) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def take_steps(
    optimizer: Optimizer, params: list[Parameter], steps: range = range(3), scale: float = 1.0
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            param.grad = scale * torch.randn(param.shape, generator=generator).to(param)
        torch.manual_seed(step)  # for those that draw a projection
        optimizer.step()


@every_way(
    {
        **EMPTY,
        "racs foreach": "reshapes to rows of a length that an empty tensor does not have",
        "soap": "spends its first step on its basis",
    }
)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_every_shape_moves_in_every_dtype(
    spec: str, dtype: torch.dtype, implementation: Any, request: pytest.FixtureRequest
) -> None:
    if spec.endswith("torchao") and dtype is torch.float64:
        request.applymarker(
            pytest.mark.xfail(
                reason="its compiled step leaves a float64 scalar as it was", strict=True
            )
        )
    # Prodigy squares its guess of the learning rate, and half precision loses the square of its
    # usual 1e-6.
    options: dict[str, Any] = {"lr": 1.0, "d0": 0.5} if spec == "prodigy" else {"lr": 0.5}
    params = parameters(dtype)
    take_steps(
        optimizers.create(spec, params, implementation=implementation, **options),
        params,
        range(1),
    )
    for param, start in zip(params, parameters(dtype), strict=True):
        assert param.dtype is dtype
        assert param.isfinite().all()
        assert not param.numel() or not torch.equal(param, start)


@pytest.mark.parametrize("implementation", ["loop", "foreach"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("spec", OURS)
def test_half_precision_takes_small_gradients_and_zeros(
    spec: str, dtype: torch.dtype, implementation: Any
) -> None:
    params = [Parameter(torch.ones(8, dtype=dtype)) for _ in range(3)]
    optimizer = optimizers.create(spec, params, implementation=implementation, lr=1e-2)
    for _ in range(5):
        params[0].grad, params[1].grad, params[2].grad = (
            torch.full_like(params[0], value) for value in (0.0, 1e-4, 1.0)
        )
        params[2].grad[:4] = torch.tensor([0.0, 1e-7, 1e-4, -1e-2])
        optimizer.step()
    for param in params:
        assert param.isfinite().all()


@every_way(
    {
        "adan loop": "writes into the gradient",
        "schedule-free-adamw": "writes into the gradient",
        **dict.fromkeys(
            TORCHS_FUSED,
            "takes a gradient's elements as they lie in memory, in an order that need not be the"
            " parameter's",
        ),
    }
)
def test_the_strides_of_a_gradient_do_not_matter(spec: str, implementation: Any) -> None:
    params = []
    for transposed in (False, True):
        torch.manual_seed(0)
        param = Parameter(torch.randn(3, 4))
        optimizer = optimizers.create(spec, [param], implementation=implementation)
        for _ in range(3):
            grad = torch.randn(3, 4)
            param.grad = grad.t().contiguous().t() if transposed else grad
            torch.manual_seed(1)  # for those that draw a projection
            optimizer.step()
        # A sum over all of one number's copies, as expand leaves them.
        param.grad = torch.ones(1, 1).expand(3, 4)
        optimizer.step()
        params.append(param)
    torch.testing.assert_close(params[1], params[0], rtol=1e-4, atol=1e-5)


@every({"prodigy": "finds one learning rate from all gradients together"})
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_a_gradient_that_is_not_finite_stays_with_its_tensor(spec: str, value: float) -> None:
    hit, other, alone = (
        Parameter(torch.ones(3, 4)),
        Parameter(torch.ones(4, 3)),
        Parameter(torch.ones(4, 3)),
    )
    optimizer, reference = (
        optimizers.create(spec, [other, hit]),
        optimizers.create(spec, [alone]),
    )
    if spec == "lamb:preset=nvidia":
        pytest.skip("clips by the norm of all gradients together")
    for step in range(3):
        hit.grad = torch.ones(3, 4)
        if step == 1:
            hit.grad[0, 0] = value
        other.grad, alone.grad = torch.ones(4, 3), torch.ones(4, 3)
        for each in (optimizer, reference):
            torch.manual_seed(step)  # for those that draw a projection
            each.step()
    torch.testing.assert_close(other, alone, rtol=0, atol=0)


@every(EMPTY)
def test_a_scaler_skips_steps_that_are_not_finite_and_changes_nothing_else(spec: str) -> None:
    plain, scaled = parameters(), parameters()
    reference, optimizer = (
        optimizers.create(spec, plain),
        optimizers.create(spec, scaled),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4, growth_interval=1000)
    scaler.scale(torch.ones(()))
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        for param, twin in zip(plain, scaled, strict=True):
            param.grad = torch.randn(param.shape, generator=generator)
            twin.grad = scaler.get_scale() * param.grad
            if step == 2 and twin.numel():
                twin.grad.view(-1)[0] = torch.inf
        if step != 2:
            torch.manual_seed(step)  # for those that draw a projection
            reference.step()
        torch.manual_seed(step)
        scaler.step(optimizer)
        scaler.update()
    for param, twin in zip(plain, scaled, strict=True):
        torch.testing.assert_close(twin, param, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
@every({})
def test_torch_distributed_checkpoint_restores_a_state_even_before_the_first_step(
    spec: str,
) -> None:
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )

    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
    twin = copy.deepcopy(model)
    optimizer, other = (
        optimizers.create(spec, model.parameters()),
        optimizers.create(spec, twin.parameters()),
    )
    # Before the first step torch makes one, with gradients of zero at a learning rate of 0.
    get_optimizer_state_dict(twin, other)
    for param, start in zip(twin.parameters(), model.parameters(), strict=True):
        assert torch.equal(param, start)
    take_steps(optimizer, list(model.parameters()))
    twin.load_state_dict(model.state_dict())
    set_optimizer_state_dict(
        twin, other, optim_state_dict=copy.deepcopy(get_optimizer_state_dict(model, optimizer))
    )
    for each, by in ((model, optimizer), (twin, other)):
        take_steps(by, list(each.parameters()), range(3, 6))
    for param, same in zip(twin.parameters(), model.parameters(), strict=True):
        torch.testing.assert_close(param, same, rtol=0, atol=0)


@pytest.mark.parametrize("spec", OURS)
def test_a_learning_rate_in_a_tensor_is_followed_when_it_changes(spec: str) -> None:
    def trained(lr: float | Tensor) -> list[Parameter]:
        params = parameters(torch.float64)
        optimizer = optimizers.create(spec, params, lr=lr)
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=1, gamma=0.5)
        for step in range(4):
            take_steps(optimizer, params, range(step, step + 1))
            scheduler.step()
        return params

    for tensor, wanted in zip(
        trained(torch.tensor(0.01, dtype=torch.float64)), trained(0.01), strict=True
    ):
        torch.testing.assert_close(tensor, wanted, rtol=1e-6, atol=1e-7)
