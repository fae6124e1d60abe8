"""A run survives optimizers that fail, hang, die and print, and the death of each process."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from threading import Thread
from typing import Any

import psutil
import pytest
import torch

from optprof.profiler import simulate
from optprof.profiler.measuring.cuda_memory import DoesNotFitError, require_room
from optprof.profiler.records.outcome import outcome_of
from optprof.profiler.records.record import Environment, Machine, Memory, Outcome, Record
from optprof.profiler.records.store import RunStore, file_name, standing
from optprof.profiler.running.child import Job
from optprof.profiler.running.log import HEAD, TAIL
from optprof.profiler.running.recording import append
from optprof.profiler.running.resume import pending
from optprof.profiler.running.runner import run
from optprof.profiler.running.worker import ChildEndedError, Worker
from optprof.scenarios import Scenario

OWN = """
import ctypes, os, signal, subprocess, sys, threading, time
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x).square().mean()

def model():
    return Model(), {"x": torch.ones(2, 8)}

class Looks(Model):
    def forward(self, x):
        loss = super().forward(x)
        return loss if loss.item() >= 0 else -loss

def looks():
    return Looks(), {"x": torch.ones(2, 8)}

class Counts(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["lr"] * torch.from_numpy(parameter.grad.numpy().copy())

class Wanders(torch.optim.SGD):
    def step(self, closure=None):
        print("in", os.getcwd())
        os.chdir("/")
        super().step(closure)

class Asks(torch.optim.SGD):
    def step(self, closure=None):
        print([name for name in os.environ if name.endswith("ALLOC_CONF")])
        super().step(closure)

class Talks(torch.optim.SGD):
    def step(self, closure=None):
        print("hello from Python")
        os.write(1, b"hello from C")
        assert sys.stdin.read() == ""
        super().step(closure)

class Fails(torch.optim.SGD):
    def step(self, closure=None):
        raise RuntimeError("no luck today")

class Leaves(torch.optim.SGD):
    def step(self, closure=None):
        sys.exit(3)

class Dies(torch.optim.SGD):
    def step(self, closure=None):
        print("last \\x1b[31mwords")
        os.kill(os.getpid(), signal.SIGSEGV)

class Killed(torch.optim.SGD):
    def step(self, closure=None):
        os.kill(os.getpid(), signal.SIGKILL)

class Tells(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        print(os.getpid())
        super().__init__(params, lr)

class Escapes(torch.optim.SGD):
    # It holds the interpreter in C, and its helper has a session of its own and no parent any more.
    def step(self, closure=None):
        this = os.getpid()
        if os.fork() == 0:
            os.setsid()
            middle = os.getpid()
            if os.fork() == 0:
                while os.getppid() == middle:
                    time.sleep(0.01)
                with open(os.environ["OPTPROF_TEST_PIDS"], "w") as file:
                    file.write(f"{this} {os.getpid()}.")
                time.sleep(600)
            os._exit(0)
        ctypes.PyDLL(None).pause()

class Meets(torch.optim.SGD):
    # It goes on once another optimizer has come here too; the one with the lower rate is the last.
    def step(self, closure=None):
        folder = os.path.join(os.path.dirname(os.environ["OPTPROF_TEST_PIDS"]), "meeting")
        rate = self.param_groups[0]["lr"]
        open(os.path.join(folder, str(rate)), "w").close()
        while len(os.listdir(folder)) < 2:
            time.sleep(0.01)
        print("met", rate)
        time.sleep(1 - rate)
        super().step(closure)

class Notes(torch.optim.SGD):
    def step(self, closure=None):
        folder = os.path.dirname(os.environ["OPTPROF_TEST_PIDS"])
        with open(os.path.join(folder, "notes"), "a") as file:
            file.write(f"{os.getpid()} ")
        time.sleep(0.05)
        super().step(closure)

class Floods(torch.optim.SGD):
    def step(self, closure=None):
        os.write(1, b"first words")
        for _ in range(32):
            os.write(1, b"x" * (1 << 20))
        os.write(1, b"last words")
        super().step(closure)

class Knows(torch.optim.SGD):
    def step(self, closure=None):
        print("transformers.models.gpt2.modeling_gpt2" in sys.modules)
        super().step(closure)

def doubles():
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(7)
    os.environ["OPTPROF_TEST_LEFT"] = "left"
    torch.optim.Optimizer.left = "left"
    return model()

def parallel():
    torch.set_num_threads(4)
    torch.ones(1 << 20, device="cpu").exp()
    return model()

def threaded():
    threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
    return model()

class Parallel(torch.optim.SGD):
    def step(self, closure=None):
        torch.ones(1 << 20, device="cpu").exp()
        super().step(closure)

class Quits(torch.optim.SGD):
    def step(self, closure=None):
        os._exit(7)

class Hangs(torch.optim.SGD):
    def step(self, closure=None):
        helper = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        with open(os.environ["OPTPROF_TEST_PIDS"], "w") as file:
            file.write(f"{os.getpid()} {helper.pid}.")
        time.sleep(600)

class Copied(Model):
    def forward(self, x):
        if os.fork() == 0:
            sys.exit("the copy")
        os.wait()
        return super().forward(x)

def copied():
    return Copied(), {"x": torch.ones(2, 8)}

class Stuck(Model):
    def forward(self, x):
        with open(os.environ["OPTPROF_TEST_PIDS"], "w") as file:
            file.write(f"{os.getpid()} {os.getppid()}.")
        ctypes.PyDLL(None).pause()

def dies():
    os.kill(os.getpid(), signal.SIGSEGV)

def stuck():
    return Stuck(), {"x": torch.ones(2, 8)}

class Unprintable(Exception):
    def __str__(self):
        return 1 / 0

class Mute(torch.optim.SGD):
    def step(self, closure=None):
        sys.stderr.close()
        raise Unprintable

class Writes(Model):
    # Into every pipe and socket, the answer's among them.
    def __init__(self, words):
        super().__init__()
        self.words = words
    def forward(self, x):
        for name in os.listdir("/proc/self/fd"):
            place = os.readlink("/proc/self/fd/" + name)
            if int(name) > 2 and place.startswith(("pipe:", "socket:")):
                os.write(int(name), self.words)
        return super().forward(x)

def writes_a_word():
    return Writes(b"garbage\\n"), {"x": torch.ones(2, 8)}

def writes_a_status():
    return Writes(b'{"status": "none"}\\n'), {"x": torch.ones(2, 8)}

def writes_a_part():
    return Writes(b"{"), {"x": torch.ones(2, 8)}
"""


@pytest.fixture(scope="module", autouse=True)
def own(tmp_path_factory: pytest.TempPathFactory):
    """Write a user module where the children find it, and let their Python buffer its output."""
    folder = tmp_path_factory.mktemp("own")
    (folder / "owned.py").write_text(OWN)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [*sys.path, str(folder)])
        patch.setenv("OPTPROF_TEST_PIDS", str(folder / "pids"))
        patch.delenv("PYTHONUNBUFFERED", raising=False)
        yield folder


@pytest.fixture(scope="module")
def worker(own: Path):
    """Return one worker for all tests that do not end the zygote.

    It starts with settings for the allocator in the environment, and with SIGCHLD ignored. One of
    its models is a GPT-2; the other names are none.
    """
    del own
    with pytest.MonkeyPatch.context() as patch:
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            patch.setenv(name, "expandable_segments:True")
        before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        worker = Worker(["no\0model", "none", "owned:model", "tiny"])
        signal.signal(signal.SIGCHLD, before)
    with worker:
        yield worker


@pytest.fixture
def pids(own: Path) -> Path:
    (own / "pids").unlink(missing_ok=True)
    return own / "pids"


def scenario(optimizer: str = "sgd", **changes: object) -> Scenario:
    name = optimizer if optimizer == "sgd" else f"owned:{optimizer}"
    return Scenario(model="owned:model", optimizer=name, implementation="loop", **changes)  # pyright: ignore[reportArgumentType]


def quietly(_place: int, _scenario: Scenario) -> None:
    """Ignore the progress."""


def read_pids(path: Path) -> list[int]:
    """Wait until the numbers of two processes are written, followed by a point."""
    end = time.monotonic() + 60
    while not (path.exists() and path.read_text().endswith(".")):
        assert time.monotonic() < end
        time.sleep(0.02)
    return [int(pid) for pid in path.read_text().strip(".").split()]


def gone(pid: int, seconds: float = 2.0) -> bool:
    end = time.monotonic() + seconds
    while psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE:
        if time.monotonic() > end:
            return False
        time.sleep(0.05)
    return True


@pytest.fixture(scope="module")
def troubled(
    tmp_path_factory: pytest.TempPathFactory, worker: Worker
) -> tuple[RunStore, list[Record]]:
    store = RunStore.create(tmp_path_factory.mktemp("troubled") / "run")
    scenarios = [
        scenario(name) for name in ("Talks", "Fails", "Leaves", "sgd", "Dies", "Quits", "sgd")
    ]
    return store, run(scenarios, store, quietly, worker=worker)


def test_every_scenario_is_recorded_whatever_another_does(troubled: tuple[RunStore, list[Record]]):
    store, records = troubled
    assert [record.outcome for record in records] == [
        "ok",
        "failed",
        "failed",
        "ok",
        "killed",
        "failed",
        "ok",
    ]
    assert store.read() == records
    assert records[1].error == "RuntimeError: no luck today (owned.py, line 49)"
    assert records[2].error == "SystemExit: 3 (owned.py, line 53)"
    assert records[4].error is not None
    assert records[4].error.startswith("the process was ended by SIGSEGV; ")
    assert records[4].error.endswith("last [31mwords")
    assert records[5].error == "the process ended with status 7"


def test_each_scenario_has_a_log_of_its_output(troubled: tuple[RunStore, list[Record]]):
    store, records = troubled
    logs = {record.scenario.optimizer: record.log for record in records}
    assert logs["sgd"] is None, (store.folder / logs["sgd"]).read_text()
    assert (
        "hello from Python\nhello from C" in (store.folder / str(logs["owned:Talks"])).read_text()
    )
    failed = (store.folder / str(logs["owned:Fails"])).read_text()
    assert failed.startswith("Traceback")
    assert failed.endswith("RuntimeError: no luck today\n")


def test_the_output_of_a_scenario_does_not_reach_the_terminal(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], worker: Worker
):
    run(
        [scenario("Talks"), scenario("Fails")],
        RunStore.create(tmp_path / "run"),
        quietly,
        worker=worker,
    )
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("device", ["sim", "cpu"])
def test_a_scenario_that_changes_the_directory_affects_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Worker, device: str
):
    """The run has a relative path, and both scenarios start in the same directory."""
    here = Path.cwd()
    monkeypatch.chdir(tmp_path)
    store = RunStore.create(Path("run"))
    scenarios = [scenario("Wanders", device=device, seed=seed) for seed in range(2)]
    records = run(scenarios, store, quietly, snapshots=True, worker=worker)
    assert [record.outcome for record in records] == ["ok", "ok"]
    assert all(
        Path("run", str(record.log)).read_text().startswith(f"in {here}\n") for record in records
    )


def test_a_child_does_not_get_the_allocator_s_settings_of_the_environment(
    tmp_path: Path, worker: Worker
):
    store = RunStore.create(tmp_path / "run")
    (record,) = run([scenario("Asks")], store, quietly, worker=worker)
    assert (store.folder / str(record.log)).read_text().startswith("[]\n")


def test_the_code_of_the_run_s_models_is_loaded_before_the_first_job(
    tmp_path: Path, worker: Worker
):
    store = RunStore.create(tmp_path / "run")
    (record,) = run([scenario("Knows", device="sim")], store, quietly, worker=worker)
    assert (store.folder / str(record.log)).read_text().startswith("True\n")


def test_a_requested_snapshot_is_written(tmp_path: Path, worker: Worker):
    store = RunStore.create(tmp_path / "run")
    run([scenario(device="sim")], store, quietly, snapshots=True, worker=worker)
    (path,) = (store.folder / "snapshots").iterdir()
    snapshot = pickle.loads(path.read_bytes())
    assert {"segments", "device_traces"} <= snapshot.keys()
    assert any(entry["action"] == "alloc" for entry in snapshot["device_traces"][0])


@pytest.mark.parametrize(("device", "folder"), [("sim", "timelines"), ("cpu", "tensorboard")])
def test_a_file_that_cannot_be_written_costs_no_record(
    tmp_path: Path, worker: Worker, device: str, folder: str
):
    """A file is in the place of a folder."""
    store = RunStore.create(tmp_path / "run")
    (store.folder / folder).touch()
    one = scenario(device=device)
    with pytest.raises(OSError, match=rf"/{folder}.*: Not a directory; its record is kept"):
        run([one] * 2, store, quietly, traces=True, worker=worker)
    (record,) = store.read()
    assert record.outcome == "ok"
    assert [line.startswith(folder) for line in record.lost] == [True]
    assert pending([one], [record], record.environment) == [one]


def test_a_scenario_that_hangs_is_ended_with_all_that_it_started(
    tmp_path: Path, worker: Worker, pids: Path
):
    store = RunStore.create(tmp_path / "run")
    zygote = worker.pid
    records = run([scenario("Hangs"), scenario()], store, quietly, timeout=5, worker=worker)
    assert [record.outcome for record in records] == ["timeout", "ok"]
    assert records[0].error == "no result after 5 s"
    assert all(gone(pid) for pid in read_pids(pids))
    # torch is not loaded again.
    assert worker.pid == zygote


def test_each_scenario_has_its_own_process_and_a_killed_one_costs_one_record(
    tmp_path: Path, worker: Worker
):
    # Other tests may have left the server of commands.
    before = {child.pid for child in psutil.Process().children()}
    store = RunStore.create(tmp_path / "run")
    scenarios = [
        scenario(name, device=device)
        for device in ("sim", "cpu")
        for name in ("Tells", "Killed", "Tells")
    ]
    records = run(scenarios, store, quietly, worker=worker)
    assert [record.outcome for record in records] == ["ok", "killed", "ok"] * 2
    assert records[1].error == records[4].error == "the process was ended by SIGKILL"
    logs = [(store.folder / record.log).read_text() for record in records if record.log]
    pids = [line for log in logs for line in log.split() if line.isdecimal()]
    # Each measurement follows a simulation.
    assert len(set(pids)) == 2 + 2 * 2
    assert records[3].times is not None
    assert {child.pid for child in psutil.Process().children()} <= {*before, worker.pid}


@pytest.mark.parametrize("device", ["sim", "cpu"])
def test_settings_that_a_model_changes_affect_no_other_record(
    tmp_path: Path, worker: Worker, device: str
):
    usual = scenario(device=device, workload="state")
    scenarios = [usual, replace(usual, model="owned:doubles"), usual]
    first, double, last = run(scenarios, RunStore.create(tmp_path / "run"), quietly, worker=worker)
    assert first.memory is not None
    assert double.memory is not None
    assert double.memory.parameters == 2 * first.memory.parameters
    assert last.memory == first.memory
    assert last.environment.threads == first.environment.threads


@pytest.mark.parametrize("device", ["sim", "cpu"])
def test_a_fork_made_by_a_model_does_not_answer(tmp_path: Path, worker: Worker, device: str):
    scenarios = [replace(scenario(device=device), model="owned:copied"), scenario()]
    records = run(scenarios, RunStore.create(tmp_path / "run"), quietly, worker=worker)
    assert [(record.outcome, record.error) for record in records] == [("ok", None), ("ok", None)]


def test_an_error_that_cannot_be_printed_is_recorded_with_its_line(tmp_path: Path, worker: Worker):
    (record,) = run([scenario("Mute")], RunStore.create(tmp_path / "run"), quietly, worker=worker)
    assert record.outcome == "failed"
    assert record.error is not None
    assert record.error.startswith(
        "Unprintable: its text cannot be printed, ZeroDivisionError (owned.py, line "
    )


@pytest.mark.parametrize("factory", ["writes_a_word", "writes_a_status", "writes_a_part"])
def test_a_model_that_writes_into_the_pipes_fails_alone(
    tmp_path: Path, worker: Worker, factory: str
):
    before = worker.pid
    scenarios = [replace(scenario(), model=f"owned:{factory}"), scenario()]
    records = run(scenarios, RunStore.create(tmp_path / "run"), quietly, worker=worker)
    assert [record.outcome != "ok" for record in records] == [True, False]
    assert worker.pid == before


@pytest.mark.parametrize("factory", ["parallel", "threaded"])
def test_a_model_with_threads_does_not_block_its_optimizers(
    tmp_path: Path, worker: Worker, factory: str
):
    """A fork would wait forever for the threads of OpenMP, which it does not have."""
    scenarios = [
        replace(scenario("Parallel", seed=seed), model=f"owned:{factory}") for seed in (0, 0)
    ]
    records = run(scenarios, RunStore.create(tmp_path / "run"), quietly, timeout=30, worker=worker)
    assert [record.outcome for record in records] == ["ok", "ok"]


def test_a_child_killed_by_the_kernel_for_its_memory_is_out_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, worker: Worker
):
    """The kill is real; the kernel's count of kills, which grows with it, is fake."""
    monkeypatch.setattr("optprof.profiler.running.runner.kernel_kills", count().__next__)
    (record,) = run([scenario("Killed")], RunStore.create(tmp_path / "run"), quietly, worker=worker)
    assert record.outcome == "out-of-memory"
    assert str(record.error).startswith("the kernel ended the process")


def test_simulations_run_at_once_and_reports_keep_their_order(
    tmp_path: Path, own: Path, worker: Worker
):
    """Two optimizers on one trace of their model wait for each other; the first ends last."""
    (own / "meeting").mkdir()
    scenarios = [scenario("Meets", options={"lr": rate}) for rate in (0.1, 0.9)]
    store = RunStore.create(tmp_path / "run")
    begun, ended = list[int](), list[int]()

    def started(place: int, _scenario: Scenario) -> None:
        begun.append(place)

    records = run(
        scenarios, store, started, jobs=2, finished=ended.append, worker=worker, timeout=60
    )
    assert [record.outcome for record in records] == ["ok", "ok"], records
    assert (begun, ended) == ([0, 1], [1, 0])
    assert [record.scenario for record in store.read()] == scenarios[::-1]
    assert [record.scenario for record in store.read_standing()] == scenarios
    logs = [store.read_log(record) for record in records]
    assert [set(log.splitlines()) for log in logs] == [{"met 0.1"}, {"met 0.9"}]


def test_jobs_that_run_at_once_fail_alone(tmp_path: Path, worker: Worker, pids: Path):
    scenarios = [
        *(replace(scenario(options={"lr": rate}), model="owned:dies") for rate in (0.1, 0.2)),
        *map(scenario, ("Hangs", "Killed", "Tells", "Fails", "Quits", "sgd")),
    ]
    store = RunStore.create(tmp_path / "run")
    before = worker.pid
    records = run(scenarios, store, quietly, jobs=3, timeout=5, worker=worker)
    assert [record.outcome for record in records] == [
        "killed",
        "killed",
        "timeout",
        "killed",
        "ok",
        "failed",
        "failed",
        "ok",
    ]
    assert {record.error for record in records[:2]} == {"the process was ended by SIGSEGV"}
    assert all(gone(pid) for pid in read_pids(pids))
    assert len(store.read()) == len(scenarios)
    assert worker.pid == before


def test_a_measurement_runs_alone_and_after_the_simulations(
    tmp_path: Path, own: Path, worker: Worker
):
    scenarios = [
        scenario("Notes", workload="state"),
        scenario("Notes", device="cpu", workload="state", steps=2),
        *(scenario("Notes", workload="state", seed=seed) for seed in (1, 2, 3)),
    ]
    store = RunStore.create(tmp_path / "run")
    records = run(scenarios, store, quietly, jobs=2, worker=worker)
    assert [record.scenario for record in records] == scenarios
    assert [record.scenario.device for record in store.read()] == ["sim"] * 4 + ["cpu"]
    pids = (own / "notes").read_text().split()
    assert set(pids[pids.index(pids[-1]) :]) == {pids[-1]}


def test_an_interrupt_ends_all_jobs_and_keeps_what_is_finished(
    tmp_path: Path, own: Path, pids: Path
):
    here = str(Path(__file__).resolve().parent.parent.parent / "src")
    code = PARENT.replace("lambda *_: None", "lambda *_: None, jobs=2")
    parent = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "run"), str(own), "owned:model", "owned:Hangs"],
        env={**os.environ, "PYTHONPATH": here},
        stderr=subprocess.DEVNULL,
    )
    numbers = read_pids(pids)
    records = tmp_path / "run" / "records.jsonl"
    while not records.read_bytes():
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(20) != 0
    assert all(gone(pid) for pid in numbers)
    assert [record.outcome for record in RunStore(tmp_path / "run").read()] == ["ok"]


