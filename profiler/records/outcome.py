"""Outcome of a scenario that raised an exception, and one line that says why and where."""

import traceback

from optprof.scenarios import schema

from .places import owner, short_name
from .record import Outcome

# A model's error may hold a tensor, or a whole file.
_MOST_LETTERS = 2_000
# Texts of a RuntimeError that means the same as torch's own OutOfMemoryError.
_FULL = (
    "DefaultCPUAllocator: can't allocate memory",
    "CUDA error: out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
)


def outcome_of(error: BaseException) -> Outcome:
    """Return whether an exception means that memory ran out, on the device or the host."""
    import torch

    is_full = isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and any(words in text_of(error) for words in _FULL)
    )
    return "out-of-memory" if is_full else "failed"


def one_line(error: BaseException) -> str:
    """Return the exception's kind, the first line of its text, and the line of the user's code.

    A line that ends with a space goes on in the next, as in DDP's errors. A ValueError or OSError
    of our own code needs no line.
    """
    lines = text_of(error).strip().replace(" \n", " ").splitlines()
    text = schema.shortened(": ".join([type(error).__name__, *lines[:1]]), _MOST_LETTERS)
    place = None if is_ours(error) else user_line(error)
    return f"{text} ({place})" if place else text


def text_of(error: BaseException) -> str:
    """Return the text of an error, even of a user's error whose `__str__` raises."""
    try:
        return str(error.msg if isinstance(error, SyntaxError) else error)
    except Exception as unprintable:
        return f"its text cannot be printed, {type(unprintable).__name__}"


def is_ours(error: BaseException) -> bool:
    """Return whether the error is a ValueError or OSError that our own code raised."""
    owners = [owner(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
    last = next((whose for whose in reversed(owners) if whose not in ("torch", "Python")), None)
    return isinstance(error, ValueError | OSError) and last == "optprof"


def user_line(error: BaseException) -> str | None:
    """Return the innermost line of the user's code that led to the error, as "model.py, line 12".

    Without such a line, return one of an installed package other than torch; None if only our own
    code, torch's and Python's took part.
    """
    if isinstance(error, SyntaxError) and error.filename:
        return f"{short_name(error.filename)}, line {error.lineno}"
    frames = traceback.extract_tb(error.__traceback__)
    for whose in ("user", "package"):
        for frame in reversed(frames):
            if owner(frame.filename) == whose:
                return f"{short_name(frame.filename)}, line {frame.lineno}"
    return None
