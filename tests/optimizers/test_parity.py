"""SGD-SaI and SM3 against their original packages, where those are right."""

import io
from contextlib import redirect_stdout
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from optprof.optimizers import SM3, SGDSaI

SHAPES = [(2,), (7,), (3, 5), (2, 3, 4), (4, 3, 2, 2)]
STEPS = 25


def assert_alike(ours: Any, theirs: Any, shapes: Any) -> None:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape, dtype=torch.float64)) for shape in shapes]
    twins = [Parameter(param.detach().clone()) for param in params]
    optimizer, original = ours(params), theirs(twins)
    for _ in range(STEPS):
        for param, twin in zip(params, twins, strict=True):
            param.grad = torch.randn_like(param)
            twin.grad = param.grad.clone()
        optimizer.step()
        # It prints.
        with redirect_stdout(io.StringIO()):
            original.step()
        for param, twin in zip(params, twins, strict=True):
            torch.testing.assert_close(param, twin, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"lr": 1e-3, "momentum": 0.5, "weight_decay": 0.0}, {"eps": 0.1}]
)
def test_sgd_sai_is_its_original(foreach: bool, options: dict[str, Any]) -> None:
    original = pytest.importorskip("sgd_sai").SGD_sai
    arguments = {"lr": 1e-3, **options}
    assert_alike(
        lambda params: SGDSaI(params, foreach=foreach, **arguments),
        lambda params: original(params, **arguments),
        SHAPES,
    )


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("options", [{}, {"momentum": 0.9}, {"lr": 0.01, "eps": 1e-6}])
def test_sm3_is_its_original(foreach: bool, options: dict[str, Any]) -> None:
    original = pytest.importorskip("SM3").SM3
    assert_alike(
        lambda params: SM3(params, foreach=foreach, **options),
        lambda params: original(params, **options),
        [(), (1,), *SHAPES],
    )
