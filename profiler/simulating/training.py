"""Training traced in two recordings: the model's part once for all optimizers, the optimizer's part once each.

A step is forward, backward, clipping, `step`, `zero_grad`. The model's recording stops where gradients stand; the optimizer's takes them
over by their allocation numbers, so that laid end to end the two are the stream of one run.
"""

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from scenarios import Scenario, hardware
from scenarios.batches import map_tensors
from scenarios.without_data import replace_tensors
from scenarios.workpiece import Workpiece, build

from ..accumulating import keeps_gradients, simulated_draws, simulated_step
from ..iteration import Iteration
from ..state import StateBytes, owned_state_tensors, state_bytes
from ..tracing.attention_backend import Call, Settings
from ..tracing.autocast import cuda_autocast
from ..tracing.kernels import cuda_kernels, fused_on_meta
from ..tracing.layouts import data_of, made
from ..tracing.recurrent import flatten_parameters
from ..tracing.requests import USUAL_DEVICE, device_of
from ..tracing.sparse import sparse_constructor
from ..tracing.trace import Allocations, Phase, Recorder, Segment
from ..tracing.values import entries_of, remember_entries, with_value


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

    @property
    def parts(self) -> tuple["TensorLayout", ...]:
        """The layouts of the tensors that hold the data: this one."""
        return (self,)

    def renumbered(self, numbers: Mapping[int, int]) -> "TensorLayout":
        """Return the layout in the allocation that has another number now."""
        return replace(self, number=numbers[self.number])


@dataclass(frozen=True, kw_only=True)
class SparseLayout:
    """Where a sparse tensor lies: its indices and values.

    `entries` are the indices themselves, as bytes of the host, where they are known. Indices that are the
    batch's are `lent`: they outlive the gradient.
    """

    indices: TensorLayout
    values: TensorLayout
    shape: tuple[int, ...]
    coalesced: bool
    entries: bytes | None
    lent: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, recorder: Recorder) -> "SparseLayout":
        """The layout of a recorded tensor."""
        entries = entries_of(tensor)
        indices, values = (TensorLayout.of(part, recorder) for part in data_of(tensor))
        return cls(
            indices=indices,
            values=values,
            shape=tuple(tensor.shape),
            coalesced=tensor.is_coalesced(),
            entries=None if entries is None else entries.contiguous().numpy().tobytes(),
            lent=recorder.allocations.categories[indices.number] == "input",
        )

    @property
    def parts(self) -> tuple[TensorLayout, ...]:
        """The layouts of the tensors that hold the data."""
        return self.indices, self.values

    def renumbered(self, numbers: Mapping[int, int]) -> "SparseLayout":
        """Return the layout in the allocations that have other numbers now."""
        return replace(self, indices=self.indices.renumbered(numbers), values=self.values.renumbered(numbers))


Layout = TensorLayout | SparseLayout


@dataclass(frozen=True, kw_only=True)
class ModelTrace:
    """The model's part: allocations, what happens before the first step, and each step up to its gradients.

    `parameters` pairs each parameter's layout with whether it is trained, `names` has their paths in the model; `gradients` holds, step by
    step, the layout of each parameter's gradient or None. `workspaces` are the threads that hold one for cuBLAS. `attention` are the calls
    for which a kernel was chosen, which may depend on the GPU.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    parameters: list[tuple[TensorLayout, bool]]
    names: list[str]
    gradients: list[list[Layout | None]]
    workspaces: frozenset[str]
    attention: frozenset[tuple[Call, Settings]]
    parameter_count: int


@dataclass(frozen=True, kw_only=True)
class OptimizerTrace:
    """The optimizer's part: its construction, and each `step` with the `zero_grad` behind it.

    `state_numbers` are the allocations that hold the state when the last step ends.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    state: StateBytes
    state_numbers: frozenset[int]


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
    workpiece = build(scenario, "meta")
    # What a model keeps of whole numbers steers it as the batch's do.
    replace_tensors(workpiece.model, with_value)
    recorder = Recorder(workpiece.model, workspaces=())
    parameters = list(workpiece.model.parameters())
    with recorder.phase("build"):
        _place(recorder, workpiece.model)
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
    )


def trace_optimizer(
    model: ModelTrace, make: Callable[[list[torch.nn.Parameter]], torch.optim.Optimizer], scenario: Scenario
) -> OptimizerTrace:
    """Record the optimizer that `make` builds over the model's parameters, stepping on the gradients of the model's trace.

    zero_grad follows each step of the workload "train"; gradients that it leaves in place are there in the next step. For an accumulation
    each step of the model's trace is a draw, and it clears the gradients itself.
    """
    recorder = Recorder(first=len(model.allocations.nbytes), answer_read_backs=True, workspaces=model.workspaces)
    storages: dict[int, torch.UntypedStorage] = {}
    parameters = [torch.nn.Parameter(_adopt(recorder, layout, storages), requires_grad=trained) for layout, trained in model.parameters]
    with recorder.phase("build"):
        optimizer = make(parameters)
    steps = []
    numbers: set[int] = set()
    for gradients in model.gradients:
        _set_gradients(recorder, parameters, gradients)
        with fused_on_meta(), sparse_constructor(), recorder.phase("step"):
            simulated_step(optimizer, simulated_draws(scenario))
        steps.append(recorder.segments[-1:])
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
    )


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


