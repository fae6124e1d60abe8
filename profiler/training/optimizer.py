"""A scenario's optimizer over the parameters of its model."""

from collections.abc import Sequence
from typing import Any

import torch

from optprof import optimizers
from optprof.scenarios import Scenario, models
from optprof.scenarios.spec import Device, Implementation

from .parallel import splitting_state


def make_optimizer(
    scenario: Scenario, parameters: Sequence[torch.nn.Parameter], names: Sequence[str] | None = None
) -> torch.optim.Optimizer:
    """Return the scenario's optimizer over the trained parameters, in training mode.

    An optimizer that goes by `names`, as Adam-mini does, gets them and the model's width and heads.
    Raises ValueError for options that do not fit, or for a way to run that the device does not
    have.
    """
    require_implementation(scenario.optimizer, scenario.implementation, scenario.device)
    trained: list[Any] = [parameter for parameter in parameters if parameter.requires_grad]
    options = dict(scenario.options)
    if names is not None and optimizers.goes_by_names(scenario.optimizer):
        trained = [
            (name, parameter)
            for name, parameter in zip(names, parameters, strict=True)
            if parameter.requires_grad
        ]
        attention = models.attention(scenario.model, scenario.config)
        options = {
            **options,
            **{name: value for name, value in attention.items() if options.get(name) is None},
        }

    def make(part: Sequence[Any]) -> torch.optim.Optimizer:
        return optimizers.create(
            scenario.optimizer, part, implementation=scenario.implementation, **options
        )

    made = splitting_state(scenario, make)(trained)
    set_training(made, True)
    return made


def deciding_options(spec: str) -> dict[str, Any] | None:
    """Return the options that decide the bytes of its state, each with its usual value.

    None for an optimizer outside the catalogue.
    """
    name, _ = optimizers.parse(spec)
    if ":" in name:
        return None
    usual = optimizers.option_defaults(name)
    return {option: usual[option] for option in optimizers.describe(name).decided_by}


def set_training(optimizer: torch.optim.Optimizer, is_training: bool) -> None:
    """Call `train()` or `eval()` of an optimizer or one inside it, as schedule-free ones have."""
    switch = getattr(optimizer, "train" if is_training else "eval", None)
    if callable(switch):
        switch()
        return
    for value in vars(optimizer).values():
        if isinstance(value, torch.optim.Optimizer):
            set_training(value, is_training)


def require_implementation(spec: str, implementation: Implementation, device: Device) -> None:
    """Raise ValueError for a way to run an optimizer's step that the device does not have."""
    name, _ = optimizers.parse(spec)
    if implementation == "compiled" and device == "sim":
        raise ValueError(
            f"a compiled step of {name} cannot be simulated: what it allocates is not known;"
            " measure it with --device cpu or cuda"
        )
    kind = "cpu" if device == "cpu" else "cuda"
    if implementation in set(optimizers.implementations(spec)) - set(
        optimizers.implementations(spec, kind)
    ):
        raise ValueError(
            f"{name} has no {implementation} implementation on {kind}; ask for loop, or for another"
            " device"
        )
