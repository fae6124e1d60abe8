"""The work of a child: a job in, an answer with a record out, whatever the user's code does on the
way.
"""

import ast
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from optprof.scenarios import Scenario

from ..measuring.files import Files
from ..records.outcome import one_line, outcome_of
from ..records.record import SCHEMA, Outcome, Record
from ..records.store import RunStore
from .beside import files_beside

if TYPE_CHECKING:
    from ..simulating.simulation import Simulation

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Job:
    """The work of a child: a scenario, and the run's folder for what is kept beside the record.

    Without `folder` nothing is kept; `snapshots` and `traces` ask for more to keep. `simulated` is
    the simulation's record of a scenario that is to be measured; `force` measures it even if it
    needs more than is free. `path` is where its modules are found, as in `sys.path`.
    """

    scenario: Scenario
    folder: str | None = None
    snapshots: bool = False
    traces: bool = False
    simulated: Record | None = None
    force: bool = False
    path: tuple[str, ...] = ()

    def to_line(self) -> bytes:
        """The job as one line; a literal keeps tuples apart from lists, which JSON would not."""
        return f"{asdict(self)!r}\n".encode()

    @classmethod
    def from_line(cls, line: bytes) -> "Job":
        """The job that `to_line` wrote."""
        data = ast.literal_eval(line.decode())
        simulated = data["simulated"] and Record.from_dict({"schema": SCHEMA, **data["simulated"]})
        return cls(**{**data, "scenario": Scenario(**data["scenario"]), "simulated": simulated})


def work(job: Job) -> dict[str, Any]:
    """Return the answer to a job; what belongs beside the record is in the run's folder by then."""
    store = RunStore(Path(job.folder)) if job.folder is not None else None
    asked = {"snapshots": job.snapshots, "traces": job.traces}
    files = files_beside(store, job.scenario, **asked) if store else Files()
    record, simulation = attempt(job, files)
    if store and simulation:
        _keep(job, store, simulation, files)
    lost = tuple(f"{_below(path, store)}: {reason}" for path, reason in files.lost)
    return answer(replace(record, lost=lost))


def answer(record: Record) -> dict[str, Any]:
    """Return the answer that a record is."""
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
    """Trace the model for all simulations of this process and its forks; the record of a failure
    where it raises.
    """
    from ..simulating.simulation import trace_model_of

    def trace() -> None:
        trace_model_of(scenario)

    return _or_failure(scenario, trace)


def attempt(job: Job, files: Files) -> "tuple[Record, Simulation | None]":
    """The job's record, whatever happens, and the simulation that it was read off."""
    from ..measuring.measurement import measure
    from ..simulating.simulation import run_simulation
    from .preflight import require_room

    scenario = job.scenario

    def find() -> "tuple[Record, Simulation | None]":
        if scenario.device == "sim":
            found = run_simulation(scenario)
            return found.record, found
        if not job.force:
            require_room(scenario, job.simulated)
        return measure(scenario, job.simulated, files), None

    found = _or_failure(scenario, find)
    return (found, None) if isinstance(found, Record) else found


def _or_failure(scenario: Scenario, find: Callable[[], T]) -> T | Record:
    """Return what `find` returns, or the record of what it raises; that is printed whole."""
    try:
        return find()
    except BaseException as error:
        # Other people's models and optimizers run here: whatever they raise, SystemExit too, is
        # this scenario's result.
        _print_traceback()
        return without_result(scenario, outcome_of(error), one_line(error))


def _print_traceback() -> None:
    # A stream that the user's code has closed or put in place may raise anything.
    with suppress(Exception):
        traceback.print_exc()


def without_result(scenario: Scenario, outcome: Outcome, error: str) -> Record:
    """The record of a scenario that came to nothing; `error` is one line."""
    from ..machine.environment import environment

    return Record(
        scenario=scenario,
        origin="simulated" if scenario.device == "sim" else "measured",
        outcome=outcome,
        error=error,
        environment=environment(scenario.seed),
    )
