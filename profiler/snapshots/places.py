"""Names for the stacks of a snapshot: the line of the user's code that requested a block."""

import re
from collections.abc import Sequence
from pathlib import PurePath

from ..safety.plain import plain
from .snapshot import Frame

UNKNOWN = "no stack recorded"
# Frames that call into torch tell nothing about the model.
_OF_A_LIBRARY = re.compile(
    r"(^|[/\\])(site-packages|dist-packages|lib[/\\]python\d[^/\\]*)[/\\]"
    r"|^torch[/\\]|^<frozen|^\?\?$"
)
_OF_PYTHON = re.compile(r"\.pyw?$|^<ipython|^<string>|^phase$")
_MOST_FRAMES = 12


def name_of(stack: Sequence[Frame]) -> str:
    """Return the innermost line of the user's code with its function, else the innermost frame."""
    if not stack:
        return UNKNOWN
    if stack[0].file in ("operation", "module"):
        # Written by optprof: an operation, its module, and a line or a phase.
        return plain(
            " in ".join(each.name for each in stack if each.file in ("operation", "module"))
        )
    for frame in stack:
        if _OF_PYTHON.search(frame.file) and not _OF_A_LIBRARY.search(frame.file):
            return text_of(frame)
    python = [frame for frame in stack if _OF_PYTHON.search(frame.file)]
    return text_of((python or list(stack))[0])


def text_of(frame: Frame) -> str:
    """Return a frame as its file's name and line with the function; folders are left out."""
    file = PurePath(frame.file.replace("\\", "/")).name if frame.file else ""
    place = f"{file}:{frame.line}" if frame.line else file
    return plain(f"{place} {frame.name}".strip())


def texts_of(stack: Sequence[Frame]) -> tuple[str, ...]:
    """Return the innermost frames as text."""
    return tuple(text_of(frame) for frame in stack[:_MOST_FRAMES])
