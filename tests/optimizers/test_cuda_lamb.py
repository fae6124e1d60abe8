"""LAMB's CUDA kernels, run in Triton's interpreter and held to the loop in float64."""

from collections.abc import Iterator
from importlib.util import find_spec
from math import inf
from typing import Any

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from tests.support.interpreter import TOLERANCES, descend, kernels_on_cpu

from optprof.optimizers import LAMB
from optprof.optimizers.cuda import lamb as host
from optprof.profiler.tracing.kernel_trace import trace_step

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

CHOICES: list[dict[str, Any]] = [
    {},
    {"weight_decay": 0.1, "capturable": True},
    {"preset": "cybertronai", "weight_decay": 0.1, "maximize": True},
    {"preset": "cybertronai", "max_weight_norm": 0.5},
    {"preset": "nvidia", "lr": torch.tensor(0.01)},
    {"preset": "nvidia", "weight_decay": 0.1, "trust_clip": 1.0},
    {"adapts_without_decay": False, "betas": (0.3, 0.5)},
    {"max_grad_norm": 0.5, "trust_clip": 0.5, "lr": 1, "capturable": True},
    {"max_grad_norm": inf, "bias_correction": False, "betas": (0, 0), "eps": 0.1},
]
SHAPES = st.sampled_from([(), (1,), (15,), (16,), (7, 9), (2, 64), (129,), (5, 3, 2, 2)])


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    with kernels_on_cpu(), pytest.MonkeyPatch.context() as patch:
        # Small tensors then have several chunks, and a chunk several turns.
        patch.setattr(host, "_CHUNK", 64)
        patch.setattr(host, "_BLOCK", 16)
        yield


def in_two_groups(**options: Any) -> Any:
    """Return what makes LAMB with two groups, whose gradients are clipped together."""
    return lambda params: LAMB(
        [{"params": params[::2]}, {"params": params[1::2]}][: len(params)], **options
    )


# The interpreter is too slow for shrinking.
@settings(deadline=None, max_examples=12, derandomize=True, phases=[Phase.generate])
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=3),
    dtype=st.sampled_from([*TOLERANCES]),
    options=st.sampled_from(CHOICES),
    offset=st.sampled_from([0, 1]),
)
def test_the_kernels_give_the_numbers_of_the_loop_in_float64(
    shapes: list[Any], dtype: torch.dtype, options: dict[str, Any], offset: int
) -> None:
    wanted, references = descend(
        in_two_groups(foreach=False, **options), shapes, dtype, torch.float64
    )
    optimizer, params = descend(in_two_groups(fused=True, **options), shapes, dtype, dtype, offset)
    tolerance = TOLERANCES[dtype]
    for param, reference in zip(params, references, strict=True):
        torch.testing.assert_close(param.double(), reference, rtol=tolerance, atol=tolerance)
        assert optimizer.state[param].keys() == wanted.state[reference].keys()
        for name, value in optimizer.state[param].items():
            assert value.dtype == torch.float32
            # The factor of clipping has the gradients' dtype.
            clips = options.get("preset") == "nvidia" or "max_grad_norm" in options
            atol = tolerance if clips else 2e-6
            torch.testing.assert_close(
                value.double(),
                wanted.state[reference][name].double(),
                rtol=max(atol, 2e-6),
                atol=atol,
            )


@pytest.mark.parametrize("capturable", [False, True])
@pytest.mark.parametrize(
    ("options", "needed"),
    [
        ({}, 40),
        ({"preset": "cybertronai"}, 40),
        # A pass over the gradients for their norm, and without decay one pass over all the rest.
        ({"preset": "nvidia"}, 32),
        ({"preset": "nvidia", "weight_decay": 0.1}, 44),
    ],
)
def test_a_step_costs_its_bytes_in_as_many_launches_for_any_number_of_tensors(
    options: dict[str, Any], needed: int, capturable: bool
) -> None:
    launches: set[int] = set()
    for count in (3, 300):
        tensors = [((4096,), torch.float32)] * count
        trace = trace_step(
            tensors, lambda params: LAMB(params, **options, fused=True, capturable=capturable)
        )
        assert not any(kernel.waits for kernel in trace.kernels)
        launches.add(sum(kernel.launches for kernel in trace.kernels))
        moved = sum(kernel.bytes for kernel in trace.kernels)
        # The norms and corrections have some hundred bytes a tensor.
        assert moved / (4096 * count) == pytest.approx(needed, abs=0.2)
    assert len(launches) == 1
