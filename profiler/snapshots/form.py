"""The form of a snapshot: its parts are checked and made small one by one, in any order.

torch/cuda/memory.py and torch/csrc/cuda/memory_snapshot.cpp write it. Every ValueError says which
part is wrong.
"""

from collections.abc import Mapping, Sequence
from operator import eq
from typing import Any

from .snapshot import (
    ACTIONS,
    NO_STACK,
    Device,
    Events,
    Frame,
    Lane,
    ShownBlock,
    ShownSegment,
    Snapshot,
)

MOST_DEVICES, MOST_LANES = 4096, 65_536
ADDRESSES, SIZES = 1 << 64, 1 << 63
USED = ("active_allocated", "active_awaiting_free", "active_pending_free")
STATES = (*USED, "inactive")
_SETTINGS = ("PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF", "PYTORCH_HIP_ALLOC_CONF")
_ACTION = {name: number for number, name in enumerate(ACTIONS)}
_OOM = _ACTION["oom"]
# The bytes of memory of a row with its number; a frame or lane; a stack, block or segment.
_ROW, _FRAME, _STACK = 80, 400, 200
AGAIN = "record the snapshot again with torch 2.1 or newer"
FEWER = "record fewer events by max_entries"


class FrameNumber(int):
    """A frame, as its number."""

    __slots__ = ()


class StackNumber(int):
    """A stack, as its number; equal stacks have one number."""

    __slots__ = ()


class RowNumber(int):
    """An event, as its row in the columns; -1 for an event that was passed over."""

    __slots__ = ()


_EMPTY, _PASSED, _USUAL = StackNumber(NO_STACK), RowNumber(-1), (0, 0)


