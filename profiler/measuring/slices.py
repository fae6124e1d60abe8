"""Slices of a model that stand for all of it, to time an optimizer's step on a model too large.

Layers are alike, so a few whole ones stand for all. Parameters outside the layers, mostly
embeddings, are unlike them: SM3 takes several times as long per element of a large matrix. They
are a slice of their own, with rows left out if they are too large.
"""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import torch

from optprof.scenarios import Scenario, models
from optprof.scenarios.workpiece import build

from ..machine.environment import environment
from ..machine.malloc import keep_freed_memory
from ..machine.memory import free_bytes
from ..records.record import Record, Watched
from ..training.iteration import require_step_alone
from ..training.optimizer import deciding_options, make_optimizer
from .harness import Harness
from .trainer import fill_gradients, has_sparse_layers

# Memory written before each step. On the whole model, the tensors of a slice have left the cache
# between two steps.
FLUSHED_BYTES = 256 << 20


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Shapes and dtypes of some of a model's parameters.

    `scale` is the number of elements of the model's parameters of this kind over theirs.
    """

    tensors: list[tuple[torch.Size, torch.dtype]]
    scale: float

    @property
    def count(self) -> int:
        """Number of elements in the tensors."""
        return sum(shape.numel() for shape, _ in self.tensors)


def measure_slices(
    scenario: Scenario, *, budget: int, bytes_per_parameter: float, seconds: float
) -> Record:
    """Time the step on slices of at most `budget` bytes each, scaled up by parameters.

    `seconds` are those of the samples of all slices together.
    """
    model = build(replace(scenario, workload="state"), "meta").model
    if has_sparse_layers(model):
        raise MemoryError(
            f"{scenario.model} does not fit, and with sparse gradients its step cannot be timed on"
            " parts of it"
        )
    slices = take_slices(model, bytes_per_parameter=bytes_per_parameter, budget=budget)
    keep_freed_memory()
    limit = seconds / len(slices)
    harnesses = [
        _measure_slice(scenario, one, round(one.count * bytes_per_parameter), limit)
        for one in slices
    ]
    parameter_count = sum(p.numel() for p in model.parameters())
    return Record(
        scenario=scenario,
        origin="estimated",
        deciding_options=deciding_options(scenario.optimizer),
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=parameter_count,
        times={"step": _scaled_sums([harness.times["step"] for harness in harnesses], slices)},
        warmup={"step": _scaled_sums([harness.warmup["step"] for harness in harnesses], slices)},
        measured_share=sum(one.count for one in slices) / parameter_count,
        watched=Watched(
            warnings=tuple(
                dict.fromkeys(warning for harness in harnesses for warning in harness.warnings)
            )
        ),
        environment=environment(scenario.seed),
    )


def _measure_slice(scenario: Scenario, one: Slice, needed: int, seconds: float) -> Harness:
    free = free_bytes()
    if needed > free:
        raise MemoryError(
            f"a slice of {scenario.model} with {scenario.optimizer} needs {needed >> 20} MiB,"
            f" {free >> 20} MiB are free"
        )
    parameters = [
        torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in one.tensors
    ]
    fill_gradients(parameters)
    optimizer = make_optimizer(scenario, parameters)
    require_step_alone(scenario, optimizer)
    harness = Harness(scenario.device)
    flushed = torch.zeros(FLUSHED_BYTES, dtype=torch.uint8)

    def step() -> None:
        flushed.add_(1)
        with harness.phase("step"):
            optimizer.step()

    harness.sample(step, samples=scenario.steps, seconds=seconds)
    return harness


def _scaled_sums(samples: list[list[float]], slices: list[Slice]) -> tuple[float, ...]:
    """Return seconds for the whole model, sample by sample: each slice's times its scale."""
    return tuple(
        sum(s * one.scale for s, one in zip(row, slices, strict=True))
        for row in zip(*samples, strict=False)
    )


def take_slices(model: torch.nn.Module, *, bytes_per_parameter: float, budget: int) -> list[Slice]:
    """Return a slice of whole layers, at least one, and a slice of the parameters outside them.

    Each takes at most `budget` bytes at `bytes_per_parameter`.
    """
    layers = [_trained(layer.parameters()) for layer in _layers(model)]
    inside = {id(p) for layer in layers for p in layer}
    outside = [p for p in _trained(model.parameters()) if id(p) not in inside]
    most = budget / bytes_per_parameter
    slices = [_some_layers(layers, most)]
    return [*slices, _some_rows(outside, most)] if outside else slices


def _some_layers(layers: list[list[torch.nn.Parameter]], most: float) -> Slice:
    taken: list[torch.nn.Parameter] = []
    for layer in layers:
        if taken and _count(taken) + _count(layer) > most:
            break
        taken += layer
    return Slice(
        tensors=[(p.shape, p.dtype) for p in taken], scale=sum(map(_count, layers)) / _count(taken)
    )


def _some_rows(parameters: list[torch.nn.Parameter], most: float) -> Slice:
    share = min(1.0, most / _count(parameters))
    tensors = [
        (
            torch.Size([max(1, int(p.shape[0] * share)), *p.shape[1:]]) if p.dim() else p.shape,
            p.dtype,
        )
        for p in parameters
    ]
    return Slice(
        tensors=tensors, scale=_count(parameters) / sum(shape.numel() for shape, _ in tensors)
    )


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """Return the members of the largest list of layers.

    Without such a list, every module with parameters of its own is a layer.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    largest = max(lists, key=lambda layers: _count(layers.parameters()), default=None)
    if largest is not None and len(largest) > 1:
        return list(largest)
    return [module for module in model.modules() if _trained(module.parameters(recurse=False))]


def _trained(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