def test_a_killed_zygote_costs_one_record_and_leaves_nothing(tmp_path: Path, pids: Path):
    with Worker() as worker:

        def kill() -> None:
            read_pids(pids)
            os.kill(worker.pid or 0, signal.SIGKILL)

        killer = Thread(target=kill)
        killer.start()
        records = run(
            [scenario("Escapes"), scenario()],
            RunStore.create(tmp_path / "run"),
            quietly,
            worker=worker,
        )
        killer.join()
    assert [record.outcome for record in records] == ["killed", "ok"]
    assert all(gone(pid) for pid in read_pids(pids))


@pytest.mark.parametrize(
    ("model", "optimizer"), [("owned:looks", "sgd"), ("owned:model", "Counts")]
)
def test_a_scenario_that_cannot_be_simulated_is_measured(
    tmp_path: Path, worker: Worker, model: str, optimizer: str
):
    """A model that reads its loss, and an optimizer that leaves torch, cannot be simulated."""
    scenarios = [
        replace(scenario(optimizer, device=device), model=model) for device in ("sim", "cpu")
    ]
    records = run(scenarios, RunStore.create(tmp_path / "run"), quietly, traces=True, worker=worker)
    assert [record.outcome for record in records] == ["failed", "ok"]
    assert records[1].memory is not None
    assert records[1].memory.parameters == 4 * (8 * 8 + 8)


