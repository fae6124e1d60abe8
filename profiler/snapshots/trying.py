"""Replay the requests of a snapshot under other settings of the allocator."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

from ..allocator.blocks import Block
from ..allocator.caching import CachingAllocator
from ..allocator.out_of_memory import OutOfMemoryError
from ..allocator.segments import UNLIMITED_RANGE, Ages, LowestAddresses
from ..allocator.settings import AllocatorSettings
from ..allocator.state import BlockState, SegmentState
from ..records.snapshots import Replayed, Trial
from .contents import Replayable, failures
from .replay import BY_ADDRESS, BY_AGE, SEGMENT_ACTIONS, TAKING, Exact, Requests
from .snapshot import NO_STACK, Device, Event
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
    torch.cuda.empty_cache. Without stacks only a recording that ran out of memory releases for
    requests.
    """
    released: list[Event] = []
    full = bool(failures(device))
    for place, event in enumerate(device.events):
        if event.action in SEGMENT_ACTIONS:
            if event.action not in TAKING:
                released.append(event)
            continue
        if released:
            is_request = event.action in ("alloc", "oom")
            stack = released[-1].stack
            if not is_request or stack != event.stack or (stack == NO_STACK and not full):
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
                    self.failed = self.failed or step.place + 1
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

    They are also tried in the order of equal free blocks that other versions of torch have.
    `same_device` tells that `total` are the bytes of the recorded GPU, or unknown.

    Raise UnsupportedError if the events cannot be undone.
    """
    start, exact = replayable.start, replayable.exact
    if start is None:
        raise UnsupportedError(replayable.problem or "the events cannot be undone")
    recorded = AllocatorSettings.parse(conf)
    sizes = exact.sizes if exact else block_sizes(start, recorded, ends_shown(device, start))
    laid = laid_out(device, start, recorded, sizes)
    order = exact.order if exact else BY_AGE

    def trial(text: str, order: str) -> Trial:
        settings = AllocatorSettings.parse(text)
        afresh = _replayed(device, start, settings, (), total, order)
        kept = afresh
        if start.runs:
            kept = _replayed(
                device, start, settings, converted(laid, recorded, settings), total, order
            )
        return Trial(conf=text, torch=order, afresh=afresh, kept=kept)

    for text in confs:
        found = trial(text, order)
        if text == conf and exact is not None and same_device:
            known = _as_recorded(device, exact)
            found = replace(found, kept=known, afresh=found.afresh if start.runs else known)
        yield found
        if text == conf:
            yield trial(text, BY_ADDRESS if order == BY_AGE else BY_AGE)


def _as_recorded(device: Device, exact: Exact) -> Replayed:
    """Return the replay under the recorded settings, which an exact replay has shown."""
    return Replayed(
        reserved=exact.peak_reserved,
        allocated=exact.peak_allocated,
        segments=exact.segments,
        failed=next((place + 1 for place in failures(device)), None),
    )


def _replayed(
    device: Device,
    start: Memory,
    settings: AllocatorSettings,
    laid: Sequence[Laid],
    total: int | None,
    order: str,
) -> Replayed:
    try:
        replay = attempt(start, settings, laid, total=total, order=order)
    except ValueError:
        return Replayed(reserved=0, allocated=0, segments=0, failed=0)
    deque(replay.run(device), maxlen=0)
    allocator = replay.requests.allocator
    return Replayed(
        reserved=allocator.peak_reserved_bytes,
        allocated=allocator.peak_allocated_bytes,
        segments=allocator.statistics()["num_device_alloc"],
        failed=replay.failed,
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
