"""Replays of torch.cuda.memory snapshots that others recorded.

A snapshot has the segments and blocks at its end and the events before it. Undoing the events gives
the start, from which our allocator gets the same requests; after each event it must agree with
CUDA's.
"""

import gzip
import io
import pickle
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.caching import MIN_BLOCK, CachingAllocator
from optprof.profiler.allocator.segments import (
    SMALL_REQUEST,
    SMALL_SEGMENT,
    UNLIMITED_RANGE,
    LowestAddresses,
)
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.allocator.state import BlockState, SegmentState

SUFFIX = ".pickle.gz"
# The largest of the six known files holds 2 MB, and a snapshot of a million events 400 MB.
MOST_BYTES = 1 << 30
SEGMENT_ACTIONS = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
IGNORED_ACTIONS = ("free_requested", "snapshot", "user_defined")


class UnreadableError(ValueError):
    """The file is not a snapshot of only containers, text and numbers."""


class UnsupportedError(Exception):
    """A replay cannot follow the snapshot; the message has the reason."""


class _PlainUnpickler(pickle.Unpickler):
    """Builds containers, text and numbers; everything else needs a name, and none is looked up."""

    def find_class(self, module_name: str, global_name: str, /) -> Any:
        """Refuse."""
        raise UnreadableError(
            f"the pickle names {module_name}.{global_name}; only containers, text and numbers"
            " are read"
        )


