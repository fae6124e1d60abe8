"""Events of a torch.profiler trace in order: the caller of each operator, the phase at each time.

Times are those of the trace, in microseconds.
"""

import re
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import Any

from optprof.profiler.records.traces import HOST_CALLS, Event

OTHER = "other"
# A range of the profiler or of the user, and the phase that it is.
_PHASE_NAMES = (
    (re.compile(r"enumerate\(DataLoader\)"), "data"),
    (re.compile(r"forward$"), "forward"),
    (re.compile(r"backward$"), "backward"),
    (re.compile(r"Optimizer\.step#"), "step"),
    (re.compile(r"zero_grad$|Optimizer\.zero_grad#"), "zero_grad"),
)
_ITERATION = re.compile(r"ProfilerStep#\d+")
_AUTOGRAD = "autograd::engine::evaluate_function"


class Calls:
    """Operators and launches of the host, each below the operator that called it.

    An operator that only calls itself, as for another dispatch key, is one call, as in torch's own
    tables: `kept` has the number of the outer call of each.
    """

    def __init__(self, host: Sequence[Event]) -> None:
        self.operators = [each for each in host if each.cat == "cpu_op"]
        self.parents: list[int | None] = []
        self.inner = [0.0] * len(self.operators)
        self._launches: dict[Any, tuple[Event, int | None]] = {}
        stacks: defaultdict[Any, list[int]] = defaultdict(list)
        for event in host:
            stack = stacks[event.pid, event.tid]
            while stack and self.operators[stack[-1]].end <= event.ts:
                stack.pop()
            parent = stack[-1] if stack else None
            if event.cat == "cpu_op":
                if parent is not None:
                    self.inner[parent] += event.dur
                stack.append(len(self.parents))
                self.parents.append(parent)
            elif event.cat in HOST_CALLS and event.details.correlation is not None:
                self._launches.setdefault(_key(event), (event, parent))
        self.kept = list(range(len(self.operators)))
        self._join()

    def _join(self) -> None:
        children = Counter(parent for parent in self.parents if parent is not None)
        for number, parent in enumerate(self.parents):
            if parent is None:
                continue
            parent = self.parents[number] = self.kept[parent]
            is_same = self.operators[number].name == self.operators[parent].name
            if is_same and children[parent] == 1:
                self.kept[number] = parent
                self.inner[parent] = self.inner[number]
                children[parent] = children[number]

    def launch_of(self, work: Event) -> tuple[float, int | None]:
        """Return the time of the launch of a kernel, and the operator that made it.

        A kernel without a recorded launch counts as launched when it began.
        """
        launch, operator = self._launches.get(_key(work), (work, None))
        return launch.ts, None if operator is None else self.kept[operator]

    def above(self, operator: int | None) -> Iterable[int]:
        """Yield an operator and all that called it."""
        while operator is not None:
            yield operator
            operator = self.parents[operator]


def _key(event: Event) -> str:
    return str(event.details.correlation)


class Phases:
    """The phase at each time: of nested ranges, the one that began last."""

    def __init__(self, ranges: Iterable[tuple[float, float, str]]) -> None:
        ranges = sorted(ranges, key=lambda each: (each[0], -each[1]))
        edges = sorted({edge for start, end, _ in ranges for edge in (start, end)})
        self._starts: list[float] = []
        self._phases: list[str] = []
        stack: list[tuple[float, str]] = []
        waiting = iter([*ranges, None])
        following = next(waiting)
        for edge in edges:
            while following is not None and following[0] <= edge:
                stack.append((following[1], following[2]))
                following = next(waiting)
            stack = [each for each in stack if each[0] > edge]
            self._starts.append(edge)
            self._phases.append(stack[-1][1] if stack else OTHER)

    def at(self, time: float) -> str:
        """Return the phase at a time."""
        place = bisect_right(self._starts, time) - 1
        return self._phases[place] if place >= 0 else OTHER

    def within(self, start: float, end: float) -> dict[str, float]:
        """Return the time of each phase between two times."""
        times: defaultdict[str, float] = defaultdict(float)
        first = bisect_right(self._starts, start)
        last = bisect_right(self._starts, end)
        for low, high in pairwise((start, *self._starts[first:last], end)):
            times[self.at(low)] += high - low
        return {phase: time for phase, time in times.items() if time > 0}


def windows_of(
    events: Sequence[Event], operators: Sequence[Event]
) -> tuple[list[tuple[str, float, float]], bool]:
    """Return name, start and end of each iteration; of a trace without any, of the whole trace.

    The profiler's last range has no operator if the trace ends with an iteration.
    """
    starts = [each.ts for each in operators]
    steps = (
        each
        for each in events
        if _ITERATION.fullmatch(each.name)
        and bisect_right(starts, each.end) > bisect_right(starts, each.ts)
    )
    found = [(f"iteration {number}", each.ts, each.end) for number, each in enumerate(steps, 1)]
    whole = [("the trace", events[0].ts, max(each.end for each in events))]
    return found or whole, bool(found)


def phase_ranges(
    host: Sequence[Event], calls: Calls, windows: Sequence[tuple[str, float, float]]
) -> list[tuple[float, float, str]]:
    """Return start, end and name of the phases; ranges of the trace may be nested.

    Where no range is named backward, that phase is the time of autograd's functions, and forward
    the time before it in the iteration.
    """
    ranges = [
        (event.ts, event.end, phase)
        for event in host
        if event.cat == "user_annotation"
        for pattern, phase in _PHASE_NAMES
        if pattern.match(event.name)
    ]
    if any(phase == "backward" for _, _, phase in ranges):
        return ranges
    autograd = [each for each in calls.operators if each.name.startswith(_AUTOGRAD)]
    # Operators that run between two of autograd's functions belong to the next forward pass.
    inside = Phases((each.ts, each.end, "backward") for each in autograd)
    others = [
        each.ts
        for each, parent in zip(calls.operators, calls.parents, strict=True)
        if parent is None and inside.at(each.ts) == OTHER
    ]
    for _, start, end in windows:
        last: float | None = None
        for event in autograd:
            if not start <= event.ts < end:
                continue
            since = start if last is None else last
            is_forward = last is None or (
                bisect_right(others, event.ts) > bisect_right(others, last)
            )
            if event.ts > since:
                ranges.append((since, event.ts, "forward" if is_forward else "backward"))
            ranges.append((event.ts, event.end, "backward"))
            last = max(event.end, since)
    return ranges
