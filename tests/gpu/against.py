"""Compare the harness's measurements on a GPU with its simulations and estimates."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from optprof.profiler import simulate
from optprof.profiler.measuring.measurement import to_simulate
from optprof.profiler.records.record import Record

# The largest deviations of estimated steps: of the median, and of the worst.
MEDIAN_TIME, WORST_TIME = 0.05, 0.10


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured scenario; a number is None if the GPU or the simulation does not have it."""

    name: str
    outcome: str
    same_state: bool | None = None
    allocated_off: float | None = None
    reserved_off: float | None = None
    seconds: float | None = None
    estimated: float | None = None
    needed_bytes: int | None = None
    moved_bytes: int | None = None
    problem: str | None = None

    @property
    def time_off(self) -> float | None:
        """Deviation of the estimate as a share of the measured median."""
        if self.seconds is None or self.estimated is None:
            return None
        return self.estimated / self.seconds - 1

    def share(self, copy_bandwidth: float | None, *, moved: bool = False) -> float | None:
        """Return the step's bytes per second as a share of the copy bandwidth.

        Needed bytes are those that any step with these results moves; moved ones, those of its
        kernels.
        """
        nbytes = self.moved_bytes if moved else self.needed_bytes
        if nbytes is None or not self.seconds or not copy_bandwidth:
            return None
        return nbytes / self.seconds / copy_bandwidth


def row(record: Record, gpu: str | None) -> Row:
    """Return a record's row; an exception of the simulation becomes its problem."""
    name = label(record)
    if record.memory is None:
        return Row(name=name, outcome=record.outcome, problem=record.error)
    try:
        simulated = simulate(replace(to_simulate(record.scenario), gpu=gpu))
    except Exception as error:
        problem = f"not simulated: {type(error).__name__}: {error}".splitlines()[0]
        return Row(name=name, outcome=record.outcome, problem=problem)
    ours, theirs, estimate = simulated.memory, record.memory, simulated.estimate
    assert ours is not None
    return Row(
        name=name,
        outcome=record.outcome,
        same_state=dict(ours.state_by_key) == dict(theirs.state_by_key),
        allocated_off=_off(ours.peak_allocated, theirs.peak_allocated),
        reserved_off=_off(ours.peak_reserved, theirs.peak_reserved),
        seconds=median(record.times["step"]) if record.times and "step" in record.times else None,
        # Without a GPU of the catalogue the estimate is for another one.
        estimated=estimate.seconds if estimate and gpu else None,
        needed_bytes=estimate.needed_bytes if estimate else None,
        moved_bytes=estimate.moved_bytes if estimate else None,
    )


def label(record: Record) -> str:
    """Return the scenario in few words."""
    scenario = record.scenario
    words = [
        scenario.model,
        scenario.dtype,
        scenario.optimizer,
        scenario.implementation,
        scenario.workload,
    ]
    words += ["checkpointing"] if scenario.checkpointing else []
    words += [str(scenario.sequence_length)] if scenario.sequence_length else []
    return " ".join(words)


def time_marks(rows: Sequence[Row]) -> tuple[float, float, bool] | None:
    """Return median and worst deviation of estimated times, and whether they meet the targets."""
    offs = [abs(off) for row in rows if (off := row.time_off) is not None]
    if not offs:
        return None
    middle, worst = median(offs), max(offs)
    return middle, worst, middle <= MEDIAN_TIME and worst <= WORST_TIME


def _off(simulated: int | None, measured: int | None) -> float | None:
    return simulated / measured - 1 if simulated and measured else None
