"""The memory of a GPU before the first event of its snapshot, found by undoing all events.

A snapshot shows sizes of blocks only at its end. The size of an older block follows from its
request, except for its tail: up to 1 MiB of the large pool behind a block may belong to it.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, NamedTuple

from ..allocator.caching import CachingAllocator
from ..allocator.segments import SMALL_REQUEST, SMALL_SEGMENT, UNLIMITED_RANGE
from ..allocator.settings import AllocatorSettings
from ..allocator.state import BlockState, SegmentState
from .snapshot import Device, Event, Lane

# More than any GPU has, and few enough that a million of them are added without overflow.
MOST_BYTES = 1 << 42


class UnsupportedError(ValueError):
    """The events cannot be undone or replayed; the message has the reason."""


class UsedBlock(NamedTuple):
    """A block in use: its requested bytes, its lane and stack, and its size if it is shown."""

    requested: int
    lane: Lane
    stack: int
    size: int | None = None


class Run(NamedTuple):
    """A run of memory: a segment, or a mapped part of an expandable one."""

    size: int
    lane: Lane
    small: bool


@dataclass
class Memory:
    """The memory of a device at one moment: runs and blocks in use, by address."""

    runs: dict[int, Run]
    used: dict[int, UsedBlock]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = sorted(self.runs)

    def add_run(self, address: int, run: Run) -> None:
        """Add a run; neighbours stay apart until blocks are laid out."""
        self.runs[address] = run
        insort(self.starts, address)

    def cut_run(self, address: int, size: int) -> None:
        """Remove memory that lies inside one run or several adjacent ones."""
        while size > 0:
            start, run = self.run_at(address)
            self.starts.pop(bisect_left(self.starts, start))
            del self.runs[start]
            end = min(address + size, start + run.size)
            for low, high in ((start, address), (end, start + run.size)):
                if low < high:
                    self.add_run(low, run._replace(size=high - low))
            address, size = end, size - (end - address)

    def run_at(self, address: int) -> tuple[int, Run]:
        """Return the address and the run that contain an address; KeyError if there is none."""
        place = bisect_right(self.starts, address) - 1
        start = self.starts[place] if place >= 0 else address
        if place < 0 or address >= start + self.runs[start].size:
            raise KeyError(f"no segment at {address:#x}")
        return start, self.runs[start]


def end_of(device: Device) -> Memory:
    """Return the memory after the last event, as the snapshot shows it."""
    used = {
        block.address: UsedBlock(block.requested, segment.lane, block.stack, block.size)
        for segment in device.segments
        for block in segment.blocks
        if block.state != "inactive"
    }
    runs = {each.address: Run(each.size, each.lane, each.small) for each in device.segments}
    return Memory(runs, used)


def start_of(device: Device, settings: AllocatorSettings) -> Memory:
    """Return the memory before the first event.

    Raise UnsupportedError if the events and the segments at their end do not belong together.
    """
    memory = end_of(device)
    events = device.events
    for nbytes in (*events.size, *(segment.size for segment in device.segments)):
        if not 0 < nbytes <= MOST_BYTES:
            raise UnsupportedError(f"{nbytes} bytes cannot be requested of a GPU; record again")
    for place, event in enumerate(reversed(events)):
        try:
            _undo(memory, event, settings)
        except LookupError as error:
            raise UnsupportedError(
                f"event {len(events) - place} of {len(events)}, {event.action} at"
                f" {event.address:#x}, does not belong to the segments at the end; record without a"
                " pause, and take the snapshot in the same process"
            ) from error
    _require_sound(memory)
    return memory


def _is_next_to_small(memory: Memory, event: Event) -> bool:
    """Return whether unmapped addresses lie in a range of the small pool."""
    ends = (event.address - 1, event.address + event.size)
    for address in ends:
        try:
            _, run = memory.run_at(address)
        except KeyError:
            continue
        if run.lane == event.lane:
            return run.small
    return False


def _require_sound(memory: Memory) -> None:
    """Raise UnsupportedError if segments or blocks overlap, or a block is outside of them."""
    for address, following in pairwise(memory.starts):
        if address + memory.runs[address].size > following:
            raise UnsupportedError(f"segments overlap at {following:#x} before the first event")
    in_use = sorted(memory.used)
    for place, address in enumerate(in_use):
        end = address + max(memory.used[address].requested, 1)
        overlaps = place + 1 < len(in_use) and end > in_use[place + 1]
        if overlaps or not _holds(memory, address, end):
            raise UnsupportedError(
                f"the block at {address:#x} was in use before the first event, but no segment has"
                " room for it; record without a pause"
            )


def _holds(memory: Memory, address: int, end: int) -> bool:
    """Return whether memory is mapped between two addresses."""
    while address < end:
        place = bisect_right(memory.starts, address) - 1
        if place < 0:
            return False
        reached = memory.starts[place] + memory.runs[memory.starts[place]].size
        if reached <= address:
            return False
        address = reached
    return True


def _undo(memory: Memory, event: Event, settings: AllocatorSettings) -> None:
    if event.action == "free_completed":
        memory.used[event.address] = UsedBlock(event.size, event.lane, event.stack)
    elif event.action == "alloc":
        del memory.used[event.address]
    elif event.action in ("segment_alloc", "segment_map"):
        memory.cut_run(event.address, event.size)
    elif event.action in ("segment_free", "segment_unmap"):
        small = event.size == SMALL_SEGMENT
        if event.action == "segment_unmap":
            small = event.size % settings.large_segment_size != 0 or _is_next_to_small(
                memory, event
            )
        memory.add_run(event.address, Run(event.size, event.lane, small))


def ends_shown(device: Device, start: Memory) -> dict[int, int]:
    """Return the ends of blocks older than the events that a later event shows, by address.

    A free block begins where the used block before it ends, and a request gets the beginning of a
    free block. So a block that is placed after one still in use shows the end of that one, with the
    tail that it kept.
    """
    in_use = sorted(start.used)
    unknown = {address for address, block in start.used.items() if block.size is None}
    limits = {}
    for address in unknown:
        base, run = start.run_at(address)
        limits[address] = base + run.size
    ends: dict[int, int] = {}
    for action, address, *_ in device.events:
        if not unknown:
            break
        if action == "alloc":
            at = bisect_left(in_use, address)
            before = in_use[at - 1] if at else 0
            if before in unknown and address < limits[before]:
                ends.setdefault(before, address)
            in_use.insert(at, address)
        elif action == "free_completed":
            del in_use[bisect_left(in_use, address)]
            unknown.discard(address)
    return ends


def block_sizes(
    start: Memory, settings: AllocatorSettings, ends: Mapping[int, int]
) -> dict[int, int]:
    """Return the size of each block in use at the start; `ends` are those that events show.

    In the large pool, up to 1 MiB after a block is too small for its own block and stays as a tail.
    """
    rounded = CachingAllocator(settings).rounded
    in_use = sorted(start.used)
    sizes = {}
    for place, address in enumerate(in_use):
        block = start.used[address]
        if block.size is not None:
            sizes[address] = block.size
            continue
        base, run = start.run_at(address)
        size = rounded(block.requested)
        limit = min([base + run.size, *in_use[place + 1 : place + 2]])
        rest = limit - address - size
        if not run.small and not settings.expandable_segments:
            shown = ends.get(address, address + size) - address - size
            if rest <= SMALL_REQUEST or size >= settings.max_split_size:
                size += rest
            elif 0 < shown <= SMALL_REQUEST:
                size += shown
        sizes[address] = size
    return sizes


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A segment for the allocator, its address, and the addresses of its blocks in use."""

    address: int
    state: SegmentState
    used: tuple[int, ...]


