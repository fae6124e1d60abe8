"""Forecast the memory and the time of scenarios by simulating them, and keep no record."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from optprof.scenarios import Scenario

from ..records.record import Record


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """A scenario, its simulation's record, and the seconds that the simulation took."""

    scenario: Scenario
    record: Record
    simulation_seconds: float

    @property
    def peak_bytes(self) -> int | None:
        """The most bytes that the allocator would reserve; None if the simulation failed."""
        return self.record.memory.peak_reserved if self.record.memory else None

    @property
    def peak_upper(self) -> int | None:
        """The upper end of the peak if it is a range."""
        return self.record.memory.peak_reserved_upper if self.record.memory else None

    @property
    def seconds(self) -> float | None:
        """The simulation's time plus the most that measuring takes; None for a training run."""
        from ..measuring.measurement import most_seconds

        measuring = 0.0 if self.scenario.device == "sim" else most_seconds(self.scenario)
        return None if measuring is None else self.simulation_seconds + measuring


def forecast(
    scenarios: Sequence[Scenario],
    simulate: Callable[[Scenario], Record],
    started: Callable[[int, Scenario], None],
) -> list[Forecast]:
    """Simulate every scenario, also those to be measured."""
    forecasts = []
    for place, scenario in enumerate(scenarios):
        started(place, scenario)
        start = time.monotonic()
        record = simulate(scenario)
        seconds = time.monotonic() - start
        forecasts.append(Forecast(scenario=scenario, record=record, simulation_seconds=seconds))
    return forecasts
