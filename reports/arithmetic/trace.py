"""Trace: the iterations, operators, kernels and memory of a torch.profiler trace, as numbers.

Times are in seconds. The self time of an operator is its time without the operators that it calls.
A kernel belongs to the innermost operator that launched it, and to the phase of its launch.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from optprof.profiler.records.traces import ON_DEVICE, Event, TraceFile

from ..units import NOTHING, TIMES
from .trace_events import OTHER, Calls, Phases, phase_ranges, windows_of

PHASES = ("data", "forward", "backward", "step", "zero_grad")
MICRO = 1e-6
_DEVICE_TYPES = {0: "CPU", 1: "CUDA", 6: "HIP", 12: "XPU", 13: "MPS"}
_MOST_SHAPE_BYTES = 4_000

Phased = Mapping[str, float]


@dataclass(frozen=True, kw_only=True)
class Busy:
    """The seconds of an iteration in which a device worked, by the phase of the launch."""

    device: str
    phases: Phased
    idle: float

    @property
    def seconds(self) -> float:
        """The seconds in which the device worked."""
        return sum(self.phases.values())


@dataclass(frozen=True, kw_only=True)
class Iteration:
    """The seconds of one iteration by phase, as the host saw it.

    `calls` are the operators that the phase's own code called, `launches` the kernels and copies.
    """

    name: str
    seconds: float
    phases: Phased
    calls: Mapping[str, int]
    launches: Mapping[str, int]
    busy: tuple[Busy, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Operator:
    """The calls of an operator in the whole trace.

    `calls_in_step` are those in the optimizer's step, `in_step` their self time on the host.
    `shapes` are the shapes of its most frequent call, None if they were not recorded, and
    `more_shapes` the number of others.
    """

    name: str
    calls: int
    calls_in_step: int
    host: float
    host_self: float
    in_step: float
    device: float
    device_self: float
    shapes: str | None
    more_shapes: int


@dataclass(frozen=True, kw_only=True)
class Kernel:
    """The calls of a kernel or copy; occupancy and blocks are means over its time."""

    name: str
    kind: str
    calls: int
    seconds: float
    occupancy: float | None
    blocks_per_sm: float | None
    grid: str
    block: str
    operator: str


@dataclass(frozen=True, kw_only=True)
class MemoryCurve:
    """The bytes that torch's allocator of a device held, at seconds since the trace began."""

    device: str
    seconds: tuple[float, ...]
    allocated: tuple[int, ...]
    reserved: tuple[int, ...]

    @property
    def peak(self) -> int:
        """The most allocated bytes."""
        return max(self.allocated)

    @property
    def peak_at(self) -> float:
        """The seconds until the peak."""
        return self.seconds[self.allocated.index(self.peak)]


@dataclass(frozen=True, kw_only=True)
class Trace:
    """All that a report shows of a trace; `label` names it, `gpus` are the GPUs of its machine."""

    label: str
    gpus: tuple[str, ...]
    has_iterations: bool
    iterations: tuple[Iteration, ...]
    operators: tuple[Operator, ...]
    kernels: tuple[Kernel, ...]
    memory: tuple[MemoryCurve, ...]

    @property
    def seconds(self) -> float:
        """The seconds of all iterations."""
        return sum(iteration.seconds for iteration in self.iterations)

    @property
    def phases(self) -> dict[str, float]:
        """The seconds of each phase in all iterations."""
        totals: defaultdict[str, float] = defaultdict(float)
        for iteration in self.iterations:
            for phase, seconds in iteration.phases.items():
                totals[phase] += seconds
        return {phase: totals[phase] for phase in (*PHASES, OTHER) if totals[phase]}

    @property
    def has_phases(self) -> bool:
        """Return whether a phase is known; all time is other in a trace without any."""
        return set(self.phases) != {OTHER}

    def share(self, phase: str) -> float:
        """Return the share of a phase in the iterations."""
        return self.phases.get(phase, 0.0) / self.seconds if self.seconds else 0.0

    @property
    def device_seconds(self) -> float:
        """The seconds of all kernels and copies."""
        return sum(kernel.seconds for kernel in self.kernels)

    @property
    def step_on_device(self) -> float | None:
        """The share of the step's kernels in the time that devices worked, None without any."""
        busy = [each for iteration in self.iterations for each in iteration.busy]
        whole = sum(each.seconds for each in busy)
        return sum(each.phases.get("step", 0.0) for each in busy) / whole if whole else None

    def an_iteration(self, counts: str, phase: str) -> float:
        """Return the mean number of `calls` or `launches` of a phase in an iteration."""
        total = sum(getattr(each, counts).get(phase, 0) for each in self.iterations)
        return total / max(len(self.iterations), 1)

    @classmethod
    def of(cls, file: TraceFile, label: str) -> "Trace":
        """Return the numbers of a trace."""
        host = sorted(
            (each for each in file.events if each.cat not in ON_DEVICE and each.name != "[memory]"),
            key=lambda event: (event.ts, -event.dur),
        )
        device = sorted(
            (each for each in file.events if each.cat in ON_DEVICE), key=lambda event: event.ts
        )
        calls = Calls(host)
        windows, has_iterations = windows_of(host or device, calls.operators or device)
        phases = Phases(phase_ranges(host, calls, windows))
        launched = [(each, *calls.launch_of(each)) for each in device]
        return cls(
            label=label,
            gpus=tuple(dict.fromkeys(str(each.name) for each in file.devices if each.name)),
            has_iterations=has_iterations,
            iterations=_iterations(windows, phases, calls, launched),
            operators=_operators(calls, launched, phases),
            kernels=_kernels(launched, calls),
            memory=_memory(file.events, min(each.ts for each in (*host[:1], *device[:1]))),
        )


