"""Sweeps on Ray: a cluster of three nodes on this machine loses a node, and no record."""

import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import commands
import pytest

from optprof.profiler.records.store import RunStore, file_name, scenario_key
from optprof.profiler.running.cluster import connected

# `slow` waits for the file "go" unless it runs on the head node, whose process is in "head". If
# there is a file "kill", it removes that, and kills Ray's process for the task.
MINE = """
import os, signal, time
from pathlib import Path
import psutil, torch

HERE = Path(__file__).parent

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x).square().mean()

def slow():
    print("slow")
    if (HERE / "kill").exists():
        (HERE / "kill").unlink()
        for parent in psutil.Process().parents():
            if parent.cmdline()[0].startswith("ray::"):
                parent.kill()
        time.sleep(60)
    node = os.environ["RAY_RAYLET_PID"]
    if node != (HERE / "head").read_text():
        (HERE / "blocked").write_text(node)
        while not (HERE / "go").exists():
            time.sleep(0.05)
    return Model(), {"x": torch.ones(2, 8)}
"""
SUITE = """
[[scenarios]]
model = "tiny"
device = "sim"
workload = "state"
optimizer = ["adamw", "sm3"]
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24]

[[scenarios]]
model = "mine:slow"
device = "sim"
optimizer = "sgd"
seed = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
"""


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Yield a cluster of Ray with three nodes of one CPU."""
    utilities = pytest.importorskip("ray.cluster_utils", reason="needs ray")
    cluster = utilities.Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    for _ in range(2):
        cluster.add_node(num_cpus=1)
    yield cluster
    cluster.shutdown()


def raylet_of(node: Any) -> str:
    """Return the process number of Ray's agent on a node."""
    return str(node.all_processes["raylet"][0].process.pid)


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_node_that_is_removed_loses_no_record_and_doubles_none(tmp_path: Path, cluster: Any):
    (tmp_path / "mine.py").write_text(MINE)
    (tmp_path / "suite.toml").write_text(SUITE)
    (tmp_path / "head").write_text(raylet_of(cluster.head_node))
    arguments = ["sweep", "suite.toml", "--on", cluster.address, "--allow", "mine:slow"]
    arguments += ["--out", "run", "--no-report"]
    with ThreadPoolExecutor() as threads:
        first = threads.submit(commands.run, arguments, cwd=tmp_path)
        wait_for(lambda: first.done() or (tmp_path / "blocked").exists())
        (node,) = (
            each
            for each in cluster.list_all_nodes()
            if raylet_of(each) == (tmp_path / "blocked").read_text()
        )
        cluster.remove_node(node, allow_graceful=False)
        (tmp_path / "go").touch()
        done = first.result()
    assert done.returncode == 4, done.stderr
    store = RunStore(tmp_path / "run")
    records = store.read()
    assert len(records) == 60
    assert len({scenario_key(record.scenario) for record in records}) == 60
    killed = [record for record in records if record.outcome != "ok"]
    assert {record.outcome for record in killed} == {"killed"}
    assert all("Ray lost the task: " in str(record.error) for record in killed)

    # What the cluster lost is repeated and nothing else, once more although Ray's process dies.
    (tmp_path / "kill").touch()
    done = commands.run([*arguments, "--resume", "--retries", "2"], cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not (tmp_path / "kill").exists()
    assert Counter(map(file_name, [record.scenario for record in store.read()])) == Counter(
        [file_name(record.scenario) for record in [*records, *killed]]
    )
    standing = store.read_standing()
    assert [record.scenario.model for record in standing] == ["tiny"] * 50 + ["mine:slow"] * 10
    assert {record.outcome for record in standing} == {"ok"}
    assert {record.environment.command[0] for record in standing} == {"optprof"}

    # The files next to a record come back too.
    slow = standing[50:]
    assert {store.read_log(record) for record in slow} == {"slow\n"}
    assert len({record.log for record in slow}) == 10
    assert len(store.read_timelines(slow)) == 10


@pytest.mark.parametrize(
    ("on", "words"),
    [
        ("nowhere", "--on must be ray, ray://HOST:PORT or HOST:PORT, got 'nowhere'"),
        ("ray://host", "--on must be ray, ray://HOST:PORT or HOST:PORT, got 'ray://host'"),
        (
            "127.0.0.1:1",
            r"no cluster answers at 127\.0\.0\.1:1: Connection refused, after 0\.\d s; ",
        ),
    ],
)
def test_a_cluster_that_cannot_be_reached_is_one_line(
    monkeypatch: pytest.MonkeyPatch, on: str, words: str
):
    monkeypatch.setattr("optprof.profiler.running.cluster.require_installed", lambda *_: None)
    with pytest.raises((ValueError, ConnectionError), match=words), connected(on):
        pass


def test_a_sweep_on_ray_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("optprof.profiler.machine.doctor.find_spec", lambda _: None)
    words = r'--on needs ray, which is not installed; pip install "optprof\[ray\]"'
    with pytest.raises(ValueError, match=words), connected("ray"):
        pass
