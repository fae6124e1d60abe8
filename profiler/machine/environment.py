"""Environment of a record made now: versions, machine, command, commit and time."""

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
from ..records.record import Environment
from .malloc import keeps_freed_memory

_PACKAGES = ("optprof", "torch", "transformers", "numpy")
_PACKAGE = Path(__file__).absolute().parents[2]
_CHECKOUT = _PACKAGE.parents[1]


def environment(seed: int | None) -> Environment:
    """Return the environment of a record made now; `seed` is None for a watched training loop."""
    import torch

    return schema.read(
        Environment,
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": command(),
            "seed": seed,
            "threads": torch.get_num_threads(),
            "affinity": _affinity(),
            "keeps_freed_memory": keeps_freed_memory(),
            **fixed(),
        },
    )


def command(words: Sequence[str] | None = None) -> list[str]:
    """Return our command, so that a run can be repeated, without secrets and with home as ~.

    For another program, whose arguments are private, return its name alone: "train.py", or
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
    """Return the name of a program for its reader."""
    path = Path(program.replace("\\", "/"))
    name = path.parent.name if path.name == "__main__.py" else path.name
    if "ipykernel" in name or "colab" in name:
        return "notebook"
    return {"": "python", "-c": "python -c", "-m": "python -m"}.get(name) or disclosed_command(
        [name]
    )[0]


# The facts of this process's machine and versions, once they were looked up.
_facts: dict[str, Any] = {}


def fixed() -> dict[str, Any]:
    """Return JSON-ready facts that hold for all records of a process; this may start CUDA."""
    if not _facts:
        know(_look_up())
    return _facts


def know(facts: Mapping[str, Any]) -> None:
    """Take over the facts that another process of this machine has looked up."""
    _facts.update(facts)


def _affinity() -> list[int] | None:
    """Return the processors that this process may run on; None if the system does not say."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


def _look_up() -> dict[str, Any]:
    versions = {name: _version(name) for name in _PACKAGES}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: number for name, number in versions.items() if number},
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
    """Return optprof's commit, with "+" if files differ from it; None outside a checkout."""
    if not (_CHECKOUT / ".git").exists():
        return None
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=_CHECKOUT,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return described.stdout.strip() or None