def laid_out(
    device: Device, start: Memory, settings: AllocatorSettings, sizes: Mapping[int, int]
) -> list[Laid]:
    """Return the segments at the start with their blocks, in the order of addresses."""
    try:
        if settings.expandable_segments:
            return _ranges(device, start, sizes)
        return _segments(start, sizes)
    except ValueError as error:
        raise UnsupportedError(f"before the first event {error}; record again") from error


def _segments(start: Memory, sizes: Mapping[int, int]) -> list[Laid]:
    segments = []
    in_use = sorted(sizes)
    for address in start.starts:
        run = start.runs[address]
        blocks, used = _blocks(address, address + run.size, start, sizes, in_use)
        segments.append(_laid(address, run.lane, run.small, blocks, used))
    return segments


def _laid(address: int, lane: Lane, small: bool, blocks: list[BlockState], used: list[int]) -> Laid:
    pool: Literal["small", "large"] = "small" if small else "large"
    state = SegmentState(pool=pool, blocks=tuple(blocks), lane=lane)
    return Laid(address=address, state=state, used=tuple(used))


def _blocks(
    address: int, end: int, start: Memory, sizes: Mapping[int, int], in_use: list[int]
) -> tuple[list[BlockState], list[int]]:
    """Return the blocks of a run between two addresses, and the addresses of those in use."""
    used = in_use[bisect_left(in_use, address) : bisect_left(in_use, end)]
    blocks: list[BlockState] = []
    reached = address
    for place in [*used, end]:
        if place > reached:
            blocks.append(BlockState(size=place - reached))
        if place < end:
            blocks.append(BlockState(size=sizes[place], requested=start.used[place].requested))
            reached = place + sizes[place]
    return blocks, used


def _ranges(device: Device, start: Memory, sizes: Mapping[int, int]) -> list[Laid]:
    """Return one range of addresses for each pool of each lane, from the lowest mapped one on.

    Unmapped addresses lie between.
    """
    segments = []
    in_use = sorted(sizes)
    mapped = [
        (event.address, event.lane, event.size == SMALL_SEGMENT)
        for event in device.events
        if event.action == "segment_map"
    ]
    for lane, small in sorted({(run.lane, run.small) for run in start.runs.values()}):
        runs = _joined(
            (address, run.size)
            for address, run in start.runs.items()
            if (run.lane, run.small) == (lane, small)
        )
        base = min([runs[0][0], *(address for address, *key in mapped if key == [lane, small])])
        blocks: list[BlockState] = []
        used: list[int] = []
        reached = base
        for address, size in [*runs, (base + UNLIMITED_RANGE, 0)]:
            if address > reached:
                blocks.append(BlockState(size=address - reached, mapped=False))
            if size:
                more, places = _blocks(address, address + size, start, sizes, in_use)
                blocks, used, reached = [*blocks, *more], [*used, *places], address + size
        segments.append(_laid(base, lane, small, blocks, used))
    return segments


def _joined(runs: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Return runs in the order of addresses, adjacent ones joined."""
    joined: list[tuple[int, int]] = []
    for address, size in sorted(runs):
        if joined and sum(joined[-1]) == address:
            joined[-1] = joined[-1][0], joined[-1][1] + size
        else:
            joined.append((address, size))
    return joined
