"""Training traced in two recordings: the model's part once for all optimizers, the optimizer's part once each.

A step is forward, backward, clipping, `step`, `zero_grad`. The model's recording stops where gradients stand; the optimizer's takes them
over by their allocation numbers, so that laid end to end the two are the stream of one run.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch

from optimizers.accumulation import Accumulation
from scenarios import Scenario, hardware
from scenarios.workpiece import Workpiece, build

from ..accumulating import keeps_gradients, simulated_draws, simulated_step
from ..iteration import Iteration, needs_closure
from ..state import StateBytes, owned_state_tensors, state_bytes
from ..tracing.attention_backend import Call, Settings
from ..tracing.autocast import cuda_autocast
from ..tracing.kernels import cuda_kernels, fused_on_meta
from ..tracing.requests import USUAL_DEVICE, device_of
from ..tracing.samples import TRAININGS, InitialValues, ReadBackError, Samples
from ..tracing.trace import Allocations, Phase, Recorder, Segment, UntraceableError
from ..tracing.values import with_value


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """Where a tensor lies: its shape, and its place in the allocation `number` of `nbytes`."""

    number: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int

    @classmethod
    def of(cls, tensor: torch.Tensor, recorder: Recorder) -> "TensorLayout":
        """The layout of a recorded tensor."""
        return cls(
            number=recorder.number(tensor),
            nbytes=tensor.untyped_storage().nbytes(),
            dtype=tensor.dtype,
            shape=tuple(tensor.shape),
            stride=tensor.stride(),
            offset=int(tensor.storage_offset()),
        )


@dataclass(frozen=True, kw_only=True)
class ModelTrace:
    """The model's part: allocations, what happens before the first step, and each step up to its gradients.

    `parameters` pairs each parameter's layout with whether it is trained, `names` has their paths in the model; `gradients` holds, step by
    step, the layout of each parameter's gradient or None. `workspaces` are the threads that hold one for cuBLAS. `attention` are the calls
    for which a kernel was chosen, which may depend on the GPU. `constants` has the number that every element of a parameter is at first,
    as of a bias that begins at 0, or None.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    parameters: list[tuple[TensorLayout, bool]]
    names: list[str]
    gradients: list[list[TensorLayout | None]]
    workspaces: frozenset[str]
    attention: frozenset[tuple[Call, Settings]]
    parameter_count: int
    constants: list[float | None]


@dataclass(frozen=True, kw_only=True)
class OptimizerTrace:
    """The optimizer's part: its construction, and each `step` with the `zero_grad` behind it.

    `state_numbers` are the allocations that hold the state when the last step ends. `warnings` say what
    depends on values that a trace does not have. An optimizer that takes a closure was given one without the model's forward pass.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    state: StateBytes
    state_numbers: frozenset[int]
    takes_closure: bool = False
    warnings: tuple[str, ...] = ()


def without_optimizer(scenario: Scenario) -> Scenario:
    """The scenario with every field at its default that the model's trace does not depend on."""
    usual = Scenario(model=scenario.model)
    names = ("optimizer", "options", "implementation", "device", "alloc_conf")
    defaults = {name: getattr(usual, name) for name in names}
    return replace(scenario, **defaults, gpu=_first_alike(scenario.gpu))


def _first_alike(gpu: str | None) -> str | None:
    """Return the first GPU with this one's compute capability; None for what is assumed without one."""
    wanted = _capability(gpu)
    if wanted == USUAL_DEVICE.compute_capability:
        return None
    return next(name for name in hardware.available() if _capability(name) == wanted)


def _capability(gpu: str | None) -> tuple[int, int]:
    return device_of(gpu).compute_capability