PARENT = """
import sys
from pathlib import Path
from optprof.profiler.running.log import HEAD, TAIL
from optprof.profiler.running.recording import append
from optprof.profiler.running.runner import run
from optprof.profiler.records.store import RunStore
from optprof.scenarios import Scenario
if __name__ == "__main__":
    sys.path.append(sys.argv[2])
    scenarios = [
        Scenario(model=model, optimizer=name, implementation="loop")
        for model, name in (("owned:model", "sgd"), sys.argv[3:])
    ]
    run(scenarios, RunStore.create(Path(sys.argv[1])), lambda *_: None)
"""


@pytest.mark.parametrize(
    "arguments",
    [("owned:model", "owned:Hangs"), ("owned:model", "owned:Escapes"), ("owned:stuck", "sgd")],
)
def test_a_killed_parent_leaves_finished_records_and_no_child(
    tmp_path: Path, own: Path, pids: Path, arguments: tuple[str, str]
):
    here = str(Path(__file__).resolve().parent.parent.parent / "src")
    parent = subprocess.Popen(
        [sys.executable, "-c", PARENT, str(tmp_path / "run"), str(own), *arguments],
        env={**os.environ, "PYTHONPATH": here},
    )
    numbers = read_pids(pids)
    parent.kill()
    parent.wait()
    assert all(gone(pid) for pid in numbers)
    store = RunStore.resume(tmp_path / "run")
    assert [record.outcome for record in store.read()] == ["ok"]


