"""Training measured for real on the CPU or on CUDA: seconds of each phase, bytes from the tensors and from CUDA's allocator."""

import gc
from collections.abc import Callable, Iterable
from dataclasses import replace

import psutil
import torch

from scenarios import Scenario, models
from scenarios.workpiece import build

from .environment import environment
from .harness import Harness, require_cuda
from .iteration import Iteration
from .optimizer import make_optimizer
from .record import Memory, Record
from .simulation import simulate
from .slices import Slice, take_slices
from .state import state_bytes

TIME_LIMIT = 15.0
SLICE_BUDGET = 384 << 20
OTHERS_BYTES = 256 << 20


def measure(scenario: Scenario) -> Record:
    """Real steps on the scenario's device: at most `scenario.steps` samples of each phase, in about 15 seconds.

    On the CPU, what would not fit in half of the free memory is reduced: without room for activations only the optimizer's step runs,
    without room for its state the step is timed on slices of the model and scaled by parameters (origin "estimated"). The record keeps the
    scenario as it was asked; its `times` tell which phases ran.
    Raises ValueError when the device is not there, torch.OutOfMemoryError or MemoryError when memory does not suffice.
    """
    if scenario.device == "cuda":
        require_cuda()
        # What an earlier scenario of this process has left in the cache would count as reserved by this one.
        gc.collect()
        torch.cuda.empty_cache()
        return _measure_whole(scenario)
    room = psutil.virtual_memory().available // 2
    simulated = simulate(replace(scenario, device="sim", gpu=None, alloc_conf="", steps=2))
    memory = simulated.memory
    assert memory is not None
    assert simulated.parameter_count is not None
    if memory.peak_allocated is not None and memory.peak_allocated <= room:
        return _measure_whole(scenario)
    if memory.resident <= room:
        return replace(_measure_whole(replace(scenario, workload="state")), scenario=scenario)
    return measure_slices(scenario, budget=min(room, SLICE_BUDGET), bytes_per_parameter=memory.resident / simulated.parameter_count)


def _measure_whole(scenario: Scenario) -> Record:
    """All of the model: whole training steps, or the optimizer's step alone."""
    workpiece = build(scenario, scenario.device)
    parameters = list(workpiece.model.parameters())
    optimizer = make_optimizer(scenario, parameters, [name for name, _ in workpiece.model.named_parameters()])
    harness = Harness(scenario.device)
    batch = {name: value.to(scenario.device) if isinstance(value, torch.Tensor) else value for name, value in workpiece.batch.items()}
    iteration = Iteration(scenario, workpiece, batch, optimizer, harness.phase, scenario.device)
    gradients = 0

    def train() -> None:
        nonlocal gradients
        iteration.gradients()
        gradients = _bytes(p.grad for p in parameters)
        iteration.step()
        optimizer.zero_grad(scenario.set_to_none)

    if scenario.workload == "train":
        harness.sample(train, samples=scenario.steps, seconds=TIME_LIMIT)
    else:
        _fill_gradients(parameters)
        gradients = _bytes(p.grad for p in parameters)
        _sample_step(harness, optimizer, scenario)
    return Record(
        scenario=scenario,
        origin="measured",
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=sum(p.numel() for p in parameters),
        memory=_memory(parameters, gradients, optimizer, harness),
        times={phase: tuple(samples) for phase, samples in harness.times.items()},
        warmup={phase: tuple(samples) for phase, samples in harness.warmup.items()},
        environment=environment(scenario.seed),
    )


def measure_slices(scenario: Scenario, *, budget: int, bytes_per_parameter: float) -> Record:
    """The optimizer's step on slices of the model that take `budget` bytes each, scaled by parameters to the whole model."""
    model = build(replace(scenario, workload="state"), "meta").model
    parts = take_slices(model, bytes_per_parameter=bytes_per_parameter, budget=budget)
    harnesses = [_measure_slice(scenario, part, round(part.count * bytes_per_parameter)) for part in parts]
    parameter_count = sum(p.numel() for p in model.parameters())
    return Record(
        scenario=scenario,
        origin="estimated",
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=parameter_count,
        times={"step": _scaled_sums([harness.times["step"] for harness in harnesses], parts)},
        warmup={"step": _scaled_sums([harness.warmup["step"] for harness in harnesses], parts)},
        measured_share=sum(part.count for part in parts) / parameter_count,
        environment=environment(scenario.seed),
    )


def _measure_slice(scenario: Scenario, part: Slice, needed: int) -> Harness:
    free = psutil.virtual_memory().available
    if needed > free:
        raise MemoryError(f"a slice of {scenario.model} with {scenario.optimizer} needs {needed >> 20} MiB, {free >> 20} MiB are free")
    parameters = [torch.nn.Parameter(torch.randn(shape, dtype=dtype)) for shape, dtype in part.tensors]
    _fill_gradients(parameters)
    harness = Harness(scenario.device)
    # In a step on the whole model, every tensor has left the processor's cache since the last one.
    others = torch.zeros(OTHERS_BYTES, dtype=torch.uint8)
    _sample_step(harness, make_optimizer(scenario, parameters), scenario, before=lambda: others.add_(1))
    return harness


def _scaled_sums(samples: list[list[float]], parts: list[Slice]) -> tuple[float, ...]:
    """Seconds for the whole model: sample by sample, each slice's times as often as the model has its kind."""
    return tuple(sum(s * part.scale for s, part in zip(row, parts, strict=True)) for row in zip(*samples, strict=False))


def _fill_gradients(parameters: list[torch.nn.Parameter]) -> None:
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)


def _sample_step(
    harness: Harness, optimizer: torch.optim.Optimizer, scenario: Scenario, before: Callable[[], object] = lambda: None
) -> None:
    def step() -> None:
        before()
        with harness.phase("step"):
            optimizer.step()

    harness.sample(step, samples=scenario.steps, seconds=TIME_LIMIT)


def _memory(parameters: list[torch.nn.Parameter], gradients: int, optimizer: torch.optim.Optimizer, harness: Harness) -> Memory:
    state = state_bytes(optimizer)
    peaks = harness.peak_by_phase
    return Memory(
        parameters=_bytes(parameters),
        gradients=gradients,
        optimizer_state=state.total,
        state_by_key=state.by_key,
        state_by_key_dtype=state.by_key_dtype,
        optimizer_state_allocated=harness.allocated_by_step,
        peak_allocated=max(peaks.values(), default=None),
        peak_reserved=harness.peak_reserved,
        peak_phase=max(peaks, key=lambda phase: peaks[phase], default=None),
        peak_by_category={},
        peak_by_phase=peaks,
    )


def _bytes(tensors: Iterable[torch.Tensor | None]) -> int:
    """Bytes of the tensors' storages, each counted once."""
    return sum({s._cdata: s.nbytes() for tensor in tensors if tensor is not None for s in [tensor.untyped_storage()]}.values())
