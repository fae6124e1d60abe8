"""Norms of large float32 tensors on a CPU, which torch's own miss by a thousandth."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import LAMB, SGDSaI
from optprof.optimizers.reductions import l2_norms, total_norm

# Not a multiple of the rows that are summed apart.
MANY = 2**24 + 5


@pytest.fixture(scope="module")
def large() -> Tensor:
    return torch.randn(MANY, generator=torch.Generator().manual_seed(0))


def exact(tensor: Tensor) -> float:
    return math.sqrt(tensor.double().square().sum().item())


def test_torch_s_own_norm_is_inexact(large: Tensor) -> None:
    """If this fails, torch has become exact, and l2_norms can go."""
    assert abs(torch.linalg.vector_norm(large).item() / exact(large) - 1) > 1e-4


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(
    "shape",
    [lambda x: x, lambda x: x[: 2**24].view(2048, -1), lambda x: x[: 2**24].view(2048, -1).T],
)
def test_norms_are_right_to_the_last_places(
    large: Tensor,
    shape: Callable[[Tensor], Tensor],
    compiled: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: compiled)
    tensor = shape(large)
    (norm,) = l2_norms([tensor], torch.float32)
    assert norm.item() == pytest.approx(exact(tensor), rel=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_half_precision_is_summed_in_float32(large: Tensor, dtype: torch.dtype) -> None:
    tensor = large.to(dtype)
    (norm,) = l2_norms([tensor], torch.float32)
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact(tensor), rel=1e-6)


def test_results_from_norms_are_as_exact(large: Tensor) -> None:
    assert total_norm([large, large]).item() == pytest.approx(math.sqrt(2) * exact(large), rel=1e-6)
    param = Parameter(torch.zeros(MANY))
    param.grad = large.clone()
    optimizer = SGDSaI([param])
    optimizer.step()
    assert optimizer.state[param]["gsnr"].item() == pytest.approx(
        exact(large) / large.double().std().item(), rel=1e-6
    )


def test_the_trust_ratio_of_a_large_tensor_is_as_exact(large: Tensor) -> None:
    # The first direction is the gradient's sign, whose norm needs no sum: lr |w| / sqrt(n) is what
    # each element moves by.
    param = Parameter(large.clone())
    param.grad = torch.ones(MANY)
    LAMB([param], lr=0.1, eps=1e-12).step()
    moved = (large.double() - param.detach().double()).mean().item()
    assert moved == pytest.approx(0.1 * exact(large) / math.sqrt(MANY), rel=1e-6)
