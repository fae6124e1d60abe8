"""Memory of tensors on the CPU during a measurement, by category.

torch.profiler reports the address of each allocation and each free, including those inside kernels.
It needs no dispatch mode, in which steps that call torch.compile(fullgraph=True) would fail. At the
end of each phase, the model and its optimizer give the category of each address.
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
from .resident import resident_watch

_MARK, _BUILD = "optprof phase ", "build"
# The time, the address and the bytes, negative for a free.
_Event = tuple[int, int, int]


class LiveTensors:
    """Watches training on the CPU: bytes of living tensors by category, and of the process.

    Build the model inside `watching` and pass it to `begin`: torch does not report the free of a
    tensor whose allocation it did not see. `warning` says why there is no memory of tensors, if the
    user's code runs a profiler, or how many bytes steps left that no optimizer refers to. If ranks
    share the work (`on_ranks`), threads of torch's collectives free a few tensors unseen.
    """

    def __init__(self, *, on_ranks: bool = False) -> None:
        self._on_ranks = on_ranks
        self.warning: str | None = None
        self._process = resident_watch()
        self._history = _TensorHistory()
        self._phases: list[str] = []
        # The category at each address when each phase ends.
        self._categories: list[dict[int, str]] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch the phases inside."""
        if torch.autograd._profiler_enabled():  # pyright: ignore[reportPrivateImportUsage]
            self.warning = "a profiler was running already; memory of tensors was not watched"
            yield
            return
        # Otherwise Kineto writes to the terminal whenever it starts and stops.
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")
        with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
            yield
        results = profiler.profiler.kineto_results if profiler.profiler is not None else None
        events, ends = _read(results.experimental_event_tree()) if results is not None else ([], [])
        if len(ends) < len(self._phases):
            self.warning = (
                "a profiler inside the training took over; memory of tensors was not watched"
            )
            return
        self._history.play(events, zip(self._phases, ends, self._categories, strict=True))
        if not self._on_ranks and (unreached := self._history.unreached()):
            self.warning = (
                f"steps left {unreached:,} B that the optimizer does not refer to; they are not in"
                " its state"
            )

    def begin(
        self, model: torch.nn.Module, batch: Mapping[str, Any], optimizer: torch.optim.Optimizer
    ) -> None:
        """Count from here on, including the existing tensors of these objects."""
        self._model, self._optimizer = model, optimizer
        with self._marked(_BUILD):
            self._history.add("input", tensors_in(batch))
            for category, tensors in self._lasting():
                self._history.add(category, tensors)

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Watch the code inside."""
        with self._process.phase(name), self._marked(name):
            yield

    @contextmanager
    def _marked(self, name: str) -> Iterator[None]:
        with record_function(f"{_MARK}{len(self._phases)}"):
            self._phases.append(name)
            yield
        self._categories.append(
            {
                address: category
                for category, tensors in self._lasting()
                for address, _ in _places(tensors)
            }
        )

    def levels(self) -> dict[str, dict[str, Level]]:
        """Return by phase the bytes of living tensors, "tensors", and of the process, "resident".

        A repeated phase has its last end and its highest peak.
        """
        tensors = self._history.levels()
        return {
            phase: {**({"tensors": tensors[phase]} if phase in tensors else {}), **levels}
            for phase, levels in self._process.levels().items()
        }

    def at_peak(self) -> dict[str, int]:
        """Return the bytes by category at the peak of tensors."""
        return self._history.at_peak()

    def _lasting(self) -> Iterator[tuple[str, Iterable[torch.Tensor]]]:
        """Yield the categories of tensors that outlive an iteration, with their tensors."""
        parameters, buffers = list(self._model.parameters()), list(self._model.buffers())
        yield (
            "optimizer_state",
            [tensor for _, tensor in state_tensors(self._optimizer, [*parameters, *buffers])],
        )
        yield "gradient", [parameter.grad for parameter in parameters if parameter.grad is not None]
        yield "parameter", parameters
        yield "buffer", buffers


class _TensorHistory:
    """Allocations and frees in order, phase by phase."""

    def __init__(self) -> None:
        self._nbytes: list[int] = []
        self._categories: list[str] = []
        # The allocation at each address now.
        self._numbers: dict[int, int] = {}
        # The events of each phase: n >= 0 allocates number n, ~n frees it. The first segment has
        # the tensors from before the watch.
        self._segments: list[tuple[str, list[int]]] = [(_BUILD, [])]

    def add(self, category: str, tensors: Iterable[torch.Tensor]) -> None:
        """Count tensors that exist before the watch."""
        for address, nbytes in _places(tensors):
            if address not in self._numbers:
                self._allocate(address, nbytes, category)

    def play(
        self, events: list[_Event], phases: Iterable[tuple[str, int, Mapping[int, str]]]
    ) -> None:
        """Add the events; each phase has a name, the time of its end and categories by address."""
        rest = iter(events)
        event = next(rest, None)
        for phase, end, categories in phases:
            self._segments.append((phase, []))
            first = len(self._nbytes)
            while event is not None and event[0] <= end:
                if phase != _BUILD:
                    self._take(event, "activation" if phase == "forward" else "temporary", first)
                event = next(rest, None)
            for address, category in categories.items():
                if address in self._numbers:
                    self._categories[self._numbers[address]] = category

    def levels(self) -> dict[str, Level]:
        """Return by phase the bytes at its last end and at its highest peak."""
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
        """Return the bytes of each category when their sum is highest; empty before `play`."""
        if len(self._segments) == 1:
            return {}
        live: Counter[str] = Counter()
        highest, total, best = -1, 0, {}
        for event in (event for _, events in self._segments for event in events):
            number = event if event >= 0 else ~event
            nbytes = self._nbytes[number] if event >= 0 else -self._nbytes[number]
            live[self._categories[number]] += nbytes
            total += nbytes
            if total > highest:
                highest, best = total, dict(live)
        return {category: count for category, count in best.items() if count}

    def unreached(self) -> int:
        """Return the bytes that steps left without a category, as in a global table."""
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
        # An address that is allocated again was freed without an event.
        number = self._numbers.pop(address, None)
        if number is not None:
            self._segments[-1][1].append(~number)
            if number >= first and self._categories[number] == "activation":
                # Activations are kept for the backward pass; this one was freed in its own phase.
                self._categories[number] = "temporary"
        if nbytes > 0:
            self._allocate(address, nbytes, category)

    def _allocate(self, address: int, nbytes: int, category: str) -> None:
        number = self._numbers[address] = len(self._nbytes)
        self._nbytes.append(nbytes)
        self._categories.append(category)
        self._segments[-1][1].append(number)


def _places(tensors: Iterable[torch.Tensor]) -> Iterator[tuple[int, int]]:
    """Yield the address and the bytes of each storage that is not empty."""
    for tensor in tensors:
        for plain in plain_tensors(tensor):
            if torch._C._has_storage(plain) and (nbytes := plain.untyped_storage().nbytes()):
                yield plain.untyped_storage().data_ptr(), nbytes


def _read(tree: list[Any]) -> tuple[list[_Event], list[int]]:
    """Return the memory events of a profile and the ends of its phases, both in order."""
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
