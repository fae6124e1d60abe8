"""The host's memory as the kernel grants it to this process: what is free, and whom it has ended
for want of it.

Containers and job schedulers give less than the machine has, by a control group (Linux, both
versions): https://docs.kernel.org/admin-guide/cgroup-v2.html and cgroup-v1/memory.html
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

PROC, CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


@dataclass(frozen=True, kw_only=True)
class _Files:
    """What a version calls its files, and in its statistics the bytes of files that it gives up
    first.
    """

    limit: str
    used: str
    reclaimable: str
    kills: str


_VERSION_1 = _Files(
    limit="memory.limit_in_bytes",
    used="memory.usage_in_bytes",
    reclaimable="total_inactive_file",
    kills="memory.oom_control",
)
_VERSION_2 = _Files(
    limit="memory.max", used="memory.current", reclaimable="inactive_file", kills="memory.events"
)


def kernel_kills(proc: Path = PROC, cgroups: Path = CGROUPS) -> int:
    """Processes killed by the kernel for want of memory, in this process's control group and on the
    machine; 0 where it does not tell.

    The number alone says nothing: one that has grown while a process was ended by SIGKILL says who
    sent it.
    """
    places = [proc / "vmstat"]
    for files, root, group in _groups(proc, cgroups):
        places += [group / files.kills, root / files.kills]
    return sum(_count(place, "oom_kill") or 0 for place in dict.fromkeys(places))


def free_bytes() -> int:
    """Bytes that this process may still take without swapping: what the machine has, or less by its
    control group's limit.
    """
    free, granted = psutil.virtual_memory().available, free_in_group()
    return free if granted is None else min(free, granted)


def free_in_group(proc: Path = PROC, cgroups: Path = CGROUPS) -> int | None:
    """Bytes that this process's control group, and those around it, may still take; None without a
    limit.
    """
    free: list[int] = []
    for files, root, group in _groups(proc, cgroups):
        # In a container the group's own folder may be the root.
        around = [folder for folder in (group, *group.parents) if folder.is_relative_to(root)]
        free += [left for folder in around if (left := _left(folder, files)) is not None]
    return max(0, min(free)) if free else None


def _left(folder: Path, files: _Files) -> int | None:
    limit, used = _text(folder / files.limit).strip(), _text(folder / files.used).strip()
    if not limit.isdecimal() or not used.isdecimal():
        return None
    return int(limit) - int(used) + (_count(folder / "memory.stat", files.reclaimable) or 0)


def _groups(proc: Path, cgroups: Path) -> Iterator[tuple[_Files, Path, Path]]:
    """Each hierarchy that may rule memory: its files, its root and the folder of this process's
    group.
    """
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree, version 1 one for memory.
        if not controllers:
            yield _VERSION_2, cgroups, cgroups / path.lstrip("/")
        elif "memory" in controllers.split(","):
            yield _VERSION_1, cgroups / "memory", cgroups / "memory" / path.lstrip("/")


def _count(place: Path, name: str) -> int | None:
    return next(
        (int(line.split()[1]) for line in _text(place).splitlines() if line.startswith(f"{name} ")),
        None,
    )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
