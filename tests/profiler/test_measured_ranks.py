"""Ranks of a measured training run: two real gloo processes, launched by torchrun's agent."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from optprof.profiler.records.record import Memory, RankBytes, Record
from optprof.profiler.records.store import RunStore
from optprof.profiler.running.runner import run
from optprof.profiler.running.worker import Worker
from optprof.scenarios import Scenario

# The simulation, which comes first, has no rank in its environment.
OWN = """
import os, signal, subprocess, sys, time
import psutil, torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(5, 3)
    def forward(self, x):
        return self.layer(x).square().mean()

def model():
    return Model(), {"x": torch.ones(2, 5)}

class Second(torch.optim.SGD):
    def step(self, closure=None):
        if os.environ.get("RANK") == "1":
            self.trouble()
        super().step(closure)

class Killed(Second):
    def trouble(self):
        print("my last words")
        os.kill(os.getpid(), signal.SIGKILL)

class Fails(Second):
    def trouble(self):
        raise RuntimeError("no luck on this one")

class Hangs(Second):
    def trouble(self):
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        agent = psutil.Process().parent()
        pids = [agent.pid, helper.pid, *(rank.pid for rank in agent.children())]
        with open(os.environ["OPTPROF_TEST_PIDS"], "w") as file:
            file.write(" ".join(map(str, pids)))
        time.sleep(600)
"""


def ranked(parallel: str, **changes: object) -> Scenario:
    """Return a scenario whose shapes two ranks cannot share evenly, unless they share layers."""
    rows = 256 if parallel.startswith("tp") else 255
    usual = {
        "model": "tiny",
        "config": {"vocab_size": rows},
        "sequence_length": 8,
        "device": "cpu",
        "ranks": 2,
        "steps": 3,
    }
    return Scenario(**{**usual, "parallel": parallel, **changes})  # pyright: ignore[reportArgumentType]


def own(optimizer: str) -> Scenario:
    return ranked(
        "ddp",
        model="ranked:model",
        config={},
        sequence_length=None,
        optimizer=f"ranked:{optimizer}",
        implementation="loop",
    )


def simulated(scenario: Scenario, rank: int) -> Scenario:
    return replace(scenario, device="sim", rank=rank, steps=2)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Return a folder with a module of the user's that children find."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "ranked.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("OPTPROF_TEST_PIDS", str(folder / "pids"))
        yield folder


WAYS = ("ddp", "zero1", "fsdp2", "tp:2")
TROUBLED = ("Killed", "Fails")


@pytest.fixture(scope="module")
def worker(folder: Path) -> Iterator[Worker]:
    del folder
    with Worker(["tiny"]) as worker:
        yield worker


@pytest.fixture(scope="module")
def recorded(
    tmp_path_factory: pytest.TempPathFactory, worker: Worker
) -> tuple[RunStore, dict[Scenario, Record]]:
    """Return one run of all ways, measured and simulated, and of ranks in trouble."""
    scenarios = [own(name) for name in TROUBLED]
    for way in WAYS:
        # Ranks take as many simulations as there are different ones.
        ranks = (0, 1) if way in ("zero1", "fsdp2") else (0,)
        scenarios += [ranked(way), *(simulated(ranked(way), rank) for rank in ranks)]
    store = RunStore.create(tmp_path_factory.mktemp("ranks") / "run")
    records = run(scenarios, store, lambda *_: None, worker=worker, timeout=60)
    return store, dict(zip(scenarios, records, strict=True))


@pytest.mark.parametrize("way", WAYS)
def test_every_rank_holds_the_bytes_that_its_simulation_says(
    recorded: tuple[RunStore, dict[Scenario, Record]], way: str
):
    _, records = recorded
    record = records[ranked(way)]
    assert record.outcome == "ok", record.error
    assert record.ranks is not None
    assert [each.rank for each in record.ranks.each] == [0, 1]
    for each in record.ranks.each:
        same = records.get(simulated(ranked(way), each.rank), records[simulated(ranked(way), 0)])
        assert bytes_of(each) == bytes_of(same.memory)
    assert record.ranks.differ == (way in ("zero1", "fsdp2"))


def bytes_of(memory: Memory | RankBytes | None) -> tuple[int, int, int]:
    assert memory is not None
    return memory.parameters, memory.gradients, memory.optimizer_state


def test_all_ranks_run_the_same_iterations(recorded: tuple[RunStore, dict[Scenario, Record]]):
    _, records = recorded
    for way in WAYS:
        times = records[ranked(way)].times
        assert times is not None
        assert {len(samples) for samples in times.values()} == {3}


def test_a_killed_rank_is_named_with_its_last_words(
    recorded: tuple[RunStore, dict[Scenario, Record]],
):
    store, records = recorded
    record = records[own("Killed")]
    assert record.outcome == "killed"
    assert record.error is not None
    assert record.error.startswith("rank 1 was ended by SIGKILL; ")
    assert "my last words" in record.error
    assert record.log is not None
    assert "[rank 1] my last words\n" in (store.folder / record.log).read_text()


def test_a_rank_that_fails_is_named_with_the_line_of_the_users_code(
    recorded: tuple[RunStore, dict[Scenario, Record]],
):
    store, records = recorded
    record = records[own("Fails")]
    line = 1 + OWN.splitlines().index('        raise RuntimeError("no luck on this one")')
    assert record.outcome == "failed"
    assert record.error == (f"rank 1: RuntimeError: no luck on this one (ranked.py, line {line})")
    assert record.log is not None
    assert "[rank 1] RuntimeError: no luck on this one" in (store.folder / record.log).read_text()


def test_a_rank_that_hangs_ends_at_the_time_limit_and_leaves_no_process(
    tmp_path: Path, folder: Path, worker: Worker
):
    store = RunStore.create(tmp_path / "run")
    (record,) = run([own("Hangs")], store, lambda *_: None, worker=worker, timeout=10)
    assert (record.outcome, record.error) == ("timeout", "no result after 10 s")
    pids = [int(pid) for pid in (folder / "pids").read_text().split()]
    assert len(pids) == 4
    assert [pid for pid in pids if psutil.pid_exists(pid)] == []
