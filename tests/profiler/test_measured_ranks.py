"""Ranks of a measured training run: two real gloo processes, launched by torchrun's agent."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from socket import socket
from typing import Any

import psutil
import pytest
import torch

from optprof.profiler.measuring import ranks
from optprof.profiler.measuring.cuda_memory import DoesNotFitError
from optprof.profiler.measuring.ranks import joined
from optprof.profiler.records.record import Environment, Memory, RankBytes, Record
from optprof.profiler.records.store import RunStore
from optprof.profiler.running.launching import Nodes, read_nodes, require_nodes
from optprof.profiler.running.runner import run
from optprof.profiler.running.worker import Worker
from optprof.scenarios import Scenario

WAYS = ("ddp", "zero1", "fsdp2", "tp:2")
TROUBLED = ("Killed", "Fails")
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


def ranked(parallel: str, **changes: Any) -> Scenario:
    """Return a scenario whose shapes two ranks cannot share evenly, unless they share layers."""
    rows = 256 if parallel.startswith("tp") else 255
    usual: dict[str, Any] = {
        "model": "tiny",
        "config": {"vocab_size": rows},
        "sequence_length": 8,
        "device": "cpu",
        "ranks": 2,
        "steps": 3,
    }
    return Scenario(**{**usual, "parallel": parallel, **changes})


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
        different = (0, 1) if way in ("zero1", "fsdp2") else (0,)
        scenarios += [ranked(way), *(simulated(ranked(way), rank) for rank in different)]
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


def test_an_iteration_reads_the_tokens_of_all_ranks(
    recorded: tuple[RunStore, dict[Scenario, Record]],
):
    _, records = recorded
    # A batch of 8 tokens on each rank, but ranks that share layers have one batch.
    for way, tokens in (("ddp", 16), ("fsdp2", 16), ("tp:2", 8)):
        watched = records[ranked(way)].watched
        assert watched is not None
        assert (watched.samples, watched.tokens) == (tokens // 8, tokens)


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


def test_two_machines_measure_one_rank_each_and_know_the_bytes_of_both(
    tmp_path: Path, worker: Worker
):
    with socket() as free:
        free.bind(("localhost", 0))
        endpoint = f"localhost:{free.getsockname()[1]}"
    scenarios = [ranked("zero1", workload="state", optimizer="sm3", implementation="loop")]

    def measured(name: str, here: Worker) -> Record:
        nodes = Nodes(nnodes=2, endpoint=endpoint, is_host=name == "host")
        store = RunStore.create(tmp_path / name)
        return run(scenarios, store, lambda *_: None, worker=here, timeout=60, nodes=nodes)[0]

    # A machine of its own would have a worker too.
    with Worker(["tiny"]) as other, ThreadPoolExecutor(1) as thread:
        guest = thread.submit(measured, "guest", other)
        records = [measured("host", worker), guest.result()]
    assert [record.outcome for record in records] == ["ok", "ok"], records[0].error
    assert records[0].ranks == records[1].ranks
    assert records[0].times == records[1].times
    assert records[0].ranks is not None
    assert [each.rank for each in records[0].ranks.each] == [0, 1]


def rank_of(peak: int | None, state: int, seconds: float) -> Record:
    memory = Memory(
        parameters=10,
        gradients=10,
        optimizer_state=state,
        state_by_key={},
        state_by_key_dtype={},
        peak_by_category={},
        peak_by_phase={},
        peak_allocated=peak,
    )
    return Record(
        scenario=ranked("ddp"),
        origin="measured",
        memory=memory,
        times={"step": (seconds,) * 3, "iteration": (9.0 + seconds, seconds, seconds)},
        environment=Environment(),
    )


def test_a_record_has_the_memory_of_the_highest_peak_and_the_times_of_the_slowest_rank():
    record = joined([rank_of(50, 20, 1.0), rank_of(70, 10, 2.0), rank_of(60, 30, 3.0)])
    assert record.memory == rank_of(70, 10, 2.0).memory
    assert record.times == rank_of(60, 30, 3.0).times
    assert record.ranks is not None
    assert record.ranks.slowest == 2
    assert [each.peak_allocated for each in record.ranks.each] == [50, 70, 60]


def test_without_peaks_a_record_has_the_memory_of_the_rank_with_the_most_bytes():
    record = joined([rank_of(None, 20, 1.0), rank_of(None, 30, 1.0)])
    assert record.memory is not None
    assert record.memory.optimizer_state == 30


def test_a_port_that_is_taken_and_another_machine_are_errors_before_anything_runs():
    with socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(ValueError, match=f"port {port} of localhost is taken"):
            read_nodes(2, f"localhost:{port}")
    # An address for documentation (RFC 5737), which no machine has.
    assert read_nodes(2, "192.0.2.1") == Nodes(nnodes=2, endpoint="192.0.2.1:29400", is_host=False)
    with pytest.raises(ValueError, match="on another machine; add --nnodes"):
        read_nodes(1, "192.0.2.1")
    with pytest.raises(ValueError, match="needs --rdzv-endpoint HOST:PORT"):
        read_nodes(2, None)


def test_ranks_are_counted_before_anything_runs(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    on_gpus = replace(ranked("ddp"), device="cuda")
    with pytest.raises(ValueError, match="2 ranks need 2 GPUs on this machine, and it has 1"):
        require_nodes([on_gpus], Nodes())
    require_nodes([on_gpus], Nodes(nnodes=2, endpoint="localhost:1"))
    with pytest.raises(ValueError, match="must divide the ranks, got 3 machines for 2 ranks"):
        require_nodes([ranked("ddp")], Nodes(nnodes=3, endpoint="localhost:1"))
    with pytest.raises(ValueError, match="--nnodes is for measured ranks"):
        require_nodes([simulated(ranked("ddp"), 0)], Nodes(nnodes=2, endpoint="localhost:1"))


def test_ranks_that_need_more_than_half_of_the_free_memory_are_refused(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(ranks, "free_bytes", lambda: 399)
    # Each rank builds all 25 parameters of 4 bytes before it keeps its part.
    record = replace(rank_of(50, 20, 1.0), parameter_count=25)
    assert record.memory is not None
    record = replace(record, memory=replace(record.memory, parameters_by_dtype={"float32": 50}))
    with pytest.raises(DoesNotFitError, match="2 ranks on this machine need 200 bytes"):
        ranks.require_room_on_host(ranked("fsdp2"), record, 2)
    ranks.require_room_on_host(ranked("fsdp2"), record, 1)