def trace_model(scenario: Scenario) -> ModelTrace:
    """Build the scenario's model without data and record what the optimizer does not decide."""
    initial = InitialValues()
    with initial:
        workpiece = build(scenario, "meta")
    recorder = Recorder(workpiece.model, workspaces=())
    parameters = list(workpiece.model.parameters())
    with recorder.phase("build"):
        for parameter in parameters:
            recorder.allocate(parameter, "parameter")
        batch = _enter(recorder, workpiece) if scenario.workload == "train" else {}
    layouts = [(TensorLayout.of(p, recorder), p.requires_grad) for p in parameters]
    with cuda_kernels(_capability(scenario.gpu)) as attention:
        steps = _train(recorder, scenario, workpiece, batch) if batch else [_hold_gradients(recorder, parameters)]
    return ModelTrace(
        allocations=recorder.allocations,
        build=recorder.segments[0],
        steps=[segments for segments, _ in steps],
        parameters=layouts,
        names=[name for name, _ in workpiece.model.named_parameters()],
        gradients=[gradients for _, gradients in steps],
        workspaces=frozenset(recorder.workspaces or ()),
        attention=frozenset(attention),
        parameter_count=sum(p.numel() for p in parameters),
        constants=[initial.constant(p) for p in parameters],
    )


# Peaks that differ by no more are not spoken of: a number more or less among tensors.
_SLIGHT = 0.001
_Make = Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer]


def trace_optimizer(model: ModelTrace, make: _Make, scenario: Scenario) -> OptimizerTrace:
    """Record the optimizer that `make` builds over the model's parameters, stepping on the gradients of the model's trace.

    zero_grad follows each step of the workload "train"; gradients that it leaves in place are there in the next step. For an accumulation
    each step of the model's trace is a draw, and it clears the gradients itself.

    A step that reads values back is answered by Samples. Where these do not agree, it is traced with other answers too.
    """
    try:
        return _trace_optimizer(model, make, scenario, Samples(None))
    except ReadBackError:
        pass
    first, samples = _trace_answered(model, make, scenario)
    trainings, lines, number = samples.others(), sorted(samples.unknown), len(model.allocations.nbytes)
    # Two parameters of a kind show as well as all of them that nothing depends on what is not known.
    tried = (samples.training or 0, *trainings) if trainings else ()
    few = [_traced_or_none(_with_few_gradients(model), make, scenario, training) for training in tried]
    if None not in few and not _differences(few, lines, number):
        return first
    others = [_traced_or_none(model, make, scenario, training) for training in trainings]
    return replace(first, warnings=_differences([first, *others], lines, number))


def _trace_answered(model: ModelTrace, make: _Make, scenario: Scenario) -> tuple[OptimizerTrace, Samples]:
    """Return the trace with the answers of the first training whose values the step takes, and those answers."""
    first_error: Exception | None = None
    for training in range(TRAININGS):
        samples = Samples(training)
        try:
            return _trace_optimizer(model, make, scenario, samples), samples
        except Exception as error:
            # A value that was made up may be none that a function takes.
            if isinstance(error, UntraceableError) or not samples.unknown:
                raise
            first_error = first_error or error
    raise first_error or AssertionError


def _traced_or_none(model: ModelTrace, make: _Make, scenario: Scenario, training: int) -> OptimizerTrace | None:
    """Return a trace with the answers of a training; None where these are no values that the step takes."""
    try:
        return _trace_optimizer(model, make, scenario, Samples(training))
    except Exception:
        return None


def _with_few_gradients(model: ModelTrace) -> ModelTrace:
    """Return the model with gradients for no more than two parameters of a kind."""
    seen: Counter[Any] = Counter()
    few: list[bool] = []
    for place, (layout, _) in enumerate(model.parameters):
        kind = layout.dtype, layout.shape, layout.stride, model.constants[place]
        seen[kind] += 1
        few.append(seen[kind] <= 2)
    steps = [[layout if kept else None for layout, kept in zip(step, few, strict=True)] for step in model.gradients]
    return replace(model, gradients=steps)


