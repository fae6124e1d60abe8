"""Simulate training without a GPU: trace it on meta tensors, replay it through the allocator."""

from collections import Counter
from dataclasses import dataclass, replace
from functools import lru_cache

import torch

from optprof.scenarios import Scenario, hardware, models
from optprof.scenarios.schema import shortened

from ..allocator.caching import CachingAllocator
from ..allocator.segments import Addresses
from ..allocator.settings import AllocatorSettings
from ..machine.environment import environment
from ..records.record import Exchange, Memory, Ranks, Record, StepEstimate
from ..records.timeline import Timeline
from ..tracing.kernel_memory import sized_for
from ..tracing.kernel_trace import trace_step
from ..tracing.stream import Allocations, Segment
from ..training.accumulating import accumulating, simulated_draws
from ..training.optimizer import deciding_options, make_optimizer
from .estimate import estimate
from .fake_ranks import become
from .handover import SparseLayout
from .optimizer_trace import OptimizerTrace, trace_optimizer
from .replay import Replay, play, replay, until
from .sampling import sample
from .training import ModelTrace, trace_model, without_optimizer


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A record, the stream of events behind it, and a training step's timeline, if there is one."""

    record: Record
    segments: list[Segment]
    allocations: Allocations
    timeline: Timeline | None


def simulate(scenario: Scenario) -> Record:
    """Return a record with the memory of training on a CUDA device, exact to the byte.

    It allocates nothing of the model's size. The model is traced once for scenarios that differ
    only in their optimizer. If the device runs out of memory, that is the record's outcome: tensors
    are counted as training would need them, allocated and reserved bytes up to that moment. Raises
    ValueError for a scenario that cannot be built, and UntraceableError if the model's code needs
    the values of its activations.
    """
    return run_simulation(scenario).record


def run_simulation(scenario: Scenario, *, estimated: bool = True) -> Simulation:
    """Simulate; return the record with the events up to the end or failure, and the timeline.

    The record has an estimate of the step's time unless it is not `estimated`.
    """
    allocator = simulated_allocator(scenario)
    model = trace_model_of(scenario)
    draws = simulated_draws(scenario)

    def make(parameters: list[torch.nn.Parameter]) -> torch.optim.Optimizer:
        inside = make_optimizer(scenario, parameters, model.names)
        return accumulating(scenario, inside, draws) or inside

    optimizer = trace_optimizer(model, make, scenario)
    segments, places = [model.build, optimizer.build], []
    for of_model, of_optimizer in zip(model.steps, optimizer.steps, strict=True):
        places.append(range(len(segments), len(segments) + len(of_model) + len(of_optimizer)))
        segments += of_model + of_optimizer
    # An accumulation's draws up to its step are one step.
    steps = [
        range(first.start, last.stop)
        for first, last in zip(places[::draws], places[draws - 1 :: draws], strict=True)
    ]
    upper = _upper_peaks(segments, model.allocations + optimizer.allocations, scenario)
    segments, allocations = sized_for(
        segments, model.allocations + optimizer.allocations, scenario.gpu
    )
    replayed = replay(segments, allocations, optimizer.state_numbers, allocator)
    needed = _peaks(segments, allocations, scenario)[1] if replayed.error else None
    segments = until(segments, replayed.last)
    steps = [
        range(places.start, min(places.stop, len(segments)))
        for places in steps
        if places.start < len(segments)
    ]
    record = Record(
        scenario=scenario,
        origin="simulated",
        outcome="out-of-memory" if replayed.error else "ok",
        deciding_options=deciding_options(scenario.optimizer),
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=model.parameter_count,
        memory=replace(
            _memory(model, optimizer, replayed, None if replayed.error else upper), needed=needed
        ),
        estimate=_estimate(scenario, model) if estimated and not optimizer.takes_closure else None,
        ranks=_ranks(model, optimizer) if scenario.parallel is not None else None,
        warnings=tuple(map(shortened, optimizer.warnings)),
        error=replayed.error and shortened(replayed.error),
        environment=environment(scenario.seed),
    )
    timeline = (
        sample(segments, steps, allocations, replayed)
        if scenario.workload == "train" and steps
        else None
    )
    return Simulation(record=record, segments=segments, allocations=allocations, timeline=timeline)


def simulated_allocator(scenario: Scenario, addresses: Addresses | None = None) -> CachingAllocator:
    """Return the allocator of the scenario's device, on which the CUDA context takes its share.

    `addresses` gives segments their addresses.
    """
    settings = AllocatorSettings.parse(scenario.alloc_conf)
    if scenario.gpu is None:
        return CachingAllocator(settings, addresses=addresses)
    total = hardware.describe(scenario.gpu).memory_bytes
    return CachingAllocator(
        settings, total=total, occupied=hardware.CONTEXT_BYTES, addresses=addresses
    )


