"""The host's memory for this process: free bytes, and processes killed when memory ran out.

Containers and job schedulers limit it by a control group (Linux, both versions):
https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class _ControlGroup:
    """Names of a version's files, and of its statistic of reclaimable file pages."""

    limit: str
    used: str
    reclaimable: str
    kills: str


_VERSION_1 = _ControlGroup(
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
    kills="memory.oom_control",
)
_VERSION_2 = _ControlGroup(
    limit="memory.max", used="memory.current", reclaimable="inactive_file", kills="memory.events"
)


def kernel_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Return the number of processes that the kernel killed when memory ran out.

    It covers the machine and this process's control group; 0 if the kernel does not report it. If
    it grows while a process ends by SIGKILL, the kernel sent the signal.
    """
    paths = [proc / "vmstat"]
    for version, root, group in _groups(proc, cgroups):
        paths += [group / version.kills, root / version.kills]
    return sum(_count(path, "oom_kill") or 0 for path in dict.fromkeys(paths))


def free_bytes() -> int:
    """Return the bytes that this process may still take without swapping."""
    free, in_group = psutil.virtual_memory().available, free_in_group()
    return free if in_group is None else min(free, in_group)


def free_in_group(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Return the free bytes of this process's control group and its parents, None without limit."""
    free: list[int] = []
    for version, root, group in _groups(proc, cgroups):
        # In a container the group's own folder may be the root.
        around = [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
        free += [left for folder in around if (left := _left(folder, version)) is not None]
    return max(0, min(free)) if free else None


def _left(folder: Path, version: _ControlGroup) -> int | None:
    limit, used = _text(folder / version.limit).strip(), _text(folder / version.used).strip()
    if not limit.isdecimal() or not used.isdecimal():
        return None
    return int(limit) - int(used) + (_count(folder / "memory.stat", version.reclaimable) or 0)


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[_ControlGroup, Path, Path]]:
    """Yield each hierarchy that may limit memory: version, root, folder of this process's group."""
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree, version 1 a separate tree for memory.
        if not controllers:
            yield _VERSION_2, cgroups, cgroups / path.lstrip("/")
        elif "memory" in controllers.split(","):
            yield _VERSION_1, cgroups / "memory", cgroups / "memory" / path.lstrip("/")


def _count(path: Path, name: str) -> int | None:
    return next(
        (int(line.split()[1]) for line in _text(path).splitlines() if line.startswith(f"{name} ")),
        None,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