def _differences(traces: Sequence[OptimizerTrace | None], lines: list[str], first: int) -> tuple[str, ...]:
    """Return a line on the bytes that differ between the traces; `lines` are those that read a value back."""
    state = sorted({trace.state.total for trace in traces if trace})
    peaks = sorted({_peak(trace, first) for trace in traces if trace})
    if not state or (len(state) == 1 and peaks[-1] - peaks[0] <= _SLIGHT * peaks[-1]):
        return ()
    reader = lines[0].rpartition("/")[2]
    reading = f"{reader} reads a value back" if len(lines) == 1 else f"{reader} and {len(lines) - 1} more lines read values back"
    subject, counts = ("state", state) if len(state) > 1 else ("peak of the step's own allocations", peaks)
    amounts = " or ".join(f"{count:,} B" for count in counts)
    return (f"{reading}; the {subject} depends on {'it' if len(lines) == 1 else 'them'}: {amounts}, as far as was tried",)


def _peak(trace: OptimizerTrace, first: int) -> int:
    """Return the most bytes that the optimizer's own allocations, those from number `first` on, hold at once."""
    total = peak = 0
    for segment in (trace.build, *(segment for step in trace.steps for segment in step)):
        for event in segment.events:
            number = max(event, ~event) - first
            if number >= 0:
                total += trace.allocations.nbytes[number] if event >= 0 else -trace.allocations.nbytes[number]
                peak = max(peak, total)
    return peak


def _trace_optimizer(model: ModelTrace, make: _Make, scenario: Scenario, samples: Samples) -> OptimizerTrace:
    """Record the optimizer with answers from `samples`. Random numbers of the host are the same each time."""
    with torch.random.fork_rng(devices=[]):
        return _trace_steps(model, make, scenario, samples)


def _trace_steps(model: ModelTrace, make: _Make, scenario: Scenario, samples: Samples) -> OptimizerTrace:
    recorder = Recorder(first=len(model.allocations.nbytes), samples=samples, workspaces=model.workspaces)
    storages: dict[int, torch.UntypedStorage] = {}
    parameters = [torch.nn.Parameter(_adopt(recorder, layout, storages), requires_grad=trained) for layout, trained in model.parameters]
    for parameter, constant in zip(parameters, model.constants, strict=True):
        samples.fix(parameter, constant)
    with recorder.phase("build"):
        optimizer = make(parameters)
    # Accumulations are given their metric.
    takes_closure = needs_closure(optimizer) and not isinstance(optimizer, Accumulation)
    if takes_closure and scenario.workload == "train":
        raise ValueError(
            f"{scenario.optimizer} takes a closure in step, which a simulated training step has not; "
            "use --workload state, or --device cpu or cuda"
        )
    steps = []
    numbers: set[int] = set()
    for gradients in model.gradients:
        _set_gradients(recorder, parameters, gradients)
        for parameter in parameters:
            if parameter.grad is not None:
                samples.renew(parameter.grad)
        with fused_on_meta(), recorder.phase("step"):
            if takes_closure:
                closure: Any = partial(_close, parameters, samples)
                optimizer.step(closure)
            else:
                simulated_step(optimizer, simulated_draws(scenario))
        steps.append(recorder.segments[-1:])
        for parameter in parameters:
            samples.settle(parameter)
        numbers = _name_state(recorder, optimizer, dict(zip(parameters, model.names, strict=True)))
        if scenario.workload == "train" and scenario.accumulate is None:
            with recorder.phase("zero_grad"):
                optimizer.zero_grad(scenario.set_to_none)
            steps[-1] = recorder.segments[-2:]
    return OptimizerTrace(
        allocations=recorder.allocations,
        build=recorder.segments[0],
        steps=steps,
        state=state_bytes(optimizer, parameters),
        state_numbers=frozenset(numbers),
        takes_closure=takes_closure,
    )


