"""SGD-SaI's kernel for CUDA, interpreted, against the rule of its file written out in float64."""

from collections.abc import Sequence
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import SGDSaI, fused
from optprof.optimizers.cuda import sgd_sai
from optprof.profiler.tracing.kernel_trace import trace_step

pytestmark = [pytest.mark.usefixtures("by_triton")]

pytest.importorskip("triton")

# The interpreter cuts off what bfloat16 cannot hold; a GPU rounds.
ROUNDINGS = {torch.float32: 2**-20, torch.bfloat16: 2**-7, torch.float16: 2**-10}
DTYPES = st.sampled_from([*ROUNDINGS])
# A block has 2,048 elements and a chunk 16,384.
COUNTS = st.one_of(
    st.integers(1, 40), st.sampled_from([2047, 2048, 2049, 16_383, 16_384, 16_385, 40_000])
)
SHAPES = st.one_of(
    COUNTS.map(lambda count: (count,)), st.lists(st.integers(1, 6), max_size=5).map(tuple)
)
OPTIONS = st.fixed_dictionaries(
    {
        "lr": st.sampled_from([0.0, 1e-2, torch.tensor(1e-2), torch.tensor([0.5])]),
        "momentum": st.sampled_from([0.0, 0.5, 0.9]),
        "weight_decay": st.sampled_from([0.0, 0.1]),
        "maximize": st.booleans(),
    }
)


def draw(
    shapes: Sequence[tuple[int, ...]], dtype: torch.dtype, *, seed: int = 0, offset: int = 0
) -> list[Tensor]:
    """Return random tensors, each that many elements from the start of its memory."""
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.empty(torch.Size(shape).numel() + offset, dtype=dtype)[offset:]
        .view(shape)
        .copy_(torch.randn(shape, generator=generator))
        for shape in shapes
    ]


def ratio_of(grad: Tensor) -> float:
    deviation = grad.std().item() if grad.numel() > 1 else 0.0
    norm = grad.norm().item()
    return norm / (deviation + 1e-8) if deviation else grad.numel() ** 0.5 * (norm > 0)


@settings(deadline=None, max_examples=15)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    dtype=DTYPES,
    offset=st.integers(0, 3),
    options=OPTIONS,
)
def test_a_step_is_that_of_the_rule(
    shapes: list[tuple[int, ...]], dtype: torch.dtype, offset: int, options: dict[str, Any]
) -> None:
    lr, momentum, weight_decay = (
        float(options[name]) for name in ("lr", "momentum", "weight_decay")
    )
    params = [Parameter(tensor) for tensor in draw(shapes, dtype, offset=offset)]
    optimizer = SGDSaI(params, fused=True, **options)
    ratios: list[float] = []
    averages: list[Tensor] = []
    for step in range(3):
        for param, grad in zip(params, draw(shapes, dtype, seed=step + 1), strict=True):
            param.grad = grad
        weights = [param.detach().double() for param in params]
        sign = -1 if options["maximize"] else 1
        grads = [sign * param.grad.double() for param in params if param.grad is not None]
        if not step:
            ratios, averages = [ratio_of(grad) for grad in grads], [*grads]
        with mock.patch.object(sgd_sai, "launch", wraps=sgd_sai.launch) as launch:
            optimizer.step()
        assert launch.call_count == 1
        for index, param in enumerate(params):
            average = momentum * averages[index] + (1 - momentum) * grads[index]
            rate = lr * ratios[index]
            weight = (1 - lr * weight_decay) * weights[index] - rate * average
            # The average is rounded before the weight is.
            allowed = 2 * ROUNDINGS[dtype] * (1 + average.abs())
            assert ((param.detach() - weight).abs() <= (1 + weight.abs() + rate) * allowed).all()
            if momentum:
                stored = optimizer.state[param]["momentum_buffer"].double()
                assert (
                    (stored - average).abs() <= 2 * ROUNDINGS[dtype] * (1 + average.abs())
                ).all()
                averages[index] = stored


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"lr": torch.tensor(0.01)}])
def test_many_tensors_take_one_launch_and_get_the_steps_of_the_loop(
    options: dict[str, Any],
) -> None:
    shapes = [(index % 7 + 1, index % 5) for index in range(120)]
    results: list[list[Tensor]] = []
    with mock.patch.object(sgd_sai, "launch", wraps=sgd_sai.launch) as launch:
        for way in ({"foreach": False}, {"fused": True}):
            params = [Parameter(tensor) for tensor in draw(shapes, torch.float32)]
            optimizer = SGDSaI(params, **options, **way)
            for seed in (1, 2):
                for param, grad in zip(params, draw(shapes, torch.float32, seed=seed), strict=True):
                    # The first of these gradients are zero, and then the parameters only decay.
                    param.grad = grad * (seed > 1 or param.size(0) > 2)
                optimizer.step()
            results.append([param.detach() for param in params])
    assert launch.call_count == 2
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


