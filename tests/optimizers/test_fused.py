"""Fused steps: C++ kernels give the loop's numbers, over every dtype, shape and layout."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI, fused

pytestmark = pytest.mark.compiler

# A few long rows, which threads share by columns, many short rows, several axes, and sizes that no
# vector's length divides.
SHAPES = [(256, 128), (3, 20_000), (20_000, 3), (70_001,), (24, 16, 3, 3), (7,), (1, 1), ()]
OURS = [SM3, LAMB16, SGDSaI, LAMB]
WITH_KERNELS = pytest.mark.parametrize(
    ("factory", "options"),
    [
        (SM3, {}),
        (SM3, {"momentum": 0.9, "maximize": True}),
        (SM3, {"momentum": 0.5, "beta": 0.9, "eps": 1e-6, "lr": torch.tensor(0.05)}),
        (LAMB16, {}),
        (LAMB16, {"weight_decay": 0.1, "lr": 0.1, "maximize": True}),
        (LAMB16, {"betas": (0.8, 0.95), "eps": 0.1, "trust_scale": 0.5, "lr": torch.tensor(0.01)}),
        (SGDSaI, {}),
        (SGDSaI, {"momentum": 0.0, "lr": 1e-3, "maximize": True}),
        (SGDSaI, {"momentum": 0.5, "weight_decay": 0.5, "lr": torch.tensor(1e-4)}),
        (LAMB, {}),
        (LAMB, {"preset": "cybertronai", "weight_decay": 0.1, "maximize": True}),
        (LAMB, {"preset": "nvidia", "lr": torch.tensor(0.01)}),
        (LAMB, {"preset": "nvidia", "weight_decay": 0.1, "trust_clip": 1.0}),
        (LAMB, {"betas": (0.3, 0.5), "max_weight_norm": 2.0, "trust_clip": 0.5, "lr": 0.1}),
    ],
)


def descend(
    factory: Any,
    *,
    shapes: Any = SHAPES,
    dtype: torch.dtype = torch.float32,
    steps: int = 4,
    **options: Any,
) -> Any:
    """Return an optimizer after some steps, and its parameters."""
    generator = torch.Generator().manual_seed(0)
    params = [
        Parameter(torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype))
        for shape in shapes
    ]
    optimizer = factory(params, **options)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator, dtype=torch.float64).to(
                dtype
            )
        optimizer.step()
    return optimizer, params


def apart(values: Tensor, wanted: Tensor, tolerance: float) -> int:
    return int(
        ((values.double() - wanted.double()).abs() > tolerance * (1 + wanted.double().abs())).sum()
    )


@pytest.mark.parametrize("threads", [1, 2, 5])
@WITH_KERNELS
def test_the_kernels_give_the_numbers_of_the_loop(
    factory: Any, options: dict[str, Any], threads: int
) -> None:
    wanted, reference = descend(factory, foreach=False, **options)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        optimizer, params = descend(factory, fused=True, **options)
    finally:
        torch.set_num_threads(before)
    # A moment of LAMB16 within float32's rounding of a threshold may be stored as either
    # neighbour. Their number depends on the order of sums, and so on the CPU's instructions.
    flips = 40 if factory is LAMB16 else 0
    assert (
        sum(apart(param, other, 1e-5) for param, other in zip(params, reference, strict=True))
        <= flips
    )
    for param, other in zip(params, reference, strict=True):
        for key, value in optimizer.state[param].items():
            expected = wanted.state[other][key]
            assert value.dtype == expected.dtype
            if value.itemsize == 1:
                assert (value.view(torch.uint8) != expected.view(torch.uint8)).sum() <= flips
            else:
                torch.testing.assert_close(value, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float64, 1e-5), (torch.bfloat16, 2**-6), (torch.float16, 2**-9)]
)
@WITH_KERNELS
def test_they_take_every_dtype(
    factory: Any, options: dict[str, Any], dtype: torch.dtype, tolerance: float
) -> None:
    _, wanted = descend(factory, dtype=dtype, foreach=False, **options)
    _, params = descend(factory, dtype=dtype, fused=True, **options)
    # Several roundings to half precision in a row, of which one may have gone the other way.
    assert (
        sum(apart(param, other, tolerance) for param, other in zip(params, wanted, strict=True))
        <= 40
    )


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 9), max_size=5),
    threads=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_sm3_covers_any_axes_as_the_loop_does(shape: list[int], threads: int, seed: int) -> None:
    results: list[list[Tensor]] = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(seed)
        param = Parameter(torch.randn(shape, dtype=torch.float64))
        optimizer = SM3([param], momentum=0.9, beta=0.5, **way)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(fused, "threads", lambda _: threads)
            for _ in range(3):
                param.grad = torch.randn(shape, dtype=torch.float64)
                optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_every_code_is_read_and_written_as_the_loop_does() -> None:
    codes = torch.arange(256, dtype=torch.uint8)
    results: list[dict[str, Tensor]] = []
    for is_fused in (False, True):
        params = [Parameter(torch.zeros(256)) for _ in range(40)]
        optimizer = LAMB16(params, foreach=False, fused=is_fused)
        for param in params:
            param.grad = torch.zeros(256)
        optimizer.step()
        for index, param in enumerate(params):
            state = optimizer.state[param]
            # NaN has the codes 127 and 255, and infinity begins at 124.
            state["exp_avg"].view(torch.uint8).copy_(
                codes.clone().masked_fill_(codes & 127 == 127, 0)
            )
            state["exp_avg_sq"].view(torch.uint8).copy_(codes % 124)
            state["exp_avg_scale"].fill_(2.0 ** (index - 30))
            state["exp_avg_sq_scale"].fill_(2.0 ** (index - 30))
            state["step"].fill_(index)
        optimizer.step()
        results.append(
            {
                f"{index} {key}": value
                for index, param in enumerate(params)
                for key, value in optimizer.state[param].items()
            }
        )
        results[-1].update(
            {f"{index} weight": param.detach() for index, param in enumerate(params)}
        )
    for name, value in results[0].items():
        other = results[1][name]
        if value.itemsize == 1:
            assert torch.equal(value.view(torch.uint8), other.view(torch.uint8)), name
        else:
            torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-9, msg=name)


@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("factory", OURS)
def test_nan_spreads_as_far_as_in_the_loop(factory: Any, value: float) -> None:
    reached = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        param = Parameter(torch.randn(40, 30))
        optimizer = factory([param], **way)
        for step in range(3):
            param.grad = torch.randn(40, 30)
            if step == 1:
                param.grad[7, 5] = value
            optimizer.step()
        numbers = [
            param,
            *(held for held in optimizer.state[param].values() if held.dtype is torch.float32),
        ]
        reached.append([each.isfinite() for each in numbers])
    for one, other in zip(*reached, strict=True):
        assert torch.equal(one, other)
    assert not reached[0][0].all()


def transposed(shape: tuple[int, ...]) -> tuple[Parameter, Tensor]:
    return Parameter(torch.randn(shape).t()), torch.randn(shape).t()


def transposed_gradient(shape: tuple[int, ...]) -> tuple[Parameter, Tensor]:
    return Parameter(torch.randn(shape)), torch.randn(shape[::-1]).t()


@pytest.mark.parametrize("make", [transposed, transposed_gradient])
@pytest.mark.parametrize("factory", OURS)
def test_tensors_that_are_not_contiguous_are_stepped_by_the_loop(
    factory: Any, make: Callable[..., Any]
) -> None:
    results = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        odd, grad = make((60, 40))
        plain = Parameter(torch.randn(60, 40))
        optimizer = factory([odd, plain], **way)
        for _ in range(3):
            odd.grad, plain.grad = (
                grad.clone(memory_format=torch.preserve_format),
                torch.randn(60, 40),
            )
            optimizer.step()
        results.append([odd, plain])
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-5, atol=1e-5)


def test_sparse_gradients_are_stepped_without_a_kernel() -> None:
    results = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        rows, dense = Parameter(torch.randn(50, 4)), Parameter(torch.randn(50, 4))
        optimizer = SM3([rows, dense], **way)
        rows.grad = torch.sparse_coo_tensor(
            torch.tensor([[3, 9]]), torch.randn(2, 4), (50, 4), check_invariants=True
        )
        dense.grad = torch.randn(50, 4)
        optimizer.step()
        results.append([rows, dense])
    torch.testing.assert_close(results[0], results[1])


def test_a_parameter_with_the_accumulator_of_its_rows_alone_takes_dense_gradients_too() -> None:
    results = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        param = Parameter(torch.randn(50, 4))
        optimizer = SM3([param], **way)
        param.grad = torch.sparse_coo_tensor(
            torch.tensor([[3, 9]]), torch.randn(2, 4), (50, 4), check_invariants=True
        )
        optimizer.step()
        param.grad = torch.randn(50, 4)
        optimizer.step()
        results.append([param.detach(), *optimizer.state[param].values()])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("later", [torch.float64, torch.bfloat16])
@pytest.mark.parametrize(
    ("factory", "options"), [(SM3, {"momentum": 0.9}), (LAMB16, {}), (SGDSaI, {}), (LAMB, {})]
)
def test_parameters_may_change_their_dtype_without_their_state(
    factory: Any, options: dict[str, Any], later: torch.dtype
) -> None:
    results = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        model = torch.nn.Linear(40, 30)
        optimizer = factory(model.parameters(), **options, **way)
        for dtype in (torch.float32, later, later):
            model.to(dtype)
            for param in model.parameters():
                param.grad = torch.randn(param.shape).to(dtype)
            optimizer.step()
        results.append([param.detach() for param in model.parameters()])
    torch.testing.assert_close(results[0], results[1])


@pytest.mark.parametrize("factory", OURS)
def test_a_parameter_that_has_another_shape_than_its_state_is_refused(factory: Any) -> None:
    param = Parameter(torch.randn(4, 3))
    optimizer = factory([param], fused=True)
    param.grad = torch.randn(4, 3)
    optimizer.step()
    param.data, param.grad = torch.randn(400, 30), None
    param.grad = torch.randn(400, 30)
    with pytest.raises(RuntimeError, match=r"size|shape"):
        optimizer.step()


@pytest.mark.parametrize("factory", OURS)
def test_a_fused_step_holds_no_temporaries_and_bumps_the_version_that_autograd_watches(
    factory: Any,
) -> None:
    optimizer, params = descend(factory, fused=True, shapes=[(512, 256)] * 3, steps=1)
    version = params[0]._version
    profile: Any
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        optimizer.step()
    scalars = 1024
    changes = [
        event.nbytes()
        for event in profile.profiler.kineto_results.events()
        if event.name() == "[memory]"
    ]
    assert sum(change for change in changes if change > 0) <= scalars
    assert params[0]._version > version


@pytest.mark.parametrize("factory", OURS)
def test_ways_exclude_each_other(factory: Any) -> None:
    params = [Parameter(torch.ones(1))]
    with pytest.raises(ValueError, match="foreach=True and fused=True are two ways"):
        factory(params, fused=True, foreach=True)
    with pytest.raises(
        ValueError, match="compiled=True and foreach=True and fused=True are three ways"
    ):
        factory(params, fused=True, foreach=True, compiled=True)


def test_a_scale_without_a_kernel_is_refused() -> None:
    with pytest.raises(ValueError, match="kernels for scale='max' alone, got scale='upstream'"):
        LAMB16([Parameter(torch.ones(1))], scale="upstream", fused=True)


class Elsewhere(Parameter):
    """A parameter that claims to be on a device that a test may not have."""

    device = torch.device("xpu")  # pyright: ignore[reportAssignmentType]


@pytest.mark.parametrize("factory", OURS)
def test_a_device_without_a_kernel_is_refused_and_the_group_is_not_added(factory: Any) -> None:
    optimizer = factory([Parameter(torch.ones(1))], fused=True)
    with pytest.raises(
        RuntimeError,
        match=f"{factory.__name__} has kernels for a CPU and for CUDA, got a parameter on xpu",
    ):
        optimizer.add_param_group({"params": [Elsewhere(torch.ones(1))]})
    assert len(optimizer.param_groups) == 1
    optimizer.add_param_group({"params": [Elsewhere(torch.ones(1))], "fused": False})
