"""Training measured for real on the CPU or on CUDA: bytes in iterations that are watched, then
seconds in iterations that are not.
"""

import gc
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch

from optprof import optimizers
from optprof.scenarios import Scenario, models
from optprof.scenarios.settings import own_settings

from ..machine.environment import environment
from ..machine.malloc import keep_freed_memory
from ..machine.memory import free_bytes
from ..records.record import Memory, Record, StateBlocks, StepOperation, Watched
from ..simulating.simulation import simulate
from ..tracing.kernel_trace import trace_step
from ..training.optimizer import deciding_options, make_optimizer
from ..training.state import bytes_by_dtype, state_bytes, storage_bytes
from .course import measure_course
from .cuda_memory import (
    AllocatorWatch,
    apply_alloc_conf,
    begin_history,
    end_history,
    snapshot_when_full,
    state_blocks,
)
from .files import Files
from .harness import ALONE, WARM_UP_LIMIT, WATCHED, Harness, require_cuda
from .live_tensors import LiveTensors
from .slice_timing import measure_slices
from .torch_profile import record_trace, with_bytes
from .training_run import TrainingRun, has_sparse_layers

TIME_LIMIT = 30.0
SLICE_BUDGET = 384 << 20


@own_settings()
def measure(
    scenario: Scenario, simulated: Record | None = None, files: Files | None = None
) -> Record:
    """Real steps on the scenario's device: two that are watched, a warm-up, and at most
    `scenario.steps` that are timed.

    Times end early when the 95 % confidence intervals of the medians of step and iteration are
    within 2 %, or after 30 seconds; then the step goes on alone for another 15 if its median is not
    known so well. `simulated` is the record of `to_simulate(scenario)`, one of a failure too;
    without it, it is asked here where it is needed.

    On the CPU, what would not fit in half of the free memory is reduced: without room for
    activations only the optimizer's step runs, without room for its state the step is timed on
    slices of the model and scaled by parameters (origin "estimated"). The record keeps the scenario
    as it was asked; its `times` tell which phases ran. What cannot be simulated is taken to fit.
    The process keeps the memory that it frees from then on (`malloc`). `files` has what could not
    be written beside the record. Raises ValueError when the device is not there or CUDA's allocator
    has started with other settings, torch.OutOfMemoryError or MemoryError when memory does not
    suffice.
    """
    files = files or Files()
    if scenario.device == "cuda":
        require_cuda()
        apply_alloc_conf(scenario.alloc_conf)
        # What an earlier scenario of this process has left in the cache would count as reserved by
        # this one.
        gc.collect()
        torch.cuda.empty_cache()
        with snapshot_when_full(files):
            return (
                _measure_whole(scenario, files)
                if scenario.accumulate is None
                else measure_course(scenario)
            )
    room = free_bytes() // 2
    simulated = simulated or _simulated(scenario)
    _let_compile_anew()
    memory = simulated.memory if simulated else None
    if memory is None or (memory.peak_allocated is not None and memory.peak_allocated <= room):
        return (
            _measure_whole(scenario, files)
            if scenario.accumulate is None
            else measure_course(scenario)
        )
    if scenario.accumulate is not None:
        raise MemoryError(
            f"a course needs {memory.peak_allocated} bytes, and half of what is free is {room};"
            " nothing of it can be left out"
        )
    if memory.resident <= room:
        return replace(
            _measure_whole(replace(scenario, workload="state"), files), scenario=scenario
        )
    assert simulated is not None
    assert simulated.parameter_count is not None
    held = memory.resident / simulated.parameter_count
    return measure_slices(
        scenario, budget=min(room, SLICE_BUDGET), bytes_per_parameter=held, seconds=TIME_LIMIT
    )


def to_simulate(scenario: Scenario) -> Scenario:
    """The simulated scenario that tells what a measured one needs, on a device that never runs out.

    A step that is compiled, or fused on the CPU alone, is simulated as a loop, which holds a little
    more.
    """
    there = {*optimizers.implementations(scenario.optimizer, "cuda")} - {"compiled"}
    how = scenario.implementation if scenario.implementation in there else "loop"
    return replace(scenario, device="sim", gpu=None, steps=2, implementation=how)


def most_seconds(scenario: Scenario) -> float | None:
    """The harness's limits on warm-up and samples, one after another; None for a course, which ends
    with its micro-batches.

    On top come loading, the watched iterations, a trace, and what is under way when a limit is
    reached.
    """
    # Slices warm up one after the other, two at most, and share the seconds for samples: that is
    # less.
    return None if scenario.accumulate is not None else WARM_UP_LIMIT + TIME_LIMIT * (1 + ALONE)


def _simulated(scenario: Scenario) -> Record | None:
    """What the simulation says; None of models and optimizers that do not run without data,
    whatever they raise.
    """
    try:
        return simulate(to_simulate(scenario))
    except Exception:
        return None


