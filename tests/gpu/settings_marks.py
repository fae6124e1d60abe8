"""Settings: reserved bytes predicted from a recording, against reruns under other settings.

The requests of a run under torch's default settings are replayed as `optprof snapshot --try` does.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import combinations

from optprof.profiler.allocator import AllocatorSettings, Lane
from optprof.profiler.snapshots.replay import BY_ADDRESS, BY_AGE
from optprof.profiler.snapshots.snapshot import Device, Event, Events
from optprof.profiler.snapshots.start import Memory
from optprof.profiler.snapshots.trying import attempt
from plan import RERUN, SETTINGS, rerun_name
from recording import Recording

# The prediction's largest error. Runs that differ by less have no order to predict.
TOLERANCE = 0.01


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """Reserved bytes at the peak of one run under one setting."""

    name: str
    conf: str
    predicted: int
    measured: int

    @property
    def off(self) -> float:
        """Return the error of the prediction as a share."""
        return self.predicted / self.measured - 1


def reruns(recordings: Mapping[str, Recording]) -> Iterator[Rerun]:
    """Yield the runs that were recorded under the default settings and under others."""
    for name in RERUN:
        base = recordings.get(name)
        for conf in SETTINGS if base is not None else ():
            other = recordings.get(rerun_name(name, conf))
            if base is not None and other is not None and not other.ran_out:
                yield Rerun(
                    name=name,
                    conf=conf,
                    predicted=predicted(base, conf),
                    measured=_peak(other),
                )


def predicted(recording: Recording, conf: str) -> int:
    """Return the reserved bytes at the peak of a recording's requests under a setting."""
    version = tuple(int(part) for part in recording.torch.split(".")[:2])
    replay = attempt(
        Memory({}, {}),
        AllocatorSettings.parse(conf),
        (),
        total=None,
        order=BY_AGE if version >= (2, 13) else BY_ADDRESS,
    )
    deque(replay.run(_device(recording)), maxlen=0)
    return replay.requests.allocator.peak_reserved_bytes


def _device(recording: Recording) -> Device:
    events = Events()
    for phase in recording.phases:
        for action, address, size, stream in phase.entries():
            events.append(Event(action, address, size, Lane(stream), 0, 0))
    return Device(index=0, events=events, segments=())


def _peak(recording: Recording) -> int:
    return recording.phases[-1].statistics["reserved_bytes.all.peak"]


def lines(recordings: Mapping[str, Recording]) -> tuple[list[str], bool]:
    """Return a table of the reruns and their targets, and whether all are met."""
    rows = list(reruns(recordings))
    text = ["| run | settings | predicted | measured | off |", "|---|---|---|---|---|"]
    text += [
        f"| {row.name} | {row.conf} | {row.predicted:,} | {row.measured:,} | {row.off:+.2%} |"
        for row in rows
    ]
    near = sum(abs(row.off) <= TOLERANCE for row in rows)
    wrong = sum(_swapped(one, other) for one, other in combinations(rows, 2))
    text += [
        "",
        f"- {near} of {len(rows)} predictions within {TOLERANCE:.0%}",
        f"- {wrong} pairs of settings in the wrong order",
    ]
    return text, near == len(rows) and not wrong


def _swapped(one: Rerun, other: Rerun) -> bool:
    """Return whether two settings of one run, which differ clearly, are predicted in turn."""
    if one.name != other.name or abs(one.measured / other.measured - 1) <= TOLERANCE:
        return False
    return (one.predicted < other.predicted) != (one.measured < other.measured)
