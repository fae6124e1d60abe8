"""One training step of a scenario, by the same code for tracing and measuring.

An optimizer that needs a closure gets one that runs the micro-batches.
"""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import Any, cast

import torch

from optprof.optimizers.accumulation import Accumulation, MetricHypothesisTest
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import DTYPES, Workpiece


class Iteration:
    """Forward, backward and clipping, then the optimizer's step.

    `phase` opens a phase by its name ("forward", "backward", "clip", "step"). There is a phase
    "clip" if gradients are clipped or unscaled. `optimizer` owns the gradients; `device` is that of
    autocast. Raises ValueError for fp16 weights with a scaler, and for an optimizer that needs a
    closure with a scaler or an accumulation, which cannot pass it on.
    """

    def __init__(
        self,
        scenario: Scenario,
        workpiece: Workpiece,
        batch: Mapping[str, Any],
        optimizer: torch.optim.Optimizer,
        phase: Callable[[str], AbstractContextManager[None]],
        device: str,
    ) -> None:
        self.needs_closure = needs_closure(optimizer)
        if self.needs_closure:
            _require_closure_possible(scenario)
        if scenario.amp == "fp16":
            _require_scalable(workpiece.model)
        self._scenario = scenario
        self._workpiece = workpiece
        self._batch = batch
        self._optimizer = optimizer
        self._phase = phase
        self._autocast = (
            torch.autocast(device, dtype=DTYPES[scenario.amp]) if scenario.amp else nullcontext()
        )
        # A scaler for "cuda" would refuse a simulation's tensors; the name affects nothing else. A
        # training run with accumulation needs a real scale. Otherwise values do not matter, and no
        # step may be skipped because the first scale was too large.
        scale = 1.0 if scenario.accumulate is None else 2.0**16
        self._scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scenario.amp == "fp16")
        self._scaled = False
        # The loss of the last micro-batch.
        self.last_loss: torch.Tensor | None = None

    def gradients(self) -> None:
        """Run every micro-batch forward and backward, which leaves the gradients for the step.

        LBFGS and other optimizers that require a closure take all gradients from it. SAM needs
        gradients before the step too, to perturb the weights.
        """
        if not (self.needs_closure and _requires_closure(self._optimizer)):
            self._gradients()

    def _gradients(self) -> None:
        for _ in range(self._scenario.micro_batches):
            with self._phase("forward"):
                self._update_scale()
                loss = self._loss()
            with self._phase("backward"):
                self._scaler.scale(loss).backward()
                if isinstance(self._optimizer, Accumulation) or self.needs_closure:
                    self.last_loss = loss.detach()
                del loss
        if (
            self._scaler.is_enabled() and self._scenario.accumulate is None
        ) or self._scenario.max_grad_norm is not None:
            with self._phase("clip"):
                self._clip()

    def step(self) -> None:
        """Take the optimizer's step; a scaler waits for the device, to look for infinities."""
        if self.needs_closure:
            self._step_with_closure()
            return
        with self._phase("step"):
            if isinstance(self._optimizer, MetricHypothesisTest):
                self._scaler.step(self._optimizer, self.last_loss)
            else:
                self._scaler.step(self._optimizer)
            self._scaled = self._scaler.is_enabled()

    def _step_with_closure(self) -> None:
        """Take a step; the closure runs in its own phases, outside the phase "step"."""
        with ExitStack() as step:

            def closure() -> torch.Tensor:
                step.close()
                try:
                    with self._phase("zero_grad"):
                        self._optimizer.zero_grad(self._scenario.set_to_none)
                    with torch.enable_grad():
                        self._gradients()
                finally:
                    step.enter_context(self._phase("step"))
                assert self.last_loss is not None
                return self.last_loss

            step.enter_context(self._phase("step"))
            # In torch's annotations closures return numbers, in its documentation tensors.
            self._optimizer.step(cast(Any, closure))

    def _update_scale(self) -> None:
        """Update the scale after a step, by whether its gradients were infinite."""
        if self._scaled:
            self._scaler.update()
            self._scaled = False

    def _loss(self) -> torch.Tensor:
        with self._autocast:
            loss = self._workpiece.loss(self._batch)
        count = self._scenario.micro_batches
        return loss / count if count > 1 else loss

    def _clip(self) -> None:
        self._scaler.unscale_(self._optimizer)
        self._scaled = self._scaler.is_enabled()
        if self._scenario.max_grad_norm is not None:
            parameters = [p for group in self._optimizer.param_groups for p in group["params"]]
            if any(p.grad is not None and p.grad.layout != torch.strided for p in parameters):
                raise ValueError(
                    "torch clips no sparse gradients; leave out max_grad_norm, or make them dense"
                )
            torch.nn.utils.clip_grad_norm_(parameters, self._scenario.max_grad_norm)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the step of the optimizer, or of one inside it, needs a closure.

    LBFGS shows it in its signature, SAM in its code: `assert closure is not None`.
    """
    step = inspect.unwrap(type(optimizer).step)
    if _requires_closure(optimizer) or (
        "closure" in inspect.signature(step).parameters and _insists_on("closure", step)
    ):
        return True
    return any(map(needs_closure, _inside(optimizer)))


def require_step_alone(scenario: Scenario, optimizer: torch.optim.Optimizer) -> None:
    """Raise ValueError for an optimizer whose step runs the model, and so cannot run alone."""
    if needs_closure(optimizer):
        raise ValueError(
            f"{scenario.optimizer} steps with a closure that runs the model; it cannot step alone,"
            " use workload train"
        )


def _require_scalable(model: torch.nn.Module) -> None:
    """Raise ValueError for a model that torch's GradScaler refuses to train."""
    halves = [
        name
        for name, parameter in model.named_parameters()
        if parameter.requires_grad and parameter.dtype == torch.float16
    ]
    if halves:
        are = f" and {len(halves) - 1} more are" if halves[1:] else " is"
        raise ValueError(
            f"amp fp16 scales no gradients in fp16, and {halves[0]}{are} fp16; use --dtype fp32, or"
            " leave amp out"
        )