def test_a_run_on_a_full_disk_ends_with_one_error_and_keeps_its_records(tmp_path: Path):
    """A limit on the size of files stands for a full disk: the second record does not fit."""
    code = """
import resource, signal, sys
from pathlib import Path
from optprof.profiler.records.record import Environment, Record
from optprof.profiler.records.store import RunStore
from optprof.scenarios import Scenario
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
record = Record(
    scenario=Scenario(model="gpt2"),
    origin="simulated",
    error="x" * 3000,
    environment=Environment(),
)
store = RunStore.create(Path(sys.argv[1]))
store.append(record)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    store.append(record)
except OSError as error:
    print(error)
"""
    here = str(Path(__file__).resolve().parent.parent.parent / "src")
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "run")],
        env={**os.environ, "PYTHONPATH": here},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout == f"[Errno 27] File too large: '{tmp_path / 'run' / 'records.jsonl'}'\n"
    store = RunStore(tmp_path / "run")
    assert (len(store.read()), store.damage) == (1, ())


@contextmanager
def small_disk(folder: Path, kib: int) -> Iterator[Path]:
    folder.mkdir()
    size = f"size={kib}k"
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", size, "tmpfs", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_flood_of_output_leaves_space_for_the_record(tmp_path: Path, worker: Worker):
    with (
        small_disk(tmp_path / "disk", 2048) as disk,
        closing(RunStore.create(disk / "run")) as store,
    ):
        with pytest.raises(OSError, match="; its record is kept"):
            run([scenario("Floods"), scenario()], store, quietly, worker=worker)
        (record,) = store.read()
    assert (record.outcome, record.log) == ("ok", None)
    assert record.lost == ("logs/001.log: No space left on device",)