class SnapshotMaker:
    """Collects the parts of a snapshot: events, frames, stacks and segments."""

    def __init__(self) -> None:
        self._events = Events()
        self._lanes: dict[Lane, int] = {}
        self._frames: dict[Frame, FrameNumber] = {}
        self._stacks: dict[tuple[FrameNumber, ...], StackNumber] = {(): _EMPTY}
        self._in_stacks = self._blocks = 0
        self._passed_over: dict[str, int] = {}

    @property
    def memory(self) -> int:
        """The bytes of memory that the parts take, roughly."""
        return (
            _ROW * len(self._events)
            + _FRAME * (len(self._frames) + len(self._lanes))
            + _STACK * (len(self._stacks) + self._blocks)
            + 8 * self._in_stacks
        )

    def finished(self, values: dict[str, Any]) -> Any:
        """Return a frame's or an event's number for their dicts, and any other dict itself."""
        if "action" in values and "size" in values and "stream" in values:
            return self.event(values)
        if "filename" in values and "line" in values and "name" in values:
            return self._frame(values)
        return values

    def referring(self, values: Sequence[Any]) -> StackNumber | None:
        """Return the number of a stack, None if the values are not its frames."""
        if set(map(type, values)) - {FrameNumber}:
            return None
        stack = tuple(values)
        number = self._stacks.get(stack)
        if number is None:
            number = self._stacks[stack] = StackNumber(len(self._stacks))
            self._in_stacks += len(stack)
        return number

    def event(self, values: Mapping[str, Any]) -> RowNumber:
        """Add an event, and return its row."""
        action = _ACTION.get(_text(values, "action"))
        if action is None:
            name = values["action"][:40]
            if name in self._passed_over or len(self._passed_over) < MOST_DEVICES:
                self._passed_over[name] = self._passed_over.get(name, 0) + 1
            return _PASSED
        events, oom = self._events, action == _OOM
        address = _number(values, "device_free" if oom else "addr", ADDRESSES)
        size = _number(values, "size", SIZES)
        time = _number(values, "time_us", SIZES, 0)
        frames = values.get("frames", _EMPTY)
        row = len(events.action)
        if oom:
            events.free[row], address = address, 0
        events.lane.append(self._lane(values.get("stream", 0), values.get("pool_id", _USUAL)))
        events.action.append(action)
        events.address.append(address)
        events.size.append(size)
        events.time.append(time)
        events.stack.append(frames if type(frames) is StackNumber else self.stack(frames))
        return RowNumber(row)

    def _lane(self, stream: Any, pool: Any) -> int:
        """Return the place of a stream and a pool in the lanes."""
        lane = _lane(stream, pool)
        number = self._lanes.get(lane)
        if number is None:
            if len(self._lanes) == MOST_LANES:
                raise ValueError(f"it has more than {MOST_LANES} pairs of a stream and a pool")
            number = self._lanes[lane] = len(self._lanes)
        return number

    def segment(self, values: Any) -> tuple[int, ShownSegment]:
        """Return the index of a segment's device, and the segment."""
        if type(values) is not dict:
            raise ValueError(f"a segment is {_shown(values)}, expected was a dict; {AGAIN}")
        address = _number(values, "address", ADDRESSES)
        size = _number(values, "total_size", SIZES)
        kind = _text(values, "segment_type")
        expandable = values.get("is_expandable", False)
        if kind not in ("small", "large") or type(expandable) is not bool:
            raise ValueError(f"a segment has the type {kind[:40]!r}, expected was small or large")
        blocks: list[ShownBlock] = []
        reached = address
        for each in _list(values, "blocks"):
            block = self._block(each, reached)
            if block.address < reached or block.address + block.size > address + size:
                raise ValueError(
                    f"the segment at {address:#x} has a block at {block.address:#x} outside of it"
                    " or over another block"
                )
            reached = block.address + block.size
            blocks.append(block)
        self._blocks += len(blocks) + 1
        shown = ShownSegment(
            address=address,
            size=size,
            lane=_lane(values.get("stream", 0), values.get("segment_pool_id", _USUAL)),
            small=kind == "small",
            expandable=expandable,
            blocks=tuple(blocks),
        )
        return _number(values, "device", MOST_DEVICES, 0), shown

    def snapshot(
        self,
        traces: Sequence[Sequence[int]],
        segments: Sequence[tuple[int, ShownSegment]],
        settings: Any,
    ) -> Snapshot:
        """Return the snapshot of these events, which are rows, and segments, by device."""
        if len(traces) > MOST_DEVICES:
            raise ValueError(f"it has events of {len(traces)} devices, more than {MOST_DEVICES}")
        shown: dict[int, list[ShownSegment]] = {}
        for index, segment in segments:
            shown.setdefault(index, []).append(segment)
        devices: list[Device] = []
        for index in range(max([len(traces), *(each + 1 for each in shown)])):
            rows = traces[index] if index < len(traces) else ()
            if rows or index in shown:
                parts = sorted(shown.get(index, []), key=lambda segment: segment.address)
                devices.append(Device(index=index, events=self._rows(rows), segments=parts))
        frames = list(self._frames)
        return Snapshot(
            devices=devices,
            stacks=[tuple(frames[number] for number in stack) for stack in self._stacks],
            conf=_conf(settings),
            passed_over=self._passed_over,
        )

    def _rows(self, rows: Sequence[int]) -> Events:
        """Return the events of one device, which every writer puts together."""
        events, lanes = self._events, list(self._lanes)
        first = rows[0] if rows else 0
        here = range(first, first + len(rows))
        if not all(map(eq, rows, here)):
            raise ValueError("the events of a device are repeated or in pieces")
        if len(rows) == len(events):
            events.lanes = lanes
            return events
        part = slice(here.start, here.stop)
        return Events(
            action=events.action[part],
            address=events.address[part],
            size=events.size[part],
            lane=events.lane[part],
            time=events.time[part],
            stack=events.stack[part],
            free={row - first: free for row, free in events.free.items() if row in here},
            lanes=lanes,
        )

    def _frame(self, values: Mapping[str, Any]) -> FrameNumber:
        file, line, name = values.get("filename"), values.get("line"), values.get("name")
        if type(file) is not str or type(line) is not int or type(name) is not str:
            raise ValueError("a frame needs a filename, a line and a name")
        if abs(line) >= SIZES:
            raise ValueError("a frame has a line beyond 2^63")
        frame = Frame(file, line, name)
        number = self._frames.get(frame)
        if number is None:
            number = self._frames[frame] = FrameNumber(len(self._frames))
        return number

    def stack(self, frames: Any) -> StackNumber:
        """Return the number of a list of frames."""
        if type(frames) is StackNumber:
            return frames
        if type(frames) is list:
            numbers = [self._frame(each) if type(each) is dict else each for each in frames]
            number = self.referring(numbers)
            if number is not None:
                return number
        raise ValueError(f"frames are {_shown(frames)}, expected was a list of frames")

    def _block(self, values: Any, reached: int) -> ShownBlock:
        """Return a block; torch before 2.1 left out its address and put its request deeper."""
        if type(values) is not dict:
            raise ValueError(f"a block is {_shown(values)}, expected was a dict")
        size, state = _number(values, "size", SIZES), _text(values, "state")
        if state not in STATES:
            raise ValueError(f"a block has the state {state[:40]!r}, expected was one of {STATES}")
        history: Mapping[str, Any] = {}
        if "history" in values:
            entries = _list(values, "history")
            if entries and type(entries[0]) is dict:
                history = entries[0]
        requested = size if state in USED else 0
        if "real_size" in history:
            requested = _number(history, "real_size", SIZES)
        return ShownBlock(
            address=_number(values, "address", ADDRESSES, reached),
            size=size,
            requested=_number(values, "requested_size", SIZES, requested),
            state=state,
            stack=self.stack(values.get("frames", history.get("frames", _EMPTY))),
        )


