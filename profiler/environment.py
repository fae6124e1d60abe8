"""Where a record was found: versions, machine, command, commit and time, so that it can be found again."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil

from scenarios import schema

from .malloc import keeps_freed_memory

_PACKAGES = ("optprof", "torch", "transformers", "numpy")


def environment(seed: int) -> dict[str, Any]:
    """The environment of a record made now, as JSON-ready data.

    `threads` is torch's, `affinity` the processors that this process may run on, `memory_bytes` the
    machine's and `gpu_memory_bytes` the device's, which older records do not have.
    """
    import torch

    return {
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": schema.shortened_all([Path(sys.argv[0]).name, *sys.argv[1:]]),
        "seed": seed,
        "threads": torch.get_num_threads(),
        "affinity": _affinity(),
        "keeps_freed_memory": keeps_freed_memory(),
        **_fixed(),
    }


def _affinity() -> list[int] | None:
    """The numbers of the processors that this process may run on; None where the system does not tell."""
    return sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@lru_cache(maxsize=1)
def _fixed() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {name: found for name in _PACKAGES if (found := _version(name))},
        "machine": {"cpu": _cpu_name(), "cores": os.cpu_count(), "memory_bytes": psutil.virtual_memory().total, **_gpu()},
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
    return {"gpu": torch.cuda.get_device_name(), "gpu_memory_bytes": torch.cuda.get_device_properties().total_memory}


def _git_commit() -> str | None:
    """The commit that optprof runs from, with "+" when files differ from it; None outside a checkout."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        found = subprocess.run(
            ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip() or None