def test_the_beginning_and_the_end_of_a_flood_of_output_are_kept(tmp_path: Path, worker: Worker):
    store = RunStore.create(tmp_path / "run")
    (record,) = run([scenario("Floods")], store, quietly, worker=worker)
    log = (store.folder / str(record.log)).read_bytes()
    assert log.startswith(b"first wordsxxx")
    assert log.endswith(b"xxxlast words")
    # Four steps, two of them for the estimate, of 32 MiB and 21 letters each.
    left_out = 4 * ((32 << 20) + 21) - HEAD - TAIL
    assert log.count(b"\n[optprof: %d bytes are left out here]\n" % left_out) == 1
    assert len(log) < HEAD + TAIL + 100


@pytest.mark.parametrize(
    ("kib", "jobs"),
    [*((kib, 1) for kib in (64, 68, 72, 76, 80, 84, 88, 92, 96, 100, 104)), (196, 2), (240, 3)],
)
def test_a_small_disk_keeps_the_record_of_each_scenario_that_began(
    tmp_path: Path, worker: Worker, kib: int, jobs: int
):
    scenarios, begun = [scenario("Talks", seed=seed) for seed in range(40)], list[int]()

    def started(_place: int, scenario: Scenario) -> None:
        begun.append(scenario.seed)

    with (
        small_disk(tmp_path / "disk", kib) as disk,
        closing(RunStore.create(disk / "run")) as store,
    ):
        with pytest.raises(OSError, match="No space left on device"):
            run(scenarios, store, started, snapshots=True, jobs=jobs, worker=worker)
        records = store.read_standing()
        parts = [path for path in disk.rglob("*") if path.name.endswith(".part")]
    assert [record.scenario.seed for record in records] == sorted(begun)
    assert {record.outcome for record in records} <= {"ok"}
    assert not parts


