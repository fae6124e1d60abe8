"""What the requests of a snapshot take under other settings of the allocator."""

from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import NamedTuple

from ..allocator.blocks import Block
from ..allocator.caching import CachingAllocator
from ..allocator.out_of_memory import OutOfMemoryError
from ..allocator.segments import UNLIMITED_RANGE, Ages, LowestAddresses
from ..allocator.settings import AllocatorSettings
from ..allocator.state import BlockState, SegmentState
from ..records.snapshots import Trial
from .contents import Replayable, failures
from .replay import BY_ADDRESS, BY_AGE, SEGMENT_ACTIONS, TAKING, Exact, Requests
from .snapshot import Device, Event
from .start import Laid, Memory, UnsupportedError, block_sizes, ends_shown, laid_out


def confs_to_try(conf: str, *, limited: bool) -> list[str]:
    """Return the settings worth a trial, the recorded ones first.

    Garbage collection acts only below a limit of the process, so it is tried if the device's size
    is known.
    """
    confs = [
        conf,
        "",
        "expandable_segments:True",
        *(f"max_split_size_mb:{size}" for size in (64, 128, 256, 512)),
        *(f"roundup_power2_divisions:{count}" for count in (4, 8, 16)),
        "large_segment_size_mb:64",
    ]
    if limited:
        confs += [
            f"garbage_collection_threshold:{share},per_process_memory_fraction:0.99"
            for share in (0.6, 0.8)
        ]
    return list(dict.fromkeys(confs))


class Step(NamedTuple):
    """A request, a free, or a call of torch.cuda.empty_cache (None)."""

    event: Event | None
    place: int


def steps_of(device: Device) -> Iterator[Step]:
    """Yield what the program did, without what the allocator did for it.

    Segments that are released for a request have its stack; otherwise the program called
    torch.cuda.empty_cache.
    """
    released: list[Event] = []
    for place, event in enumerate(device.events):
        if event.action in SEGMENT_ACTIONS:
            if event.action not in TAKING:
                released.append(event)
            continue
        if released:
            for_request = event.action in ("alloc", "oom") and event.stack == released[-1].stack
            if not for_request:
                yield Step(None, place)
            released.clear()
        yield Step(event, place)
    if released:
        yield Step(None, len(device.events))


class Attempt:
    """One replay: its requests, and the number of the event that ran out of memory if one did."""

    def __init__(self, requests: Requests) -> None:
        self.requests = requests
        self.failed: int | None = None

    def run(self, device: Device) -> Iterator[Step]:
        """Take the steps one by one, and yield each after it is done.

        A request that failed in the recording is made too; if it succeeds here, its block is freed.
        """
        allocator = self.requests.allocator
        for step in steps_of(device):
            event = step.event
            if event is None:
                allocator.empty_cache()
            elif event.action == "oom":
                try:
                    allocator.free(allocator.malloc(event.size, event.lane))
                except OutOfMemoryError:
                    self.failed = self.failed or step.place + 1
            elif event.action == "alloc":
                try:
                    self.requests.allocate(event)
                except OutOfMemoryError:
                    self.failed = step.place + 1
                    return
            else:
                self.requests.free(event)
            yield step


def attempt(
    start: Memory,
    settings: AllocatorSettings,
    laid: Sequence[Laid],
    *,
    total: int | None,
    order: str,
) -> Attempt:
    """Return a replay at its start: the memory `laid` out, or without it blocks requested afresh.

    ValueError if the memory at the start does not fit on the device.
    """
    addresses = Ages() if order == BY_AGE else LowestAddresses()
    allocator = CachingAllocator(settings, total=total, addresses=addresses)
    if laid:
        return Attempt(Requests.adopting(allocator, laid))
    live: dict[int, Block] = {}
    for address in sorted(start.used):
        block = start.used[address]
        try:
            live[address] = allocator.malloc(block.requested, block.lane)
        except OutOfMemoryError as error:
            raise ValueError(str(error)) from error
    return Attempt(Requests(allocator, live))


