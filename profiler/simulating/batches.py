"""The events of a training step at any batch size, from traces at a few sizes.

If a model's code does not depend on the batch size, each allocation is a constant plus a multiple
of it, and so are the numbers that decide a kernel's own requests. Two traces then predict every
other size. A third trace must match the prediction, event by event and byte by byte; otherwise each
size is traced.
"""

from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np

from optprof.scenarios import Scenario

from ..tracing.attention_backend import AttentionCall, depends_on
from ..tracing.kernel_memory import sized_for
from ..tracing.requests import USUAL_DEVICE, Request, device_of
from ..tracing.stream import Allocations, Segment
from ..training.optimizer import make_optimizer
from .handover import Layout, TensorLayout
from .optimizer_trace import OptimizerTrace, trace_optimizer
from .training import ModelTrace, trace_model, without_optimizer

# A batch of one often runs other code: a view instead of a copy.
_ALONE, _FEW, _MORE, _MANY = 1, 2, 3, 7


@dataclass(frozen=True, kw_only=True)
class Stream:
    """The events of all phases in order, with their allocations.

    `last_step` is the place of the segment that begins the last step.
    """

    segments: list[Segment]
    last_step: int
    allocations: Allocations

    @cached_property
    def requested_peak(self) -> int:
        """The peak of requested bytes; on every device, at least as many are reserved."""
        events, nbytes = self._arrays
        # ~n frees what n has allocated.
        changes = np.where(events < 0, -1, 1) * nbytes[np.where(events < 0, ~events, events)]
        return int(changes.cumsum().max(initial=0))

    @cached_property
    def digest(self) -> bytes:
        """Digest of what an allocator is given: the events, the requested bytes, the streams."""
        before = sum(len(segment.events) for segment in self.segments[: self.last_step])
        streams = [each for pair in sorted(self.allocations.streams.items()) for each in pair]
        sizes = [before, len(self.allocations.nbytes), len(streams)]
        digest = blake2b()
        for array in (np.array(sizes), np.array(streams, np.int64), *self._arrays):
            digest.update(array.tobytes())
        return digest.digest()

    @cached_property
    def _arrays(self) -> tuple["np.ndarray[Any, Any]", "np.ndarray[Any, Any]"]:
        events = [event for segment in self.segments for event in segment.events]
        return np.array(events, np.int64), np.array(self.allocations.nbytes, np.int64)


class StreamCache:
    """Streams of scenarios on an unlimited device; keeps the traces of models and optimizers."""

    def __init__(self) -> None:
        self._models: dict[Scenario, list[_BatchTraces]] = {}
        self._optimizers: dict[str, list[tuple[ModelTrace, OptimizerTrace]]] = {}
        # The same after other models with equal layouts; these models are not kept.
        self._renumbered: dict[str, list[tuple[_Program, OptimizerTrace]]] = {}

    def of(self, scenario: Scenario, *, optional: bool = False) -> Stream:
        """Return the stream of one scenario; raise ValueError as `simulate` does.

        `optional` counts the optional workspaces of kernels, at their largest.
        """
        model = self._model(scenario)
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
        """Return torch's names of the dtypes of the scenario's parameters."""
        layouts = self._model(scenario).parameters
        return frozenset(str(layout.dtype).removeprefix("torch.") for layout, _ in layouts)

    def _model(self, scenario: Scenario) -> ModelTrace:
        """Return the model's trace, shared by all GPUs on which attention uses the same kernels."""
        single = replace(without_optimizer(scenario), batch_size=1)
        by_gpu = self._models.setdefault(replace(single, gpu=None), [])
        traces = next((traces for traces in by_gpu if traces.are_valid_for(single.gpu)), None)
        if traces is None:
            traces = _BatchTraces(single)
            by_gpu.append(traces)
        return traces.at(scenario.batch_size)

    def _optimizer(self, model: ModelTrace, scenario: Scenario) -> OptimizerTrace:
        """Return the optimizer's trace, shared by models whose tensors have equal layouts."""
        key = repr(
            (
                scenario.optimizer,
                scenario.options,
                scenario.implementation,
                scenario.workload,
                scenario.set_to_none,
                scenario.ranks,
                scenario.rank,
                scenario.parallel,
            )
        )
        traces = self._optimizers.setdefault(key, [])
        renumbered = self._renumbered.setdefault(key, [])
        for program, trace in [*((_program(other), trace) for other, trace in traces), *renumbered]:
            if all(own is its for own, its in zip(_program(model), program, strict=True)):
                return trace
        for other, trace in traces:
            if _layout_key(model) == _layout_key(other):
                renumbered.append((_program(model), _renumbered(trace, other, model)))
                return renumbered[-1][1]
        trace = trace_optimizer(
            model, lambda parameters: make_optimizer(scenario, parameters, model.names), scenario
        )
        traces.append((model, trace))
        return trace