def test_files_of_a_record_are_removed_if_it_does_not_fit(tmp_path: Path):
    """The record has 20 kB, and the disk space for half of that."""
    with (
        small_disk(tmp_path / "disk", 128) as disk,
        closing(RunStore.create(disk / "run")) as store,
    ):
        record = made(scenario(), command=("x" * 19_000,))
        name = file_name(record.scenario)
        for place, nbytes in (
            (f"timelines/{name}.json.gz", 20_000),
            (f"timelines/{name}0", 3),
            ("timelines/other", 5),
        ):
            (store.folder / place).parent.mkdir(exist_ok=True)
            (store.folder / place).write_bytes(b"x" * nbytes)
        free = os.statvfs(disk)
        (disk / "filler").write_bytes(b"x" * (free.f_bavail * free.f_frsize - 8_192))
        appended = append(store, record)
        assert appended.lost == (
            f"timelines/{name}.json.gz: removed for the record, No space left on device",
        )
        assert store.read() == [appended]
        assert {path.name for path in (store.folder / "timelines").iterdir()} == {
            f"{name}0",
            "other",
        }


@pytest.mark.parametrize("ends", [False, True])
def test_one_process_simulates_the_states_of_a_model_and_each_its_own_if_it_ends(
    tmp_path: Path, worker: Worker, monkeypatch: pytest.MonkeyPatch, *, ends: bool
):
    usual = Scenario(model="tiny", device="sim", workload="state", steps=2, gpu="a100-80")
    scenarios = [replace(usual, optimizer=name) for name in ("adamw", "sm3", "sgd-sai")]
    scenarios.append(replace(usual, model="owned:model"))
    asked: list[int] = []
    ask = worker.ask

    def counting(job: Job, *arguments: Any) -> dict[str, Any]:
        asked.append(1 + len(job.together))
        if ends and job.together:
            raise ChildEndedError(-signal.SIGKILL)
        return ask(job, *arguments)

    monkeypatch.setattr(worker, "ask", counting)
    store = RunStore.create(tmp_path / "run")
    records = run(scenarios, store, quietly, worker=worker)
    assert asked == ([3, 1, 1, 1, 1] if ends else [3, 1])
    assert [record.outcome for record in records] == ["ok"] * 4
    assert [record.scenario for record in store.read()] == scenarios
    for record in records[:3]:
        alone = simulate(record.scenario)
        assert replace(record, environment=alone.environment, place=None) == alone
    assert not list((store.folder).glob("logs/*"))


