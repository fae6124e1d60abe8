"""A scenario's accumulation around its optimizer, and the windows that stand for it where no gradient has a value."""

import torch

from optimizers import accumulation
from optimizers.accumulation import Accumulation, GradientNoiseScale, MetricHypothesisTest
from scenarios import Scenario

# The draws of a simulated window: the first gradients are new, the second are added to what is there, and so are all that follow.
WINDOW = 2


def accumulating(scenario: Scenario, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer in the wrapper that the scenario asks for, itself where it asks for none; ValueError for options that do not fit."""
    return optimizer if scenario.accumulate is None else accumulation.create(scenario.accumulate, optimizer)


def require_known(spec: str) -> None:
    """ValueError for an accumulation that cannot be made."""
    accumulation.create(spec, torch.optim.SGD([torch.nn.Parameter(torch.empty(1, device="meta"))]))


def simulated_draws(scenario: Scenario) -> int:
    """The micro-batches of one simulated step."""
    if scenario.accumulate is None or "max_draws" not in accumulation.option_defaults(scenario.accumulate):
        return 1
    return WINDOW


def keeps_gradients(scenario: Scenario) -> bool:
    """Whether what was drawn stays in .grad until the step."""
    return scenario.accumulate is not None and not accumulation.option_defaults(scenario.accumulate).get("buffered", False)


def simulated_step(optimizer: torch.optim.Optimizer, draws: int) -> None:
    """One micro-batch's `step`, in a window of so many draws if the optimizer accumulates."""
    if isinstance(optimizer, GradientNoiseScale):
        optimizer.see_gradients()
    if isinstance(optimizer, Accumulation):
        optimizer.step_every(draws)
    if isinstance(optimizer, MetricHypothesisTest):
        optimizer.step(1.0)
    else:
        optimizer.step()
