"""The kernel's memory limits, read from files as its documentation describes them."""

from pathlib import Path

import psutil
import pytest

from optprof.profiler.machine import memory as host_memory
from optprof.profiler.machine.memory import free_bytes, free_in_group, kernel_kills


def place(folder: Path, groups: str, files: dict[str, str]) -> tuple[Path, Path]:
    """Write the two trees that are read: the groups of a process, and the groups' files."""
    for name, text in {"proc/self/cgroup": groups, **files}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder / "proc", folder / "cgroup"


@pytest.mark.parametrize(
    ("groups", "file"),
    [
        ("0::/user/me\n", "cgroup/user/me/memory.events"),
        ("0::/\n", "cgroup/memory.events"),
        ("5:cpu:/x\n4:memory:/job\n0::/\n", "cgroup/memory/job/memory.oom_control"),
        ("4:memory:/job\n", "cgroup/memory/memory.oom_control"),
        ("", "proc/vmstat"),
    ],
)
def test_processes_killed_by_the_kernel_are_counted(tmp_path: Path, groups: str, file: str):
    assert kernel_kills(*place(tmp_path, groups, {})) == 0
    assert (
        kernel_kills(
            *place(tmp_path, groups, {file: "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n"})
        )
        == 2
    )


@pytest.mark.parametrize(
    ("groups", "files", "free"),
    [
        (
            "0::/job\n",
            {"cgroup/job/memory.max": "4096\n", "cgroup/job/memory.current": "1024\n"},
            3072,
        ),
        # The kernel reclaims pages of inactive files before it kills a process.
        (
            "0::/job\n",
            {
                "cgroup/job/memory.max": "4096",
                "cgroup/job/memory.current": "4000",
                "cgroup/job/memory.stat": "anon 1\ninactive_file 1000\n",
            },
            1096,
        ),
        # The smallest limit of the group and its parents counts.
        (
            "0::/slice/job\n",
            {
                "cgroup/slice/job/memory.max": "max",
                "cgroup/slice/job/memory.current": "10",
                "cgroup/slice/memory.max": "100",
                "cgroup/slice/memory.current": "60",
            },
            40,
        ),
        ("0::/host/only\n", {"cgroup/memory.max": "100", "cgroup/memory.current": "120"}, 0),
        (
            "4:memory:/job\n0::/\n",
            {
                "cgroup/memory/job/memory.limit_in_bytes": "500",
                "cgroup/memory/job/memory.usage_in_bytes": "200",
                "cgroup/memory/job/memory.stat": "inactive_file 7\ntotal_inactive_file 50\n",
            },
            350,
        ),
        ("0::/job\n", {"cgroup/job/memory.max": "max", "cgroup/job/memory.current": "10"}, None),
        ("", {}, None),
    ],
)
def test_the_free_memory_of_a_control_group_is_its_limit_less_its_use(
    tmp_path: Path, groups: str, files: dict[str, str], free: int | None
):
    assert free_in_group(*place(tmp_path, groups, files)) == free


@pytest.mark.parametrize(("granted", "free"), [(None, 1000), (300, 300), (5000, 1000)])
def test_free_memory_is_the_smaller_of_the_machine_s_and_the_group_s(
    monkeypatch: pytest.MonkeyPatch, granted: int | None, free: int
):
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1000}))
    monkeypatch.setattr(host_memory, "free_in_group", lambda: granted)
    assert free_bytes() == free
