"""Contents of a snapshot: memory over time, blocks in use at the peak, and fragmentation."""

from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import islice

from ..allocator.caching import CachingAllocator
from ..allocator.segments import SMALL_REQUEST, SMALL_SEGMENT
from ..allocator.settings import AllocatorSettings
from ..records.snapshots import (
    Curve,
    DeviceContents,
    Group,
    LaneUse,
    OutOfMemory,
    Piece,
    SegmentUse,
)
from .places import name_of, texts_of
from .replay import BY_AGE, TAKING, DifferenceError, Exact, replay_exactly
from .snapshot import ACTIONS, Device, Event, Lane, Snapshot
from .start import Memory, Run, UnsupportedError, UsedBlock, end_of, start_of

# More rows and points cannot be read.
MOST_FAILURES, MOST_LANES = 10, 8
MOST_GROUPS, MOST_SEGMENTS, MOST_POINTS, MOST_PIECES, MOST_HOLDERS = 10, 40, 600, 150, 5


OTHER_LANES = "other streams and pools"
_SIGNS = {"alloc": 1, "free_completed": -1}
_SIGNS |= {"segment_alloc": 1, "segment_map": 1, "segment_free": -1, "segment_unmap": -1}


@dataclass(frozen=True, kw_only=True)
class Replayable:
    """The start of one GPU's events and their exact replay; `problem` says why one is missing."""

    start: Memory | None
    exact: Exact | None
    problem: str | None

    @classmethod
    def of(cls, device: Device, settings: AllocatorSettings | None) -> "Replayable":
        """Undo the events, and replay them exactly if our allocator can.

        Without `settings`, which are unknown then, nothing is replayed.
        """
        start: Memory | None = None
        exact: Exact | None = None
        try:
            start = start_of(device, settings or AllocatorSettings())
            if settings is not None and len(device.events):
                exact = replay_exactly(device, settings, start)
        except (DifferenceError, UnsupportedError) as error:
            return cls(start=start, exact=None, problem=str(error))
        return cls(start=start, exact=exact, problem=None)


def contents_of(
    snapshot: Snapshot, device: Device, settings: AllocatorSettings, replayable: Replayable
) -> DeviceContents:
    """Return what the snapshot says about one GPU."""
    start, exact = replayable.start, replayable.exact
    history = _History.of(device, start) if start is not None and len(device.events) else None
    names = [name_of(stack) for stack in snapshot.stacks]
    frames = [texts_of(stack) for stack in snapshot.stacks]
    used_at, reserved_at = (history.peak_used, history.peak_reserved) if history else (0, 0)
    at_end = end_of(device)
    at_used = _memory_at(device, start, used_at) if history and start else at_end
    at_reserved = _memory_at(device, start, reserved_at) if history and start else at_end
    groups = grouped(at_used.used.values(), names, frames)
    shown = groups[:MOST_GROUPS]
    segments = segment_uses(at_reserved, names, [group.name for group in shown], settings)
    used = sum(block.requested for block in at_reserved.used.values())
    return DeviceContents(
        index=device.index,
        events=len(device.events),
        peak_used=sum(block.requested for block in at_used.used.values()),
        peak_used_event=used_at + 1 if history else 0,
        peak_reserved=sum(run.size for run in at_reserved.runs.values()),
        peak_reserved_event=reserved_at + 1 if history else 0,
        used_at_reserved=used,
        allocated=exact.peak_allocated if exact else None,
        exact=exact is not None,
        order=exact.order if exact else BY_AGE,
        problem=replayable.problem,
        groups=shown,
        other_groups=_together(groups[MOST_GROUPS:]),
        lanes=_lane_uses(segments),
        segments=[replace(each, pieces=_fewer(each.pieces)) for each in segments[:MOST_SEGMENTS]],
        out_of_memory=[
            _out_of_memory(device, start, place, names, settings)
            for place in failures(device)[:MOST_FAILURES]
            if start is not None
        ],
        curve=history.curve() if history else None,
    )


@cache
def lane_name(lane: Lane, *, small: bool) -> str:
    """Return a pool of a stream in words."""
    words = ["small" if small else "large"]
    if lane.stream:
        words.append(f"stream {lane.stream:#x}")
    if lane.pool != (0, 0):
        words.append(f"private pool {lane.pool[0]}.{lane.pool[1]}")
    return ", ".join(words)


