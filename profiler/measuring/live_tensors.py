"""Tensors that live on the CPU while training really runs, by what they are for."""

from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch.utils._pytree import tree_leaves

from ..record import Level
from ..state import state_tensors
from ..tracing.trace import Phase, Recorder
from .resident_watch import ResidentWatch


class _LiveRecorder(Recorder):
    """Records real operations on the CPU: what they make, and when it is gone. What a kernel takes and frees itself it does not see."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        func, args, result = self._operate(func, args, kwargs or {})
        for output in tree_leaves(result):
            if isinstance(output, torch.Tensor):
                self._see(output, func)
        return result

    def _run(self, func: Any, args: Any, kwargs: Any) -> Any:
        return func(*args, **kwargs)


class LiveTensors:
    """Watches training on the CPU: bytes of living tensors, by category, and of the process that holds them."""

    def __init__(self, model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
        self._recorder = _LiveRecorder(model)
        self._model = model
        self._process = ResidentWatch()
        with self._recorder.phase("build"):
            for parameter in model.parameters():
                self._recorder.allocate(parameter, "parameter")
                if parameter.grad is not None:
                    self._recorder.allocate(parameter.grad, "gradient")
            for buffer in model.buffers():
                self._recorder.allocate(buffer, "buffer")
            for value in batch.values():
                if isinstance(value, torch.Tensor):
                    self._recorder.allocate(value, "input")

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        with self._process.phase(name):
            with self._recorder.phase(cast(Phase, name), "activation" if name == "forward" else "temporary"):
                yield
            self._name_gradients()

    def name_state(self, optimizer: torch.optim.Optimizer) -> None:
        """Tell which tensors are the optimizer's state."""
        for _, tensor in state_tensors(optimizer, [*self._model.parameters(), *self._model.buffers()]):
            if self._recorder.holds(tensor):
                self._recorder.name(self._recorder.number(tensor), "optimizer_state")

    def levels(self) -> dict[str, dict[str, Level]]:
        """By phase, bytes of living tensors ("tensors") and of the process ("resident"); the last time counts for the ends."""
        found: dict[str, dict[str, Level]] = {}
        for phase, totals in self._totals():
            before = found.get(phase, {}).get("tensors")
            peak = max([*totals, before.peak if before else 0])
            found[phase] = {"tensors": Level(end=totals[-1], peak=peak), **self._process.levels()[phase]}
        return found

    def at_peak(self) -> dict[str, int]:
        """What the tensors are for at their highest point, which the bytes sum to."""
        allocations = self._recorder.allocations
        held: Counter[str] = Counter()
        highest, total, best = -1, 0, {}
        for segment in self._recorder.segments:
            for event in segment.events:
                size = allocations.nbytes[event] if event >= 0 else -allocations.nbytes[~event]
                held[allocations.categories[event if event >= 0 else ~event]] += size
                total += size
                if total > highest:
                    highest, best = total, dict(held)
        return {category: count for category, count in best.items() if count}

    def _totals(self) -> Iterator[tuple[str, list[int]]]:
        """Each segment after the first, and the bytes before it and after each of its events."""
        nbytes, total = self._recorder.allocations.nbytes, 0
        for segment in self._recorder.segments:
            totals = [total]
            for event in segment.events:
                total += nbytes[event] if event >= 0 else -nbytes[~event]
                totals.append(total)
            if segment.phase != "build":
                yield segment.phase, totals

    def _name_gradients(self) -> None:
        for parameter in self._model.parameters():
            if parameter.grad is not None and self._recorder.holds(parameter.grad):
                self._recorder.name(self._recorder.number(parameter.grad), "gradient")