def read(path: Path, most_bytes: int = MOST_BYTES) -> "Snapshot":
    """Return the snapshot of a gzipped pickle.

    Raise UnreadableError if the file is something else or larger than `most_bytes`.
    """
    try:
        with gzip.open(path) as file:
            # A pickle may claim any length, but can read only the data that exists.
            data = file.read(most_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UnreadableError(f"{path.name} is not a gzip'd file: {error}") from error
    if len(data) > most_bytes:
        raise UnreadableError(f"{path.name} unpacks to more than {most_bytes} bytes")
    return Snapshot.of(loads(data))


def loads(data: bytes) -> Any:
    """Return the data of a pickle; UnreadableError if it holds or does anything else."""
    try:
        return _PlainUnpickler(io.BytesIO(data)).load()
    except UnreadableError:
        raise
    except Exception as error:
        # A damaged pickle raises nearly anything: KeyError, IndexError, UnicodeDecodeError,
        # MemoryError ...
        raise UnreadableError(
            f"not a pickle of plain data: {type(error).__name__}: {error}"
        ) from error


class Lane(NamedTuple):
    """The segments of one stream and one pool, which share no block with others."""

    stream: int
    pool: tuple[int, int]


class Entry(NamedTuple):
    """An event of the trace; its address is 0 if it has none."""

    action: str
    address: int
    size: int
    lane: Lane


@dataclass(frozen=True, kw_only=True)
class UsedBlock:
    """A block in use: its requested bytes, and its size if the snapshot shows it."""

    requested: int
    size: int | None = None


@dataclass(frozen=True, kw_only=True)
class Run:
    """A run of memory: a segment, or a mapped part of an expandable one."""

    size: int
    lane: Lane
    small: bool


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """The events of one device, and its memory and blocks in use at their end, by address."""

    settings: AllocatorSettings
    entries: Sequence[Entry]
    runs: Mapping[int, Run]
    used: Mapping[int, UsedBlock]

    @classmethod
    def of(cls, data: Any) -> "Snapshot":
        """Return the one device with events of a `torch.cuda.memory._snapshot()`.

        Raise UnreadableError if the data has another form.
        """
        try:
            traces = [
                (device, trace) for device, trace in enumerate(data["device_traces"]) if trace
            ]
            if len(traces) != 1:
                raise UnreadableError(f"one device with events is read, got {len(traces)}")
            device, trace = traces[0]
            segments = [
                segment for segment in data["segments"] if segment.get("device", 0) == device
            ]
            text = data.get("allocator_settings", {}).get("PYTORCH_CUDA_ALLOC_CONF", "")
            return cls(
                settings=AllocatorSettings.parse(text),
                entries=[
                    _entry(entry) for entry in trace if entry["action"] not in IGNORED_ACTIONS
                ],
                runs={segment["address"]: _run(segment) for segment in segments},
                used={
                    address: block
                    for segment in segments
                    for address, block in _used_blocks(segment)
                },
            )
        except UnreadableError:
            raise
        except (ArithmeticError, AttributeError, KeyError, TypeError, ValueError) as error:
            raise UnreadableError(
                f"not a snapshot of torch.cuda.memory: {type(error).__name__}: {error}"
            ) from error


def _entry(entry: Mapping[str, Any]) -> Entry:
    lane = Lane(int(entry["stream"]), tuple(entry.get("pool_id", (0, 0))))
    return Entry(str(entry["action"]), int(entry.get("addr", 0)), int(entry["size"]), lane)


def _run(segment: Mapping[str, Any]) -> Run:
    lane = Lane(int(segment["stream"]), tuple(segment.get("segment_pool_id", (0, 0))))
    return Run(size=int(segment["total_size"]), lane=lane, small=segment["segment_type"] == "small")


def _used_blocks(segment: Mapping[str, Any]) -> Iterator[tuple[int, UsedBlock]]:
    address = segment["address"]
    for block in segment["blocks"]:
        if block["state"] != "inactive":
            yield (
                int(address),
                UsedBlock(requested=int(block["requested_size"]), size=int(block["size"])),
            )
        address += block["size"]


@dataclass
class State:
    """The memory of the device at one moment: runs and blocks in use, by address."""

    runs: dict[int, Run]
    used: dict[int, UsedBlock]
    starts: list[int] = field(init=False)

    def __post_init__(self) -> None:
        self.starts = sorted(self.runs)

    def add_run(self, address: int, run: Run) -> None:
        """Add a run; neighbours are joined only when blocks are laid out."""
        self.runs[address] = run
        insort(self.starts, address)

    def cut_run(self, address: int, size: int) -> None:
        """Remove memory from inside one run."""
        start = self.starts.pop(bisect_right(self.starts, address) - 1)
        run = self.runs.pop(start)
        for low, high in ((start, address), (address + size, start + run.size)):
            if low < high:
                self.add_run(low, Run(size=high - low, lane=run.lane, small=run.small))

    def run_at(self, address: int) -> tuple[int, Run]:
        """Return the address and the run that contain an address; KeyError if there is none."""
        place = bisect_right(self.starts, address) - 1
        start = self.starts[place] if place >= 0 else address
        if place < 0 or address >= start + self.runs[start].size:
            raise KeyError(f"no segment at {address:#x}")
        return start, self.runs[start]


def start_of(snapshot: Snapshot) -> State:
    """Return the state before the first event, by undoing all events."""
    state = State(dict(snapshot.runs), dict(snapshot.used))
    for action, address, size, lane in reversed(snapshot.entries):
        if action == "free_completed":
            state.used[address] = UsedBlock(requested=size)
        elif action == "alloc":
            del state.used[address]
        elif action in ("segment_alloc", "segment_map"):
            state.cut_run(address, size)
        elif action in ("segment_free", "segment_unmap"):
            state.add_run(address, Run(size=size, lane=lane, small=size == SMALL_SEGMENT))
        elif action != "oom":
            raise UnsupportedError(f"the trace has an action {action!r}, which no replay knows")
    return state


def ends_shown(snapshot: Snapshot, start: State) -> dict[int, int]:
    """Return the ends of blocks older than the trace that a later event shows, by address.

    A free block begins where the used block before it ends, and a request gets the beginning of a
    free block. So a block that is placed after one still in use shows the end of that one, with the
    tail that it kept.
    """
    in_use = sorted(start.used)
    unknown = {address for address, block in start.used.items() if block.size is None}
    runs = {address: start.run_at(address) for address in unknown}
    limits = {address: base + run.size for address, (base, run) in runs.items()}
    ends: dict[int, int] = {}
    for action, address, _, _ in snapshot.entries:
        if action == "alloc":
            place = bisect_left(in_use, address)
            before = in_use[place - 1] if place else 0
            if before in unknown and address < limits[before]:
                ends.setdefault(before, address)
            in_use.insert(place, address)
        elif action == "free_completed":
            del in_use[bisect_left(in_use, address)]
            unknown.discard(address)
    return ends


@dataclass(frozen=True, kw_only=True)
class Laid:
    """A segment for the allocator, its address, and the addresses of its blocks in use."""

    address: int
    lane: Lane
    state: SegmentState
    used: list[int]


def laid_out(snapshot: Snapshot, start: State, sizes: Mapping[int, int]) -> list[Laid]:
    """Return the segments at the start with their blocks, in the order of addresses."""
    if snapshot.settings.expandable_segments:
        return _ranges(snapshot, start, sizes)
    segments = []
    for address in start.starts:
        run = start.runs[address]
        blocks, used = _blocks(address, address + run.size, start, sizes)
        pool: Literal["small", "large"] = "small" if run.small else "large"
        segments.append(
            Laid(
                address=address,
                lane=run.lane,
                state=SegmentState(pool=pool, blocks=tuple(blocks)),
                used=used,
            )
        )
    return segments


def block_sizes(snapshot: Snapshot, start: State, ends: Mapping[int, int]) -> dict[int, int]:
    """Return the size of each block in use at the start; `ends` are those that events show.

    In the large pool, up to 1 MiB after a block is too small for its own block and stays as a tail.
    """
    settings = snapshot.settings
    rounding = CachingAllocator(settings)
    in_use = sorted(start.used)
    sizes = {}
    for place, address in enumerate(in_use):
        block = start.used[address]
        base, run = start.run_at(address)
        if block.size is not None:
            sizes[address] = block.size
            continue
        size = rounding.rounded(block.requested)
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


def _blocks(
    address: int, end: int, start: State, sizes: Mapping[int, int]
) -> tuple[list[BlockState], list[int]]:
    """Return the blocks of a run between two addresses, and the addresses of those in use."""
    used = sorted(sizes)
    used = used[bisect_left(used, address) : bisect_left(used, end)]
    blocks: list[BlockState] = []
    reached = address
    for place in [*used, end]:
        if place > reached:
            blocks.append(BlockState(size=place - reached))
        if place < end:
            blocks.append(BlockState(size=sizes[place], requested=start.used[place].requested))
            reached = place + sizes[place]
    return blocks, used


def _ranges(snapshot: Snapshot, start: State, sizes: Mapping[int, int]) -> list[Laid]:
    """Return one range of addresses for each pool of each lane, from the lowest mapped one on.

    Unmapped addresses lie between.
    """
    segments = []
    mapped = [
        (entry.address, entry.lane, entry.size == SMALL_SEGMENT)
        for entry in snapshot.entries
        if entry.action == "segment_map"
    ]
    pools = {(run.lane, run.small) for run in start.runs.values()}
    for lane, small in sorted(pools):
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
                more, places = _blocks(address, address + size, start, sizes)
                blocks, used, reached = [*blocks, *more], [*used, *places], address + size
        pool: Literal["small", "large"] = "small" if small else "large"
        segments.append(
            Laid(
                address=base,
                lane=lane,
                state=SegmentState(pool=pool, blocks=tuple(blocks)),
                used=used,
            )
        )
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


class Driver(LowestAddresses):
    """Gives segments their recorded addresses, and records what the allocator does with memory."""

    def __init__(self, *, expandable: bool) -> None:
        super().__init__()
        self.coming: list[int] = []
        self.done: list[tuple[str, int, int]] = []
        self._expandable = expandable

    def take(self, nbytes: int) -> int:
        """Return the recorded address of the next segment."""
        if not self.coming:
            raise AssertionError(
                f"a segment of {nbytes} bytes is taken where CUDA's allocator took none"
            )
        address = self.coming.pop(0)
        if not self._expandable:
            self.done.append(("segment_alloc", address, nbytes))
        return address

    def address_of(self, segment: int) -> int:
        """Return the address of a segment from the result of `take`."""
        return segment

    def give_back(self, address: int, nbytes: int) -> None:
        """Record that a segment was released."""
        if not self._expandable:
            self.done.append(("segment_free", address, nbytes))

    def map(self, address: int, nbytes: int) -> None:
        """Record that addresses were mapped."""
        self.done.append(("segment_map", address, nbytes))

    def unmap(self, address: int, nbytes: int) -> None:
        """Record that addresses were unmapped."""
        self.done.append(("segment_unmap", address, nbytes))


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """Totals of a replay: compared events, and peaks of allocated and reserved bytes."""

    events: int
    peak_allocated: int
    peak_reserved: int


class MisplacedError(AssertionError):
    """A block is not at its recorded address.

    `address` is its address in the replay, and `rest` the free bytes there beyond its size.
    """

    def __init__(self, message: str, address: int, rest: int) -> None:
        super().__init__(message)
        self.address = address
        self.rest = rest


def replay(snapshot: Snapshot) -> Replayed:
    """Replay a snapshot from its start.

    Raise AssertionError for the first event in which our allocator differs, and UnsupportedError if
    the events do not lead to the state at their end.

    The tail of an older block is unknown if nothing is placed after the block while it is in use.
    If CUDA's allocator skips the place, there is a tail, so large that the rest is too small for
    the request.
    """
    try:
        start = start_of(snapshot)
        shown = ends_shown(snapshot, start)
        least = block_sizes(snapshot, start, shown)
    except LookupError as error:
        raise UnsupportedError(f"events and segments do not belong together: {error!r}") from error
    ends = dict(shown)
    while True:
        sizes = block_sizes(snapshot, start, ends)
        try:
            return Replay(snapshot, start, sizes).run()
        except MisplacedError as error:
            before = next(
                (address for address, size in sizes.items() if address + size == error.address),
                None,
            )
            if before is None or before in shown or start.used[before].size is not None:
                raise
            ends[before] = error.address + error.rest + MIN_BLOCK
            if ends[before] > before + least[before] + SMALL_REQUEST:
                raise


class Replay:
    """Our allocators, one for each lane, in the state before the first event of a snapshot."""

    def __init__(self, snapshot: Snapshot, start: State, sizes: Mapping[int, int]) -> None:
        self._snapshot = snapshot
        self._expandable = snapshot.settings.expandable_segments
        self._drivers: dict[Lane, Driver] = {}
        self._allocators: dict[Lane, CachingAllocator] = {}
        self._live: dict[int, tuple[Lane, Block]] = {}
        for laid in laid_out(snapshot, start, sizes):
            self._enter(laid.lane)
            driver = self._drivers[laid.lane]
            driver.coming.append(laid.address)
            blocks = self._allocators[laid.lane].adopt([laid.state])
            driver.done.clear()
            for address, block in zip(laid.used, blocks, strict=True):
                self._live[address] = laid.lane, block
        self._reserved = sum(run.size for run in start.runs.values())

    def run(self) -> Replayed:
        """Make every request, and compare after every event.

        Raise AssertionError for the first event that differs.
        """
        segment_events: list[Entry] = []
        allocated = reserved = 0
        for number, entry in enumerate(self._snapshot.entries):
            if entry.action in SEGMENT_ACTIONS:
                segment_events.append(entry)
                continue
            where = f"event {number}, {entry.action} of {entry.size} bytes"
            self._react(segment_events, entry, where)
            segment_events.clear()
            ours = sum(allocator.reserved_bytes for allocator in self._allocators.values())
            assert ours == self._reserved, (
                f"{where}: {ours} bytes reserved, recorded were {self._reserved}"
            )
            allocated = max(
                allocated, sum(allocator.allocated_bytes for allocator in self._allocators.values())
            )
            reserved = max(reserved, ours)
        self._react(segment_events, None, "after the last event")
        self._compare_end()
        return Replayed(
            events=len(self._snapshot.entries), peak_allocated=allocated, peak_reserved=reserved
        )

    def _enter(self, lane: Lane) -> None:
        if lane not in self._allocators:
            driver = self._drivers[lane] = Driver(expandable=self._expandable)
            self._allocators[lane] = CachingAllocator(self._snapshot.settings, addresses=driver)

    def _react(self, segment_events: list[Entry], entry: Entry | None, where: str) -> None:
        """Do what caused the segment events: release cached memory, then make the request."""
        expected: dict[Lane, list[tuple[str, int, int]]] = {}
        for action, address, size, lane in segment_events:
            expected.setdefault(lane, []).append((action, address, size))
            self._reserved += size if action in ("segment_alloc", "segment_map") else -size
        taken = [
            event for event in segment_events if event.action in ("segment_alloc", "segment_map")
        ]
        if len(taken) < len(segment_events):
            for allocator in self._allocators.values():
                allocator.empty_cache()
        if taken and (entry is None or entry.action != "alloc"):
            raise UnsupportedError(
                "memory is mapped for a request that fails, which needs the size of the device"
            )
        if entry is not None and entry.action == "alloc":
            self._allocate(entry, [event.address for event in taken], where)
        elif entry is not None and entry.action == "free_completed":
            lane, block = self._live.pop(entry.address)
            self._allocators[lane].free(block)
        for lane, driver in self._drivers.items():
            ours, recorded = sorted(driver.done), sorted(expected.get(lane, []))
            assert ours == recorded, (
                f"{where}: segments {_shown(ours)}, recorded were {_shown(recorded)}"
            )
            driver.done.clear()

    def _allocate(self, entry: Entry, taken: list[int], where: str) -> None:
        self._enter(entry.lane)
        driver = self._drivers[entry.lane]
        driver.coming[:] = taken
        allocator = self._allocators[entry.lane]
        block = allocator.malloc(entry.size)
        driver.coming.clear()
        address = driver.address_of(block.segment) + block.offset
        if address != entry.address:
            behind = block.next.size if block.next is not None and not block.next.allocated else 0
            rest = block.size + behind - allocator.rounded(entry.size)
            raise MisplacedError(
                f"{where}: block at {address:#x}, recorded was {entry.address:#x}", address, rest
            )
        self._live[entry.address] = entry.lane, block

    def _compare_end(self) -> None:
        """Compare the size of each block in use with the snapshot's own list of them."""
        ours = {
            address: (block.requested, block.size) for address, (_, block) in self._live.items()
        }
        assert ours == {
            address: (block.requested, block.size) for address, block in self._snapshot.used.items()
        }


def _shown(events: Sequence[tuple[str, int, int]]) -> str:
    return ", ".join(f"{action} {address:#x} {size}" for action, address, size in events) or "none"
