"""The steps that an optimizer takes in a user's training loop, watched by hooks."""

import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial, wraps
from itertools import pairwise
from types import FrameType, FunctionType, MethodType
from typing import Any

import torch
from torch.optim.optimizer import Optimizer
from torch.utils.hooks import RemovableHandle

from ..training.state import storage_bytes
from .border import Border
from .clock import Clock
from .harness import WATCHED

# Steps whose times are kept; a median needs no more.
MOST_SAMPLES = 10_000
BETWEEN, STEP, CLOSURE = "between_steps", "step", "closure"

# The wrapper that torch puts around every class's step, which runs the hooks.
_HOOKING = Optimizer.profile_hook_step(lambda: None).__code__


class LiveSteps:
    """Times of an optimizer's steps, their gradients, and the bytes that the first step allocates.

    A closure runs forward and backward passes. Its time does not count as the step's, and its
    memory is another phase. `enter` is called with each phase that begins. `allocated` reads the
    device's allocator, if there is one.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        *,
        parameters: Callable[[], Iterable[torch.nn.Parameter]],
        clock: Clock,
        border: Border,
        enter: Callable[[str], None],
        allocated: Callable[[], int] | None,
    ) -> None:
        self.taken = 0
        # Some steps ran without their hooks.
        self.is_hidden = False
        # The loop compiles the step, which the optimizer's groups do not show.
        self.is_compiled = False
        self.gradients: int | None = 0
        self.left_allocated: int | None = None
        self._optimizer, self._parameters, self._clock = optimizer, parameters, clock
        self._border, self._enter, self._allocated = border, enter, allocated
        self._hooks: list[RemovableHandle] = []
        # A compiled step leaves its graph for these.
        disable: Any = torch.compiler.disable
        self._open, self._close = disable(self._open_step), disable(self._close_step)
        # The moments of each step: its begin, the begin and end of its closures, its end.
        self._samples: list[Sequence[Any]] = []
        self._current: list[Any] = []
        # A step of super() has run inside the current one.
        self._has_inner = False
        self._rise = 0

    def begin(self) -> None:
        """Start watching."""
        self._hooks = [
            self._optimizer.register_step_pre_hook(self._before_step),
            self._optimizer.register_step_post_hook(self._after_step),
        ]
        # The first iteration starts here.
        self._samples.append([self._clock.now()])

    def end(self) -> None:
        """Remove the hooks from the optimizer."""
        for hook in self._hooks:
            if hook.id not in (hook.hooks_dict_ref() or ()):
                self._border.note(
                    "the loop removed the hooks that watch steps: later steps are not in the record"
                )
            hook.remove()

    def seconds(self) -> dict[str, list[float]]:
        """Return the seconds of each step, and from the end of each step to that of the next."""
        between = self._clock.seconds
        return {
            "step": [
                sum(
                    between(start, end)
                    for start, end in zip(moments[::2], moments[1::2], strict=True)
                )
                for moments in self._samples[1:]
            ],
            "iteration": [
                between(before[-1], after[-1]) for before, after in pairwise(self._samples)
            ],
        }

    def _before_step(self, _: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if torch.compiler.is_compiling():
            self.is_compiled = True
            if _is_in_one_graph():
                self.is_hidden = True
                return None
        return self._open(args, kwargs)

    def _after_step(self, *_: Any) -> None:
        if torch.compiler.is_compiling() and _is_in_one_graph():
            return
        self._close()

    def _open_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any] | None:
        """Begin a step; return its new arguments if one of them is a closure."""
        with self._border.within("watch a step"):
            if self._current and self._is_inner():
                self._has_inner = True
                return None
            if self._allocated is not None and torch.cuda.is_current_stream_capturing():
                self.is_hidden, self._current = True, []
                return None
            self._current, self._rise, self._has_inner = [], 0, False
            self._count_gradients()
            self._resume()
            if self._is_closure(args[1:2]):
                return (args[0], self._aside(args[1]), *args[2:]), kwargs
            if self._is_closure([kwargs.get("closure")]):
                return args, {**kwargs, "closure": self._aside(kwargs["closure"])}
        return None

    def _is_closure(self, argument: Sequence[Any]) -> bool:
        """Return whether the argument is a function, which a wrapper can replace.

        Note another callable, which it cannot.
        """
        for closure in argument:
            if isinstance(closure, FunctionType | MethodType | partial):
                return True
            if callable(closure) and not isinstance(closure, torch.nn.Module):
                self._border.note(
                    f"a step got a {type(closure).__name__} as its closure: the step's time"
                    " includes the closure's"
                )
        return False

    def _close_step(self) -> None:
        if not self._current:
            return
        ended = self._moment()
        with self._border.within("watch a step"):
            if not (self._has_inner and self._is_inner()):
                self._finish(ended)

    def _finish(self, ended: Any) -> None:
        self._current.append(ended)
        self._count_allocated(1)
        if self.gradients == 0:
            # The step ran the backward pass itself.
            self._count_gradients()
        if len(self._samples) > MOST_SAMPLES:
            self._border.note(f"times are those of the first {MOST_SAMPLES:,} steps")
        elif None not in self._current:
            self._samples.append(self._current)
        if self.taken == 0 and self._allocated is not None:
            self.left_allocated = self._rise
        self.taken += 1
        self._current = []
        self._change_phase(BETWEEN)

    def _aside(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        """Return the closure, wrapped so that its time and memory do not count as the step's."""

        @wraps(closure)
        def apart(*args: Any, **kwargs: Any) -> Any:
            self._current.append(self._moment())
            self._count_allocated(1)
            self._change_phase(CLOSURE)
            try:
                return closure(*args, **kwargs)
            finally:
                self._count_gradients()
                self._resume()

        return apart

    def _resume(self) -> None:
        self._change_phase(STEP)
        self._count_allocated(-1)
        self._current.append(self._moment())

    def _moment(self) -> Any:
        with self._border.within("read the clock"):
            return self._clock.now()

    def _count_allocated(self, sign: int) -> None:
        if self.taken == 0 and self._allocated is not None:
            with self._border.within("read the bytes that the first step allocates"):
                self._rise += sign * self._allocated()

    def _change_phase(self, phase: str) -> None:
        with self._border.within("watch the memory of each phase"):
            self._enter(phase)

    def _count_gradients(self) -> None:
        """Count the gradients that the step is about to use."""
        if self.taken < WATCHED:
            self.gradients = None
            with self._border.within("count the bytes of the gradients"):
                self.gradients = storage_bytes(parameter.grad for parameter in self._parameters())

    def _is_inner(self) -> bool:
        """Return whether this is the step of super(), called by another step."""
        frame: FrameType | None = sys._getframe(1)
        around = 0
        while frame is not None and around < 2:
            around += frame.f_code is _HOOKING and frame.f_locals.get("self") is self._optimizer
            frame = frame.f_back
        return around > 1


@torch.compiler.assume_constant_result
def _is_in_one_graph() -> bool:
    """Return whether torch.compile, which traces the caller, must keep one graph."""
    from torch._dynamo.symbolic_convert import InstructionTranslator

    # Without the attribute, the compiler may refuse to break the graph.
    return getattr(InstructionTranslator.current_tx(), "one_graph", True)