class _BatchTraces:
    """The traces of one scenario's model at all batch sizes."""

    def __init__(self, scenario: Scenario) -> None:
        self._scenario = scenario
        self._sizes: set[int] = set()
        self._attention: set[AttentionCall] = set()
        self._traced = lru_cache(maxsize=8)(self._trace)
        self._predicted = lru_cache(maxsize=64)(self._predict)

    def at(self, batch: int) -> ModelTrace:
        """Return the trace at this batch size."""
        self._sizes.add(batch)
        # The prediction takes three traces: for one or two sizes it is faster to trace them.
        if (
            batch in (_ALONE, _FEW, _MORE, _MANY)
            or len(self._sizes) <= 2
            or not self._is_proportional
        ):
            return self._traced(batch)
        return self._predicted(batch)

    def _predict(self, batch: int) -> ModelTrace:
        return _predicted(self._traced(_FEW), self._traced(_MORE), batch)

    def are_valid_for(self, gpu: str | None) -> bool:
        """Return whether the traces so far would be the same on this GPU."""
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
            # A factory may refuse these sizes.
            if ":" not in self._scenario.model:
                raise
            return False
        if any(
            _events(few) != _events(other) or few.gradients != other.gradients
            for other in (more, many)
        ):
            return False
        predicted = _predicted(few, more, _MANY).allocations
        return (predicted.nbytes, predicted.requests) == (
            many.allocations.nbytes,
            many.allocations.requests,
        )


def _predicted(few: ModelTrace, more: ModelTrace, batch: int) -> ModelTrace:
    """Return the trace at `batch`, on the line through those at batch sizes two and three."""
    pairs = zip(few.allocations.nbytes, more.allocations.nbytes, strict=True)
    sizes = [low + (batch - _FEW) * (high - low) for low, high in pairs]
    requests: dict[int, Request] = {}
    # By id: layers repeat their requests, and equal ones nearly always are one object.
    known: dict[tuple[int, int], tuple[Request, int]] = {}
    for place, low in few.allocations.requests.items():
        high = more.allocations.requests[place]
        if (id(low), id(high)) not in known:
            request = low.at(batch - _FEW, high)
            known[id(low), id(high)] = request, request.nbytes(USUAL_DEVICE)
        requests[place], sizes[place] = known[id(low), id(high)]
    return replace(few, allocations=replace(few.allocations, nbytes=sizes, requests=requests))


def _events(model: ModelTrace) -> list[tuple[str, list[int]]]:
    """Return the events of each segment; the sizes of exchanges may depend on the batch."""
    segments = [model.build, *(segment for step in model.steps for segment in step)]
    return [(segment.phase, segment.events) for segment in segments]


def _layouts(model: ModelTrace) -> list[Layout | None]:
    """Return the layouts of the parameters and of each step's gradients."""
    return [
        *(layout for layout, _ in model.parameters),
        *(layout for gradients in model.gradients for layout in gradients),
    ]


def _numbers(model: ModelTrace) -> list[int]:
    """Return the allocations of these layouts, in order."""
    return list(
        dict.fromkeys(
            part.number for layout in _layouts(model) if layout is not None for part in layout.parts
        )
    )


_Program = tuple[list[list[Layout | None]], list[tuple[TensorLayout, bool]]]


def _program(model: ModelTrace) -> _Program:
    """Return objects that two traces share if they are predictions from one.

    The allocations of these have equal numbers.
    """
    return model.gradients, model.parameters


def _layout_key(model: ModelTrace) -> tuple[object, ...]:
    """Return all that an optimizer's trace depends on, except the numbers of the allocations."""
    places = {number: place for place, number in enumerate(_numbers(model))}
    layouts = [layout and layout.renumbered(places) for layout in _layouts(model)]
    return model.names, model.workspaces, [trained for _, trained in model.parameters], layouts


def _renumbered(trace: OptimizerTrace, old: ModelTrace, new: ModelTrace) -> OptimizerTrace:
    """Return the optimizer's trace after another model's trace."""
    first, shift = (
        len(old.allocations.nbytes),
        len(new.allocations.nbytes) - len(old.allocations.nbytes),
    )
    of_model = dict(zip(_numbers(old), _numbers(new), strict=True))

    def now(number: int) -> int:
        return number + shift if number >= first else of_model[number]

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