# Numpy, which runs the interpreted kernel, warns of inf - inf.
@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_nan_spreads_as_far_as_in_the_loop(value: float) -> None:
    results: list[list[Tensor]] = []
    for way in ({"foreach": False}, {"fused": True}):
        params = [Parameter(tensor) for tensor in draw([(40, 30), (7,)], torch.float32)]
        optimizer = SGDSaI(params, **way)
        for step in range(3):
            for param, grad in zip(params, draw([(40, 30), (7,)], torch.float32), strict=True):
                param.grad = grad
                if step == 1:
                    param.grad.view(-1)[5] = value
            optimizer.step()
        results.append([param.isfinite() for param in params])
    for one, other in zip(*results, strict=True):
        assert torch.equal(one, other)
        assert (~one).sum() == 1


def test_tensors_that_no_kernel_takes_are_stepped_by_the_loop_next_to_those_it_takes() -> None:
    results: list[list[Tensor]] = []
    for way in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        params = [
            Parameter(torch.randn(8, 6).t()),
            Parameter(torch.randn(8, 6)),
            Parameter(torch.randn(8, dtype=torch.float64)),
            Parameter(torch.randn(8, dtype=torch.complex64)),
        ]
        optimizer = SGDSaI(params, **way)
        for _ in range(3):
            for param in params:
                param.grad = torch.randn_like(param)
            optimizer.step()
        results.append([param.detach() for param in params])
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][2], results[1][2])
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("dtype", "options", "moved"),
    [
        # Weight and momentum are read and written, the gradient is read.
        (torch.float32, {}, 20),
        (torch.float32, {"lr": torch.tensor(0.01)}, 20),
        (torch.float32, {"momentum": 0.0}, 12),
        (torch.bfloat16, {}, 10),
    ],
)
def test_the_estimate_is_one_launch_of_those_bytes_and_no_wait(
    dtype: torch.dtype, options: dict[str, Any], moved: int
) -> None:
    shapes = [(100, 100), (300,), ()]
    count = 100 * 100 + 300 + 1
    trace = trace_step(
        [(shape, dtype) for shape in shapes],
        lambda params: SGDSaI(params, fused=True, **options),
    )
    assert not any(kernel.waits for kernel in trace.kernels)
    # A learning rate on the host is copied to the device first.
    (kernel,) = (kernel for kernel in trace.kernels if kernel.name != "_to_copy")
    assert kernel.launches == 1
    # Each parameter has a ratio of four bytes.
    assert kernel.bytes == trace.needed_bytes == moved * count + 4 * len(shapes)


def test_a_step_on_meta_tensors_needs_no_triton() -> None:
    with mock.patch.dict("sys.modules", {"triton": None, sgd_sai.__name__ + "_kernels": None}):
        trace_step([((9, 9), torch.float32)], lambda params: SGDSaI(params, fused=True))
    assert fused.KERNELS["meta"] == "triton"
