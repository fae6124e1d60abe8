"""One optimizer of a user's training loop, with its model and the scenario of both."""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from hashlib import sha256
from typing import Any

import torch
from torch import nn
from torch.optim.optimizer import Optimizer

from optprof import optimizers
from optprof.scenarios import Scenario
from optprof.scenarios.schema import MOST_NAME, shortened
from optprof.scenarios.spec import Device

from ..training.state import state_tensors
from .border import Border
from .live_model import model_name, parameters_dtype
from .live_optimizer import counted_optimizer, live_implementation, live_options, stepped_parameters

Model = nn.Module | str | None


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One optimizer of the loop, its model and its scenario."""

    optimizer: Optimizer
    model: Model
    parameters: Callable[[], list[nn.Parameter]]
    scenario: Scenario
    border: Border = field(default_factory=Border)

    @property
    def tensors(self) -> list[torch.Tensor] | None:
        """The model's tensors, which are not the optimizer's state; None without the model."""
        return (
            [*self.model.parameters(), *self.model.buffers()]
            if isinstance(self.model, nn.Module)
            else None
        )

    @property
    def fingerprint(self) -> str:
        """The optimizer's name and a hash of its options."""
        scenario = self.scenario
        text = json.dumps([scenario.options, scenario.implementation], sort_keys=True)
        return f"{scenario.optimizer} {sha256(text.encode()).hexdigest()[:6]}"

    def has_no_state(self) -> bool:
        """Return whether the optimizer has no state yet."""
        with self.border.within("read the state before training"):
            return not any(True for _ in state_tensors(self.optimizer, self.tensors))
        return False


def subjects_of(
    wrappers: Sequence[Any],
    model: Model | Sequence[Model],
    batch_size: int | None,
    sequence_length: int | None,
) -> list[Subject]:
    """Return the optimizers with their models; raise ValueError if one cannot be watched."""
    counted = [counted_optimizer(wrapper) for wrapper in wrappers]
    if len(set(map(id, counted))) < len(counted):
        raise ValueError("watch takes each optimizer once; one of them is passed twice")
    models = _models(model, len(counted))
    uses = Counter(map(id, models))
    subjects: list[Subject] = []
    for optimizer, own in zip(counted, models, strict=True):
        parameters = partial(_parameters, optimizer, own if uses[id(own)] == 1 else None)
        scenario = Scenario(
            model=model_name(own),
            optimizer=shortened(optimizers.name_of(optimizer), MOST_NAME),
            dtype=parameters_dtype(parameters()),
            batch_size=1 if batch_size is None else batch_size,
            sequence_length=sequence_length,
            device=_device(optimizer),
        )
        subject = Subject(optimizer=optimizer, model=own, parameters=parameters, scenario=scenario)
        subjects.append(replace(subject, scenario=_with_options(subject)))
    if len({subject.scenario.device for subject in subjects}) > 1:
        raise ValueError(
            "watch reads one device, got optimizers on the CPU and on CUDA; watch them one by one"
        )
    return subjects


def _with_options(subject: Subject) -> Scenario:
    """Return the scenario with the options of the groups, as far as they can be read."""
    scenario = replace(subject.scenario, implementation="loop")
    with subject.border.within("read the options of the groups"):
        scenario = replace(scenario, options=live_options(subject.optimizer))
    with subject.border.within("find how the step runs"):
        return replace(scenario, implementation=live_implementation(subject.optimizer))
    return scenario


def _models(model: Any, count: int) -> list[Model]:
    """Return one model for each optimizer."""
    models = list(model) if isinstance(model, list | tuple) else [model] * count
    if len(models) != count:
        raise ValueError(
            f"model is one for all optimizers or one for each; got {len(models)} for {count}"
        )
    for one in models:
        if one is not None and not isinstance(one, nn.Module | str):
            raise ValueError(f"model is a torch.nn.Module or a name, got {type(one).__name__}")
    return models


def _parameters(optimizer: Optimizer, model: Model) -> list[nn.Parameter]:
    return (
        list(model.parameters()) if isinstance(model, nn.Module) else stepped_parameters(optimizer)
    )


def _device(optimizer: Optimizer) -> Device:
    places = sorted({str(parameter.device) for parameter in stepped_parameters(optimizer)})
    if places == ["cpu"]:
        return "cpu"
    if torch.cuda.is_available() and places == [f"cuda:{torch.cuda.current_device()}"]:
        return "cuda"
    if not places:
        raise ValueError(f"{type(optimizer).__name__} has no parameters yet; watch it when it has")
    raise ValueError(
        f"watch reads the CPU or the current CUDA device, got parameters on {', '.join(places)};"
        " set that device first"
    )
