"""Places of code in messages: the owner and the short name of a file."""

import site
import sys
import sysconfig
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

_OURS = f"{Path(__file__).parents[2]}/"
_STANDARD = sysconfig.get_path("stdlib")

Owner = Literal["optprof", "torch", "Python", "package", "user"]


@cache
def owner(file: str) -> Owner:
    """Return whose code a file holds; "package" is any installed package but torch."""
    if file.startswith(_OURS):
        return "optprof"
    if file.startswith(_torch()):
        return "torch"
    if "/site-packages/" in file or "/dist-packages/" in file or file.startswith(_installed()):
        return "package"
    return "Python" if file.startswith(("<", _STANDARD)) else "user"


def short_name(file: str) -> str:
    """Return the file as "package/file.py", without folders of this machine."""
    for folder in sorted(filter(None, sys.path), key=len, reverse=True):
        if Path(file).is_relative_to(folder):
            return Path(file).relative_to(folder).as_posix()
    return Path(file).name


@cache
def _torch() -> str:
    spec = find_spec("torch")
    return f"{Path(spec.origin).parent}/" if spec and spec.origin else "<no torch>"


@cache
def _installed() -> tuple[str, ...]:
    return tuple(f"{folder}/" for folder in (*site.getsitepackages(), site.getusersitepackages()))
