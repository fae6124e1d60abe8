"""The optimizer's part of a training step, traced on the gradients of the model's trace."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch

from optprof.scenarios import Scenario
from optprof.scenarios.settings import own_settings

from ..tracing.kernels import fused_on_meta
from ..tracing.repeats import repeated_updates
from ..tracing.samples import TRAININGS, ReadBackError, Samples
from ..tracing.sparse import sparse_constructor
from ..tracing.stream import Allocations, Segment
from ..tracing.trace import Recorder
from ..tracing.untraceable import UntraceableError
from ..training.iteration import needs_closure
from ..training.parallel import elements_by_rank
from ..training.state import StateBytes, bytes_by_key, owned_state_tensors, state_bytes
from .fake_ranks import following
from .handover import Layout, adopted, own_part
from .training import ModelTrace


@dataclass(frozen=True, kw_only=True)
class OptimizerTrace:
    """The optimizer's part: its construction, then each `step` and the `zero_grad` after it.

    `state_numbers` are the state's allocations at the end of the last step. `elements` has, for
    each rank, the elements of the parameters whose state it keeps. `warnings` name counts
    that depend on values, which a trace does not have. If `takes_closure`, the optimizer stepped
    with a closure that does not run the model.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    state: StateBytes
    state_numbers: frozenset[int]
    elements: tuple[int, ...] = ()
    takes_closure: bool = False
    warnings: tuple[str, ...] = ()


# A smaller difference of peaks is not reported: it is a few numbers among tensors.
_SLIGHT = 0.001
_Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


@own_settings()
def trace_optimizer(model: ModelTrace, make: _Make, scenario: Scenario) -> OptimizerTrace:
    """Trace the optimizer that `make` builds, stepping on the gradients of the model's trace.

    For the workload "train", zero_grad follows each step. Gradients that it keeps are in place in
    the next step. For an accumulation each step of the model's trace is a draw, and the
    accumulation clears the gradients itself.

    If a step reads values back, Samples provides them. If the bytes may depend on these values, the
    step is traced with other values too.
    """
    model.settings.apply()
    try:
        return _trace_optimizer(model, make, scenario, Samples(None))
    except ReadBackError:
        pass
    first, samples = _trace_sampled(model, make, scenario)
    trainings, lines, number = (
        samples.others(),
        sorted(samples.unknown),
        len(model.allocations.nbytes),
    )
    # Two parameters of a kind are enough to show that nothing depends on the unknown values.
    tried = (samples.training or 0, *trainings) if trainings else ()
    few = [
        _traced_or_none(_with_few_gradients(model), make, scenario, training) for training in tried
    ]
    if None not in few and not _differences(few, lines, number):
        return first
    others = [_traced_or_none(model, make, scenario, training) for training in trainings]
    return replace(first, warnings=_differences([first, *others], lines, number))


def _trace_sampled(
    model: ModelTrace, make: _Make, scenario: Scenario
) -> tuple[OptimizerTrace, Samples]:
    """Return the trace with the first sampled values that the step accepts, and these values."""
    first_error: Exception | None = None
    for training in range(TRAININGS):
        samples = Samples(training)
        try:
            return _trace_optimizer(model, make, scenario, samples), samples
        except Exception as error:
            # A function may refuse an invented value.
            if isinstance(error, UntraceableError) or not samples.unknown:
                raise
            first_error = first_error or error
    raise first_error or AssertionError


def _traced_or_none(
    model: ModelTrace, make: _Make, scenario: Scenario, training: int
) -> OptimizerTrace | None:
    """Return a trace with the sampled values of a training; None if the step refuses them."""
    try:
        return _trace_optimizer(model, make, scenario, Samples(training))
    except Exception:
        return None


def _with_few_gradients(model: ModelTrace) -> ModelTrace:
    """Return the model with gradients for at most two parameters of a kind."""
    seen: Counter[Any] = Counter()
    few: list[bool] = []
    for place, (layout, _) in enumerate(model.parameters):
        kind = layout.dtype, layout.shape, layout.stride, model.constants[place]
        seen[kind] += 1
        few.append(seen[kind] <= 2)
    steps = [
        [layout if kept else None for layout, kept in zip(step, few, strict=True)]
        for step in model.gradients
    ]
    return replace(model, gradients=steps)


def _differences(
    traces: Sequence[OptimizerTrace | None], lines: list[str], first: int
) -> tuple[str, ...]:
    """Return a line on the bytes that differ between the traces, if any.

    `lines` are the lines of code that read a value back.
    """
    state = sorted({trace.state.total for trace in traces if trace})
    peaks = sorted({_peak(trace, first) for trace in traces if trace})
    if not state or (len(state) == 1 and peaks[-1] - peaks[0] <= _SLIGHT * peaks[-1]):
        return ()
    reader = lines[0].rpartition("/")[2]
    reading = (
        f"{reader} reads a value back"
        if len(lines) == 1
        else f"{reader} and {len(lines) - 1} more lines read values back"
    )
    subject, counts = (
        ("state", state) if len(state) > 1 else ("peak of the step's own allocations", peaks)
    )
    amounts = " or ".join(f"{count:,} B" for count in counts)
    return (
        (
            f"{reading}; the {subject} depends on {'it' if len(lines) == 1 else 'them'}: {amounts},"
            " as far as was tried"
        ),
    )