def _close(parameters: list[torch.nn.Parameter], samples: Samples) -> torch.Tensor:
    """Return a loss as a closure would, and leave new gradients where there were any."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.empty_like(parameter) if parameter.grad is None else parameter.grad
            samples.renew(parameter.grad)
    return torch.randn((), device="meta")


def _name_state(recorder: Recorder, optimizer: torch.optim.Optimizer, names: Mapping[torch.Tensor, str]) -> set[int]:
    """Name the allocations that hold the state now as "exp_avg of h.0.mlp.weight"; `names` has the paths of the model's parameters."""
    numbers = set()
    for owner, key, tensor in owned_state_tensors(optimizer, names):
        if recorder.holds(tensor):
            number = recorder.number(tensor)
            path = names.get(owner) if isinstance(owner, torch.Tensor) else None
            recorder.name(number, "optimizer_state", f"{key} of {path}" if path else key)
            numbers.add(number)
    return numbers


_Step = tuple[list[Segment], list[TensorLayout | None]]


def _hold_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> _Step:
    with recorder.phase("backward"):
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
    return [recorder.segments[-1]], _gradients(recorder, parameters)


def _enter(recorder: Recorder, workpiece: Workpiece) -> dict[str, Any]:
    """Put the model's buffers and the batch on the recorded device; the batch as it is there."""
    for buffer in workpiece.model.buffers():
        recorder.allocate(buffer, "buffer")
    batch = {}
    for name, value in workpiece.batch.items():
        if isinstance(value, torch.Tensor):
            value = with_value(value) if value.device.type == "cpu" else value
            recorder.allocate(value, "input")
        batch[name] = value
    return batch


def _train(recorder: Recorder, scenario: Scenario, workpiece: Workpiece, batch: dict[str, Any]) -> list[_Step]:
    parameters = list(workpiece.model.parameters())
    # It owns the gradients and is never stepped: what it would do is the other recording's.
    owner = torch.optim.SGD([parameter for parameter in parameters if parameter.requires_grad], lr=0.0)

    def phase(name: str) -> AbstractContextManager[None]:
        return recorder.phase("forward", "activation") if name == "forward" else recorder.phase(cast(Phase, name))

    found = []
    with cuda_autocast() if scenario.amp else nullcontext():
        iteration = Iteration(scenario, workpiece, batch, owner, phase, "cuda")
        draws = simulated_draws(scenario)
        for number in range(1, scenario.steps * draws + 1):
            seen = len(recorder.segments)
            iteration.gradients()
            found.append((recorder.segments[seen:], _gradients(recorder, parameters)))
            if scenario.set_to_none and not (keeps_gradients(scenario) and number % draws):
                owner.zero_grad()
    return found


def _gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> list[TensorLayout | None]:
    layouts = []
    for parameter in parameters:
        layout = None if parameter.grad is None else TensorLayout.of(parameter.grad, recorder)
        if layout is not None:
            recorder.name(layout.number, "gradient")
        layouts.append(layout)
    return layouts


def _set_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter], layouts: list[TensorLayout | None]) -> None:
    """Give each parameter its gradient, but for one that a zero_grad has left where it is to be."""
    storages: dict[int, torch.UntypedStorage] = {}
    for parameter, layout in zip(parameters, layouts, strict=True):
        held = parameter.grad is not None and layout is not None and recorder.number(parameter.grad) == layout.number
        if layout is not None and not held:
            parameter.grad = _adopt(recorder, layout, storages)


def _adopt(recorder: Recorder, layout: TensorLayout, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """A meta tensor that lies as the layout says, known to the recorder; `storages` lets tensors share what they shared."""
    if layout.number not in storages:
        storages[layout.number] = torch.empty(layout.nbytes, dtype=torch.uint8, device="meta").untyped_storage()
    tensor = torch.empty(0, dtype=layout.dtype, device="meta")
    tensor.set_(storages[layout.number], layout.offset, layout.shape, layout.stride)
    recorder.adopt(tensor, layout.number)
    return tensor
