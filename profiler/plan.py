"""Which scenarios a comparison takes: every name checked before anything runs, in an order that traces each model once."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import cast

import torch

import optimizers
from scenarios import Scenario, models
from scenarios.spec import Device, DType, Implementation, Workload
from scenarios.workpiece import load_factory

from .harness import require_cuda

SIMULATED_STEPS = 2
MEASURED_STEPS = 10


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What a user asked for: models and optimizers to set side by side, and what holds for all of them.

    `device` "auto" simulates CUDA and measures this machine (CUDA where there is one, else the CPU). `implementation` None is torch's
    default: foreach on CUDA and where it is simulated, the loop on the CPU. `steps` None is 2 simulated or 10 measured.
    """

    models: Sequence[str]
    optimizers: Sequence[str]
    device: str = "auto"
    workload: str = "train"
    dtype: str = "fp32"
    batch_size: int = 1
    sequence_length: int | None = None
    implementation: str | None = None
    steps: int | None = None
    seed: int = 0


def plan(comparison: Comparison) -> list[Scenario]:
    """The scenarios of a comparison; ValueError names the first model, optimizer or option that is wrong.

    Where a simulation is asked for, the state alone is simulated too, for one model's whole family, so that there is a curve over sizes.
    """
    for name in comparison.models:
        if models.describe(name) is None:
            load_factory(name)
    found: list[Scenario] = []
    for device in _devices(comparison.device):
        for model in comparison.models:
            found += _scenarios(comparison, model, device)
        if device == "sim":
            for model in _companions(comparison.models):
                found += _scenarios(replace(comparison, workload="state", sequence_length=None), model, device)
    return [scenario for place, scenario in enumerate(found) if scenario not in found[:place]]


def _devices(asked: str) -> tuple[str, ...]:
    if asked == "cuda":
        require_cuda()
    if asked != "auto":
        return (asked,)
    return ("sim", "cuda" if torch.cuda.is_available() else "cpu")


def _companions(names: Sequence[str]) -> Sequence[str]:
    return models.family(names[0]) if len(names) == 1 else names


def _scenarios(comparison: Comparison, model: str, device: str) -> Iterator[Scenario]:
    for spec in comparison.optimizers:
        name, _ = optimizers.parse(spec)
        implementation = cast(Implementation, comparison.implementation or _default_implementation(spec, device))
        # An optimizer that refuses its options says so now, before anything has run.
        optimizers.create(spec, [torch.nn.Parameter(torch.empty(1, 1, device="meta"))], implementation=implementation)
        yield Scenario(
            model=model,
            optimizer=name,
            options={key: value for key, value in optimizers.option_defaults(spec).items() if _is_plain(value)},
            implementation=implementation,
            workload=cast(Workload, comparison.workload),
            dtype=cast(DType, comparison.dtype),
            batch_size=comparison.batch_size,
            sequence_length=models.sequence_length(model, comparison.sequence_length),
            device=cast(Device, device),
            seed=comparison.seed,
            steps=_default_steps(device) if comparison.steps is None else comparison.steps,
        )


def _default_steps(device: str) -> int:
    return SIMULATED_STEPS if device == "sim" else MEASURED_STEPS


def _default_implementation(spec: str, device: str) -> str:
    """What torch chooses by itself."""
    return "foreach" if device != "cpu" and "foreach" in optimizers.implementations(spec) else "loop"


def _is_plain(value: object) -> bool:
    """Whether JSON can hold the value; a default that it cannot hold is left to the optimizer."""
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)
