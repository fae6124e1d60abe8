"""SM3's CUDA kernels, run in Triton's interpreter and held to the loop in float64."""

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from math import inf, nan, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.support.interpreter import TOLERANCES, descend, kernels_on_cpu
from torch.nn import Parameter

from optprof.optimizers import SM3
from optprof.optimizers.cuda import sm3 as host
from optprof.profiler.tracing.kernel_trace import trace_step

pytestmark = pytest.mark.skipif(find_spec("triton") is None, reason="needs triton")

CHOICES: list[dict[str, Any]] = [
    {},
    {"momentum": 0.9},
    {"beta": 0.9, "lr": torch.tensor(0.05)},
    {"beta": 0.5, "momentum": 0.3, "maximize": True, "eps": 1e-8},
]
# Vectors, few rows, few columns, whole tiles and parts of them, and up to five axes.
SHAPES = st.sampled_from(
    [
        *[(), (1,), (17,), (64,), (1, 1), (1, 40), (3, 33), (2, 3, 8), (1, 1, 9), (40, 1), (20, 3)],
        *[(9, 8), (33, 24), (9, 70), (40, 4, 3, 3), (1, 12, 20), (10, 2, 1, 3, 4)],
    ]
)


@pytest.fixture(autouse=True, scope="module")
def interpreted() -> Iterator[None]:
    with kernels_on_cpu(), pytest.MonkeyPatch.context() as patch:
        # Small tensors then have several tiles, and a tile several turns.
        patch.setattr(host, "_TILE", 512)
        patch.setattr(host, "_BLOCK", 128)
        patch.setattr(host, "_WIDTH", 64)
        patch.setattr(host, "_FEW_COLUMNS", 8)
        patch.setattr(host, "_COPIED", 16)
        patch.setattr(host, "_FOLDED", 4)
        yield


@settings(deadline=None, max_examples=25, derandomize=True)
@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    dtype=st.sampled_from([*TOLERANCES]),
    options=st.sampled_from(CHOICES),
    offset=st.sampled_from([0, 1]),
)
def test_the_kernels_give_the_numbers_of_the_loop_in_float64(
    shapes: list[Any], dtype: torch.dtype, options: dict[str, Any], offset: int
) -> None:
    wanted, references = descend(
        partial(SM3, foreach=False, **options), shapes, dtype, torch.float64, offset
    )
    optimizer, params = descend(partial(SM3, fused=True, **options), shapes, dtype, dtype, offset)
    tolerance = TOLERANCES[dtype]
    for param, reference in zip(params, references, strict=True):
        torch.testing.assert_close(param.double(), reference, rtol=tolerance, atol=tolerance)
        assert optimizer.state[param].keys() == wanted.state[reference].keys()
        for name, value in optimizer.state[param].items():
            is_buffer = name == "momentum_buffer"
            assert value.dtype == (dtype if is_buffer else torch.float32)
            rtol, atol = (tolerance, tolerance) if is_buffer else (5e-7, 0.0)
            torch.testing.assert_close(
                value.double(), wanted.state[reference][name].double(), rtol=rtol, atol=atol
            )


# Numpy, which runs the interpreted kernels, warns of inf * 0.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("shape", [(40,), (9, 24), (10, 4, 3, 3)])
def test_not_a_number_stays_in_its_coordinate_and_infinity_wins_each_maximum(shape: Any) -> None:
    results = []
    for way in ({"foreach": False}, {"fused": True}):
        param = Parameter(torch.ones(shape))
        optimizer = SM3([param], **way)
        param.grad = torch.full(shape, 2.0)
        param.grad.view(-1)[[3, -1]] = torch.tensor([nan, inf])
        optimizer.step()
        results.append((param, optimizer.state[param]))
    (wanted, covers), (param, state) = results
    torch.testing.assert_close(param, wanted, equal_nan=True)
    torch.testing.assert_close(state, covers)
    assert param.isnan().sum() == 2
    assert all(each.max() == inf and not each.isnan().any() for each in state.values())


@pytest.mark.parametrize(("momentum", "nbytes"), [(0.0, 12), (0.9, 20)])
@pytest.mark.parametrize("count", [1, 300])
def test_a_step_moves_the_bytes_of_its_rule_in_few_launches(
    momentum: float, nbytes: int, count: int
) -> None:
    shapes = [(512, 1024), (1024,), (64, 64, 3, 3), (64, 3, 7, 7)]

    def fused(params: Any) -> SM3:
        return SM3(params, momentum=momentum, fused=True)

    step = trace_step([(shape, torch.float32) for shape in shapes * count], fused)
    # Zeros, vectors, matrices, matrices of 147 columns, and the accumulators.
    assert len(step.kernels) == 5
    assert sum(kernel.launches for kernel in step.kernels) == 5
    parameters = count * sum(map(prod, shapes))
    assert (
        nbytes * parameters
        <= sum(each.bytes for each in step.kernels)
        < (1.06 * nbytes * parameters)
    )
    assert step.needed_bytes < 1.02 * nbytes * parameters


def test_equal_steps_give_equal_bits() -> None:
    first, second = (
        descend(partial(SM3, fused=True), [(33, 24), (9, 70)], torch.float32, torch.float32)[1]
        for _ in range(2)
    )
    assert all(map(torch.equal, first, second))
