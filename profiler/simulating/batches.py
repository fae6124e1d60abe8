"""The events of a training step at any batch size: traced at a few, and worked out from those where
sizes grow in proportion.

In a model whose code does the same whatever the batch, an allocation is a constant and a multiple
of the batch. So are the numbers that a kernel's own requests are worked out from. A third trace
must come out as the two before it foretell, event by event and byte by byte; otherwise every size
is traced.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache

from optprof.scenarios import Scenario

from ..tracing.attention_backend import Call, Settings, depends_on
from ..tracing.kernel_memory import sized_for
from ..tracing.requests import USUAL_DEVICE, device_of
from ..tracing.stream import Allocations, Segment
from ..training.optimizer import make_optimizer
from .handover import Layout
from .optimizer_trace import OptimizerTrace, trace_optimizer
from .training import ModelTrace, trace_model, without_optimizer

# One image or sequence often takes another path: a view where many take a copy.
_ALONE, _FEW, _MORE, _MANY = 1, 2, 3, 7


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The events of all phases in order, the place where the last step begins, and the allocations
    that they name.
    """

    segments: list[Segment]
    last_step: int
    allocations: Allocations


class Streams:
    """The streams of scenarios on a device without end, each model and each optimizer traced as
    seldom as can be.
    """

    def __init__(self) -> None:
        self._models: dict[Scenario, list[_Batches]] = {}
        self._optimizers: dict[str, list[tuple[ModelTrace, OptimizerTrace]]] = {}

    def of(self, scenario: Scenario, *, optional: bool = False) -> Stream:
        """The stream of one scenario; ValueError as `simulate` raises it.

        `optional` counts what a kernel may take or not, at its largest.
        """
        asked = replace(without_optimizer(scenario), batch_size=1)
        model = self._batches(asked).model(scenario.batch_size)
        optimizer = self._optimizer(model, scenario)
        segments, last_step = [model.build, optimizer.build], 0
        for of_model, of_optimizer in zip(model.steps, optimizer.steps, strict=True):
            last_step = len(segments)
            segments += of_model + of_optimizer
        segments, allocations = sized_for(
            segments, model.allocations + optimizer.allocations, scenario.gpu, optional=optional
        )
        return Stream(segments=segments, last_step=last_step, allocations=allocations)

    def dtypes(self, scenario: Scenario) -> frozenset[str]:
        """Torch's names of the dtypes of the scenario's parameters."""
        asked = replace(without_optimizer(scenario), batch_size=1)
        layouts = self._batches(asked).model(scenario.batch_size).parameters
        return frozenset(str(layout.dtype).removeprefix("torch.") for layout, _ in layouts)

    def _batches(self, asked: Scenario) -> "_Batches":
        """The model's traces, taken once for all GPUs on which attention takes the same kernels."""
        known = self._models.setdefault(replace(asked, gpu=None), [])
        for batches in known:
            if batches.hold_for(asked.gpu):
                return batches
        known.append(_Batches(asked))
        return known[-1]

    def _optimizer(self, model: ModelTrace, scenario: Scenario) -> OptimizerTrace:
        """The optimizer's trace, taken once for all models that hand it parameters and gradients
        that lie alike.
        """
        asked = repr(
            (
                scenario.optimizer,
                scenario.options,
                scenario.implementation,
                scenario.workload,
                scenario.set_to_none,
            )
        )
        known = self._optimizers.setdefault(asked, [])
        for other, trace in known:
            if _lie(model) == _lie(other):
                return _renumbered(trace, other, model)
        trace = trace_optimizer(
            model, lambda parameters: make_optimizer(scenario, parameters, model.names), scenario
        )
        known.append((model, trace))
        return trace