def _place(recorder: Recorder, model: torch.nn.Module) -> None:
    """Put the model's parameters on the recorded device, module by module."""
    for path, module in model.named_modules():
        parameters = list(module.parameters(recurse=False))
        for parameter in parameters:
            recorder.allocate(parameter, "parameter")
        if isinstance(module, torch.nn.RNNBase):
            flatten_parameters(module)
            for parameter in parameters:
                recorder.name(recorder.number(parameter), "parameter", path)


_Step = tuple[list[Segment], list[Layout | None]]


def _hold_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> _Step:
    with recorder.phase("backward"):
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
    return [recorder.segments[-1]], _gradients(recorder, parameters)


def _enter(recorder: Recorder, workpiece: Workpiece) -> Mapping[str, Any]:
    """Put the model's buffers and the batch on the recorded device; the batch as it is there."""
    for buffer in workpiece.model.buffers():
        recorder.allocate(buffer, "buffer")

    def enter(tensor: torch.Tensor) -> torch.Tensor:
        entered = tensor if tensor.is_meta else with_value(tensor)
        recorder.allocate(entered, "input")
        return entered

    return map_tensors(enter, workpiece.batch)


def _train(recorder: Recorder, scenario: Scenario, workpiece: Workpiece, batch: Mapping[str, Any]) -> list[_Step]:
    parameters = list(workpiece.model.parameters())
    # It owns the gradients and is never stepped: what it would do is the other recording's.
    owner = torch.optim.SGD([parameter for parameter in parameters if parameter.requires_grad], lr=0.0)

    def phase(name: str) -> AbstractContextManager[None]:
        return recorder.phase("forward", "activation") if name == "forward" else recorder.phase(cast(Phase, name))

    found = []
    with cuda_autocast():
        iteration = Iteration(scenario, workpiece, batch, owner, phase, "cuda")
        draws = simulated_draws(scenario)
        for number in range(1, scenario.steps * draws + 1):
            seen = len(recorder.segments)
            iteration.gradients()
            found.append((recorder.segments[seen:], _gradients(recorder, parameters)))
            if not (keeps_gradients(scenario) and number % draws):
                # What is kept keeps its memory, but a sparse gradient of zeros has no entries.
                owner.zero_grad(scenario.set_to_none)
    return found


def _gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> list[Layout | None]:
    layouts: list[Layout | None] = []
    for parameter in parameters:
        layout = None if parameter.grad is None else _layout(parameter.grad, recorder)
        if layout is not None:
            for part in layout.parts[isinstance(layout, SparseLayout) and layout.lent :]:
                recorder.name(part.number, "gradient")
        layouts.append(layout)
    return layouts


def _layout(gradient: torch.Tensor, recorder: Recorder) -> Layout:
    return (SparseLayout if gradient.is_sparse else TensorLayout).of(gradient, recorder)


def _set_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter], layouts: list[Layout | None]) -> None:
    """Give each parameter its gradient, but for one that a zero_grad has left where it is to be."""
    storages: dict[int, torch.UntypedStorage] = {}
    for parameter, layout in zip(parameters, layouts, strict=True):
        held = parameter.grad is not None and layout is not None and recorder.number(parameter.grad) == layout.parts[-1].number
        if layout is not None and not held:
            parameter.grad = _adopted(recorder, layout, storages)


def _adopted(recorder: Recorder, layout: Layout, storages: dict[int, torch.UntypedStorage]) -> torch.Tensor:
    """Return a gradient that lies as the layout says."""
    if isinstance(layout, TensorLayout):
        return _adopt(recorder, layout, storages)
    recorder.expect_sparse()
    indices, values = _adopt(recorder, layout.indices, storages, freed=not layout.lent), _adopt(recorder, layout.values, storages)
    gradient = made(indices, values, layout.shape, coalesced=layout.coalesced)
    if layout.entries is not None:
        entries = torch.frombuffer(bytearray(layout.entries), dtype=torch.int64) if layout.entries else torch.empty(0, dtype=torch.int64)
        remember_entries(gradient, entries.view(layout.indices.shape))
    return gradient


def _adopt(recorder: Recorder, layout: TensorLayout, storages: dict[int, torch.UntypedStorage], *, freed: bool = True) -> torch.Tensor:
    """A meta tensor that lies as the layout says, known to the recorder; `storages` lets tensors share what they shared."""
    if layout.number not in storages:
        storages[layout.number] = torch.empty(layout.nbytes, dtype=torch.uint8, device="meta").untyped_storage()
    tensor = torch.empty(0, dtype=layout.dtype, device="meta")
    tensor.set_(storages[layout.number], layout.offset, layout.shape, layout.stride)
    recorder.adopt(tensor, layout.number, freed=freed)
    return tensor
