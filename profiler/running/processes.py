"""Processes: whatever a scenario has started ends with it, and with the process that asked for it.

On Linux the kernel helps: it ends a child with its parent, and hands orphans to a subreaper. What a
scenario has started then stays below the zygote, also in a session of its own, and can be found.
"""

import ctypes
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path

# A fork of a process that has threads, or has used a GPU, is not safe everywhere.
ON_LINUX = sys.platform == "linux"
# Names what the zygote has started, for the case that it is killed itself.
MARK = "OPTPROF_WORKER"

# From Linux's prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# A process that is killed inside a system call of a dead disk stays for as long as the disk does.
_PATIENCE = 5.0
_PAUSE = 0.002


def adopt_orphans() -> None:
    """Have the kernel make this process the parent of every descendant whose own parent ends."""
    if ON_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Have the kernel end this process when the one that has forked it is gone, also if that is so
    already.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_descendants(*kept: int) -> None:
    """Kill what this process has started, and what that has, until none is left but the `kept`."""
    until = time.monotonic() + _PATIENCE
    while ON_LINUX and time.monotonic() < until:
        parents = _parents()
        found = [pid for pid in _below(os.getpid(), parents) if pid not in kept]
        # A kept process takes the status of its own children.
        if all(parents[pid] in kept and _is_dead(pid) for pid in found):
            return
        for pid in found:
            _kill(pid)
        for pid in found:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_PAUSE)


def end_marked(mark: str) -> None:
    """Kill every process whose environment bears the mark: what a killed zygote has left."""
    wanted = f"{MARK}={mark}".encode()
    until = time.monotonic() + _PATIENCE
    while ON_LINUX and time.monotonic() < until:
        found = [pid for pid in _parents() if wanted in _environment(pid) and not _is_dead(pid)]
        if not found:
            return
        for pid in found:
            _kill(pid)
        time.sleep(_PAUSE)


def thread_count() -> int:
    """Return the number of this process's threads."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _below(root: int, parents: dict[int, int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        children.setdefault(parent, []).append(pid)
    found, waiting = [], [root]
    while waiting:
        started = children.get(waiting.pop(), [])
        found += started
        waiting += started
    return found


def _parents() -> dict[int, int]:
    """The parent of every process of this machine."""
    found = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        # It may end meanwhile.
        with suppress(OSError, IndexError):
            found[int(name)] = int(_status(name)[1])
    return found


def _is_dead(pid: int) -> bool:
    try:
        return _status(pid)[0] in "ZX"
    except (OSError, IndexError):
        return True


def _status(pid: int | str) -> list[str]:
    """Fields that the kernel prints of a process behind its name, which may hold blanks: state,
    parent, ...
    """
    return (
        Path(f"/proc/{pid}/stat")
        .read_text(encoding="utf-8", errors="replace")
        .rpartition(")")[2]
        .split()
    )


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []
