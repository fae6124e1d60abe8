"""Training simulated without a GPU: traced on tensors without data, replayed through the
allocator's model.
"""

from collections import Counter
from dataclasses import dataclass
from functools import lru_cache

from optprof.scenarios import Scenario, hardware, models
from optprof.scenarios.schema import shortened

from ..allocator.caching import CachingAllocator
from ..allocator.segments import Addresses
from ..allocator.settings import AllocatorSettings
from ..machine.environment import environment
from ..records.record import Memory, Record, StepEstimate
from ..records.timeline import Timeline
from ..tracing.kernel_memory import sized_for
from ..tracing.kernel_trace import trace_step
from ..tracing.stream import Allocations, Segment
from ..training.accumulating import accumulating, simulated_draws
from ..training.optimizer import make_optimizer
from .estimate import estimate
from .handover import SparseLayout
from .optimizer_trace import OptimizerTrace, trace_optimizer
from .replay import Replay, play, replay, until
from .sampling import sample
from .training import ModelTrace, trace_model, without_optimizer


@dataclass(frozen=True, kw_only=True)
class Simulation:
    """A record and what it was read off: the stream of events, and the timeline of a whole training
    step where there is one.
    """

    record: Record
    segments: list[Segment]
    allocations: Allocations
    timeline: Timeline | None


def simulate(scenario: Scenario) -> Record:
    """What training would hold on a CUDA device, exact to the byte; nothing of the model's size is
    allocated.

    The model's part is traced once for scenarios that differ in their optimizer only. A device that
    runs out of memory makes a record with that outcome: tensors are counted as training would need
    them, allocated and reserved bytes up to that moment. Raises ValueError for a scenario that
    cannot be built, and trace.UntraceableError when the model's code needs the values of its
    activations.
    """
    return run_simulation(scenario).record


def run_simulation(scenario: Scenario) -> Simulation:
    """As `simulate`, with the events up to the end or the failure and the timeline beside the
    record.
    """
    allocator = simulated_allocator(scenario)
    model = trace_model_of(scenario)
    optimizer = trace_optimizer(
        model,
        lambda parameters: accumulating(
            scenario, make_optimizer(scenario, parameters, model.names)
        ),
        scenario,
    )
    segments, places, draws = [model.build, optimizer.build], [], simulated_draws(scenario)
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
    found = replay(segments, allocations, optimizer.state_numbers, allocator)
    segments = until(segments, found.last)
    steps = [
        range(places.start, min(places.stop, len(segments)))
        for places in steps
        if places.start < len(segments)
    ]
    record = Record(
        scenario=scenario,
        origin="simulated",
        outcome="out-of-memory" if found.error else "ok",
        model_family=models.family_name(scenario.model, scenario.config),
        parameter_count=model.parameter_count,
        memory=_memory(model, optimizer, found, None if found.error else upper),
        estimate=None if optimizer.takes_closure else _estimate(scenario, model),
        warnings=tuple(map(shortened, optimizer.warnings)),
        error=found.error and shortened(found.error),
        environment=environment(scenario.seed),
    )
    timeline = (
        sample(segments, steps, allocations, found)
        if scenario.workload == "train" and steps
        else None
    )
    return Simulation(record=record, segments=segments, allocations=allocations, timeline=timeline)


def simulated_allocator(scenario: Scenario, addresses: Addresses | None = None) -> CachingAllocator:
    """The allocator of the scenario's device, which a process enters with its CUDA context;
    `addresses` says where segments lie.
    """
    settings = AllocatorSettings.parse(scenario.alloc_conf)
    if scenario.gpu is None:
        return CachingAllocator(settings, addresses=addresses)
    total = hardware.describe(scenario.gpu).memory_bytes
    return CachingAllocator(
        settings, total=total, occupied=hardware.CONTEXT_BYTES, addresses=addresses
    )


def trace_model_of(scenario: Scenario) -> ModelTrace:
    """Return the trace of a scenario's model, which is made once for scenarios that differ in their
    optimizer only.
    """
    return _model_trace(without_optimizer(scenario))


@lru_cache(maxsize=2)
def _model_trace(scenario: Scenario) -> ModelTrace:
    return trace_model(scenario)


def _estimate(scenario: Scenario, model: ModelTrace) -> StepEstimate | None:
    """The time of the optimizer's step on the GPU that the scenario names; None for one on sparse
    gradients.
    """
    if scenario.gpu is None or any(
        isinstance(layout, SparseLayout) for layout in model.gradients[-1]
    ):
        return None
    triples = zip(model.names, model.parameters, model.gradients[-1], strict=True)
    stepped = [(name, layout) for name, (layout, _), gradient in triples if gradient is not None]
    step = trace_step(
        [(layout.shape, layout.dtype) for _, layout in stepped],
        lambda parameters: make_optimizer(scenario, parameters, [name for name, _ in stepped]),
    )
    return estimate(step, hardware.describe(scenario.gpu))


def _upper_peaks(
    segments: list[Segment], allocations: Allocations, scenario: Scenario
) -> tuple[int, int] | None:
    """Return the allocated and reserved peaks with every optional request at its largest; None
    without one.

    They are those of an unlimited device: on a full one kernels make do with less.
    """
    if not any(request.optional for request in allocations.requests.values()):
        return None
    segments, allocations = sized_for(segments, allocations, scenario.gpu, optional=True)
    allocator, blocks = CachingAllocator(AllocatorSettings.parse(scenario.alloc_conf)), {}
    for segment in segments:
        for _ in play(segment, allocations, allocator, blocks):
            pass
    return allocator.peak_allocated_bytes, allocator.peak_reserved_bytes


def _memory(
    model: ModelTrace, optimizer: OptimizerTrace, found: Replay, upper: tuple[int, int] | None
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
    return Memory(
        parameters=by_dtype.total(),
        parameters_by_dtype=dict(by_dtype),
        gradients=sum(last.values()),
        optimizer_state=optimizer.state.total,
        state_by_key=optimizer.state.by_key,
        state_by_key_dtype=optimizer.state.by_key_dtype,
        optimizer_state_allocated=found.kept,
        peak_allocated=found.peak_allocated,
        peak_reserved=found.peak_reserved,
        # A block that is not split can make the peak without workspaces the higher one.
        peak_allocated_upper=None if upper is None else max(upper[0], found.peak_allocated),
        peak_reserved_upper=None if upper is None else max(upper[1], found.peak_reserved),
        peak_phase=found.peak_phase,
        peak_by_category=found.peak_by_category,
        peak_by_phase=found.peak_by_phase,
    )
