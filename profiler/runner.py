"""A run: scenario after scenario, each one's record on disk before the next begins; what fails becomes a record too."""

from collections.abc import Callable, Sequence

import torch

from scenarios import Scenario

from .environment import environment
from .measurement import measure
from .record import Outcome, Record
from .simulation import run_simulation
from .store import RunStore
from .timeline import Timeline


def run(scenarios: Sequence[Scenario], store: RunStore, started: Callable[[int, Scenario], None]) -> list[Record]:
    """The records of all scenarios, appended to `store` one by one; `started` is told the place of each scenario before it runs."""
    records = []
    for place, scenario in enumerate(scenarios):
        started(place, scenario)
        record, timeline = _attempt(scenario)
        if timeline is not None:
            store.write_timeline(scenario, timeline)
        store.append(record)
        records.append(record)
    return records


def _attempt(scenario: Scenario) -> tuple[Record, Timeline | None]:
    try:
        if scenario.device != "sim":
            return measure(scenario), None
        found = run_simulation(scenario)
        return found.record, found.timeline
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
