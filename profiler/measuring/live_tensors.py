"""Memory of tensors on the CPU while training really runs, by what it is for.

torch.profiler tells each allocation and each free with its address, also those that kernels make
for themselves. It needs no dispatch mode, under which steps that call torch.compile(fullgraph=True)
would fail. What lies at an address is known at the end of each phase, from the model and its
optimizer.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from ..records.record import Level
from ..training.reachable import plain_tensors, tensors_in
from ..training.state import state_tensors
from .resident_watch import ResidentWatch

_MARK, _BUILD = "optprof phase ", "build"
# The time, the address, and the bytes; negative for a free.
_Event = tuple[int, int, int]


class LiveTensors:
    """Watches training on the CPU: bytes of living tensors, by category, and of the process that
    holds them.

    What is to be trained is built inside of `watching` and told to `begin`: torch does not report
    the free of what it has not seen allocated. `warning` says why nothing is known of tensors,
    where a profiler of the user's own is at work, or what steps have left where nobody finds it.
    """

    def __init__(self) -> None:
        self.warning: str | None = None
        self._process = ResidentWatch()
        self._history = _History()
        self._phases: list[str] = []
        # What lies at which address when each phase ends.
        self._named: list[dict[int, str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the phases that come inside."""
        if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
            self.warning = "a profiler was at work already; memory of tensors was not watched"
            yield
            return
        # Without it, Kineto writes to the terminal whenever it starts and stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield
        results = profiler.profiler.kineto_results if profiler.profiler is not None else None
        events, ends = _read(results.experimental_event_tree()) if results is not None else ([], [])
        if len(ends) < len(self._phases):
            self.warning = (
                "a profiler inside of the training took over; memory of tensors was not watched"
            )
            return
        self._history.play(events, zip(self._phases, ends, self._named, strict=True))
        if unreached := self._history.unreached():
            self.warning = (
                f"steps have left {unreached:,} B where the optimizer does not reach; they are not"
                " in its state"
            )

    def begin(
        self, model: torch.nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer
    ) -> None:
        """Count from here on, and what there is of these already."""
        self._model, self._optimizer = model, optimizer
        with self._marked(_BUILD):
            self._history.hold("input", tensors_in(batch))
            for category, tensors in self._lasting():
                self._history.hold(category, tensors)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch what runs inside."""
        with self._process.phase(name), self._marked(name):
            yield

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        with record_function(f"{_MARK}{len(self._phases)}"):
            self._phases.append(name)
            yield
        self._named.append(
            {
                address: category
                for category, tensors in self._lasting()
                for address, _ in _places(tensors)
            }
        )

    def levels(self) -> dict[str, dict[str, Level]]:
        """By phase, bytes of living tensors ("tensors") and of the process ("resident"); the last
        time counts for the ends.
        """
        tensors = self._history.levels()
        return {
            phase: {**({"tensors": tensors[phase]} if phase in tensors else {}), **levels}
            for phase, levels in self._process.levels().items()
        }

    def at_peak(self) -> dict[str, int]:
        """What the tensors are for at their highest point, which the bytes sum to."""
        return self._history.at_peak()

    def _lasting(self) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
        """Yield what training keeps, by category."""
        parameters, buffers = list(self._model.parameters()), list(self._model.buffers())
        yield (
            "optimizer_state",
            [tensor for _, tensor in state_tensors(self._optimizer, [*parameters, *buffers])],
        )
        yield "gradient", [parameter.grad for parameter in parameters if parameter.grad is not None]
        yield "parameter", parameters
        yield "buffer", buffers


class _History:
    """Allocations and frees in the order in which they came, each phase's by itself."""

    def __init__(self) -> None:
        self._nbytes: list[int] = []
        self._categories: list[str] = []
        # The allocation that is at an address now.
        self._numbers: dict[int, int] = {}
        # Of each phase the events: n >= 0 allocates number n, ~n frees it. Before the first stands
        # what was there.
        self._segments: list[tuple[str, list[int]]] = [(_BUILD, [])]

    def hold(self, category: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that are there before anything is watched."""
        for address, nbytes in _places(tensors):
            if address not in self._numbers:
                self._allocate(address, nbytes, category)

    def play(
        self, events: list[_Event], phases: Iterable[tuple[str, int, Mapping[int, str]]]
    ) -> None:
        """Take what happened: the events, and of each phase its name, the time of its end and what
        lay where.
        """
        rest = iter(events)
        event = next(rest, None)
        for phase, end, named in phases:
            self._segments.append((phase, []))
            first = len(self._nbytes)
            while event is not None and event[0] <= end:
                if phase != _BUILD:
                    self._take(event, "activation" if phase == "forward" else "temporary", first)
                event = next(rest, None)
            for address, category in named.items():
                if address in self._numbers:
                    self._categories[self._numbers[address]] = category

    def levels(self) -> dict[str, Level]:
        """By phase, the bytes at the end of its last time and the most of all its times."""
        levels: dict[str, Level] = {}
        total = 0
        for phase, events in self._segments:
            totals = [total]
            for event in events:
                total += self._nbytes[event] if event >= 0 else -self._nbytes[~event]
                totals.append(total)
            peak = max([*totals, levels[phase].peak if phase in levels else 0])
            levels[phase] = Level(end=total, peak=peak)
        return levels

    def at_peak(self) -> dict[str, int]:
        """The bytes of each category where their sum is highest; none where nothing was played."""
        if len(self._segments) == 1:
            return {}
        held: Counter[str] = Counter()
        highest, total, best = -1, 0, {}
        for event in (event for _, events in self._segments for event in events):
            number = event if event >= 0 else ~event
            nbytes = self._nbytes[number] if event >= 0 else -self._nbytes[number]
            held[self._categories[number]] += nbytes
            total += nbytes
            if total > highest:
                highest, best = total, dict(held)
        return {category: count for category, count in best.items() if count}

    def unreached(self) -> int:
        """The bytes that steps have left and nothing has a name for, as in a global table."""
        made = {
            event
            for phase, events in self._segments
            if phase == "step"
            for event in events
            if event >= 0
        }
        return sum(
            self._nbytes[number]
            for number in made & {*self._numbers.values()}
            if self._categories[number] == "temporary"
        )

    def _take(self, event: _Event, category: str, first: int) -> None:
        _, address, nbytes = event
        # An address that is given away again was freed where the profiler does not look.
        number = self._numbers.pop(address, None)
        if number is not None:
            self._segments[-1][1].append(~number)
            if number >= first and self._categories[number] == "activation":
                # An activation is kept for the backward pass.
                self._categories[number] = "temporary"
        if nbytes > 0:
            self._allocate(address, nbytes, category)

    def _allocate(self, address: int, nbytes: int, category: str) -> None:
        number = self._numbers[address] = len(self._nbytes)
        self._nbytes.append(nbytes)
        self._categories.append(category)
        self._segments[-1][1].append(number)


def _places(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the address and the bytes of each storage that has some."""
    for tensor in tensors:
        for plain in plain_tensors(tensor):
            if torch._C._has_storage(plain) and (nbytes := plain.untyped_storage().nbytes()):
                yield plain.untyped_storage().data_ptr(), nbytes


def _read(tree: list[Any]) -> tuple[list[_Event], list[int]]:
    """The memory events of a profile, and the ends of its phases, each in order."""
    events: list[_Event] = []
    ends: dict[int, int] = {}
    stack = tree[::-1]
    while stack:
        node = stack.pop()
        if node.name == "[memory]":
            fields = node.extra_fields
            if fields.device.type == "cpu":
                events.append((node.start_time_ns, fields.ptr, fields.alloc_size))
        elif node.name.startswith(_MARK):
            ends[int(node.name.removeprefix(_MARK))] = node.end_time_ns
        stack += node.children[::-1]
    # Equal times keep the order of the tree.
    return sorted(events, key=lambda event: event[0]), [ends[number] for number in sorted(ends)]
