"""Processes: end all that a scenario has started, when it ends or its parent does.

On Linux the kernel helps: it ends a child with its parent, and gives orphans to a subreaper. All
processes of a scenario then stay below the zygote, even in their own sessions.
"""

import ctypes
import os
import signal
import sys
import time
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

# Elsewhere a fork of a process that has loaded torch is not safe.
ON_LINUX = sys.platform == "linux"
# An environment variable of all processes of a zygote, in case the zygote is killed.
MARK = "OPTPROF_WORKER"

# From Linux's prctl.h.
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
# A killed process that waits for a dead disk does not end.
_PATIENCE = 5.0
_PAUSE = 0.002


def adopt_orphans() -> None:
    """Let the kernel make this process the parent of each descendant whose own parent ends."""
    if ON_LINUX:
        ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def end_with(parent: int) -> None:
    """Let the kernel end this process with its parent, or end it now if the parent is gone."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)


def end_descendants(*kept: int) -> None:
    """Kill all descendants of this process, until none is left, except the `kept` and theirs."""
    until = time.monotonic() + _PATIENCE
    while ON_LINUX and time.monotonic() < until:
        pids = _below(os.getpid(), _parents(), kept)
        if not pids:
            return
        for pid in pids:
            _kill(pid)
        for pid in pids:
            with suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
        time.sleep(_PAUSE)


def end_marked(mark: str) -> None:
    """Kill every process with the mark in its environment: those of a killed zygote."""
    variable = f"{MARK}={mark}".encode()
    until = time.monotonic() + _PATIENCE
    while ON_LINUX and time.monotonic() < until:
        pids = [pid for pid in _parents() if variable in _environment(pid) and not _is_dead(pid)]
        if not pids:
            return
        for pid in pids:
            _kill(pid)
        time.sleep(_PAUSE)


def how_it_ended(status: int) -> str:
    """Return the end of a process in words: its exit status, or minus the signal that ended it."""
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"


def thread_count() -> int:
    """Return the number of this process's threads."""
    return sum(1 for _ in Path("/proc/self/task").iterdir())


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)


def _below(root: int, parents: dict[int, int], kept: Collection[int]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, parent in parents.items():
        if pid not in kept:
            children.setdefault(parent, []).append(pid)
    descendants, waiting = [], [root]
    while waiting:
        started = children.get(waiting.pop(), [])
        descendants += started
        waiting += started
    return descendants


def _parents() -> dict[int, int]:
    """Return the parent of each process of this machine."""
    parents = {}
    for name in filter(str.isdecimal, os.listdir("/proc")):  # noqa: PTH208
        # The process may end in between.
        with suppress(OSError, IndexError):
            parents[int(name)] = int(_status(name)[1])
    return parents


def _is_dead(pid: int) -> bool:
    try:
        return _status(pid)[0] in "ZX"
    except (OSError, IndexError):
        return True


def _status(pid: int | str) -> list[str]:
    """Return the fields after a process's name, which may have blanks: state, parent, ..."""
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
