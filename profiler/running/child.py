"""The work of a child: a job in, an answer with a record out, whatever the user's code does."""

import ast
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optprof.scenarios import Scenario

from ..measuring.files import Files, files_for
from ..records.outcome import one_line, outcome_of
from ..records.record import SCHEMA, Outcome, Record
from ..records.store import RunStore, file_name
from .forks import flush, send
from .launching import ONE_NODE, Nodes, RankFailedError, launch_ranks

if TYPE_CHECKING:
    from ..simulating.simulation import Simulation

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work of a child: a scenario, and the run's folder for the files next to the record.

    Without `folder` no files are written; `snapshots` and `traces` request more of them. For a
    scenario to measure, `simulated` is the record of its simulation; `force` measures it even if it
    needs more than the free memory. `path` is its `sys.path`. `together` are further simulations
    for the same process, which write no files. Measured ranks run on `nodes`, and write into the
    folder `scratch` until they end.
    """

    scenario: Scenario
    folder: str | None = None
    snapshots: bool = False
    traces: bool = False
    simulated: Record | None = None
    force: bool = False
    path: tuple[str, ...] = ()
    together: tuple[Scenario, ...] = ()
    nodes: Nodes = ONE_NODE
    scratch: str | None = None

    def to_line(self) -> bytes:
        """Return the job as one line; a literal distinguishes tuples from lists, unlike JSON."""
        return f"{asdict(self)!r}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Job":
        """Return the job that `to_line` wrote."""
        data = ast.literal_eval(line.decode())
        simulated = data["simulated"] and Record.from_dict({"schema": SCHEMA, **data["simulated"]})
        scenarios = {
            "scenario": Scenario(**data["scenario"]),
            "together": tuple(Scenario(**each) for each in data["together"]),
        }
        nodes = Nodes(**data["nodes"])
        return cls(**{**data, **scenarios, "simulated": simulated, "nodes": nodes})


def prepare(job: Job) -> None:
    """Search for modules where the parent does; hide GPUs from a catalogue model's simulation."""
    sys.path[:] = job.path
    if job.scenario.device == "sim" and ":" not in job.scenario.model:
        # Autograd would start a thread for each visible GPU.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def do(job: Job, writer: int) -> None:
    """Do the job in this process and write its answer."""
    prepare(job)
    with ending_copies():
        result = work(job)
    send(writer, result)


@contextmanager
def ending_copies() -> Iterator[None]:
    """End the forks of this process that the user's code makes inside: only one may answer."""
    pid = os.getpid()
    try:
        yield
    finally:
        if os.getpid() != pid:
            flush()
            os._exit(0)


def work(job: Job) -> dict[str, Any]:
    """Return the answer to a job, after writing the files next to its record."""
    if job.together:
        jobs = [replace(job, scenario=each) for each in (job.scenario, *job.together)]
        return {"records": [attempt(each, Files())[0].to_dict() for each in jobs]}
    store = RunStore(Path(job.folder)) if job.folder is not None else None
    files = (
        files_for(store, job.scenario, snapshots=job.snapshots, traces=job.traces)
        if store
        else Files()
    )
    record, simulation = attempt(job, files)
    if store and simulation:
        _keep(job, store, simulation, files)
    lost = tuple(f"{_below(path, store)}: {reason}" for path, reason in files.lost)
    return answer(replace(record, lost=record.lost + lost))


def answer(record: Record) -> dict[str, Any]:
    """Return the answer with a record."""
    return {"record": record.to_dict()}


def _below(path: Path, store: RunStore | None) -> str:
    return (
        path.relative_to(store.folder).as_posix()
        if store and path.is_relative_to(store.folder)
        else path.name
    )


def _keep(job: Job, store: RunStore, simulation: "Simulation", files: Files) -> None:
    from ..simulating.snapshot import write_snapshot

    if simulation.timeline is None:
        return
    with files.writing(store.timelines_path):
        store.write_timeline(job.scenario, simulation.timeline)
    if job.snapshots:
        path = store.snapshot_path(job.scenario)
        with files.writing(path):
            write_snapshot(
                path, job.scenario, simulation.segments, simulation.allocations, below=store.folder
            )


