"""A scenario's accumulation around its optimizer, the schedule of its target, and the windows that
stand for it without values.
"""

from math import ceil
from typing import Any

import torch

from optprof import optimizers
from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import (
    Accumulation,
    CosineTarget,
    GradientNoiseScale,
    MetricHypothesisTest,
    ScheduledBatch,
)
from optprof.scenarios import Scenario, schema

# The draws of a simulated window: the first gradients are new, the second are added to what is
# there, and so are all that follow.
WINDOW = 2
# What an accumulation's text may say beside the wrapper's own options: those of a CosineTarget over
# the scenario's steps.
_SCHEDULE = ("warmup_steps", "warmup_start", "final")


def accumulating(scenario: Scenario, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer in the wrapper that the scenario asks for, itself where it asks for none;
    ValueError for options that do not fit.
    """
    return (
        optimizer
        if scenario.accumulate is None
        else _wrapped(scenario.accumulate, scenario, optimizer)
    )


def target_schedule(scenario: Scenario) -> CosineTarget | None:
    """The factor on the target at each of the scenario's steps; None where the target stays.
    ValueError for one that cannot be.
    """
    options = _read(scenario.accumulate)[2] if scenario.accumulate else {}
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return CosineTarget(total_steps=scenario.steps, **options) if options else None


def require_possible(scenario: Scenario) -> None:
    """ValueError for an accumulation that cannot be made; a schedule has to fit the steps of a
    scenario that is measured.
    """
    if scenario.accumulate is not None:
        _over_nothing(scenario.accumulate, scenario)
        if scenario.device != "sim":
            target_schedule(scenario)


def simulated_draws(scenario: Scenario) -> int:
    """The micro-batches of one simulated step: two, or one where the accumulation never draws
    more.
    """
    if scenario.accumulate is None:
        return 1
    wrapper = _over_nothing(scenario.accumulate, scenario)
    if isinstance(wrapper, ScheduledBatch) and not _read(scenario.accumulate)[2]:
        return min(WINDOW, ceil(wrapper.target.value / wrapper.micro_batch_size))
    return min(WINDOW, wrapper.max_draws)


def keeps_gradients(scenario: Scenario) -> bool:
    """Whether what was drawn stays in .grad until the step."""
    return (
        scenario.accumulate is not None
        and not _over_nothing(scenario.accumulate, scenario).buffered
    )


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


def _wrapped(spec: str, scenario: Scenario, optimizer: torch.optim.Optimizer) -> Accumulation:
    name, options, _ = _read(spec)
    if "micro_batch_size" in accumulation.option_defaults(name, **options):
        given = options.setdefault("micro_batch_size", scenario.batch_size)
        # A factory of one's own, module:factory, makes its batch as large as it likes.
        if given != scenario.batch_size and ":" not in scenario.model:
            raise ValueError(
                f"micro_batch_size is the batch size, {scenario.batch_size}, got {given!r}; leave"
                " it out"
            )
    return accumulation.create(name, optimizer, **options)


def _over_nothing(spec: str, scenario: Scenario) -> Accumulation:
    """The scenario's wrapper with nothing to train in it."""
    return _wrapped(
        spec, scenario, torch.optim.SGD([torch.nn.Parameter(torch.empty(1, device="meta"))])
    )


def _read(spec: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """The wrapper's name, its options, and those of the schedule of its target."""
    name, options = optimizers.parse(spec)
    schema.require_plain(options, name)
    return name, options, {option: options.pop(option) for option in _SCHEDULE if option in options}
