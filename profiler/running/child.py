"""The child's side of a run: a process that takes scenarios over a pipe and answers each with a record.

Standard input brings a `Job` a line, a dictionary as a Python literal, and standard output takes a line of JSON for each. Before anything
of the user's runs both are moved out of its way: what it prints goes to the job's log, what it reads is empty.
"""

import ast
import gc
import json
import os
import signal
import sys
import traceback
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any, BinaryIO

from scenarios import Scenario

from ..measuring.files import Files
from ..outcome import one_line, outcome_of
from ..record import SCHEMA, Outcome, Record
from ..store import RunStore
from .beside import files_beside

if TYPE_CHECKING:
    from ..simulating.simulation import Simulation


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a child is to do: a scenario, where its log goes, and the run's folder for what is kept beside the record.

    Without `folder` nothing is kept; `snapshots` and `traces` ask for more to keep. `simulated` is what the simulation has said of a
    scenario that is to be measured; `force` measures it even if it needs more than is free.
    """

    scenario: Scenario
    log: str
    folder: str | None = None
    snapshots: bool = False
    traces: bool = False
    simulated: Record | None = None
    force: bool = False

    def to_line(self) -> bytes:
        """The job as one line; a literal keeps tuples apart from lists, which JSON would not."""
        return f"{asdict(self)!r}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Job":
        """The job that `to_line` wrote."""
        data = ast.literal_eval(line.decode())
        simulated = data["simulated"] and Record.from_dict({"schema": SCHEMA, **data["simulated"]})
        return cls(**{**data, "scenario": Scenario(**data["scenario"]), "simulated": simulated})


def main() -> None:
    """Load torch, say so, and answer jobs until the parent closes the pipe or is gone."""
    jobs, answers = _own_pipes()
    waiting: SimpleQueue[bytes] = SimpleQueue()
    Thread(target=_listen, args=(jobs, waiting), daemon=True).start()
    # What takes seconds to load is loaded before the first job comes; torch._dynamo is what the first optimizer would load.
    # None of it becomes garbage, and to look for some again and again takes a tenth of the time.
    gc.disable()
    for module in ("torch", "torch._dynamo", "profiler.measuring.measurement", "profiler.simulating.simulation"):
        import_module(module)
    gc.freeze()
    gc.enable()
    _answer(answers, {"ready": os.getpid()})
    here = Path.cwd()
    while True:
        job = Job.from_line(waiting.get())
        # The last scenario may have gone elsewhere.
        os.chdir(here)
        _print_to(job.log)
        _answer(answers, _work(job))


def _own_pipes() -> tuple[BinaryIO, BinaryIO]:
    """Standard input and output under numbers that no user's code knows; in their place nothing, and standard error.

    A line printed is a line kept, in its place among what other languages print, however the process ends.
    """
    jobs, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)  # pyright: ignore[reportAttributeAccessIssue]
    return jobs, answers


def _listen(jobs: BinaryIO, waiting: SimpleQueue[bytes]) -> None:
    for line in jobs:
        waiting.put(line)
    # The parent is done or dead, and nobody waits for what is under way; workers that the user's code has started end as well.
    os.killpg(0, signal.SIGKILL)


def _print_to(log: str) -> None:
    _flush()
    Path(log).parent.mkdir(exist_ok=True)
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)


def _flush() -> None:
    """See what was printed into the log; a disk that has no room for it costs nothing else."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()


def _answer(answers: BinaryIO, data: dict[str, Any]) -> None:
    _flush()
    answers.write(json.dumps(data, allow_nan=False).encode() + b"\n")
    answers.flush()


def _work(job: Job) -> dict[str, Any]:
    store = RunStore(Path(job.folder)) if job.folder is not None else None
    files = files_beside(store, job.scenario, snapshots=job.snapshots, traces=job.traces) if store else Files()
    record, simulation = attempt(job, files)
    if store and simulation:
        with files.writing(store.timelines_path):
            _keep(job, store, simulation)
    lost = [[error.errno, error.strerror, error.filename] for error in files.errors]
    return {"record": record.to_dict(), "lost": lost}


def _keep(job: Job, store: RunStore, simulation: "Simulation") -> None:
    from ..simulating.snapshot import write_snapshot

    if simulation.timeline is not None:
        store.write_timeline(job.scenario, simulation.timeline)
        if job.snapshots:
            write_snapshot(store.snapshot_path(job.scenario), job.scenario, simulation.segments, simulation.allocations)


def attempt(job: Job, files: Files) -> "tuple[Record, Simulation | None]":
    """The job's record, whatever happens, and the simulation that it was read off; what went wrong is printed whole."""
    from ..measuring.measurement import measure
    from ..simulating.simulation import run_simulation
    from .preflight import require_room

    scenario = job.scenario
    try:
        if scenario.device == "sim":
            found = run_simulation(scenario)
            return found.record, found
        if not job.force:
            require_room(scenario, job.simulated)
        return measure(scenario, job.simulated, files), None
    except BaseException as error:
        # Other people's models and optimizers run here: whatever they raise, SystemExit too, is this scenario's result.
        with suppress(OSError):
            traceback.print_exc()
        return without_result(scenario, outcome_of(error), one_line(error)), None


def without_result(scenario: Scenario, outcome: Outcome, error: str, log: str | None = None) -> Record:
    """The record of a scenario that came to nothing; `error` is one line."""
    from ..environment import environment

    return Record(
        scenario=scenario,
        origin="simulated" if scenario.device == "sim" else "measured",
        outcome=outcome,
        error=error,
        log=log,
        environment=environment(scenario.seed),
    )
