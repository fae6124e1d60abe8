"""The model's part of a training step, traced once for all optimizers.

A step is forward, backward, clipping, `step`, `zero_grad`. This recording ends with the gradients.
The optimizer's recording (optimizer_trace.py) adopts them under their allocation numbers, so the
two together are the stream of one run.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any, cast

import torch

from optprof.scenarios import Scenario, hardware
from optprof.scenarios.batches import map_tensors
from optprof.scenarios.parallel import Parallel, read_parallel
from optprof.scenarios.settings import TorchSettings, own_settings
from optprof.scenarios.without_data import replace_tensors
from optprof.scenarios.workpiece import Workpiece, build

from ..tracing.attention_backend import AttentionCall
from ..tracing.autocast import cuda_autocast
from ..tracing.kernels import cuda_kernels
from ..tracing.recurrent_layers import flatten_parameters
from ..tracing.requests import USUAL_DEVICE, device_of
from ..tracing.samples import InitialValues
from ..tracing.stream import Allocations, Phase, Segment
from ..tracing.trace import Recorder
from ..tracing.untraceable import require_followed, require_modules_followed
from ..tracing.values import with_value
from ..training.accumulating import keeps_gradients, simulated_draws
from ..training.iteration import Iteration
from ..training.parallel import spread
from .fake_ranks import become, following, reduce_buckets
from .handover import Layout, SparseLayout, TensorLayout, layout_of, own_part


@dataclass(frozen=True, kw_only=True)
class ModelTrace:
    """The model's part: its allocations, the build, and each step up to its gradients.

    `parameters` pairs each parameter's layout with whether it is trained; `names` has their paths
    in the model. `gradients` has, for each step, the layout of each parameter's gradient or None.
    `workspaces` are the threads that have a workspace for cuBLAS. `attention` has the calls whose
    kernel may depend on the GPU. `constants` has a parameter's initial value if all its elements
    are equal, like the 0 of a bias, else None. `settings` are torch's, as the factory left them.
    """

    allocations: Allocations
    build: Segment
    steps: list[list[Segment]]
    parameters: list[tuple[TensorLayout, bool]]
    names: list[str]
    gradients: list[list[Layout | None]]
    workspaces: frozenset[str]
    attention: frozenset[AttentionCall]
    parameter_count: int
    constants: list[float | None]
    settings: TorchSettings


def without_optimizer(scenario: Scenario) -> Scenario:
    """Return the scenario with defaults in all fields that do not affect the model's trace."""
    usual = Scenario(model=scenario.model)
    names = ("optimizer", "options", "implementation", "device", "alloc_conf")
    defaults = {name: getattr(usual, name) for name in names}
    return replace(scenario, **defaults, gpu=_first_alike(scenario.gpu))


def _first_alike(gpu: str | None) -> str | None:
    """Return the first GPU with this compute capability; None for that of the usual device."""
    capability = _capability(gpu)
    if capability == USUAL_DEVICE.compute_capability:
        return None
    return next(name for name in hardware.available() if _capability(name) == capability)


def _capability(gpu: str | None) -> tuple[int, int]:
    return device_of(gpu).compute_capability


@own_settings()
def trace_model(scenario: Scenario) -> ModelTrace:
    """Build the scenario's model on meta tensors and trace its part of each step.

    If ranks share the work, the trace is that of `scenario.rank`.
    """
    become(scenario)
    initial = InitialValues()
    with initial:
        workpiece = build(scenario, "meta")
        require_modules_followed(workpiece.model)
        # A model's integer tensors may control its code, like the batch's.
        replace_tensors(workpiece.model, with_value)
    names = [name for name, _ in workpiece.model.named_parameters()]
    constants = [initial.constant(p) for p in workpiece.model.parameters()]
    recorder = Recorder(workspaces=())
    with following(recorder, scenario):
        workpiece, batch = _built(recorder, scenario, workpiece)
        parameters = list(workpiece.model.parameters())
        layouts = [(TensorLayout.of(p, recorder), p.requires_grad) for p in parameters]
        with cuda_kernels(_capability(scenario.gpu)) as attention:
            steps = (
                _train(recorder, scenario, workpiece, batch)
                if batch
                else [_make_gradients(recorder, parameters)]
            )
    return ModelTrace(
        allocations=recorder.allocations,
        build=recorder.segments[0],
        steps=[segments for segments, _ in steps],
        parameters=layouts,
        names=names,
        gradients=[gradients for _, gradients in steps],
        workspaces=frozenset(recorder.workspaces or ()),
        attention=frozenset(attention),
        parameter_count=sum(p.numel() for p in parameters),
        constants=constants,
        settings=TorchSettings.now(),
    )