def _let_compile_anew() -> None:
    """Let torch.compile forget what it passed over in a simulation of this process; it would never
    compile it again.
    """
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _measure_whole(scenario: Scenario, files: Files) -> Record:
    """All of the model: whole training steps, or the optimizer's step alone."""
    harness = Harness(scenario.device)
    found = (
        _watch_on_cuda(scenario, harness, files)
        if scenario.device == "cuda"
        else _watch_on_cpu(scenario, harness)
    )
    run, memory, watched = found
    harness.sample(run.whole, samples=scenario.steps, seconds=TIME_LIMIT, alone=run.alone)
    operations = (
        _trace(scenario, harness, run, files, files.trace) if files.trace is not None else ()
    )
    return Record(
        scenario=scenario,
        origin="measured",
        deciding_options=deciding_options(scenario.optimizer),
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=sum(p.numel() for p in run.parameters),
        memory=memory,
        times={phase: tuple(samples) for phase, samples in harness.times.items()},
        warmup={phase: tuple(samples) for phase, samples in harness.warmup.items()},
        watched=replace(
            watched,
            gpu=harness.gpu,
            operations=operations,
            warnings=(*watched.warnings, *harness.warnings),
        ),
        environment=environment(scenario.seed),
    )


_Found = tuple[TrainingRun, Memory, Watched]


def _watch_on_cpu(scenario: Scenario, harness: Harness) -> _Found:
    watch = LiveTensors()
    with watch.watching():
        run = TrainingRun(scenario, harness.phase)
        watch.begin(run.model, run.batch, run.optimizer)
        with harness.handing_phases_to(watch.phase):
            for _ in range(WATCHED):
                run.iterate()
    # From here on, and not before: what was resident was so in a process as anybody runs it.
    keep_freed_memory()
    watched = Watched(
        samples=run.samples,
        tokens=run.tokens,
        memory=watch.levels(),
        tensors_at_peak=watch.at_peak(),
        warnings=(watch.warning,) if watch.warning else (),
    )
    return run, _memory(run, {}, None), watched


def _watch_on_cuda(scenario: Scenario, harness: Harness, files: Files) -> _Found:
    begin_history()
    run, watch = TrainingRun(scenario, harness.phase), AllocatorWatch()
    made_before = state_blocks(run.optimizer, 0).allocated
    with harness.handing_phases_to(watch.phase):
        for _ in range(WATCHED):
            run.iterate()
    end_history(files, files.snapshot)
    blocks = state_blocks(run.optimizer, made_before + (watch.allocated_by_step or 0))
    levels = watch.levels()
    watched = Watched(samples=run.samples, tokens=run.tokens, memory=levels, state_blocks=blocks)
    peaks = {phase: counters["allocated"].peak for phase, counters in levels.items()}
    memory = _memory(run, peaks, blocks)
    return (
        run,
        replace(
            memory, peak_reserved=max(counters["reserved"].peak for counters in levels.values())
        ),
        watched,
    )


def _memory(run: TrainingRun, peaks: Mapping[str, int], blocks: StateBlocks | None) -> Memory:
    state = state_bytes(run.optimizer, run.tensors)
    return Memory(
        parameters=storage_bytes(run.parameters),
        parameters_by_dtype=bytes_by_dtype(run.parameters),
        gradients=run.gradients,
        optimizer_state=state.total,
        state_by_key=state.by_key,
        state_by_key_dtype=state.by_key_dtype,
        optimizer_state_allocated=None if blocks is None else blocks.allocated,
        peak_allocated=max(peaks.values(), default=None),
        peak_phase=max(peaks, key=lambda phase: peaks[phase], default=None),
        peak_by_category={},
        peak_by_phase=peaks,
    )


def _trace(
    scenario: Scenario, harness: Harness, run: TrainingRun, files: Files, folder: Path
) -> tuple[StepOperation, ...]:
    """The operations of a step, timed by torch.profiler, with the bytes that the same step moves on
    tensors without data.
    """
    operations = record_trace(
        harness, run.iterate, scenario.optimizer, files, folder, scenario.device
    )
    return with_bytes(operations, _bytes_by_operation(scenario, run))


def _bytes_by_operation(scenario: Scenario, run: TrainingRun) -> Mapping[str, int]:
    """Count what the operations of a step move, without data; empty for an optimizer that does not
    run so.

    Sparse gradients are left out: without data nobody knows how many rows they have.
    """
    if has_sparse_layers(run.model):
        return {}
    stepped = [
        (name, p) for name, p in zip(run.names, run.parameters, strict=True) if p.requires_grad
    ]
    try:
        step = trace_step(
            [(tuple(p.shape), p.dtype) for _, p in stepped],
            lambda parameters: make_optimizer(scenario, parameters, [name for name, _ in stepped]),
        )
    except Exception:
        return {}
    counted: Counter[str] = Counter()
    for kernel in step.kernels:
        counted[kernel.name] += kernel.bytes
    return counted