def test_a_job_is_the_same_after_the_pipe():
    scenario = Scenario(
        model="gpt2", options={"betas": (0.9, 0.999), "names": ["a\n", "b'"]}, device="cpu"
    )
    simulated = Record(scenario=scenario, origin="simulated", environment=Environment())
    job = Job(
        scenario=scenario,
        folder="run",
        simulated=simulated,
        force=True,
        path=("a'b", "c"),
        together=(replace(scenario, seed=1), replace(scenario, seed=2)),
    )
    assert job.to_line().count(b"\n") == 1
    assert Job.from_line(job.to_line()) == job


@pytest.mark.parametrize(
    ("error", "outcome"),
    [
        (MemoryError(), "out-of-memory"),
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
            "out-of-memory",
        ),
        (
            RuntimeError(
                "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory:"
                " you tried"
            ),
            "out-of-memory",
        ),
        (RuntimeError("CUDA error: out of memory"), "out-of-memory"),
        (
            RuntimeError(
                "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"
            ),
            "out-of-memory",
        ),
        (RuntimeError("CUDA error: device-side assert triggered"), "failed"),
        (SystemExit(3), "failed"),
    ],
)
def test_running_out_of_memory_is_an_outcome(error: BaseException, outcome: str):
    assert outcome_of(error) == outcome