class _Batches:
    """The traces of one scenario's model at any batch size."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._asked: set[int] = set()
        self._attention: set[tuple[Call, Settings]] = set()
        self._traced = lru_cache(maxsize=8)(self._trace)

    def model(self, batch: int) -> ModelTrace:
        """The trace at this batch size."""
        self._asked.add(batch)
        # To trace the batch itself is the shorter way until there are more of them than a forecast
        # needs.
        if (
            batch in (_ALONE, _FEW, _MORE, _MANY)
            or len(self._asked) <= 2
            or not self._is_proportional
        ):
            return self._traced(batch)
        return _foretold(self._traced(_FEW), self._traced(_MORE), batch)

    def hold_for(self, gpu: str | None) -> bool:
        """Return whether the traces that were taken would be the same on this GPU."""
        return not depends_on(self._attention, device_of(gpu).compute_capability)

    def _trace(self, batch: int) -> ModelTrace:
        trace = trace_model(replace(self._scenario, batch_size=batch))
        self._attention |= trace.attention
        return trace

    @cached_property
    def _is_proportional(self) -> bool:
        try:
            few, more, many = map(self._traced, (_FEW, _MORE, _MANY))
        except Exception:
            # A factory may refuse sizes that nobody asked for.
            if ":" not in self._scenario.model:
                raise
            return False
        if any(
            _events(few) != _events(other) or few.gradients != other.gradients
            for other in (more, many)
        ):
            return False
        foretold = _foretold(few, more, _MANY).allocations
        return (foretold.nbytes, foretold.requests) == (
            many.allocations.nbytes,
            many.allocations.requests,
        )


def _foretold(few: ModelTrace, more: ModelTrace, batch: int) -> ModelTrace:
    """The trace at `batch`, on the line through those of two and three."""
    pairs = zip(few.allocations.nbytes, more.allocations.nbytes, strict=True)
    sizes = [low + (batch - _FEW) * (high - low) for low, high in pairs]
    requests = {
        place: low.at(batch - _FEW, more.allocations.requests[place])
        for place, low in few.allocations.requests.items()
    }
    for place, request in requests.items():
        sizes[place] = request.nbytes(USUAL_DEVICE)
    return replace(few, allocations=replace(few.allocations, nbytes=sizes, requests=requests))


def _events(model: ModelTrace) -> list[Segment]:
    return [model.build, *(segment for step in model.steps for segment in step)]


def _handed(model: ModelTrace) -> list[Layout | None]:
    """The parameters and every step's gradients, as an optimizer gets them."""
    return [
        *(layout for layout, _ in model.parameters),
        *(layout for gradients in model.gradients for layout in gradients),
    ]


def _numbers(model: ModelTrace) -> list[int]:
    """The allocations that hold them, in the order in which they come."""
    return list(
        dict.fromkeys(
            part.number for layout in _handed(model) if layout is not None for part in layout.parts
        )
    )


def _lie(model: ModelTrace) -> tuple[object, ...]:
    """All that an optimizer's trace depends on, whatever the numbers of the allocations."""
    places = {number: place for place, number in enumerate(_numbers(model))}
    layouts = [layout and layout.renumbered(places) for layout in _handed(model)]
    return model.names, model.workspaces, [trained for _, trained in model.parameters], layouts


def _renumbered(trace: OptimizerTrace, old: ModelTrace, new: ModelTrace) -> OptimizerTrace:
    """The trace as if it had been taken behind another model's."""
    first, shift = (
        len(old.allocations.nbytes),
        len(new.allocations.nbytes) - len(old.allocations.nbytes),
    )
    adopted = dict(zip(_numbers(old), _numbers(new), strict=True))

    def now(number: int) -> int:
        return number + shift if number >= first else adopted[number]

    def moved(segment: Segment) -> Segment:
        return replace(
            segment, events=[now(event) if event >= 0 else ~now(~event) for event in segment.events]
        )

    return replace(
        trace,
        build=moved(trace.build),
        steps=[[moved(segment) for segment in step] for step in trace.steps],
        state_numbers=frozenset(map(now, trace.state_numbers)),
    )
