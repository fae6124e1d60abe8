"""One training step as a scenario asks for it, the same code whether it is traced or measured."""

import ast
import inspect
import textwrap
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch

from optimizers.accumulation import Accumulation, MetricHypothesisTest
from scenarios import Scenario
from scenarios.workpiece import DTYPES, Workpiece


class Iteration:
    """Forward, backward and clipping, then the optimizer's step.

    `phase` opens a phase by its name ("forward", "backward", "clip", "step"); "clip" is there when gradients are clipped or unscaled.
    `optimizer` owns the gradients; `device` is what autocast is asked for.
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
        self._scenario = scenario
        self._workpiece = workpiece
        self._batch = batch
        self._optimizer = optimizer
        self._phase = phase
        self._autocast = torch.autocast(device, dtype=DTYPES[scenario.amp]) if scenario.amp else nullcontext()
        # A scaler for "cuda" would refuse to scale a simulation's tensors; the name decides nothing else. A course trains, and finds its
        # scale itself; elsewhere values do not matter, and no step may be left out because the first scale was too large.
        scale = 1.0 if scenario.accumulate is None else 2.0**16
        self._scaler = torch.amp.GradScaler("cpu", init_scale=scale, enabled=scenario.amp == "fp16")
        self._scaled = False
        # Of an accumulation's micro-batch.
        self.last_loss: torch.Tensor | None = None

    def gradients(self) -> None:
        """Run every micro-batch forward and backward and leave the gradients that the optimizer is to step on."""
        for _ in range(self._scenario.micro_batches):
            with self._phase("forward"):
                self._update_scale()
                loss = self._loss()
            with self._phase("backward"):
                self._scaler.scale(loss).backward()
                if isinstance(self._optimizer, Accumulation):
                    self.last_loss = loss.detach()
                del loss
        if (self._scaler.is_enabled() and self._scenario.accumulate is None) or self._scenario.max_grad_norm is not None:
            with self._phase("clip"):
                self._clip()

    def step(self) -> None:
        """Take the optimizer's step; with a scaler this waits for the device, to learn whether a gradient is infinite."""
        with self._phase("step"):
            if isinstance(self._optimizer, MetricHypothesisTest):
                self._scaler.step(self._optimizer, self.last_loss)
            else:
                self._scaler.step(self._optimizer)
            self._scaled = self._scaler.is_enabled()

    def _update_scale(self) -> None:
        """Forget whether the last step's gradients were infinite, and scale accordingly."""
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
            torch.nn.utils.clip_grad_norm_(parameters, self._scenario.max_grad_norm)


def needs_closure(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer's step, or that of one inside of it, cannot run without a closure.

    LBFGS says so in its signature, SAM and its kin in their code: `assert closure is not None`.
    """
    inside = [value for value in vars(optimizer).values() if isinstance(value, torch.optim.Optimizer)]
    return _requires_argument(optimizer) or any(map(needs_closure, inside))


def _requires_argument(optimizer: torch.optim.Optimizer) -> bool:
    step = inspect.unwrap(type(optimizer).step)
    # The first is the optimizer itself.
    parameters = list(inspect.signature(step).parameters.values())[1:]
    closure = next((one for one in parameters if "closure" in one.name), None)
    if closure is None:
        return False
    return closure.default is closure.empty or _insists_on(closure.name, step)


def _insists_on(name: str, step: Callable[..., Any]) -> bool:
    """Return whether a function raises, or calls the argument unseen, where it is None."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(step)))
    except (OSError, TypeError, SyntaxError):
        return False
    for statement in _always_run(tree.body[0]):
        if isinstance(statement, ast.If) and _mentions(name, statement.test):
            return any(isinstance(one, ast.Raise) for one in (*statement.body, *statement.orelse))
        if isinstance(statement, ast.Assert) and _mentions(name, statement.test):
            return True
        if isinstance(statement, ast.Assign | ast.Expr | ast.Return) and _calls(name, statement):
            return True
    return False


def _always_run(block: ast.AST) -> Iterator[ast.stmt]:
    """Yield the statements of a function that run whatever is true, in order."""
    for statement in getattr(block, "body", ()):
        if isinstance(statement, ast.With):
            yield from _always_run(statement)
        else:
            yield statement


def _mentions(name: str, node: ast.AST) -> bool:
    return any(isinstance(one, ast.Name) and one.id == name for one in ast.walk(node))


def _calls(name: str, statement: ast.stmt) -> bool:
    """Return whether a statement calls the argument, and not only under a condition."""
    nodes = list(ast.walk(statement))
    called = any(isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id == name for one in nodes)
    return called and not any(isinstance(one, ast.IfExp | ast.BoolOp | ast.Lambda) for one in nodes)
