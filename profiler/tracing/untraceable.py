"""Errors for programs that a trace cannot follow: one line, with the line of the user's code."""

import sys
import traceback
from collections.abc import Iterable, Iterator
from itertools import islice, takewhile
from pathlib import Path
from types import FrameType

import torch
from torch.nn import functional
from torch.nn.parameter import UninitializedBuffer, UninitializedParameter
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from optprof.optimizers.sharded import is_sharded

from ..records.outcome import text_of
from ..records.places import owner, short_name

_TORCH = Path(torch.__file__).parent
_DISTRIBUTIONS, _OPTIMIZERS = f"{_TORCH / 'distributions'}/", f"{_TORCH / 'optim'}/"
_TRACING = str(Path(__file__).parent)
_ROOT = Path(__file__).parents[2]
_PROFILER = tuple(f"{_ROOT / name}/" for name in ("profiler", "scenarios"))
_SEE = "use --device cpu or cuda"
ADVICE = f"a simulation does not have the values; {_SEE}"

REGISTER = f"give it one by torch.library.register_fake, or {_SEE}"
_NO_CUDA = "calls CUDA, which a simulation does not have"
_CHECK_CUDA = "use --device cuda, or check torch.cuda.is_available() first"
_TRITON = "starts a Triton kernel, which a simulation cannot run"
_MIXED = "mixes tensors of the CPU with the device's"
_NESTED = "makes a nested tensor of strided layout, which a simulation does not follow"
_FLEX = "runs flex_attention, which a simulation does not follow"

# Texts of errors outside of the operations that a recorder sees, raised by torch and others for a
# tensor without data or a missing GPU, with the action and the advice to report instead.
_TEXTS = (
    ("to numpy", "turns a tensor into a numpy array", ADVICE),
    (
        "is not on the expected device meta",
        _MIXED,
        "make them on one device, as device=x.device does",
    ),
    ("Torch not compiled with CUDA enabled", _NO_CUDA, _CHECK_CUDA),
    ("Found no NVIDIA driver", _NO_CUDA, _CHECK_CUDA),
    ("dummy base class", _NO_CUDA, _CHECK_CUDA),
    ("no fake impl", "runs an operation of its own without a fake kernel", REGISTER),
    ("NestedTensorImpl", _NESTED, "use layout=torch.jagged or --device cpu"),
    ("FlexAttention is only", _FLEX, "use scaled_dot_product_attention, or --device cuda"),
    ("active drivers", _TRITON, "use --device cuda"),
    ("cannot be accessed from Triton", _TRITON, "use --device cuda"),
)
# Other texts of torch about tensors without data.
_META = (
    "meta tensor", "Meta tensor", "meta device", "'meta'", "Meta' backend", "device type meta",
    "on meta", "device meta",
)  # fmt: skip


class UntraceableError(ValueError):
    """The program needs the values of device tensors, which a trace does not have."""


def refusal(
    action: str, advice: str = ADVICE, *, otherwise: str = "the program"
) -> UntraceableError:
    """Return the error for an action of the running code; `otherwise` names it without a line."""
    return UntraceableError(f"{running_line() or otherwise} {action}; {advice}")


def running_line() -> str:
    """Return the running line of the program, as "model.py, line 12,", or ""."""
    return _place(_running())


def translated(error: Exception) -> UntraceableError | None:
    """Return the error to report instead of the program's, None if no missing data caused it."""
    if isinstance(error, UntraceableError):
        return error
    text = text_of(error)
    place = (
        _place((frame.f_code.co_filename, line) for frame, line in _raised(error)) or "the program"
    )
    for words, action, advice in _TEXTS:
        if words in text:
            return UntraceableError(f"{place} {action}; {advice}")
    if any(words in text for words in _META):
        return UntraceableError(f"{place} needs a tensor's values; {ADVICE}")
    return None


def require_modules_followed(model: torch.nn.Module) -> None:
    """Raise UntraceableError for a module whose memory on CUDA its operations do not show."""
    for path, module in model.named_modules():
        name = path or "the model"
        if isinstance(module, torch.nn.parallel.DistributedDataParallel):
            reason = "is in DistributedDataParallel, which --parallel ddp puts around a model"
            raise UntraceableError(f"{name} {reason}; return the module that is inside, or {_SEE}")
        if isinstance(module, torch.jit.ScriptModule):
            reason = "is compiled by torch.jit, whose kernels a simulation does not have"
            raise UntraceableError(f"{name} {reason}; leave torch.jit out, or {_SEE}")


def require_followed(tensor: torch.Tensor, path: str) -> None:
    """Raise UntraceableError for a tensor of the model or batch that a trace does not support."""
    name = path or "a tensor of the batch"
    if isinstance(tensor, UninitializedParameter | UninitializedBuffer):
        raise UntraceableError(
            f"{name} has no shape before the first forward pass; let the factory run the model once"
        )
    if tensor.is_nested and tensor.layout is torch.strided:
        raise UntraceableError(
            f"{name} is a nested tensor of strided layout; use layout=torch.jagged or --device cpu"
        )
    if is_sharded(tensor):
        raise UntraceableError(f"{name} is a DTensor; leave the sharding to --parallel, or {_SEE}")
    if is_traceable_wrapper_subclass(tensor) and tensor.layout is not torch.jagged:
        raise UntraceableError(
            f"{name} is a {type(tensor).__name__}, which a simulation does not follow; {_SEE}"
        )


def checked_argument() -> bool | None:
    """Return the value that torch's own checks of arguments read if they pass, or None.

    None means that no check is running. Distributions read whether all arguments are valid,
    `gaussian_nll_loss` whether any variance is invalid.
    """
    if any(_DISTRIBUTIONS in file for file, _ in islice(_running(), 8)):
        return True
    checking, others = functional.__file__, (_TRACING, str(_TORCH))
    reader = next(
        (file for file, _ in _running() if file == checking or not file.startswith(others)), None
    )
    return False if reader == checking else None


def _running() -> Iterator[tuple[str, int]]:
    """Yield the files and lines of the running frames, the innermost first."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame.f_code.co_filename, frame.f_lineno
        frame = frame.f_back


def _raised(error: Exception) -> list[tuple[FrameType, int]]:
    return list(reversed(list(traceback.walk_tb(error.__traceback__))))


def _place(frames: Iterable[tuple[str, int]]) -> str:
    """Return the innermost line outside of torch, and the user's line that called a library's.

    The caller of the profiler is not part of the program. A line of torch's optimizers counts if
    there is no other.
    """
    program = list(takewhile(lambda frame: not _is_profiler(frame[0]), frames))
    outside = [
        frame
        for frame in program
        if owner(frame[0]) != "torch" and not frame[0].startswith((_TRACING, "<"))
    ]
    outside = outside or [frame for frame in program if frame[0].startswith(_OPTIMIZERS)]
    if not outside:
        return ""
    user = next((frame for frame in outside if owner(frame[0]) == "user"), None)
    called = f" (called from {_line(user)})" if user and user != outside[0] else ","
    return _line(outside[0]) + called


def _line(frame: tuple[str, int]) -> str:
    return f"{short_name(frame[0])}, line {frame[1]}"


def _is_profiler(file: str) -> bool:
    return file.startswith(_PROFILER) and not file.startswith(_TRACING)