def changed(memory: Memory, event: Event) -> None:
    """Change the memory as an event did."""
    if event.action == "alloc":
        memory.used[event.address] = UsedBlock(event.size, event.lane, event.stack)
    elif event.action == "free_completed":
        memory.used.pop(event.address, None)
    elif event.action in TAKING:
        memory.add_run(event.address, Run(event.size, event.lane, event.size == SMALL_SEGMENT))
    elif event.action in ("segment_free", "segment_unmap"):
        memory.cut_run(event.address, event.size)


def _copy(memory: Memory) -> Memory:
    return Memory(dict(memory.runs), dict(memory.used))


def _memory_at(device: Device, start: Memory, place: int) -> Memory:
    """Return the memory after the event at a place."""
    memory = _copy(start)
    for event in islice(device.events, place + 1):
        changed(memory, event)
    return memory


@dataclass(frozen=True, kw_only=True)
class _History:
    """Bytes after each event: in use by lane, and reserved."""

    device: Device
    used: dict[str, array]
    reserved: array
    peak_used: int
    peak_reserved: int

    @classmethod
    def of(cls, device: Device, start: Memory) -> "_History":
        """Add up the events from the start on."""
        events, taken = device.events, sum(run.size for run in start.runs.values())
        in_use: dict[str, int] = {}
        for block in start.used.values():
            name = lane_name(block.lane, small=block.requested <= SMALL_REQUEST)
            if name not in in_use and len(in_use) >= MOST_LANES:
                name = OTHER_LANES
            in_use[name] = in_use.get(name, 0) + block.requested
        rows = {name: array("q") for name in in_use}
        total, reserved = array("q"), array("q")
        used = sum(in_use.values())
        for place, event in enumerate(events):
            sign = _SIGNS.get(event.action, 0)
            if event.action in ("alloc", "free_completed"):
                name = lane_name(event.lane, small=event.size <= SMALL_REQUEST)
                if name not in rows:
                    if len(rows) >= MOST_LANES:
                        name = OTHER_LANES
                    rows.setdefault(name, array("q", bytes(8 * place)))
                in_use[name] = in_use.get(name, 0) + sign * event.size
                used += sign * event.size
            else:
                taken += sign * event.size
            total.append(used)
            reserved.append(taken)
            for name, row in rows.items():
                row.append(in_use[name])
        return cls(
            device=device,
            used=rows,
            reserved=reserved,
            peak_used=total.index(max(total)),
            # Often reserved from the first event on: then where the most of it is in use.
            peak_reserved=max(range(len(reserved)), key=lambda at: (reserved[at], total[at], -at)),
        )

    def curve(self) -> Curve:
        """Return the largest numbers of at most MOST_POINTS stretches of events."""
        count = len(self.reserved)
        width = -(-count // MOST_POINTS)
        starts = range(0, count, width)
        time = self.device.events.time
        origin = time[0]
        timed = origin > 0 and time[count - 1] > origin
        return Curve(
            events=[min(start + width, count) for start in starts],
            seconds=[
                (time[min(start + width, count) - 1] - origin) / 1e6 for start in starts if timed
            ],
            lanes=list(self.used),
            used=[
                [max(row[start : start + width]) for start in starts] for row in self.used.values()
            ],
            reserved=[max(self.reserved[start : start + width]) for start in starts],
        )


def grouped(
    blocks: Iterable[UsedBlock], names: Sequence[str], frames: Sequence[tuple[str, ...]]
) -> list[Group]:
    """Return the blocks by the name of their stack, the most bytes first."""
    nbytes: dict[str, int] = {}
    counts: dict[str, int] = {}
    largest: dict[str, tuple[int, int]] = {}
    for block in blocks:
        name = names[block.stack]
        nbytes[name] = nbytes.get(name, 0) + block.requested
        counts[name] = counts.get(name, 0) + 1
        largest[name] = max(largest.get(name, (0, 0)), (block.requested, block.stack))
    order = sorted(nbytes, key=lambda name: (-nbytes[name], name))
    return [
        Group(name=name, nbytes=nbytes[name], blocks=counts[name], frames=frames[largest[name][1]])
        for name in order
    ]


def _together(groups: Sequence[Group]) -> Group | None:
    if not groups:
        return None
    return Group(
        name=f"{len(groups)} other places",
        nbytes=sum(group.nbytes for group in groups),
        blocks=sum(group.blocks for group in groups),
    )


def segment_uses(
    memory: Memory, names: Sequence[str], groups: Sequence[str], settings: AllocatorSettings
) -> list[SegmentUse]:
    """Return each segment with its blocks, the one with the most free bytes first.

    Adjacent mapped runs count as one. The tail of a block counts as free if its size is unknown.
    """
    rounded = CachingAllocator(settings).rounded
    in_use = sorted(memory.used)
    found: list[SegmentUse] = []
    numbers = {name: number for number, name in enumerate(groups)}
    for address, end, run in _joined_runs(memory):
        places = in_use[bisect_left(in_use, address) : bisect_left(in_use, end)]
        pieces: list[Piece] = []
        holders: dict[str, int] = {}
        reached = address
        for place in places:
            block = memory.used[place]
            size = min(block.size or rounded(max(block.requested, 1)), end - place)
            if place > reached:
                pieces.append(Piece(nbytes=place - reached, blocks=0))
            name = names[block.stack]
            pieces.append(Piece(nbytes=size, blocks=1, group=numbers.get(name, len(groups))))
            holders[name] = holders.get(name, 0) + size
            reached = place + size
        if end > reached:
            pieces.append(Piece(nbytes=end - reached, blocks=0))
        free = [piece.nbytes for piece in pieces if piece.group is None]
        found.append(
            SegmentUse(
                address=address,
                nbytes=end - address,
                lane=lane_name(run.lane, small=run.small),
                used=end - address - sum(free),
                largest=max(free, default=0),
                blocks=len(places),
                holders=tuple(sorted(holders.items(), key=lambda each: each[1])[:MOST_HOLDERS]),
                pieces=tuple(pieces),
            )
        )
    return sorted(found, key=lambda each: (-each.free, each.address))


def _joined_runs(memory: Memory) -> list[tuple[int, int, Run]]:
    """Return runs by address; adjacent ones are joined if a block in use spans them."""
    in_use = sorted(memory.used)
    joined: list[tuple[int, int, Run]] = []
    for address in memory.starts:
        run = memory.runs[address]
        if joined and joined[-1][1] == address and joined[-1][2][1:] == run[1:]:
            place = in_use[bisect_right(in_use, address - 1) - 1] if in_use else 0
            block = memory.used.get(place)
            if block is not None and place < address < place + block.requested:
                joined[-1] = joined[-1][0], address + run.size, joined[-1][2]
                continue
        joined.append((address, address + run.size, run))
    return joined


def _fewer(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
    """Return at most MOST_PIECES pieces; the smallest are joined with what is before them."""
    total = sum(piece.nbytes for piece in pieces)
    least, kept = total / MOST_PIECES, list[Piece]()
    for piece in pieces:
        before = kept[-1] if kept else None
        if before is not None and (
            before.group == piece.group or (len(pieces) > MOST_PIECES and piece.nbytes < least)
        ):
            kept[-1] = replace(
                before, nbytes=before.nbytes + piece.nbytes, blocks=before.blocks + piece.blocks
            )
        else:
            kept.append(piece)
    return tuple(kept)


def _lane_uses(segments: Sequence[SegmentUse]) -> list[LaneUse]:
    lanes = dict.fromkeys(sorted(each.lane for each in segments))
    rows = []
    for lane in lanes:
        own = [each for each in segments if each.lane == lane]
        rows.append(
            LaneUse(
                lane=lane,
                segments=len(own),
                reserved=sum(each.nbytes for each in own),
                used=sum(each.used for each in own),
                largest=max(each.largest for each in own),
            )
        )
    return rows


def failures(device: Device) -> list[int]:
    """Return the places of the requests that failed."""
    failed = ACTIONS.index("oom")
    return [place for place, action in enumerate(device.events.action) if action == failed]


def _out_of_memory(
    device: Device, start: Memory, place: int, names: Sequence[str], settings: AllocatorSettings
) -> OutOfMemory:
    event = device.events[place]
    memory = _memory_at(device, start, place)
    own = [
        each
        for each in segment_uses(memory, names, (), settings)
        if each.lane == lane_name(event.lane, small=event.size <= SMALL_REQUEST)
    ]
    obstacles = [each for each in own if each.free >= event.size]
    # The one that the fewest bytes in use stand in.
    obstacle = min(obstacles, key=lambda each: (each.used, -each.free), default=None)
    return OutOfMemory(
        event=place + 1,
        wanted=event.size,
        free=event.free,
        reserved=sum(run.size for run in memory.runs.values()),
        used=sum(block.requested for block in memory.used.values()),
        unused=sum(each.free for each in own),
        largest=max((each.largest for each in own), default=0),
        obstacle=obstacle and replace(obstacle, pieces=_fewer(obstacle.pieces)),
    )
