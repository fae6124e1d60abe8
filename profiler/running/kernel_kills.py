"""Whether the kernel's out-of-memory killer was at work: its counts, read before and after a process ends."""

from pathlib import Path


def kernel_kills(proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")) -> int:
    """Processes killed by the kernel for want of memory, in this process's control group and on the machine; 0 where it does not tell.

    The number alone says nothing: one that has grown while a process was ended by SIGKILL says who sent it.
    """
    files = [proc / "vmstat"]
    for line in _text(proc / "self" / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        # Version 2 has one tree, version 1 one for memory; in a container the group's own folder may be the root.
        if not controllers:
            files += [cgroups / path.lstrip("/") / "memory.events", cgroups / "memory.events"]
        elif "memory" in controllers.split(","):
            files += [cgroups / "memory" / path.lstrip("/") / "memory.oom_control", cgroups / "memory" / "memory.oom_control"]
    return sum(_count(_text(file)) for file in dict.fromkeys(files))


def _count(text: str) -> int:
    return sum(int(line.split()[1]) for line in text.splitlines() if line.startswith("oom_kill "))


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
