"""Comparison of a recording with the simulation of its scenario."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from recording import Recording
from replaying import DeviatesError, replay_exactly

from optprof.profiler import simulate
from optprof.scenarios import Scenario

# The most that a simulated peak may differ from a recorded one: the median of all, and the worst.
MEDIAN_OFF = {"allocated": 0.002, "reserved": 0.005}
WORST_OFF = {"allocated": 0.01, "reserved": 0.02}
# The most that a simulated peak may be too low.
MOST_LOW = 0.005


@dataclass(frozen=True, kw_only=True)
class Peak:
    """One peak in bytes, simulated and recorded."""

    name: str
    simulated: int
    recorded: int

    @property
    def off(self) -> float:
        """The deviation as a share of the recorded bytes; negative if the simulation is low."""
        return self.simulated / self.recorded - 1

    @property
    def is_met(self) -> bool:
        """True if the deviation is within the allowed limits."""
        difference = self.simulated - self.recorded
        return -MOST_LOW * self.recorded <= difference <= WORST_OFF[self.name] * self.recorded


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A recording and its simulation.

    `events` counts the events that were replayed exactly; `replay` is a line on the first one that
    differs, or None. If the GPU ran out of memory, no peaks are compared, and `same_end` is true if
    the simulation ran out too.
    """

    name: str
    events: int
    replay: str | None
    same_state: bool
    same_end: bool
    peaks: tuple[Peak, ...]

    @property
    def is_met(self) -> bool:
        """True if replay, state, end and peaks all agree."""
        exact = self.replay is None and self.same_state and self.same_end
        return exact and all(peak.is_met for peak in self.peaks)


def compare(name: str, recording: Recording) -> Comparison:
    """Replay a recording and simulate its scenario; errors of the simulation propagate."""
    try:
        events, replayed = replay_exactly(recording), None
    except (DeviatesError, ValueError) as error:
        events, replayed = 0, str(error)
    simulated = simulate(simulated_scenario(recording))
    memory = simulated.memory
    assert memory is not None
    assert memory.peak_allocated is not None
    assert memory.peak_reserved is not None
    recorded = recording.phases[-1].statistics
    peaks = (
        Peak(
            name="allocated",
            simulated=memory.peak_allocated,
            recorded=recorded["allocated_bytes.all.peak"],
        ),
        Peak(
            name="reserved",
            simulated=memory.peak_reserved,
            recorded=recorded["reserved_bytes.all.peak"],
        ),
    )
    return Comparison(
        name=name,
        events=events,
        replay=replayed,
        same_state=recording.ran_out or dict(memory.state_by_key) == dict(recording.state_bytes),
        same_end=recording.ran_out == (simulated.outcome == "out-of-memory"),
        peaks=() if recording.ran_out else peaks,
    )


def simulated_scenario(recording: Recording) -> Scenario:
    """Return the recorded scenario for the simulator."""
    scenario = dict(recording.scenario)
    if scenario.get("gpu") is None and recording.ran_out:
        raise ValueError(
            f"{recording.gpu} is not in the catalogue, so nothing can run out of its memory"
        )
    return replace(Scenario(**scenario), device="sim")


def marks(compared: Sequence[Comparison]) -> list[dict[str, Any]]:
    """Return the median, worst and lowest deviation of each peak, and whether they are met."""
    rows = []
    for name in MEDIAN_OFF:
        offs = [peak.off for one in compared for peak in one.peaks if peak.name == name]
        if not offs:
            continue
        middle, worst = median(map(abs, offs)), max(map(abs, offs))
        met = middle <= MEDIAN_OFF[name] and worst <= WORST_OFF[name] and min(offs) >= -MOST_LOW
        row = {"name": name, "count": len(offs), "median": middle, "worst": worst}
        rows.append({**row, "lowest": min(offs), "met": met})
    return rows
