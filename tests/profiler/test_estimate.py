"""Estimated step times, compared with a roofline by hand and with published times of an A100."""

import pytest
import torch

from optprof import optimizers
from optprof.profiler.simulating.estimate import (
    ACHIEVED_BANDWIDTH,
    LAUNCH_SECONDS,
    WAIT_SECONDS,
    estimate,
)
from optprof.profiler.tracing.kernel_trace import Kernel, StepTrace, trace_step
from optprof.scenarios import Scenario, hardware
from optprof.scenarios.workpiece import build

A100 = hardware.describe("a100-80")
SECOND = round(ACHIEVED_BANDWIDTH * A100.bandwidth)  # bytes


def seconds(*kernels: Kernel) -> float:
    return estimate(StepTrace(kernels=list(kernels), needed_bytes=0), A100).seconds


def test_a_large_kernel_takes_the_time_of_its_bytes():
    assert seconds(Kernel(name="mul_", bytes=SECOND)) == pytest.approx(1 + LAUNCH_SECONDS)


def test_large_kernels_hide_the_launches_of_later_ones():
    assert seconds(*[Kernel(name="mul_", bytes=SECOND)] * 3) == pytest.approx(3 + LAUNCH_SECONDS)


def test_small_kernels_take_the_time_of_their_launches():
    assert seconds(*[Kernel(name="mul_", bytes=8)] * 1_000) == pytest.approx(
        1_000 * LAUNCH_SECONDS, rel=1e-3
    )
    assert seconds(Kernel(name="_foreach_mul_", launches=1_000, bytes=8)) == pytest.approx(
        1_000 * LAUNCH_SECONDS, rel=1e-3
    )


def test_a_waiting_host_launches_nothing():
    read_back = Kernel(name="_local_scalar_dense", bytes=4, waits=True)
    large = Kernel(name="mul_", bytes=SECOND)
    assert seconds(large, read_back, large) == pytest.approx(2 + 2 * LAUNCH_SECONDS + WAIT_SECONDS)


def test_a_matrix_product_takes_the_time_of_its_arithmetic():
    assert seconds(
        Kernel(name="mm", bytes=1, flops=312 * 10**12, dtype=torch.bfloat16)
    ) == pytest.approx(1, rel=1e-3)
    assert seconds(Kernel(name="mm", bytes=1, flops=195 * 10**11)) == pytest.approx(1, rel=1e-3)


def test_a_gpu_without_hardware_for_a_product_says_so():
    product = StepTrace(kernels=[Kernel(name="mm", flops=1, dtype=torch.bfloat16)], needed_bytes=0)
    with pytest.raises(
        ValueError,
        match="mm multiplies matrices in bf16, which t4 has no hardware for; it has fp32, fp16",
    ):
        estimate(product, hardware.describe("t4"))


def test_the_floor_moves_the_needed_bytes_once_at_the_peak_bandwidth():
    result = estimate(
        StepTrace(kernels=[Kernel(name="mul_", bytes=10)], needed_bytes=2_039 * 10**6), A100
    )
    assert result.floor_seconds == pytest.approx(1e-3)
    assert (result.gpu, result.moved_bytes, result.launches, result.synchronisations) == (
        "a100-80",
        10,
        1,
        0,
    )


@pytest.mark.parametrize(
    ("how", "measured", "low", "high"),
    [("loop", 647e-6, 0.9, 1.1), ("foreach", 575e-6, 0.75, 1.1), ("fused", 352e-6, 0.4, 1.1)],
)
def test_ten_matrices_take_about_as_long_as_on_an_a100(
    how: optimizers.Implementation, measured: float, low: float, high: float
):
    """Times of AdamW over ten linear layers of 1024 x 1024.

    They are from https://github.com/pytorch/pytorch/issues/120308. The launch cost is from its
    loop. Half of the fused step is the host's work, which the estimate does not include.
    """
    make = lambda parameters: optimizers.create("adamw", parameters, implementation=how)  # noqa: E731
    result = estimate(trace_step([((1024, 1024), torch.float32)] * 10, make), A100)
    assert low < result.seconds / measured < high


@pytest.mark.parametrize(("model", "published"), [("vit-s16", 12.4e-3), ("gpt2-xl", 68e-3)])
def test_the_original_sgd_sai_waits_for_each_tensor_and_takes_about_the_paper_s_time(
    model: str, published: float
):
    """arXiv 2412.11768 timed it on an A100-80GB; each number read back waits for the device."""
    original = pytest.importorskip("sgd_sai", reason="make bench installs it").SGD_sai
    shapes = [
        p.shape for p in build(Scenario(model=model, workload="state"), "meta").model.parameters()
    ]
    result = estimate(
        trace_step(
            [(shape, torch.float32) for shape in shapes], lambda params: original(params, lr=1e-3)
        ),
        A100,
    )
    assert result.synchronisations == len(shapes)
    # With each tensor, a scalar is multiplied, negated and read back.
    assert result.moved_bytes == sum(40 * shape.numel() + 8 + 8 + 4 for shape in shapes)
    assert 0.8 < result.seconds / published < 1.05