def _iterations(
    windows: Sequence[tuple[str, float, float]],
    phases: Phases,
    calls: Calls,
    launched: Sequence[tuple[Event, float, int | None]],
) -> tuple[Iteration, ...]:
    starts = [start for _, start, _ in windows]

    def place(time: float) -> int:
        return max(bisect_right(starts, time) - 1, 0)

    own = [Counter[str]() for _ in windows]
    launches = [Counter[str]() for _ in windows]
    on = [defaultdict[str, list[tuple[Event, float]]](list) for _ in windows]
    for each, parent in zip(calls.operators, calls.parents, strict=True):
        if parent is None and each.ts < windows[place(each.ts)][2]:
            own[place(each.ts)][phases.at(each.ts)] += 1
    for work, at, _ in launched:
        if at < windows[place(at)][2]:
            launches[place(at)][phases.at(at)] += 1
        for number in range(place(work.ts), place(work.end) + 1):
            on[number][_device_text(work)].append((work, at))
    return tuple(
        Iteration(
            name=name,
            seconds=(end - start) * MICRO,
            phases={phase: time * MICRO for phase, time in phases.within(start, end).items()},
            calls=own[number],
            launches=launches[number],
            busy=tuple(
                _busy(device, works, phases, start, end) for device, works in on[number].items()
            ),
        )
        for number, (name, start, end) in enumerate(windows)
    )


def _busy(
    device: str, works: Sequence[tuple[Event, float]], phases: Phases, start: float, end: float
) -> Busy:
    """Return the time in which a kernel or copy ran, once if several streams ran some."""
    times: defaultdict[str, float] = defaultdict(float)
    done = start
    for work, at in works:
        last = min(work.end, end)
        if last > done:
            times[phases.at(at)] += last - max(work.ts, done)
            done = last
    seconds = {phase: time * MICRO for phase, time in times.items()}
    return Busy(
        device=device, phases=seconds, idle=max((end - start) * MICRO - sum(seconds.values()), 0.0)
    )