def tried(
    device: Device,
    conf: str,
    confs: Sequence[str],
    replayable: Replayable,
    total: int | None,
    *,
    same_device: bool,
) -> Iterator[Trial]:
    """Yield a trial for each of the settings `confs`; `conf` are the recorded ones.

    `same_device` tells that `total` are the bytes of the recorded GPU, or unknown.

    They are also tried in the order of equal free blocks that other versions of torch have.

    Raise UnsupportedError if the events cannot be undone, or if the memory before them does not fit
    into `total` bytes.
    """
    start, exact = replayable.start, replayable.exact
    if start is None:
        raise UnsupportedError(replayable.problem or "the events cannot be undone")
    recorded = AllocatorSettings.parse(conf)
    sizes = exact.sizes if exact else block_sizes(start, recorded, ends_shown(device, start))
    laid = laid_out(device, start, recorded, sizes)
    order = exact.order if exact else BY_AGE
    for text in confs:
        if text == conf and exact is not None and (same_device or _fits(device, exact, total)):
            yield _as_recorded(device, conf, exact)
        else:
            yield _trial(device, text, order, start, laid, recorded, total)
        if text == conf:
            other = BY_ADDRESS if order == BY_AGE else BY_AGE
            yield _trial(device, text, other, start, laid, recorded, total)


def _fits(device: Device, exact: Exact, total: int | None) -> bool:
    """Return whether a device of so many bytes would have served each request at once."""
    return total is not None and exact.peak_reserved <= total and not failures(device)


def _as_recorded(device: Device, conf: str, exact: Exact) -> Trial:
    """Return the trial of the recorded settings; an exact replay needs no other."""
    failed = next((place + 1 for place in failures(device)), None)
    return Trial(
        conf=conf,
        torch=exact.order,
        reserved=exact.peak_reserved,
        reserved_upper=exact.peak_reserved,
        allocated=exact.peak_allocated,
        segments=exact.segments,
        failed=failed,
        failed_upper=failed,
    )


def _trial(
    device: Device,
    conf: str,
    order: str,
    start: Memory,
    laid: Sequence[Laid],
    recorded: AllocatorSettings,
    total: int | None,
) -> Trial:
    """Replay with the memory at the start kept, and with its blocks requested afresh."""
    settings = AllocatorSettings.parse(conf)
    ends: list[Attempt] = []
    for afresh in (False, True) if start.runs else (False,):
        kept = () if afresh else converted(laid, recorded, settings)
        with suppress(ValueError):
            ends.append(attempt(start, settings, kept, total=total, order=order))
    if not ends:
        raise UnsupportedError(
            f"the memory before the first event does not fit on a device of {total} bytes"
        )
    for each in ends:
        deque(each.run(device), maxlen=0)
    allocators = [each.requests.allocator for each in ends]
    peaks = sorted(each.peak_reserved_bytes for each in allocators)
    return Trial(
        conf=conf,
        torch=order,
        reserved=peaks[0],
        reserved_upper=peaks[-1],
        allocated=max(each.peak_allocated_bytes for each in allocators),
        segments=max(each.statistics()["num_device_alloc"] for each in allocators),
        failed=ends[-1].failed,
        failed_upper=ends[0].failed,
    )


def converted(
    laid: Sequence[Laid], recorded: AllocatorSettings, settings: AllocatorSettings
) -> list[Laid]:
    """Return the memory at the start as an allocator of other settings can take it over.

    Whole segments become mapped memory of one range for each pool; mapped runs become segments.
    """
    if recorded.expandable_segments == settings.expandable_segments:
        return list(laid)
    if settings.expandable_segments:
        return _ranges(laid)
    return [segment for each in laid for segment in _runs(each)]


def _ranges(laid: Sequence[Laid]) -> list[Laid]:
    pools: dict[tuple[object, str], list[Laid]] = {}
    for each in laid:
        pools.setdefault((each.state.lane, each.state.pool), []).append(each)
    ranges = []
    for own in pools.values():
        blocks: list[BlockState] = []
        for each in own:
            for block in each.state.blocks:
                if blocks and not block.requested and not blocks[-1].requested:
                    blocks[-1] = BlockState(size=blocks[-1].size + block.size)
                else:
                    blocks.append(block)
        blocks.append(BlockState(size=UNLIMITED_RANGE, mapped=False))
        state = SegmentState(pool=own[0].state.pool, blocks=tuple(blocks), lane=own[0].state.lane)
        used = tuple(address for each in own for address in each.used)
        ranges.append(Laid(address=own[0].address, state=state, used=used))
    return ranges


def _runs(laid: Laid) -> Iterator[Laid]:
    """Yield each mapped run of a range as a segment."""
    address, blocks, used = laid.address, list[BlockState](), list[int]()
    places = iter(laid.used)
    base = address
    for block in (*laid.state.blocks, BlockState(size=1, mapped=False)):
        if block.mapped:
            blocks.append(block)
            if block.requested:
                used.append(next(places))
        else:
            if blocks:
                state = SegmentState(
                    pool=laid.state.pool, blocks=tuple(blocks), lane=laid.state.lane
                )
                yield Laid(address=base, state=state, used=tuple(used))
            blocks, used, base = [], [], address + block.size
        address += block.size