def test_a_cpu_without_the_memory_for_a_step_is_out_of_memory():
    """torch's allocator really refuses the allocation."""
    with pytest.raises(RuntimeError) as error:
        torch.empty(1 << 50, dtype=torch.uint8)
    assert outcome_of(error.value) == "out-of-memory"


def simulated(peak: int) -> Record:
    memory = Memory(
        parameters=0,
        gradients=0,
        optimizer_state=0,
        state_by_key={},
        state_by_key_dtype={},
        peak_by_category={},
        peak_by_phase={},
        peak_allocated=peak,
    )
    return Record(
        scenario=Scenario(model="gpt2"),
        origin="simulated",
        memory=memory,
        environment=Environment(),
    )


def test_a_gpu_without_enough_free_memory_is_not_loaded(monkeypatch: pytest.MonkeyPatch):
    """Only the free memory of CUDA is fake."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (4 << 30, 8 << 30))
    scenario = Scenario(model="gpt2", device="cuda")
    require_room(scenario, simulated(4 << 30))
    require_room(scenario, None)
    require_room(Scenario(model="gpt2", device="cpu"), simulated(5 << 30))
    with pytest.raises(
        DoesNotFitError,
        match=r"needs 5.00 GiB by simulation, and 4.00 GiB of 8.00 GiB are free; --force runs it",
    ):
        require_room(scenario, simulated(5 << 30))


HERE = Environment(
    versions={"optprof": "1", "torch": "2.13", "transformers": "5"}, machine=Machine(cpu="fast")
)


def made(scenario: Scenario, outcome: Outcome = "ok", **changes: Any) -> Record:
    environment = replace(HERE, **changes)
    return Record(scenario=scenario, origin="simulated", outcome=outcome, environment=environment)


def test_resuming_skips_records_that_are_ok_with_the_same_scenario_and_environment():
    scenarios = [
        Scenario(model="gpt2", seed=seed, options={"betas": (0.9, 0.99)}) for seed in range(4)
    ]
    written = [
        made(scenarios[0]),
        made(scenarios[1], "killed"),
        made(scenarios[2], versions={**HERE.versions, "torch": "2.12"}),
    ]
    records = [Record.from_dict(record.to_dict()) for record in written]
    assert pending(scenarios, records, HERE) == scenarios[1:]


def test_a_measurement_on_another_processor_is_repeated_and_a_simulation_is_not():
    scenarios = [Scenario(model="gpt2", device="cpu"), Scenario(model="gpt2", device="sim")]
    records = [made(each, machine=Machine(cpu="slow")) for each in scenarios]
    assert pending(scenarios, records, HERE) == scenarios[:1]


def test_the_last_record_of_a_scenario_counts():
    first, other = Scenario(model="gpt2"), Scenario(model="gpt2-xl")
    records = [made(first, "failed"), made(other), made(first)]
    assert standing(records) == [records[2], records[1]]


def test_records_go_by_their_places_and_those_without_stay_where_they_are():
    seeds = [replace(made(Scenario(model="gpt2", seed=seed)), place=None) for seed in range(6)]
    places = [None, 1, 0, None, 3, 2]
    records = [replace(each, place=place) for each, place in zip(seeds, places, strict=True)]
    # The fourth has none, and stays behind the two before it.
    assert [record.scenario.seed for record in standing(records)] == [0, 2, 1, 3, 5, 4]


def test_a_cluster_s_records_count_wherever_they_were_made():
    scenarios = [Scenario(model="gpt2", device="cpu"), Scenario(model="gpt2", device="cuda")]
    records = [made(scenarios[0], machine=Machine(cpu="slow")), made(scenarios[1], "killed")]
    assert pending(scenarios, records, HERE) == scenarios
    assert pending(scenarios, records, HERE, anywhere=True) == scenarios[1:]