def _operators(
    calls: Calls, launched: Iterable[tuple[Event, float, int | None]], phases: Phases
) -> tuple[Operator, ...]:
    """Return the operators of the whole trace, those with the most self time first."""
    on_device: defaultdict[str, float] = defaultdict(float)
    below: defaultdict[str, float] = defaultdict(float)
    for work, _, operator in launched:
        for place, above in enumerate(calls.above(operator)):
            name = calls.operators[above].name
            below[name] += work.dur
            on_device[name] += 0 if place else work.dur
    count: Counter[str] = Counter()
    count_in_step: Counter[str] = Counter()
    whole: defaultdict[str, float] = defaultdict(float)
    own: defaultdict[str, float] = defaultdict(float)
    in_step: defaultdict[str, float] = defaultdict(float)
    shapes: defaultdict[str, Counter[bytes]] = defaultdict(Counter)
    for number, (event, inner) in enumerate(zip(calls.operators, calls.inner, strict=True)):
        if calls.kept[number] != number:
            continue
        count[event.name] += 1
        whole[event.name] += event.dur
        own[event.name] += max(event.dur - inner, 0.0)
        if phases.at(event.ts) == "step":
            in_step[event.name] += max(event.dur - inner, 0.0)
            count_in_step[event.name] += 1
        if event.details.shapes:
            shapes[event.name][bytes(event.details.shapes)] += 1
    operators = (
        Operator(
            name=name,
            calls=number,
            calls_in_step=count_in_step[name],
            host=whole[name] * MICRO,
            host_self=own[name] * MICRO,
            in_step=in_step[name] * MICRO,
            device=below[name] * MICRO,
            device_self=on_device[name] * MICRO,
            shapes=_shapes_text(shapes[name].most_common(1)[0][0]) if shapes[name] else None,
            more_shapes=max(len(shapes[name]) - 1, 0),
        )
        for name, number in count.items()
    )
    return tuple(sorted(operators, key=lambda each: (-each.device_self, -each.host_self)))


def _shapes_text(shapes: bytes) -> str:
    """Return shapes of a trace in one line: [1, 256] · []."""
    text = shapes[:_MOST_SHAPE_BYTES].decode(errors="replace")
    text = " ".join(text.removeprefix("[").removesuffix("]").split())
    return re.sub(r"\](?:, |,)\[", "] · [", text).replace("[]", NOTHING)


def _kernels(
    launched: Sequence[tuple[Event, float, int | None]], calls: Calls
) -> tuple[Kernel, ...]:
    """Return the kernels and copies of the whole trace, the longest first."""
    groups: defaultdict[str, list[tuple[Event, int | None]]] = defaultdict(list)
    for work, _, operator in launched:
        groups[work.name].append((work, operator))
    kernels = (_kernel(name, group, calls) for name, group in groups.items())
    return tuple(sorted(kernels, key=lambda kernel: -kernel.seconds))


def _kernel(name: str, works: Sequence[tuple[Event, int | None]], calls: Calls) -> Kernel:
    sizes = Counter((_size(work.details.grid), _size(work.details.block)) for work, _ in works)
    callers = Counter(calls.operators[each].name for _, each in works if each is not None)
    grid, block = sizes.most_common(1)[0][0]
    return Kernel(
        name=name,
        kind="kernel" if works[0][0].cat == "kernel" else "copy",
        calls=len(works),
        seconds=sum(work.dur for work, _ in works) * MICRO,
        occupancy=_mean([(work.details.occupancy, work.dur) for work, _ in works]),
        blocks_per_sm=_mean([(work.details.blocks_per_sm, work.dur) for work, _ in works]),
        grid=grid,
        block=block,
        operator=callers.most_common(1)[0][0] if callers else "",
    )


def _size(value: Any) -> str:
    """Return the size of a grid or block; empty if it was not recorded."""
    if not isinstance(value, list) or not all(isinstance(each, int) for each in value):
        return ""
    return f" {TIMES} ".join(f"{each:,}" for each in value[:3])


def _mean(pairs: Iterable[tuple[Any, float]]) -> float | None:
    """Return the mean of the numbers among the values, each weighted by its time."""
    known = [(value, time) for value, time in pairs if isinstance(value, int | float)]
    total = sum(time for _, time in known)
    return sum(value * time for value, time in known) / total if total else None


def _device_text(work: Event) -> str:
    device = work.details.device
    return f"GPU {device if isinstance(device, int) else work.pid}"


def _memory(events: Iterable[Event], start: float) -> tuple[MemoryCurve, ...]:
    curves: defaultdict[str, list[tuple[float, int, int]]] = defaultdict(list)
    for event in events:
        found = event.details
        if event.name == "[memory]" and isinstance(found.allocated, int):
            number = found.device_type
            known = _DEVICE_TYPES.get(number) if isinstance(number, int) else None
            kind = known or f"device type {number}"
            name = kind if found.device_type == 0 else f"{kind} {found.device_id}"
            reserved = found.reserved if isinstance(found.reserved, int) else 0
            curves[name].append(((event.ts - start) * MICRO, found.allocated, reserved))
    return tuple(
        MemoryCurve(
            device=name, **dict(zip(("seconds", "allocated", "reserved"), columns, strict=True))
        )
        for name, moments in curves.items()
        for columns in [tuple(zip(*sorted(moments), strict=True))]
    )
