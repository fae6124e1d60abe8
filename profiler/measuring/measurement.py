"""Measure training on the CPU or on CUDA: bytes in watched iterations, then seconds in others."""

import gc
import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import torch

from optprof import optimizers
from optprof.scenarios import Scenario, models
from optprof.scenarios.settings import own_settings

from ..machine.environment import environment
from ..machine.malloc import keep_freed_memory
from ..machine.memory import free_bytes
from ..records.record import Memory, Record, StepOperation, Watched
from ..simulating.simulation import simulate
from ..tracing.kernel_trace import trace_step
from ..training.optimizer import deciding_options, make_optimizer
from ..training.state import bytes_by_dtype, state_bytes
from .accumulation_run import measure_accumulation_run
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
from .ranks import any_rank, of_all_ranks, require_group
from .slices import measure_slices
from .torch_profile import DROPPED, KEPT, record_trace, with_bytes
from .trainer import Trainer, has_sparse_layers

TIME_LIMIT = 30.0
SLICE_BUDGET = 384 << 20


@own_settings()
def measure(
    scenario: Scenario, simulated: Record | None = None, files: Files | None = None
) -> Record:
    """Run two watched iterations, a warm-up, and at most `scenario.steps` timed iterations.

    Timing ends early when the 95 % confidence intervals of the medians of step and iteration are
    within 2 %, or after 30 seconds. If the step's median is not known by then, the step runs alone
    for up to 15 more seconds. `simulated` is the record of `to_simulate(scenario)`, of a failure
    too; without it, `measure` simulates if it needs to.

    On the CPU, a scenario that would take more than half of the free memory is reduced. If its
    activations are too large, only the optimizer's step runs. If the state is too large as well,
    the step is timed on slices of the model and scaled up by parameters (origin "estimated"). The
    record keeps the scenario unchanged; its `times` show which phases ran. A scenario that cannot
    be simulated is assumed to fit.

    If ranks share the work, each of them calls this in a process of a group of all, and all return
    the same record. It is never reduced.

    From then on, this process keeps the memory that it frees (`malloc`). `files.lost` has the files
    that could not be written. Raises ValueError if the device is missing or CUDA's allocator has
    started with other settings, and torch.OutOfMemoryError or MemoryError if memory runs out.
    """
    files = files or Files()
    if scenario.parallel is not None:
        require_group(scenario)
    if scenario.device == "cuda":
        require_cuda()
        apply_alloc_conf(scenario.alloc_conf)
        # The cache of an earlier scenario in this process would count as reserved by this one.
        gc.collect()
        torch.cuda.empty_cache()
        with snapshot_when_full(files):
            return _measure_whole(scenario, files)
    if scenario.parallel is not None:
        return _measure_whole(scenario, files)
    usable = free_bytes() // 2
    simulated = simulated or _simulated(scenario)
    _forget_compiled()
    memory = simulated.memory if simulated else None
    if memory is None or (memory.peak_allocated is not None and memory.peak_allocated <= usable):
        return _measure_whole(scenario, files)
    if scenario.accumulate is not None:
        raise MemoryError(
            f"a training run with {scenario.accumulate} needs {memory.peak_allocated} bytes, and"
            f" half of the free memory is {usable}; no part of the run can be left out"
        )
    if memory.resident <= usable:
        return replace(
            _measure_iterations(replace(scenario, workload="state"), files), scenario=scenario
        )
    assert simulated is not None
    assert simulated.parameter_count is not None
    record = measure_slices(
        scenario,
        budget=min(usable, SLICE_BUDGET),
        bytes_per_parameter=memory.resident / simulated.parameter_count,
        seconds=TIME_LIMIT,
    )
    return replace(record, warnings=(*record.warnings, *_warnings(scenario)))


def to_simulate(scenario: Scenario) -> Scenario:
    """Return the simulated scenario, on an unlimited device, that says what this one needs.

    A compiled step, or one that is fused only on the CPU, is simulated as a loop, which needs a
    little more.
    """
    possible = {*optimizers.implementations(scenario.optimizer, "cuda")} - {"compiled"}
    implementation = scenario.implementation if scenario.implementation in possible else "loop"
    return replace(scenario, device="sim", gpu=None, steps=2, implementation=implementation)


def most_seconds(scenario: Scenario) -> float | None:
    """Return the sum of the harness's time limits; None for an accumulation, which has none.

    Loading, the watched iterations, a trace, and the iteration under way at a limit add to it.
    """
    # Two slices warm up one after the other and share the sampling time, which takes less.
    return None if scenario.accumulate is not None else WARM_UP_LIMIT + TIME_LIMIT * (1 + ALONE)


def _simulated(scenario: Scenario) -> Record | None:
    """Return the simulation's record; None if the model or optimizer does not run without data."""
    try:
        return simulate(to_simulate(scenario))
    except Exception:
        return None


