"""Our optimizers in the settings of torch's conformance tests."""

from functools import partial
from importlib.util import find_spec
from typing import Any

import pytest
import torch
from torch.optim.optimizer import Optimizer

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI, fused

SETTINGS: dict[str, tuple[type[Optimizer], dict[str, Any]]] = {
    "sgd-sai": (SGDSaI, {"lr": 1e-4}),
    "sgd-sai tensor lr": (SGDSaI, {"lr": torch.tensor(1e-4)}),
    "sgd-sai momentum=0 maximize": (SGDSaI, {"lr": 1e-4, "momentum": 0.0, "maximize": True}),
    "sgd-sai weight_decay": (SGDSaI, {"lr": 1e-4, "weight_decay": 0.9}),
    "sm3": (SM3, {}),
    "sm3 tensor lr": (SM3, {"lr": torch.tensor(0.01), "momentum": 0.9}),
    "sm3 beta maximize": (SM3, {"lr": 0.01, "beta": 0.9, "momentum": 0.5, "maximize": True}),
    "lamb": (LAMB, {}),
    "lamb tensor lr": (LAMB, {"lr": torch.tensor(0.001), "weight_decay": 0.1}),
    "lamb cybertronai maximize": (LAMB, {"preset": "cybertronai", "maximize": True}),
    "lamb nvidia weight_decay": (LAMB, {"preset": "nvidia", "weight_decay": 0.1}),
    "lamb16": (LAMB16, {}),
    "lamb16 tensor lr": (LAMB16, {"lr": torch.tensor(0.001), "weight_decay": 0.1}),
    "lamb16 maximize": (LAMB16, {"maximize": True}),
}


@pytest.fixture(params=SETTINGS)
def setting(request: pytest.FixtureRequest) -> partial[Any]:
    """Return one of ours with its options; a call with parameters makes the optimizer."""
    factory, options = SETTINGS[request.param]
    return partial(factory, **options)


WAYS: dict[str, dict[str, bool]] = {
    "loop": {"foreach": False},
    "foreach": {"foreach": True},
    "fused": {"fused": True},
    # CUDA's kernels, interpreted on CPU tensors.
    "triton": {"fused": True},
}


def _ways(factory: Any) -> list[str]:
    return [way for way in WAYS if way != "triton" or has_triton_kernels(factory)]


def has_triton_kernels(factory: Any) -> bool:
    """Return whether the kernels of one of ours for CUDA can run here."""
    return (
        find_spec("triton") is not None
        and bool(factory.kernels)
        and find_spec(f"{fused.__package__}.cuda.{factory.kernels}") is not None
    )


@pytest.fixture
def by_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run fused steps on a CPU by CUDA's kernels, interpreted."""
    monkeypatch.setitem(fused.KERNELS, "cpu", "triton")


@pytest.fixture(
    params=[
        pytest.param(
            (name, way), id=f"{name} {way}", marks=[pytest.mark.compiler] if way == "fused" else []
        )
        for name, (factory, _) in SETTINGS.items()
        for way in _ways(factory)
    ]
)
def ours(request: pytest.FixtureRequest) -> partial[Any]:
    """Return one of ours with its options, in each way to run it."""
    name, way = request.param
    if way == "triton":
        request.getfixturevalue("by_triton")
    factory, options = SETTINGS[name]
    return partial(factory, **options, **WAYS[way])
