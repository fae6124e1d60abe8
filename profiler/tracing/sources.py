"""Sources of allocations: the module, the operation and the line of Python that request memory.

In the forward pass, hooks show which modules are running. In the backward pass, the running
autograd node has the sequence number of its forward operation, which shows the module that was
running then.
"""

import sys
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import torch
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook

from ..records.places import short_name

_TORCH = str(Path(torch.__file__).parent)
_OPTIMIZERS = str(Path(torch.optim.__file__).parent)
_PROFILER = str(Path(__file__).parent.parent)


class Source(NamedTuple):
    """The source of an allocation; an empty text is unknown.

    `module` is the path of a module or tensor in the model, `op` an operation ("aten::addmm"),
    `line` a line of Python ("file.py:12").
    """

    module: str = ""
    op: str = ""
    line: str = ""


class Sources:
    """Finds the sources of allocations while a program runs.

    `classes` has the class of each module by its path.
    """

    def __init__(self) -> None:
        self._paths: dict[int, str] = {}
        self.classes: dict[str, str] = {}
        self._running: list[str] = []
        # The module that was innermost from each autograd sequence number on.
        self._numbers: list[int] = []
        self._modules: list[str] = []
        self._cache: dict[Any, Source] = {}
        self._outermost: CodeType | None = None

    def know(self, model: torch.nn.Module) -> None:
        """Take the names of a model's modules, parameters and buffers, which must stay alive."""
        named = (*model.named_modules(), *model.named_parameters(), *model.named_buffers())
        self._paths |= {id(item): path for path, item in named}
        self.classes |= {path: type(module).__name__ for path, module in model.named_modules()}

    @contextmanager
    def followed(self, outermost: CodeType) -> Iterator[None]:
        """Follow the modules that run inside.

        Lines are those of functions below the one with the code `outermost`.
        """
        self._outermost = outermost
        handles = [
            register_module_forward_pre_hook(self._enter),
            register_module_forward_hook(self._leave, always_call=True),
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()
            self._running.clear()

    def of(self, func: Any) -> Source:
        """Return the source of the operation `func`, which is running.

        The caller must be a function that `__torch_dispatch__` calls.
        """
        node = None if self._running else torch._C._current_autograd_node()
        if node is not None:
            module, frame, place = self._module_of(node), None, ()
        else:
            # The recorder's own frames are skipped: Python makes an object for each frame that is
            # looked at, which costs more than everything else here.
            module, frame = (
                self._running[-1] if self._running else "",
                self._innermost(sys._getframe(3)),
            )
            place = (
                (frame.f_code.co_filename, frame.f_code.co_firstlineno, frame.f_lasti)
                if frame
                else ()
            )
        # Finding the number of a line is slow, and operations repeat. An id stays valid, since
        # operations live as long as torch does.
        key = module, id(func), place
        source = self._cache.get(key)
        if source is None:
            line = f"{short_name(frame.f_code.co_filename)}:{frame.f_lineno}" if frame else ""
            source = self._cache[key] = Source(module, func._schema.name, line)
        return source

    def running(self) -> str:
        """Return the name of what runs if no line of the program does: a backward pass."""
        node = torch._C._current_autograd_node()
        if node is None:
            return "the program"
        module = self._module_of(node)
        return f"the backward pass of {module}" if module else "the backward pass"

    def holding(self, tensor: torch.Tensor) -> Source:
        """Return the source of a tensor of the model: the path of the parameter or buffer."""
        return Source(self._paths.get(id(tensor), ""))

    def _enter(self, module: torch.nn.Module, _: Any) -> None:
        self._running.append(
            self._paths.get(id(module), self._running[-1] if self._running else "")
        )
        self._note()

    def _leave(self, module: torch.nn.Module, _: Any, __: Any) -> None:
        del module
        self._running.pop()
        self._note()

    def _note(self) -> None:
        self._numbers.append(torch._C._autograd._get_sequence_nr())  # pyright: ignore[reportAttributeAccessIssue]
        self._modules.append(self._running[-1] if self._running else "")

    def _module_of(self, node: Any) -> str:
        # The node that accumulates a parameter's gradient belongs to no module, and has the
        # highest number.
        if isinstance(parameter := getattr(node, "variable", None), torch.Tensor):
            return self._paths.get(id(parameter), "")
        place = bisect_right(self._numbers, node._sequence_nr())
        return self._modules[place - 1] if place else ""

    def _innermost(self, frame: FrameType | None) -> FrameType | None:
        """Return the innermost frame outside of torch and the profiler.

        torch's optimizers count as outside.
        """
        while frame is not None and frame.f_code is not self._outermost:
            if not _is_skipped(frame.f_code.co_filename):
                return frame
            frame = frame.f_back
        return None


@cache
def _is_skipped(file: str) -> bool:
    return file.startswith((_TORCH, _PROFILER)) and not file.startswith(_OPTIMIZERS)
