"""The optimizer's step on slices of a model that does not fit, scaled up to the whole of it."""

from dataclasses import replace

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
from .slices import Slice, take_slices
from .training_run import fill_gradients, has_sparse_layers

OTHERS_BYTES = 256 << 20


def measure_slices(
    scenario: Scenario, *, budget: int, bytes_per_parameter: float, seconds: float
) -> Record:
    """The step on slices of the model that take `budget` bytes each, scaled by parameters to the
    whole; `seconds` of samples in all.
    """
    model = build(replace(scenario, workload="state"), "meta").model
    if has_sparse_layers(model):
        raise MemoryError(
            f"{scenario.model} does not fit, and with sparse gradients its step cannot be timed on"
            " parts of it"
        )
    parts = take_slices(model, bytes_per_parameter=bytes_per_parameter, budget=budget)
    keep_freed_memory()
    limit = seconds / len(parts)
    harnesses = [
        _measure_slice(scenario, part, round(part.count * bytes_per_parameter), limit)
        for part in parts
    ]
    parameter_count = sum(p.numel() for p in model.parameters())
    return Record(
        scenario=scenario,
        origin="estimated",
        deciding_options=deciding_options(scenario.optimizer),
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=parameter_count,
        times={"step": _scaled_sums([harness.times["step"] for harness in harnesses], parts)},
        warmup={"step": _scaled_sums([harness.warmup["step"] for harness in harnesses], parts)},
        measured_share=sum(part.count for part in parts) / parameter_count,
        watched=Watched(
            warnings=tuple(
                dict.fromkeys(warning for harness in harnesses for warning in harness.warnings)
            )
        ),
        environment=environment(scenario.seed),
    )


def _measure_slice(scenario: Scenario, part: Slice, needed: int, seconds: float) -> Harness:
    free = free_bytes()
    if needed > free:
        raise MemoryError(
            f"a slice of {scenario.model} with {scenario.optimizer} needs {needed >> 20} MiB,"
            f" {free >> 20} MiB are free"
        )
    parameters = [
        torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in part.tensors
    ]
    fill_gradients(parameters)
    optimizer = make_optimizer(scenario, parameters)
    require_step_alone(scenario, optimizer)
    harness = Harness(scenario.device)
    # In a step on the whole model, every tensor has left the processor's cache since the last one.
    others = torch.zeros(OTHERS_BYTES, dtype=torch.uint8)

    def step() -> None:
        others.add_(1)
        with harness.phase("step"):
            optimizer.step()

    harness.sample(step, samples=scenario.steps, seconds=seconds)
    return harness


def _scaled_sums(samples: list[list[float]], parts: list[Slice]) -> tuple[float, ...]:
    """Seconds for the whole model: sample by sample, each slice's times as often as the model has
    its kind.
    """
    return tuple(
        sum(s * part.scale for s, part in zip(row, parts, strict=True))
        for row in zip(*samples, strict=False)
    )