def _forget_compiled() -> None:
    """Reset torch.compile, which would never compile again what it skipped in a simulation."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


def _measure_whole(scenario: Scenario, files: Files) -> Record:
    if scenario.accumulate is not None:
        return measure_accumulation_run(scenario)
    return _measure_iterations(scenario, files)


def _measure_iterations(scenario: Scenario, files: Files) -> Record:
    """Measure whole training iterations or, for the workload "state", the optimizer's step."""
    harness = Harness(scenario.device, on_ranks=scenario.parallel is not None)
    run, memory, watched = (
        _watch_on_cuda(scenario, harness, files)
        if scenario.device == "cuda"
        else _watch_on_cpu(scenario, harness)
    )
    harness.sample(run.whole, samples=scenario.steps, seconds=TIME_LIMIT, alone=run.alone)
    operations = _traced(scenario, harness, run, files)
    record = Record(
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
        warnings=_warnings(scenario),
    )
    return record if scenario.parallel is None else of_all_ranks(record)


def _warnings(scenario: Scenario) -> tuple[str, ...]:
    """Return the warning on a loop that would be a fused step if there were a C++ compiler."""
    is_loop = (scenario.device, scenario.implementation) == ("cpu", "loop")
    if not is_loop or not optimizers.needs_compiler(scenario.optimizer, **scenario.options):
        return ()
    missing = "fused=True, which is faster, needs a C++ compiler with OpenMP"
    return (f"the step ran as a loop: {missing}; install g++, or set CXX",)


_Watching = tuple[Trainer, Memory, Watched]


def _watch_on_cpu(scenario: Scenario, harness: Harness) -> _Watching:
    watch = LiveTensors(on_ranks=scenario.parallel is not None)
    with watch.watching():
        run = Trainer(scenario, harness.phase)
        watch.begin(run.model, run.batch, run.optimizer)
        with harness.handing_phases_to(watch.phase):
            for _ in range(WATCHED):
                run.iterate()
    # Not before: the resident bytes should be those of an ordinary process.
    keep_freed_memory()
    watched = Watched(
        samples=run.samples,
        tokens=run.tokens,
        memory=watch.levels(),
        tensors_at_peak=watch.at_peak(),
        warnings=(watch.warning,) if watch.warning else (),
    )
    memory = state_bytes(run.optimizer, run.tensors).memory(
        bytes_by_dtype(run.parameters), run.gradients
    )
    return run, memory, watched


def _watch_on_cuda(scenario: Scenario, harness: Harness, files: Files) -> _Watching:
    begin_history()
    run, watch = Trainer(scenario, harness.phase), AllocatorWatch()
    made_before = state_blocks(run.optimizer, 0).allocated
    with harness.handing_phases_to(watch.phase):
        for _ in range(WATCHED):
            run.iterate()
    end_history(files, files.snapshot)
    blocks = state_blocks(run.optimizer, made_before + (watch.allocated_by_step or 0))
    levels = watch.levels()
    watched = Watched(samples=run.samples, tokens=run.tokens, memory=levels, state_blocks=blocks)
    peaks = {phase: counters["allocated"].peak for phase, counters in levels.items()}
    memory = state_bytes(run.optimizer, run.tensors).memory(
        bytes_by_dtype(run.parameters),
        run.gradients,
        allocated=blocks.allocated,
        peak_by_phase=peaks,
        peak_reserved=max(counters["reserved"].peak for counters in levels.values()),
    )
    return run, memory, watched


def _traced(
    scenario: Scenario, harness: Harness, run: Trainer, files: Files
) -> tuple[StepOperation, ...]:
    """Return a step's operations: times from torch.profiler, bytes from a step on meta tensors.

    Empty without a folder for the trace.
    """
    traces = files.trace is not None
    if scenario.parallel is not None and any_rank(traces) and not traces:
        # The rank that writes the trace cannot iterate alone.
        for _ in range(DROPPED + KEPT):
            run.iterate()
    if files.trace is None:
        return ()
    operations = record_trace(
        harness, run.iterate, scenario.optimizer, files, files.trace, scenario.device
    )
    return with_bytes(operations, _bytes_by_operation(scenario, run))


def _bytes_by_operation(scenario: Scenario, run: Trainer) -> Mapping[str, int]:
    """Return the bytes that each operation of a step on meta tensors moves.

    Empty for an optimizer that does not run on meta tensors, for sparse gradients, whose number of
    rows depends on the data, and for parts of a model that ranks share.
    """
    if has_sparse_layers(run.model) or scenario.parallel is not None:
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
    nbytes: Counter[str] = Counter()
    for kernel in step.kernels:
        nbytes[kernel.name] += kernel.bytes
    return nbytes