def _built(
    recorder: Recorder, scenario: Scenario, workpiece: Workpiece
) -> tuple[Workpiece, Mapping[str, Any]]:
    """Put the model, spread over the ranks, and the batch on the recorded device.

    A model that ranks share is split while it has no data, so no device ever holds all of it.
    """
    model = workpiece.model
    way = Parallel() if scenario.parallel is None else read_parallel(scenario.parallel)
    if way.splits_parameters:
        model = spread(model, scenario, "cpu")
    recorder.know(model)
    with recorder.phase("build"):
        if way.cpu_offload:
            for parameter in model.parameters():
                recorder.keep_on_host(own_part(parameter))
        else:
            _place(recorder, model)
        if not way.splits_parameters:
            model = spread(model, scenario, "cpu")
            reduce_buckets(model, recorder)
        workpiece = replace(workpiece, model=model)
        batch = _enter(recorder, workpiece) if scenario.workload == "train" else {}
    return workpiece, batch


def _place(recorder: Recorder, model: torch.nn.Module) -> None:
    """Put the model's parameters on the recorded device, module by module."""
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            number = recorder.allocate(own_part(parameter), "parameter")
            if own_part(parameter) is not parameter:
                recorder.name(number, "parameter", f"{path}.{name}" if path else name)
        if isinstance(module, torch.nn.RNNBase):
            flatten_parameters(module)
            for parameter in module.parameters(recurse=False):
                recorder.name(recorder.number(parameter), "parameter", path)


_Step = tuple[list[Segment], list[Layout | None]]


def _make_gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> _Step:
    with recorder.phase("backward"):
        for parameter in parameters:
            if parameter.requires_grad:
                parameter.grad = torch.empty_like(parameter)
    return [recorder.segments[-1]], _gradients(recorder, parameters)


def _enter(recorder: Recorder, workpiece: Workpiece) -> Mapping[str, Any]:
    """Put the model's buffers and the batch on the recorded device; return that batch."""
    for buffer in workpiece.model.buffers():
        recorder.allocate(buffer, "buffer")

    def enter(tensor: torch.Tensor) -> torch.Tensor:
        require_followed(tensor, "")
        entered = tensor if tensor.is_meta else with_value(tensor)
        recorder.allocate(entered, "input")
        return entered

    return map_tensors(enter, workpiece.batch)


def _train(
    recorder: Recorder, scenario: Scenario, workpiece: Workpiece, batch: Mapping[str, Any]
) -> list[_Step]:
    parameters = list(workpiece.model.parameters())
    # It owns the gradients and never steps: the step is in the optimizer's recording.
    owner = torch.optim.SGD(
        [parameter for parameter in parameters if parameter.requires_grad], lr=0.0
    )

    def phase(name: str) -> AbstractContextManager[None]:
        return (
            recorder.phase("forward", "activation")
            if name == "forward"
            else recorder.phase(cast(Phase, name))
        )

    steps = []
    with cuda_autocast():
        iteration = Iteration(scenario, workpiece, batch, owner, phase, "cuda")
        draws = simulated_draws(scenario)
        for number in range(1, scenario.steps * draws + 1):
            seen = len(recorder.segments)
            iteration.gradients()
            steps.append((recorder.segments[seen:], _gradients(recorder, parameters)))
            if not (keeps_gradients(scenario) and number % draws):
                # Kept gradients keep their memory, but a sparse gradient of zeros has no entries.
                owner.zero_grad(scenario.set_to_none)
    return steps


def _gradients(recorder: Recorder, parameters: list[torch.nn.Parameter]) -> list[Layout | None]:
    layouts: list[Layout | None] = []
    for parameter in parameters:
        layout = None if parameter.grad is None else layout_of(parameter.grad, recorder)
        if layout is not None:
            for part in layout.parts[isinstance(layout, SparseLayout) and layout.lent :]:
                recorder.name(part.number, "gradient")
        layouts.append(layout)
    return layouts
