"""What an exception makes of a scenario: its outcome, and the one line that says why and where."""

import sys
import sysconfig
import traceback
from pathlib import Path

from .record import Outcome

# What is raised, as a RuntimeError, where it is not torch's own OutOfMemoryError.
_FULL = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)
_ROOT = Path(__file__).parents[1]
_OURS = tuple(f"{_ROOT / name}" for name in ("optimizers/", "profiler/", "scenarios/", "reports/", "optprof.py"))
_STANDARD = sysconfig.get_path("stdlib")
_INSTALLED = ("/site-packages/", "/dist-packages/")


def outcome_of(error: BaseException) -> Outcome:
    """What an exception makes of a scenario: memory that ran out, on the device or the host, or a failure."""
    import torch

    full = isinstance(error, MemoryError | torch.OutOfMemoryError)
    told = isinstance(error, RuntimeError) and any(words in str(error) for words in _FULL)
    return "out-of-memory" if full or told else "failed"


def one_line(error: BaseException) -> str:
    """Return the exception's kind, the first line of its text, and the line of the user's code.

    A ValueError or OSError that our code has raised says what it must by itself.
    """
    lines = str(error.msg if isinstance(error, SyntaxError) else error).strip().splitlines()
    text = ": ".join([type(error).__name__, *lines[:1]])
    place = None if is_ours(error) else user_line(error)
    return f"{text} ({place})" if place else text


def is_ours(error: BaseException) -> bool:
    """Return whether our own code refuses something, by a ValueError or OSError that says what."""
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    last = next((file for file in reversed(files) if file.startswith(_OURS) or _is_foreign(file)), "")
    return isinstance(error, ValueError | OSError) and last.startswith(_OURS)


def user_line(error: BaseException) -> str | None:
    """Return the innermost line of the user's code that led to the error, as "model.py, line 12".

    Without one it is a line of an installed package other than torch; None where only our own code,
    torch's and Python's took part.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{Path(error.filename).name}, line {error.lineno}"
    frames = [frame for frame in traceback.extract_tb(error.__traceback__) if _is_foreign(frame.filename)]
    own = [frame for frame in frames if not any(part in frame.filename for part in _INSTALLED)]
    innermost = (own or frames)[-1:]
    return next((f"{Path(frame.filename).name}, line {frame.lineno}" for frame in innermost), None)


def _is_foreign(file: str) -> bool:
    """Return whether a file is neither ours nor torch's nor Python's own."""
    installed = any(part in file for part in _INSTALLED)
    torch = sys.modules.get("torch")
    skipped = (*_OURS, "<", *(() if torch is None else (f"{Path(torch.__file__ or '').parent}/",)))
    return not file.startswith(skipped) and (installed or not file.startswith(_STANDARD))
