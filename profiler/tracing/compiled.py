"""Detection of code that torch.compile would compile, at the moment when it is about to run.

A trace sees the operations that Python runs; compiled code holds other memory. torch silently runs
compiled code uncompiled while a dispatch mode is active.
"""

import inspect
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from ..records.places import short_name
from .untraceable import UntraceableError, running_line

# The functions that transformers compiles for attn_implementation="flex_attention".
_FLEX_ATTENTION = ("flex_attention", "create_block_mask")
_TORCH = str(Path(torch.__file__).parent)


@contextmanager
def refused() -> Iterator[None]:
    """Inside, compiled code raises UntraceableError when it is called."""
    eval_frame: Any = import_module("torch._dynamo.eval_frame")
    of_stance = getattr(eval_frame, "_callback_from_stance", lambda callback: callback)
    set_eval_frame = eval_frame.set_eval_frame
    # By id of the code: every operation under a dispatch mode comes here, and few are wrappers.
    is_wrapper: dict[int, bool] = {}

    def guarded(callback: Any) -> Any:
        # Compiled functions call this first. torch.compiler.set_stance may turn compilation off.
        caller = sys._getframe(1)
        code = id(caller.f_code)
        if code not in is_wrapper:
            is_wrapper[code] = {"callback", "fn"} <= set(caller.f_code.co_freevars)
        if is_wrapper[code]:
            closure = caller.f_locals
            if callable(of_stance(closure["callback"])):
                _refuse(*_described(closure["fn"]))
        return set_eval_frame(callback)

    # A compiled module would warn about the hooks that a trace registers on all modules.
    quiet = mock.patch.object(eval_frame.OptimizedModule, "__call__", new=torch.nn.Module.__call__)
    with quiet, mock.patch.object(eval_frame, "set_eval_frame", new=guarded):
        yield


def _refuse(name: str, place: str) -> None:
    reason = "is compiled by torch.compile, whose kernels a simulation does not have"
    if name in _FLEX_ATTENTION:
        reason += "; compiled, flex attention holds no scores, and all of them as Python runs it"
    raise UntraceableError(
        f"{place or running_line() or 'the program'} {name} {reason}; leave torch.compile out, or"
        " use --device cpu or cuda"
    )


def _described(compiled: Any) -> tuple[str, str]:
    """Return the name of a function or module, and the line where its code begins."""
    # A module of torch's own classes is wrapped in a function.
    compiled = inspect.unwrap(compiled)
    owner = getattr(compiled, "__self__", compiled)
    if isinstance(owner, torch.nn.Module):
        return type(owner).__name__, _place(type(owner).forward)
    return getattr(compiled, "__qualname__", type(compiled).__name__), _place(compiled)


def _place(function: Any) -> str:
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or code.co_filename.startswith(_TORCH):
        return ""
    return f"{short_name(code.co_filename)}, line {code.co_firstlineno},"