def trace_model_of(scenario: Scenario) -> ModelTrace:
    """Return the trace of a scenario's model, shared by scenarios that differ in the optimizer."""
    if become(scenario):
        _model_trace.cache_clear()
    return _model_trace(without_optimizer(scenario))


@lru_cache(maxsize=2)
def _model_trace(scenario: Scenario) -> ModelTrace:
    return trace_model(scenario)


def _estimate(scenario: Scenario, model: ModelTrace) -> StepEstimate | None:
    """Return the estimate of the step on the scenario's GPU, without exchanges between ranks.

    None with sparse gradients, and for a step on the host.

    A training step without a GPU has an estimate for the default one if that can be made.
    """
    name = scenario.gpu or (hardware.DEFAULT_GPU if scenario.workload == "train" else None)
    layouts = [layout for layout in model.gradients[-1] if layout is not None]
    if name is None or any(
        isinstance(layout, SparseLayout) or layout.is_on_host for layout in layouts
    ):
        return None
    try:
        return _estimate_on(hardware.describe(name), scenario, model)
    except Exception:
        # The memory is what was asked for; an optimizer may refuse the values of another trace.
        if scenario.gpu is None:
            return None
        raise


def _estimate_on(gpu: hardware.Gpu, scenario: Scenario, model: ModelTrace) -> StepEstimate:
    triples = zip(model.names, model.parameters, model.gradients[-1], strict=True)
    stepped = [(name, layout) for name, (layout, _), gradient in triples if gradient is not None]
    step = trace_step(
        [(layout.shape, layout.dtype) for _, layout in stepped],
        lambda parameters: make_optimizer(scenario, parameters, [name for name, _ in stepped]),
    )
    return estimate(step, gpu)


def _upper_peaks(
    segments: list[Segment], allocations: Allocations, scenario: Scenario
) -> tuple[int, int] | None:
    """Return the allocated and reserved peaks with every optional request at its largest.

    None without optional requests. The peaks are those of an unlimited device: on a full one
    kernels use smaller workspaces.
    """
    if not any(request.optional for request in allocations.requests.values()):
        return None
    return _peaks(*sized_for(segments, allocations, scenario.gpu, optional=True), scenario)


def _peaks(
    segments: list[Segment], allocations: Allocations, scenario: Scenario
) -> tuple[int, int]:
    """Return the allocated and reserved peaks on an unlimited device."""
    allocator, blocks = CachingAllocator(AllocatorSettings.parse(scenario.alloc_conf)), {}
    for segment in segments:
        for _ in play(segment, allocations, allocator, blocks):
            pass
    return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes


def _ranks(model: ModelTrace, optimizer: OptimizerTrace) -> Ranks:
    calls: dict[tuple[str, str, int], list[int]] = {}
    for segment in model.steps[-1] + optimizer.steps[-1]:
        for call in segment.collectives:
            key = segment.phase, call.operation, call.ranks
            calls.setdefault(key, []).append(call.nbytes)
    exchanges = (
        Exchange(phase=phase, operation=operation, group=group, calls=len(each), bytes=sum(each))
        for (phase, operation, group), each in calls.items()
    )
    return Ranks(exchanges=tuple(exchanges), elements=optimizer.elements)


def _memory(
    model: ModelTrace, optimizer: OptimizerTrace, replayed: Replay, upper: tuple[int, int] | None
) -> Memory:
    last = {
        part.number: part.nbytes
        for layout in model.gradients[-1]
        if layout is not None
        for part in layout.parts
    }
    by_dtype: Counter[str] = Counter()
    for layout in {layout.number: layout for layout, _ in model.parameters}.values():
        by_dtype[str(layout.dtype).removeprefix("torch.")] += layout.nbytes
    memory = optimizer.state.memory(
        dict(by_dtype),
        sum(last.values()),
        allocated=replayed.kept,
        peak_by_phase=replayed.peak_by_phase,
        peak_reserved=replayed.peak_reserved,
    )
    return replace(
        memory,
        # A phase begins with the bytes of the one before it, so equal peaks do not tell the phase.
        peak_phase=replayed.peak_phase,
        peak_by_category=replayed.peak_by_category,
        # A block that is not split can make the peak without workspaces higher.
        peak_allocated_upper=None if upper is None else max(upper[0], replayed.peak_allocated),
        peak_reserved_upper=None if upper is None else max(upper[1], replayed.peak_reserved),
    )
