"""A scenario's accumulation around its optimizer, its target's schedule and simulated window."""

from typing import Any

import torch

from optprof import optimizers
from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import Accumulation, CosineTarget
from optprof.scenarios import Scenario, schema

# The draws of a simulated window: the first gradients are new, the second and all later ones are
# added to them.
WINDOW = 2
# Options in an accumulation's text for a CosineTarget over the scenario's steps; all others are the
# wrapper's.
_SCHEDULE = ("warmup_steps", "warmup_start", "final")


def accumulating(
    scenario: Scenario, optimizer: torch.optim.Optimizer, max_draws: int | None = None
) -> Accumulation | None:
    """Return the scenario's wrapper around the optimizer, None if it has none.

    A simulation sets `max_draws`, which alone decides for tensors without data. ValueError for
    options that do not fit.
    """
    if scenario.accumulate is None:
        return None
    wrapper = _wrapped(scenario.accumulate, scenario, optimizer)
    wrapper.max_draws = max_draws or wrapper.max_draws
    return wrapper


def target_schedule(scenario: Scenario) -> CosineTarget | None:
    """Return the target's factor at each of the scenario's steps, None if the target is constant.

    ValueError for a schedule that is not possible.
    """
    options = _read(scenario.accumulate)[2] if scenario.accumulate else {}
    for name, value in options.items():
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise ValueError(f"{name} must be a number, got {value!r}")
    return CosineTarget(total_steps=scenario.steps, **options) if options else None


def require_possible(scenario: Scenario) -> None:
    """Raise ValueError for an accumulation that cannot be made.

    A schedule must fit the steps of a scenario that is measured.
    """
    if scenario.accumulate is not None:
        _around_nothing(scenario.accumulate, scenario)
        if scenario.device != "sim":
            target_schedule(scenario)


def simulated_draws(scenario: Scenario) -> int:
    """Return the micro-batches of a simulated step: two, or one if there are never more."""
    if scenario.accumulate is None:
        return 1
    wrapper = _around_nothing(scenario.accumulate, scenario)
    has_schedule = bool(_read(scenario.accumulate)[2])
    return min(WINDOW, wrapper.max_draws if has_schedule else wrapper.most_draws())


def keeps_gradients(scenario: Scenario) -> bool:
    """Return whether the draws stay in .grad until the step."""
    return (
        scenario.accumulate is not None
        and not _around_nothing(scenario.accumulate, scenario).buffered
    )


def _wrapped(spec: str, scenario: Scenario, optimizer: torch.optim.Optimizer) -> Accumulation:
    name, options, _ = _read(spec)
    if "micro_batch_size" in accumulation.option_defaults(name, **options):
        size = options.setdefault("micro_batch_size", scenario.batch_size)
        # A factory of the user's, module:factory, chooses its batch itself.
        if size != scenario.batch_size and ":" not in scenario.model:
            raise ValueError(
                f"micro_batch_size is the batch size, {scenario.batch_size}, got {size!r}; leave"
                " it out"
            )
    return accumulation.create(name, optimizer, **options)


def _around_nothing(spec: str, scenario: Scenario) -> Accumulation:
    """Return the scenario's wrapper around an optimizer with nothing to train."""
    return _wrapped(
        spec, scenario, torch.optim.SGD([torch.nn.Parameter(torch.empty(1, device="meta"))])
    )


def _read(spec: str) -> tuple[str, dict[str, Any], dict[str, Any]]:
    """Return the wrapper's name, its options, and those of its target's schedule."""
    name, options = optimizers.parse(spec)
    schema.require_plain(options, name)
    return name, options, {option: options.pop(option) for option in _SCHEDULE if option in options}
