"""torch's conformance tests of a step, by their names in its test_optim.py, for each of ours."""

import copy
import itertools
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim import lr_scheduler

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI

OURS = pytest.mark.parametrize("factory", [SGDSaI, SM3, LAMB, LAMB16])
CONTIGUOUS = pytest.mark.parametrize("contiguous", [True, False])
SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "step": lambda optimizer: lr_scheduler.StepLR(optimizer, gamma=0.9, step_size=10),
    "plateau": lr_scheduler.ReduceLROnPlateau,
}


def line(contiguous: bool = True) -> tuple[Parameter, Parameter]:
    torch.manual_seed(0)
    if contiguous:
        return Parameter(torch.randn(10, 5)), Parameter(torch.randn(10))
    return Parameter(torch.randn(10, 5, 2)[..., 0]), Parameter(torch.randn(10, 2)[..., 0])


def closure_for(optimizer: Any, weight: Tensor, bias: Tensor) -> Callable[[], Tensor]:
    point = torch.randn(5)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = (weight.mv(point) + bias).pow(2).sum()
        loss.backward()
        return loss

    return closure


def assert_right_direction(
    optimizer: Any, closure: Callable[[], Tensor], schedulers: list[Any] | None = None
) -> None:
    start = closure().item()
    for _ in range(20):
        loss = optimizer.step(closure)
        for scheduler in schedulers or []:
            scheduler.step(
                *([loss.detach()] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
            )
    end = closure().item()
    # Where all groups go up, so must the loss.
    assert end > start if optimizer.param_groups[0]["maximize"] else end < start


@CONTIGUOUS
def test_forloop_goes_right_direction(ours: partial[Any], contiguous: bool) -> None:
    weight, bias = line(contiguous)
    optimizer = ours([weight, bias])
    assert_right_direction(optimizer, closure_for(optimizer, weight, bias))


@CONTIGUOUS
@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_forloop_goes_right_direction_with_lrsched(
    setting: partial[Any], contiguous: bool, schedule: str
) -> None:
    weight, bias = line(contiguous)
    optimizer = copy.deepcopy(setting)([weight, bias], foreach=False)
    assert_right_direction(
        optimizer, closure_for(optimizer, weight, bias), [SCHEDULERS[schedule](optimizer)]
    )


@pytest.mark.parametrize("schedule", SCHEDULERS)
def test_param_group_with_lrscheduler_goes_right_direction(
    setting: partial[Any], schedule: str
) -> None:
    weight, bias = line()
    optimizer = copy.deepcopy(setting)(
        [{"params": [weight]}, {"params": [bias], "lr": 1e-3}], foreach=False
    )
    assert_right_direction(
        optimizer, closure_for(optimizer, weight, bias), [SCHEDULERS[schedule](optimizer)]
    )


@OURS
@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("dimensions", [0, 1, 2])
def test_tensor_lr(factory: Any, foreach: bool, dimensions: int) -> None:
    params, wanted = line(), line()
    tensor = torch.tensor(1e-3, dtype=torch.float64).reshape([1] * dimensions)
    pair = [factory(params, lr=tensor, foreach=foreach), factory(wanted, lr=1e-3, foreach=foreach)]
    closures = []
    for optimizer, point in zip(pair, (params, wanted), strict=True):
        torch.manual_seed(1)
        closures.append(closure_for(optimizer, *point))
    for _ in range(20):
        for optimizer, closure in zip(pair, closures, strict=True):
            optimizer.step(closure)
    # A float8 moment may round the other way at one ulp of float32.
    tolerance = 1e-4 if factory is LAMB16 else 1e-6
    for param, reference in zip(params, wanted, strict=True):
        torch.testing.assert_close(param, reference, rtol=tolerance, atol=tolerance)


def rosenbrock(point: Tensor) -> Tensor:
    x, y = point
    return (1 - x) ** 2 + 100 * (y - x**2) ** 2


def drosenbrock(point: Tensor) -> Tensor:
    x, y = point
    return torch.stack((-400 * x * (y - x**2) - 2 * (1 - x), 200 * (y - x**2)))


@pytest.mark.parametrize("schedule", [None, *SCHEDULERS])
@pytest.mark.parametrize(
    "options", [{}, {"lr": 0.01}, {"beta": 0.5, "lr": 0.001}, {"maximize": True}]
)
def test_rosenbrock_sparse_with_lrsched(schedule: str | None, options: dict[str, Any]) -> None:
    start = torch.tensor([1.5, 1.5], dtype=torch.float64)
    sign = -1.0 if options.get("maximize") else 1.0
    sparse, dense = Parameter(start.clone()), Parameter(start.clone())
    pair = [SM3([sparse], **options), SM3([dense], **options)]
    schedulers = [SCHEDULERS[schedule](optimizer) for optimizer in pair] if schedule else []
    for step in range(200):
        axis = step % 2
        partial_grad = sign * drosenbrock(sparse.detach())[axis]
        # Uncoalesced: both entries are of one row.
        twice = torch.stack((partial_grad / 4, partial_grad - partial_grad / 4))
        sparse.grad = torch.sparse_coo_tensor(
            torch.tensor([[axis, axis]]), twice, (2,), check_invariants=True
        )
        dense.grad = torch.zeros_like(dense)
        dense.grad[axis] = sign * drosenbrock(dense.detach())[axis]
        for optimizer in pair:
            optimizer.step()
        for scheduler in schedulers:
            scheduler.step(
                *([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else [])
            )
        if "beta" not in options:
            # With beta an absent row keeps its average, and a dense gradient of 0 lets it fade.
            torch.testing.assert_close(sparse, dense, rtol=1e-10, atol=1e-10)
    # The value is compared: in the valley the way to the solution is long.
    assert rosenbrock(sparse) < rosenbrock(start)


@pytest.mark.parametrize("dtype", [torch.complex64])
def test_complex(ours: partial[Any], dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    # The last is real: both kinds may come together.
    params = [torch.randn(10, 5, dtype=dtype), torch.randn(10, dtype=dtype), torch.randn(10, 5)]
    reals = [
        Parameter((torch.view_as_real(param) if param.is_complex() else param).clone())
        for param in params
    ]
    complexes = [Parameter(param) for param in params]
    pair = ours(complexes), ours(reals)
    for _ in range(3):
        for param, real in zip(complexes, reals, strict=True):
            real.grad = torch.randn_like(real)
            param.grad = (
                torch.view_as_complex(real.grad.clone())
                if param.is_complex()
                else real.grad.clone()
            )
        for optimizer in pair:
            optimizer.step()
        for param, real in zip(complexes, reals, strict=True):
            torch.testing.assert_close(
                torch.view_as_real(param) if param.is_complex() else param, real
            )


def test_complex_2d(ours: partial[Any]) -> None:
    torch.manual_seed(0)
    start = torch.randn(2, dtype=torch.complex64)
    one, parts = Parameter(start.clone()), Parameter(torch.view_as_real(start).clone())
    pair = ours([one]), ours([parts])
    for _ in range(3):
        for optimizer, point in zip(pair, (one, torch.view_as_complex(parts)), strict=True):
            optimizer.zero_grad()
            (1 - point[0]).abs().square().add(
                100 * (point[1] - point[0] ** 2).abs().square()
            ).backward()
            optimizer.step()
        torch.testing.assert_close(torch.view_as_real(one), parts)


def test_foreach_matches_forloop(setting: partial[Any]) -> None:
    results = []
    for foreach in (False, True):
        torch.manual_seed(1)
        model = torch.nn.Sequential(
            torch.nn.Linear(2, 3), torch.nn.Sigmoid(), torch.nn.Linear(3, 1), torch.nn.Sigmoid()
        ).double()
        scalar = torch.zeros((), dtype=torch.float64, requires_grad=True)
        scalar.grad = torch.rand_like(scalar)
        params = [*model.parameters(), scalar]
        optimizer = setting(params, foreach=foreach)
        points = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], dtype=torch.float64).reshape(3, 2)
        for step in range(7):
            optimizer.zero_grad()
            # At step 3 no parameter has a gradient; from 4 on the first is frozen, at 6 it is free
            # again.
            params[0].requires_grad_(step not in (4, 5))
            if step != 3:
                model(points).sum().backward()
            optimizer.step()
        results.append(
            [
                *params,
                *(value.double() for param in params for value in optimizer.state[param].values()),
            ]
        )
    for loop, foreach in zip(*results, strict=True):
        torch.testing.assert_close(loop, foreach)


def test_set_default_dtype_works_with_foreach(setting: partial[Any]) -> None:
    before = torch.get_default_dtype()
    try:
        for dtype in (torch.float64, torch.float32):
            torch.set_default_dtype(dtype)
            weight = Parameter(torch.ones(3, 2, dtype=torch.float32))
            weight.grad = torch.ones_like(weight)
            optimizer = setting([weight], foreach=True)
            optimizer.step()
            assert {
                value.dtype for name, value in optimizer.state[weight].items() if name == "step"
            } <= {torch.float32}
    finally:
        torch.set_default_dtype(before)


def test_param_groups_weight_decay(ours: partial[Any]) -> None:
    if ours.func is SM3:
        pytest.skip("SM3 has no weight decay")
    plain, decayed = Parameter(torch.full((10, 5), 2.0)), Parameter(torch.full((10, 5), 2.0))
    optimizer = ours(
        [{"params": [plain]}, {"params": [decayed], "weight_decay": 0.5}], weight_decay=0.0
    )
    for _ in range(20):
        torch.manual_seed(0)
        plain.grad = torch.randn_like(plain)
        decayed.grad = plain.grad.clone()
        optimizer.step()
    assert not torch.equal(plain, decayed)


def test_param_groups_lr(ours: partial[Any]) -> None:
    for first, second in itertools.product((0.0, 1e-3), repeat=2):
        one, other = line()
        start = [one.detach().clone(), other.detach().clone()]
        optimizer = ours(
            [{"params": [one], "lr": first}, {"params": [other], "lr": second}], lr=1.0
        )
        for _ in range(3):
            for param in (one, other):
                param.grad = torch.ones_like(param) + param.detach()
            optimizer.step()
        assert torch.equal(one, start[0]) == (first == 0)
        assert torch.equal(other, start[1]) == (second == 0)


def test_step_is_noop_when_params_have_no_grad(ours: partial[Any]) -> None:
    params = list(line())
    before = copy.deepcopy(params)
    ours(params).step()
    for param, start in zip(params, before, strict=True):
        assert torch.equal(param, start)


def test_step_is_noop_for_zero_grads(ours: partial[Any]) -> None:
    param = Parameter(torch.randn(5, 1))
    start = param.detach().clone()
    options: dict[str, Any] = {} if ours.func is SM3 else {"weight_decay": 0.0}
    optimizer = ours([param], **options)
    param.grad = torch.zeros_like(param)
    optimizer.step()
    assert torch.equal(param, start)


def test_grads_are_never_inplaced_into(ours: partial[Any]) -> None:
    param = Parameter(torch.randn(5, 1, dtype=torch.float64))
    optimizer = ours([param])
    param.grad = torch.rand_like(param)
    before, version = param.grad.clone(), param.grad._version
    for _ in range(5):
        optimizer.step()
        assert torch.equal(param.grad, before)
        assert param.grad._version == version


@pytest.mark.gpu
def test_peak_memory_foreach(setting: partial[Any]) -> None:
    peaks = []
    for foreach in (False, True):
        params = [Parameter(torch.rand(1000, 1000, device="cuda")) for _ in range(8)]
        for param in params:
            param.grad = torch.rand_like(param)
        optimizer = setting(params, foreach=foreach)
        optimizer.step()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        optimizer.step()
        peaks.append(torch.cuda.max_memory_allocated())
        del params, optimizer
    loop, foreach = peaks
    assert foreach <= loop + 2**16


@pytest.mark.gpu
def test_mixed_device_dtype(setting: partial[Any]) -> None:
    results = []
    for foreach in (False, True):
        torch.manual_seed(0)
        kinds = itertools.product(
            ("cpu", "cuda"), (torch.float64, torch.float32, torch.float16, torch.bfloat16)
        )
        params = [Parameter(torch.rand(2, 3).to(device, dtype)) for device, dtype in kinds]
        optimizer = setting(params, foreach=foreach)
        for _ in range(3):
            for param in params:
                param.grad = torch.rand(2, 3).to(param)
            optimizer.step()
        results.append(params)
    for loop, foreach in zip(*results, strict=True):
        torch.testing.assert_close(loop, foreach)


@pytest.mark.gpu
@OURS
def test_foreach_large_tensor(factory: Any) -> None:
    param = Parameter(torch.ones(2**31 + 1, dtype=torch.float16, device="cuda"))
    param.grad = torch.zeros_like(param)
    param.grad[-1] = 1.0
    factory([param], lr=0.1, foreach=True).step()
    assert param[-1].item() != 1.0
