"""Where a record was found: versions, machine, command, commit and time, so that it can be found
again.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from optprof.scenarios import schema

from ..records.privacy import disclosed_command
from .malloc import keeps_freed_memory

_PACKAGES = ("optprof", "torch", "transformers", "numpy")
_PACKAGE = Path(__file__).absolute().parents[2]
_CHECKOUT = _PACKAGE.parents[1]


def environment(seed: int) -> dict[str, Any]:
    """The environment of a record made now, as JSON-ready data.

    `threads` is torch's, `affinity` the processors that this process may run on, `memory_bytes` the
    machine's and `gpu_memory_bytes` the device's, which older records do not have.
    """
    import torch

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": command(),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "affinity": _affinity(),
        "keeps_freed_memory": keeps_freed_memory(),
        **fixed(),
    }


def command(words: Sequence[str] | None = None) -> list[str]:
    """Return what repeats a run: our command, without secrets and with home as ~.

    Of another program, whose arguments are its own affair, it is the name alone: "train.py", or
    "notebook". `words` are those of sys.argv.
    """
    program, *arguments = schema.shortened_all((sys.argv if words is None else words) or [""])
    return disclosed_command(["optprof", *arguments]) if _is_ours(program) else [_name(program)]


def _is_ours(program: str) -> bool:
    """Return whether the program is the console script, or `python -m optprof`."""
    path = Path(program.replace("\\", "/"))
    if path.name.lower() in ("optprof", "optprof.exe", "optprof-script.py"):
        return True
    return path.name == "__main__.py" and path.absolute().parent == _PACKAGE


def _name(program: str) -> str:
    """Return the name of a program, as far as it tells what was run."""
    path = Path(program.replace("\\", "/"))
    name = path.parent.name if path.name == "__main__.py" else path.name
    if "ipykernel" in name or "colab" in name:
        return "notebook"
    return {"": "python", "-c": "python -c", "-m": "python -m"}.get(name) or disclosed_command(
        [name]
    )[0]


# Of this process's machine and versions.
_known: dict[str, Any] = {}


def fixed() -> dict[str, Any]:
    """Return what holds for all records of a process; to find it out may start CUDA."""
    if not _known:
        know(_find())
    return _known


def know(found: Mapping[str, Any]) -> None:
    """Take over what another process of this machine has found."""
    _known.update(found)


def _affinity() -> list[int] | None:
    """The numbers of the processors that this process may run on; None where the system does not
    tell.
    """
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _find() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "machine": {
            "cpu": _cpu_name(),
            "cores": os.cpu_count(),
            "memory_bytes": psutil.virtual_memory().total,
            **_gpu(),
        },
        "git_commit": _git_commit(),
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_name() -> str:
    information = Path("/proc/cpuinfo")
    if information.is_file():
        for line in information.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpu() -> dict[str, Any]:
    import torch

    if not torch.cuda.is_available():
        return {"gpu": None, "gpu_memory_bytes": None}
    return {
        "gpu": torch.cuda.get_device_name(),
        "gpu_memory_bytes": torch.cuda.get_device_properties().total_memory,
    }


def _git_commit() -> str | None:
    """The commit that optprof runs from, with "+" when files differ from it; None outside a
    checkout.
    """
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