def trace_ahead(scenario: Scenario) -> Record | None:
    """Trace the model for the simulations of this process and its forks; return a failure."""
    from ..simulating.simulation import trace_model_of

    def trace() -> None:
        trace_model_of(scenario)

    return _or_failure(scenario, trace)


def attempt(job: Job, files: Files) -> "tuple[Record, Simulation | None]":
    """Return the job's record, whatever happens, and the simulation behind it, if there is one."""
    from ..measuring.cuda_memory import require_room
    from ..measuring.measurement import measure
    from ..simulating.simulation import run_simulation

    scenario = job.scenario

    def run() -> "tuple[Record, Simulation | None]":
        if scenario.device == "sim":
            # What only precedes a measurement needs no estimate.
            is_result = job.folder is not None or bool(job.together)
            simulation = run_simulation(scenario, estimated=is_result)
            return simulation.record, simulation
        if scenario.parallel is not None:
            return _measure_on_ranks(job), None
        if not job.force:
            require_room(scenario, job.simulated)
        return measure(scenario, job.simulated, files), None

    result = _or_failure(scenario, run)
    return (result, None) if isinstance(result, Record) else result


def _measure_on_ranks(job: Job) -> Record:
    """Return the record of all ranks, each measured in a process of its own."""
    from ..measuring.ranks import require_room_on_host

    scenario = job.scenario
    local_ranks = scenario.ranks // job.nodes.nnodes
    if not job.force:
        require_room_on_host(scenario, job.simulated, local_ranks)
    assert job.scratch is not None
    try:
        return launch_ranks(
            _as_rank,
            job,
            name=f"optprof-{file_name(scenario)}",
            local_ranks=local_ranks,
            nodes=job.nodes,
            scratch=Path(job.scratch),
        )
    except RankFailedError as error:
        return without_result(scenario, error.outcome, str(error))


def _as_rank(job: Job) -> Record:
    """Return the record of all ranks, from the process of one of them."""
    from ..measuring.cuda_memory import require_room
    from ..measuring.measurement import measure
    from ..measuring.ranks import process_group

    scenario = job.scenario
    prepare(job)
    # The files of other ranks would have the same names.
    writes = job.folder is not None and job.nodes.is_host and os.environ["LOCAL_RANK"] == "0"
    store = RunStore(Path(job.folder)) if writes and job.folder else None
    files = (
        files_for(store, scenario, snapshots=job.snapshots, traces=job.traces) if store else Files()
    )
    with ending_copies():
        try:
            with process_group(scenario):
                if not job.force:
                    require_room(scenario, job.simulated)
                record = measure(scenario, job.simulated, files)
        except BaseException as error:
            _print_traceback()
            raise RankFailedError(outcome_of(error), one_line(error)) from error
    lost = tuple(f"{_below(path, store)}: {reason}" for path, reason in files.lost)
    return replace(record, lost=lost)


def _or_failure(scenario: Scenario, run: Callable[[], T]) -> T | Record:
    """Return the result of `run`, or the record of its exception, whose traceback is printed."""
    try:
        return run()
    except BaseException as error:
        # The user's models and optimizers run here: any exception, even SystemExit, is this
        # scenario's result.
        _print_traceback()
        return without_result(scenario, outcome_of(error), one_line(error))


def _print_traceback() -> None:
    # A stream that the user's code has closed or replaced may raise anything.
    with suppress(Exception):
        traceback.print_exc()


def without_result(scenario: Scenario, outcome: Outcome, error: str) -> Record:
    """Return the record of a scenario without a result; `error` is one line."""
    from ..machine.environment import environment

    return Record(
        scenario=scenario,
        origin="simulated" if scenario.device == "sim" else "measured",
        outcome=outcome,
        error=error,
        environment=environment(scenario.seed),
    )