def snapshot_of(data: Any, maker: SnapshotMaker) -> Snapshot:
    """Return the snapshot of a whole pickle, in which the maker has replaced events and frames."""
    if type(data) is list and data and type(data[0]) is dict and "total_size" in data[0]:
        # torch before 2.0 had no other form.
        raise ValueError(
            "it is a list of segments without events, as torch.cuda.memory_snapshot returns;"
            " write one with torch.cuda.memory._dump_snapshot"
        )
    if type(data) is not dict:
        raise ValueError(f"it is {_shown(data)}, expected was a dict of segments and events")
    traces = [_rows_of(trace, maker) for trace in _once(_list(data, "device_traces"))]
    segments = _once(_list(data, "segments"))
    _once([each["blocks"] for each in segments if type(each) is dict and "blocks" in each])
    return maker.snapshot(
        traces, [maker.segment(each) for each in segments], data.get("allocator_settings")
    )


def _rows_of(trace: Any, maker: SnapshotMaker) -> list[RowNumber]:
    """Return the rows of a device's events, without those that were passed over."""
    if type(trace) is not list:
        raise ValueError(f"the events of a device are {_shown(trace)}, expected was a list")
    rows: list[RowNumber] = []
    for number, entry in enumerate(trace):
        if type(entry) is dict:
            # Such an event misses its action or its size.
            entry = maker.event(entry)
        if type(entry) is not RowNumber:
            raise ValueError(f"event {number} is {_shown(entry)}, expected was a dict")
        if entry >= 0:
            rows.append(entry)
    return rows


def _once(values: list[Any]) -> list[Any]:
    """Return the values; ValueError if one is there twice, since a pickle may repeat it forever."""
    if len(set(map(id, values))) < len(values):
        raise ValueError("it has the same list of events, segment or list of blocks twice")
    return values


def _conf(settings: Any) -> str:
    if type(settings) is not dict:
        return ""
    texts = [settings[name] for name in _SETTINGS if type(settings.get(name)) is str]
    return texts[0] if texts else ""


def _list(values: Mapping[str, Any], name: str) -> list[Any]:
    value = values.get(name)
    if type(value) is not list:
        raise ValueError(f"{name} is {_shown(value)}, expected was a list; {AGAIN}")
    return value


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if type(value) is not str:
        raise ValueError(f"{name} is {_shown(value)}, expected was a text")
    return value


def _number(values: Mapping[str, Any], name: str, end: int, missing: int | None = None) -> int:
    value = values.get(name, missing)
    if type(value) is not int or not 0 <= value < end:
        raise ValueError(
            f"{name} is {_shown(value)}, expected was a whole number from 0 to 2^"
            f"{end.bit_length() - 1} - 1"
        )
    return value


def _lane(stream: Any, pool: Any) -> Lane:
    # A stream is an address, or a small number; the C++ writer's numbers have a sign.
    if type(stream) is not int or not -SIZES <= stream < ADDRESSES:
        raise ValueError(f"stream is {_shown(stream)}, expected was a whole number of 64 bits")
    if type(pool) in (tuple, list) and len(pool) == 2:
        first, second = pool
        if type(first) is type(second) is int and 0 <= first < ADDRESSES > second >= 0:
            return Lane(stream, (first, second))
    raise ValueError(f"a pool is {_shown(pool)}, expected were two whole numbers")


def _shown(value: Any) -> str:
    """Return a value in a few characters."""
    if value is None:
        return "missing"
    if type(value) is str:
        return repr(value[:40])
    if type(value) in (bool, float) or (type(value) is int and abs(value) < 1 << 100):
        return str(value)
    return {dict: "a dict", list: "a list", tuple: "a tuple", int: "a huge number"}.get(
        type(value), "an event or frame"
    )
