"""LAMB16's kernels for CUDA, interpreted, against the loop."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import LAMB16, fused
from optprof.optimizers.cuda import lamb16
from optprof.profiler.tracing.kernel_trace import trace_step

pytest.importorskip("triton")

# A block has 1,024 elements, a chunk here 4,096, and the thresholds repeat after 8,192.
SHAPES = [(40, 30), (7,), (), (8192 + 5,)]
CODES = ("exp_avg", "exp_avg_sq")


@pytest.fixture(autouse=True)
def interpreted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(fused.KERNELS, "cpu", "triton")
    monkeypatch.setattr(lamb16, "_CHUNK", 4096)


def train(
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    value: float | None = None,
    **options: Any,
) -> list[tuple[Tensor, dict[str, Tensor]]]:
    """Return each parameter with its state after steps, of which one may meet a bad gradient."""
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    optimizer = LAMB16(params, **options)
    for step in range(2):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
            if step and value is not None:
                param.grad.view(-1)[0] = value
        optimizer.step()
    return [(param.detach(), optimizer.state[param]) for param in params]


# The interpreter cuts off what bfloat16 cannot hold; a GPU rounds.
@pytest.mark.parametrize(
    ("dtype", "tolerance", "options"),
    [
        (torch.float32, 1e-6, {}),
        (torch.bfloat16, 2**-6, {"weight_decay": 0.1, "maximize": True, "capturable": True}),
        (torch.float16, 2e-3, {"lr": torch.tensor(0.01)}),
    ],
)
def test_a_step_stores_the_codes_and_weights_of_the_loop(
    dtype: torch.dtype, tolerance: float, options: dict[str, Any]
) -> None:
    wanted = train(SHAPES, dtype, foreach=False, **options)
    flips = 0
    for (param, state), (other, expected) in zip(
        train(SHAPES, dtype, fused=True, **options), wanted, strict=True
    ):
        torch.testing.assert_close(param, other, rtol=tolerance, atol=tolerance)
        for key, tensor in state.items():
            if key in CODES:
                codes, others = (each.view(torch.uint8) for each in (tensor, expected[key]))
                flips += int((codes != others).sum())
            else:
                torch.testing.assert_close(tensor, expected[key], rtol=1e-5, atol=0)
    # A moment next to a threshold may be stored as either neighbour.
    assert flips <= 4


# Numpy, which runs the interpreted kernels, warns of inf - inf.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("value", [float("nan"), -float("nan"), float("inf"), -float("inf")])
def test_nan_spreads_as_far_as_in_the_loop(value: float) -> None:
    reached = [
        [
            tensor.isfinite()
            for param, state in train([(40, 30), (7,)], torch.float32, value, **way)
            for tensor in (param, *(held for held in state.values() if held.itemsize > 1))
        ]
        for way in ({"foreach": False}, {"fused": True})
    ]
    for one, other in zip(*reached, strict=True):
        assert torch.equal(one, other)
    assert not reached[0][0].all()


@pytest.mark.parametrize(("dtype", "moved"), [(torch.float32, 26), (torch.bfloat16, 16)])
def test_the_estimate_is_two_passes_of_those_bytes_and_no_wait(
    dtype: torch.dtype, moved: int
) -> None:
    traces = [
        trace_step(
            [((1000, 100), dtype)] * count,
            lambda params: LAMB16(params, fused=True, capturable=True),
        )
        for count in (1, 20)
    ]
    for trace, count in zip(traces, (1, 20), strict=True):
        passes = [
            kernel
            for kernel in trace.kernels
            if kernel.name.endswith(("measure", "advance")) and kernel.launches == 1
        ]
        assert len(passes) == 2
        # Each of 25 chunks has four partial results, counted as read and written.
        assert sum(kernel.bytes for kernel in passes) == (moved * 100_000 + 32 * 25) * count
        assert not any(kernel.waits for kernel in trace.kernels)
    assert len(traces[0].kernels) == len(traces[1].kernels)
