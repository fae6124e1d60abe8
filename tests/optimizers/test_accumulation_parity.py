"""Decisions, weights and statistics against torch-gqc 0.10.4, where that is right."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from optprof.optimizers import accumulation

MODULE = "gradient_quality_control.implementations"
# Ours, the original's module, class and arguments, and the targets that it takes from parameter
# groups.
CASES: dict[str, tuple[str, str, str, dict[str, Any], dict[str, float]]] = {
    "gnts": (
        "gnts:threshold=0.6",
        "gradient_norm_threshold_scheduler",
        "GNTS",
        {},
        {"gradient_norm_threshold": 0.6},
    ),
    "gnts bound": (
        "gnts:threshold=0.3,max_draws=5",
        "gradient_norm_threshold_scheduler",
        "GNTS",
        {"max_batch_draws": 5},
        {"gradient_norm_threshold": 0.3},
    ),
    "gnr": ("gnr:norm=0.3", "gradient_norm_rescaler", "GNR", {}, {"target_gradient_norm": 0.3}),
    "gns": ("gns:tolerance=0.005", "gradient_noise_scale", "GNS", {}, {"noise_tolerance": 0.005}),
    "gns buffered": (
        "gns:tolerance=0.005,buffered=true",
        "gradient_noise_scale",
        "GNS",
        {},
        {"noise_tolerance": 0.005},
    ),
    "sbc": (
        "sbc:batch_size=20,micro_batch_size=8",
        "schedule_batch_controller",
        "SBC",
        {"physical_batch_size": 8},
        {"logical_batch_size": 20},
    ),
    "mht": (
        "mht:error=0.35,confidence=0.9",
        "metric_hypothesis_test",
        "MHT",
        {},
        {"percent_error_threshold": 0.35, "confidence_level": 0.9},
    ),
}


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3)).double()


def original(name: str, optimizer: Any) -> Any:
    _, module, kind, options, targets = CASES[name]
    wrapper = getattr(pytest.importorskip(f"{MODULE}.{module}"), f"OptimizerWrapper{kind}")(
        optimizer, **options
    )
    for group in optimizer.param_groups:
        group.update(targets)
    return wrapper


def step(wrapper: Any, loss: float) -> bool:
    """Step ours with the loss as a keyword, torch-gqc's with its only argument."""
    is_ours = isinstance(wrapper, accumulation.MetricHypothesisTest)
    return wrapper.step(loss=loss) if is_ours else wrapper.step(loss)


def train(model: nn.Module, wrapper: Any, name: str) -> tuple[list[bool], list[dict[str, Any]]]:
    generator = torch.Generator().manual_seed(1)
    stepped, statistics = [], []
    for _ in range(120):
        x = torch.randn(4, 6, generator=generator, dtype=torch.float64)
        y = torch.randn(4, 3, generator=generator, dtype=torch.float64)
        loss = (model(x) - y).square().mean()
        loss.backward()
        stepped.append(step(wrapper, loss.item()) if name == "mht" else wrapper.step())
        statistics.append(wrapper.statistics())
    return stepped, statistics


# Its variance of one number.
@pytest.mark.filterwarnings("ignore:var\\(\\)")
@pytest.mark.parametrize(
    "inner",
    [lambda params: SGD(params, lr=0.1, momentum=0.9), lambda params: AdamW(params, lr=0.01)],
)
@pytest.mark.parametrize("name", CASES)
def test_decisions_weights_and_statistics_are_the_original_s(
    name: str, inner: Callable[..., Any]
) -> None:
    mine, theirs = net(), net()
    theirs_found = train(theirs, original(name, inner(theirs.parameters())), name)
    mine_found = train(mine, accumulation.create(CASES[name][0], inner(mine.parameters())), name)
    assert mine_found[0] == theirs_found[0]
    # It waits for varying numbers of draws; only the rescaler does not wait.
    assert name == "gnr" or 10 < sum(mine_found[0]) < 110
    # The rescaler multiplies by a norm, which the original rounds to float32.
    tolerance = 1e-7 if name == "gnr" else 1e-12
    for param, twin in zip(mine.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(param, twin, rtol=tolerance, atol=tolerance)
    for ours, others in zip(mine_found[1], theirs_found[1], strict=True):
        for key in others.keys() - {"history", "history*", "update_beta"}:
            assert ours[key] == pytest.approx(others[key], rel=1e-5), key