def _peak(trace: OptimizerTrace, first: int) -> int:
    """Return the peak of the optimizer's own allocations, those from number `first` on."""
    total = peak = 0
    for segment in (trace.build, *(segment for step in trace.steps for segment in step)):
        for event in segment.events:
            number = max(event, ~event) - first
            if number >= 0:
                total += (
                    trace.allocations.nbytes[number]
                    if event >= 0
                    else -trace.allocations.nbytes[number]
                )
                peak = max(peak, total)
    return peak


def _trace_optimizer(
    model: ModelTrace, make: _Make, scenario: Scenario, samples: Samples
) -> OptimizerTrace:
    """Trace the optimizer with values from `samples` and the same random numbers each time."""
    recorder = Recorder(
        first=len(model.allocations.nbytes), samples=samples, workspaces=model.workspaces
    )
    with torch.random.fork_rng(devices=[]), following(recorder, scenario):
        return _trace_steps(recorder, model, make, scenario, samples)


def _trace_steps(
    recorder: Recorder, model: ModelTrace, make: _Make, scenario: Scenario, samples: Samples
) -> OptimizerTrace:
    storages: dict[int, torch.UntypedStorage] = {}
    parameters = [
        torch.nn.Parameter(adopted(recorder, layout, storages), requires_grad=trained)
        for layout, trained in model.parameters
    ]
    for parameter, constant in zip(parameters, model.constants, strict=True):
        samples.fix(own_part(parameter), constant)
    with recorder.phase("build"):
        optimizer = make(parameters)
    takes_closure = scenario.accumulate is None and needs_closure(optimizer)
    if takes_closure and scenario.workload == "train":
        raise ValueError(
            f"{scenario.optimizer} takes a closure in step, which a simulated training step does"
            " not have; use --workload state, or --device cpu or cuda"
        )
    names: dict[torch.Tensor, str] = dict(zip(parameters, model.names, strict=True))
    clears = scenario.workload == "train" and scenario.accumulate is None
    steps, state, numbers = [], StateBytes(by_key_dtype={}), set[int]()
    for gradients in model.gradients:
        _set_gradients(recorder, parameters, gradients)
        for parameter in parameters:
            if parameter.grad is not None:
                samples.renew(own_part(parameter.grad))
        updates = repeated_updates(recorder, optimizer)
        with fused_on_meta(), sparse_constructor(), updates, recorder.phase("step"):
            if takes_closure:
                closure: Any = partial(_close, parameters, samples)
                optimizer.step(closure)
            elif scenario.accumulate is None:
                optimizer.step()
            else:
                accumulation: Any = optimizer
                accumulation.step(loss=1.0)
        steps.append(recorder.segments[-1:])
        for parameter in parameters:
            samples.settle(own_part(parameter))
        state, numbers = _name_state(recorder, optimizer, names)
        if clears:
            with recorder.phase("zero_grad"):
                optimizer.zero_grad(scenario.set_to_none)
            steps[-1] = recorder.segments[-2:]
    return OptimizerTrace(
        allocations=recorder.allocations,
        build=recorder.segments[0],
        steps=steps,
        # Gradients that were cleared may have shared memory with the state.
        state=state_bytes(optimizer, parameters) if clears else state,
        state_numbers=frozenset(numbers),
        elements=elements_by_rank(optimizer, parameters, scenario),
        takes_closure=takes_closure,
    )


def _close(parameters: list[torch.nn.Parameter], samples: Samples) -> torch.Tensor:
    """Act as a closure: make new gradients and return a loss."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = (
                torch.empty_like(parameter) if parameter.grad is None else parameter.grad
            )
            samples.renew(parameter.grad)
    return torch.randn((), device="meta")


def _name_state(
    recorder: Recorder, optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]
) -> tuple[StateBytes, set[int]]:
    """Name the state's allocations, as "exp_avg of h.0.mlp.weight"; return its bytes and numbers.

    `names` has the paths of the model's parameters.
    """
    owned = list(owned_state_tensors(optimizer, names))
    numbers = set()
    for owner, key, tensor in owned:
        if recorder.holds(tensor):
            number = recorder.number(tensor)
            path = names.get(owner) if isinstance(owner, torch.Tensor) else None
            recorder.name(number, "optimizer_state", f"{key} of {path}" if path else key)
            numbers.add(number)
    return bytes_by_key((key, tensor) for _, key, tensor in owned), numbers


def _set_gradients(
    recorder: Recorder, parameters: list[torch.nn.Parameter], layouts: list[Layout | None]
) -> None:
    """Give each parameter its gradient, unless zero_grad has kept it in the same allocation."""
    storages: dict[int, torch.UntypedStorage] = {}
    for parameter, layout in zip(parameters, layouts, strict=True):
        is_kept = (
            parameter.grad is not None
            and layout is not None
            and (
                layout.parts[-1].is_on_host
                or recorder.number(own_part(parameter.grad)) == layout.parts[-1].number
            )
        )
        if layout is not None and not is_kept:
            parameter.grad = adopted(recorder, layout, storages)
