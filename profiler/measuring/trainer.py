"""Trainer: a scenario's model, batch and optimizer on a real device, and one iteration of them."""

import gc
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from typing import Any

import torch

from optprof.scenarios import Scenario
from optprof.scenarios.batches import map_tensors, tensors_in
from optprof.scenarios.parallel import read_parallel
from optprof.scenarios.workpiece import Workpiece, build

from ..training.accumulating import accumulating
from ..training.iteration import Iteration, require_step_alone
from ..training.optimizer import make_optimizer
from ..training.parallel import spread
from ..training.state import storage_bytes


class Trainer:
    """Model, batch and optimizer of a scenario, built on its device.

    If ranks share the work, the model is this rank's, and the process group exists already.
    `phase` opens each phase of an iteration by its name. `gradients` is the bytes of gradients at
    the last step, `loss` the loss of the last micro-batch that `draw` ran.
    """

    def __init__(
        self, scenario: Scenario, phase: Callable[[str], AbstractContextManager[None]]
    ) -> None:
        workpiece, self.names = _built(scenario)
        self.model = workpiece.model
        self.parameters = list(workpiece.model.parameters())
        optimizer = make_optimizer(scenario, self.parameters, self.names)
        self.accumulation = accumulating(scenario, optimizer)
        self.optimizer = self.accumulation or optimizer
        moved: Mapping[str, Any] = map_tensors(
            lambda tensor: tensor.to(scenario.device), workpiece.batch
        )
        self.batch = moved
        self.gradients = 0
        self.loss = 0.0
        self._scenario, self._phase = scenario, phase
        self._iteration = Iteration(
            scenario,
            workpiece,
            moved,
            self.optimizer,
            phase,
            scenario.device,
            takes_loss=self.accumulation is not None,
        )
        if scenario.workload == "state":
            require_step_alone(scenario, self.optimizer)
            if has_sparse_layers(self.model):
                # The batch decides which rows have gradients.
                self._iteration.gradients()
            else:
                fill_gradients(self.parameters)

    def iterate(self) -> None:
        """Run one iteration in its phases; for the workload "state" only the optimizer's step."""
        if self._scenario.workload == "state":
            self.gradients = storage_bytes(p.grad for p in self.parameters)
            with self._phase("step"):
                self.optimizer.step()
            return
        self._iteration.gradients()
        self.gradients = storage_bytes(p.grad for p in self.parameters)
        self._iteration.step()
        if self._iteration.needs_closure:
            self.gradients = storage_bytes(p.grad for p in self.parameters)
        with self._phase("zero_grad"):
            self.optimizer.zero_grad(self._scenario.set_to_none)

    def draw(self, tokens: torch.Tensor) -> bool:
        """Run one micro-batch of tokens, and return whether the accumulation stepped."""
        self.batch["input_ids"].copy_(tokens)
        self.batch["labels"].copy_(tokens)
        with self._phase("iteration"):
            self._iteration.gradients()
            self.gradients = storage_bytes(p.grad for p in self.parameters)
            stepped = self._iteration.step()
        assert self._iteration.last_loss is not None
        self.loss = float(self._iteration.last_loss)
        return bool(stepped)

    @property
    def tensors(self) -> list[torch.Tensor]:
        """The model's tensors, which are not state even if the optimizer holds them."""
        return [*self.parameters, *self.model.buffers()]

    def whole(self) -> None:
        """Run one iteration in a phase "iteration"; for the workload "state" without that phase."""
        if self._scenario.workload == "state":
            self.iterate()
            return
        with self._phase("iteration"):
            self.iterate()

    @property
    def alone(self) -> Callable[[], AbstractContextManager[Callable[[], None]]] | None:
        """A context for repeated steps without forward and backward; None if it would be wrong.

        The workload "state" has no other steps. A scaler refuses to step twice on the same
        gradients, and a closure computes new ones. On CUDA an iteration launches the step while the
        backward pass still runs; alone, the device would wait for the host.
        """
        scenario = self._scenario
        never = scenario.workload == "state" or scenario.amp == "fp16" or scenario.device == "cuda"
        return None if never or self._iteration.needs_closure else self._step_alone

    @contextmanager
    def _step_alone(self) -> Iterator[Callable[[], None]]:
        """Yield the step, to repeat on the gradients of one forward and backward pass."""
        self._iteration.gradients()
        yield self._iteration.step
        self.optimizer.zero_grad(self._scenario.set_to_none)

    @property
    def samples(self) -> int | None:
        """Sequences or images in one iteration; None for the workload "state"."""
        sizes = [tensor.shape[0] for tensor in tensors_in(self.batch) if tensor.dim()]
        return (
            sizes[0] * self._scenario.micro_batches
            if sizes and self._scenario.workload == "train"
            else None
        )

    @property
    def tokens(self) -> int | None:
        """Tokens in one iteration; None for the workload "state" and for models without text."""
        tokens = self.batch.get("input_ids")
        if not isinstance(tokens, torch.Tensor) or self._scenario.workload != "train":
            return None
        return tokens.numel() * self._scenario.micro_batches


def _built(scenario: Scenario) -> tuple[Workpiece, list[str]]:
    """Return the model and batch, and the names of the parameters before anything wraps them.

    A model that ranks split is built on the CPU, and each rank moves its part alone, so that no
    device holds the whole model.
    """
    if scenario.parallel is None:
        workpiece = build(scenario, scenario.device)
        return workpiece, [name for name, _ in workpiece.model.named_parameters()]
    way = read_parallel(scenario.parallel)
    workpiece = build(scenario, "cpu" if way.splits_parameters else scenario.device)
    names = [name for name, _ in workpiece.model.named_parameters()]
    model = spread(workpiece.model, scenario, scenario.device)
    if way.splits_parameters and way.data is None:
        # Buffers; fully_shard moves them itself, and leaves offloaded parameters on the host.
        model = model.to(scenario.device)
    if way.splits_parameters and scenario.device == "cuda":
        # Otherwise blocks that were whole on the way would count as reserved.
        gc.collect()
        torch.cuda.empty_cache()
    return replace(workpiece, model=model), names


def has_sparse_layers(model: torch.nn.Module) -> bool:
    """Return whether a layer has sparse gradients, as Embedding(sparse=True) does."""
    return any(getattr(module, "sparse", False) is True for module in model.modules())


def fill_gradients(parameters: Iterable[torch.nn.Parameter]) -> None:
    """Give every trained parameter a random gradient."""
    for parameter in parameters:
        if parameter.requires_grad:
            parameter.grad = torch.randn_like(parameter)
