"""A snapshot of torch.cuda.memory as data: each GPU's events, and its segments at their end.

https://pytorch.org/docs/stable/torch_cuda_memory.html describes the form that torch writes.
"""

from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from ..allocator.blocks import Lane

# The events that a replay needs. Torch's other actions change no memory; they are counted.
ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
)
NO_STACK = 0


class Frame(NamedTuple):
    """A place in the code."""

    file: str
    line: int
    name: str


class Event(NamedTuple):
    """An event: `address` is 0 for out-of-memory, `size` are the bytes that torch recorded.

    That is the request for `alloc` and both frees, the mapped or reserved memory for segments, and
    the rounded request for `oom`, where `free` are the bytes that the device still had. `time` is
    in microseconds since 1970, 0 if unknown; `stack` is a number in `Snapshot.stacks`.
    """

    action: str
    address: int
    size: int
    lane: Lane
    time: int
    stack: int
    free: int = 0


@dataclass(kw_only=True)
class Events:
    """The events of one device in their order, in columns: 33 bytes for each of them.

    `action` holds places in ACTIONS, `lane` places in `lanes`.
    """

    action: array = field(default_factory=lambda: array("B"))
    address: array = field(default_factory=lambda: array("Q"))
    size: array = field(default_factory=lambda: array("q"))
    lane: array = field(default_factory=lambda: array("I"))
    time: array = field(default_factory=lambda: array("q"))
    stack: array = field(default_factory=lambda: array("I"))
    free: dict[int, int] = field(default_factory=dict)
    lanes: list[Lane] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.action)

    def __getitem__(self, place: int) -> Event:
        return self._event(place, *(column[place] for column in self._columns()))

    def __iter__(self) -> Iterator[Event]:
        return map(self._event, range(len(self)), *self._columns())

    def __reversed__(self) -> Iterator[Event]:
        columns = map(reversed, self._columns())
        return map(self._event, range(len(self) - 1, -1, -1), *columns)

    def _columns(self) -> tuple[array, ...]:
        return self.action, self.address, self.size, self.lane, self.time, self.stack

    def _event(
        self, place: int, action: int, address: int, size: int, lane: int, time: int, stack: int
    ) -> Event:
        free = self.free.get(place, 0)
        return Event(ACTIONS[action], address, size, self.lanes[lane], time, stack, free)

    def append(self, event: Event) -> None:
        """Add an event; ValueError for an unknown action."""
        if event.free:
            self.free[len(self)] = event.free
        if event.lane not in self.lanes:
            self.lanes.append(event.lane)
        self.action.append(ACTIONS.index(event.action))
        self.address.append(event.address)
        self.size.append(event.size)
        self.lane.append(self.lanes.index(event.lane))
        self.time.append(event.time)
        self.stack.append(event.stack)


class ShownBlock(NamedTuple):
    """A block of a segment at the end; `requested` are the bytes of its last request.

    `state` is torch's: active_allocated, active_awaiting_free (or active_pending_free), inactive.
    """

    address: int
    size: int
    requested: int
    state: str
    stack: int


class ShownSegment(NamedTuple):
    """A segment at the end, or a mapped run of an expandable one, with its blocks by address."""

    address: int
    size: int
    lane: Lane
    small: bool
    expandable: bool
    blocks: tuple[ShownBlock, ...]


@dataclass(frozen=True, kw_only=True)
class Device:
    """The events and segments of one GPU."""

    index: int
    events: Events
    segments: Sequence[ShownSegment]


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """A snapshot: its devices that hold anything, and the settings that it ran under.

    `conf` is the text of PYTORCH_CUDA_ALLOC_CONF, empty if there is none. `stacks` has every
    different stack once, innermost frame first; number 0 is the empty one. `passed_over` counts the
    events of actions that change no memory, or that are not known.
    """

    devices: Sequence[Device]
    stacks: Sequence[tuple[Frame, ...]]
    conf: str = ""
    passed_over: Mapping[str, int] = field(default_factory=dict)
