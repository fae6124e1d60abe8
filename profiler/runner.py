"""A run: scenario after scenario, each one's record on disk before the next begins; what fails becomes a record too."""

from collections.abc import Callable, Sequence

import torch

from scenarios import Scenario

from .beside import files_beside
from .environment import environment
from .measurement import Files, measure
from .record import Outcome, Record
from .simulation import Simulation, run_simulation
from .snapshot import write_snapshot
from .store import RunStore


def run(
    scenarios: Sequence[Scenario],
    store: RunStore,
    started: Callable[[int, Scenario], None],
    *,
    snapshots: bool = False,
    traces: bool = False,
) -> list[Record]:
    """The records of all scenarios, appended to `store` one by one; `started` is told the place of each scenario before it runs.

    `snapshots` leaves a pickle for memory_viz beside the record of every training step that is simulated or runs on CUDA, `traces` one of
    torch.profiler's traces beside every measured one.
    """
    records = []
    for place, scenario in enumerate(scenarios):
        started(place, scenario)
        record, simulation = _attempt(scenario, files_beside(store, scenario, snapshots=snapshots, traces=traces))
        if simulation is not None and simulation.timeline is not None:
            store.write_timeline(scenario, simulation.timeline)
            if snapshots:
                write_snapshot(store.snapshot_path(scenario), scenario, simulation.segments, simulation.allocations)
        store.append(record)
        records.append(record)
    return records


def _attempt(scenario: Scenario, files: Files) -> tuple[Record, Simulation | None]:
    try:
        if scenario.device != "sim":
            return measure(scenario, files=files), None
        found = run_simulation(scenario)
        return found.record, found
    except (MemoryError, torch.OutOfMemoryError) as error:
        return _without_result(scenario, "out-of-memory", error), None
    except Exception as error:
        # Other people's models and optimizers run here: whatever they raise is this scenario's result, and the run goes on.
        return _without_result(scenario, "failed", error), None


def _without_result(scenario: Scenario, outcome: Outcome, error: Exception) -> Record:
    lines = str(error).strip().splitlines()
    return Record(
        scenario=scenario,
        origin="simulated" if scenario.device == "sim" else "measured",
        outcome=outcome,
        error=f"{type(error).__name__}: {lines[0] if lines else ''}",
        environment=environment(scenario.seed),
    )