def _require_closure_possible(scenario: Scenario) -> None:
    for is_set, option in (
        (scenario.amp == "fp16", "fp16 autocast"),
        (scenario.accumulate is not None, "accumulate"),
    ):
        if is_set:
            raise ValueError(
                f"{scenario.optimizer} steps with a closure, which {option} cannot give it; leave"
                f" out {option}"
            )


def _requires_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the signature of the step, or of one inside, requires a closure."""
    parameters = inspect.signature(inspect.unwrap(type(optimizer).step)).parameters.values()
    required = any(one.name == "closure" and one.default is one.empty for one in parameters)
    return required or any(map(_requires_closure, _inside(optimizer)))


def _inside(optimizer: torch.optim.Optimizer) -> list[torch.optim.Optimizer]:
    return [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]


def _insists_on(name: str, step: Callable[..., Any]) -> bool:
    """Return whether a function raises or calls the argument, without a check, if it is None."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(step)))
    except (OSError, TypeError, SyntaxError):
        return False
    for statement in _always_run(tree.body[0]):
        if isinstance(statement, ast.If) and _is_about(name, statement.test):
            return any(isinstance(one, ast.Raise) for one in (*statement.body, *statement.orelse))
        if isinstance(statement, ast.Assert) and _is_about(name, statement.test):
            return True
        if isinstance(statement, ast.Assign | ast.Expr | ast.Return) and _calls(name, statement):
            return True
    return False


def _always_run(block: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a function that always run, in order."""
    for statement in getattr(block, "body", ()):
        if isinstance(statement, ast.With):
            yield from _always_run(statement)
        else:
            yield statement


def _is_about(name: str, condition: ast.expr) -> bool:
    """Return whether a condition depends only on the argument."""
    return {one.id for one in ast.walk(condition) if isinstance(one, ast.Name)} - {"callable"} == {
        name
    }


def _calls(name: str, statement: ast.stmt) -> bool:
    """Return whether a statement calls the argument unconditionally."""
    nodes = list(ast.walk(statement))
    called = any(
        isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == name
        for one in nodes
    )
    return called and not any(isinstance(one, ast.IfExp | ast.BoolOp | ast.Lambda) for one in nodes)
