"""Replays of a snapshot's requests: exact ones under its own settings, others under new settings.

An exact replay gives each segment its recorded address and compares every event. A replay under
other settings keeps the requests, their order and their lanes; all else is the allocator's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..allocator.blocks import Block
from ..allocator.caching import MIN_BLOCK, CachingAllocator
from ..allocator.segments import SMALL_REQUEST, Addresses
from ..allocator.settings import AllocatorSettings
from .snapshot import Device, Event
from .start import Laid, Memory, UnsupportedError, block_sizes, ends_shown, laid_out

SEGMENT_ACTIONS = ("segment_alloc", "segment_free", "segment_map", "segment_unmap")
TAKING = ("segment_alloc", "segment_map")
# Torch up to this version, and from this version on, takes equal blocks in the order of addresses
# and in that of ages.
BY_ADDRESS, BY_AGE = "2.11", "2.13"
# Offsets in a segment are smaller than an unlimited device's range of addresses.
_AGE_SHIFT = 52


class DifferenceError(AssertionError):
    """An exact replay differs from the recording; `place` is the number of the event.

    If a block is elsewhere, `address` is its place in the replay, and `rest` the free bytes there
    beyond its size.
    """

    def __init__(self, message: str, place: int, address: int = 0, rest: int = 0) -> None:
        super().__init__(message)
        self.place, self.address, self.rest = place, address, rest


class RecordedAddresses(Addresses):
    """Gives segments their recorded addresses, and notes what the allocator does with memory.

    Segments are numbered by address, or by age for the order of torch from 2.13 on.
    """

    def __init__(self, order: str, *, expandable: bool) -> None:
        self.coming: list[int] = []
        self.done: list[tuple[str, int, int]] = []
        self._by_age = order == BY_AGE
        self._expandable = expandable
        self._ages: list[int] = []

    def take(self, nbytes: int) -> int:
        """Return the number of the next segment, which gets the next recorded address."""
        if not self.coming:
            raise _UnexpectedSegmentError(nbytes)
        address = self.coming.pop(0)
        if not self._expandable:
            self.done.append(("segment_alloc", address, nbytes))
        if not self._by_age:
            return address
        self._ages.append(address)
        return len(self._ages) << _AGE_SHIFT

    def address_of(self, place: int) -> int:
        """Return the address of a place, the sum of a segment's number and an offset."""
        if not self._by_age:
            return place
        return self._ages[(place >> _AGE_SHIFT) - 1] + place % (1 << _AGE_SHIFT)

    def give_back(self, address: int, nbytes: int) -> None:
        """Note that a segment was released."""
        if not self._expandable:
            self.done.append(("segment_free", self.address_of(address), nbytes))

    def map(self, address: int, nbytes: int) -> None:
        """Note that addresses were mapped."""
        self.done.append(("segment_map", self.address_of(address), nbytes))

    def unmap(self, address: int, nbytes: int) -> None:
        """Note that addresses were unmapped."""
        self.done.append(("segment_unmap", self.address_of(address), nbytes))


class _UnexpectedSegmentError(Exception):
    """The allocator takes a segment of so many bytes where the recorded one took none."""


class Requests:
    """The requests and frees of a recording, made to an allocator of ours."""

    def __init__(self, allocator: CachingAllocator, live: dict[int, Block]) -> None:
        self.allocator = allocator
        # By their recorded addresses: in use, and freed before their last event on other streams.
        self.live = live
        self.waiting: dict[int, Block] = {}

    @classmethod
    def adopting(cls, allocator: CachingAllocator, laid: Sequence[Laid]) -> "Requests":
        """Give the allocator the segments at the start."""
        blocks = allocator.adopt(each.state for each in laid)
        addresses = [address for each in laid for address in each.used]
        return cls(allocator, dict(zip(addresses, blocks, strict=True)))

    def allocate(self, event: Event) -> Block:
        """Make the request of an event."""
        block = self.live[event.address] = self.allocator.malloc(event.size, event.lane)
        return block

    def free(self, event: Event) -> None:
        """Free the block of an event; between both events of a free it waits for other streams.

        Raise UnsupportedError for a block that is not in use.
        """
        ends = event.action == "free_completed" and event.address in self.waiting
        if not ends and event.address not in self.live:
            raise UnsupportedError(f"the block at {event.address:#x} is freed twice")
        if event.action == "free_requested":
            block = self.waiting[event.address] = self.live.pop(event.address)
            self.allocator.free(block, pending=True)
        elif ends:
            self.allocator.complete(self.waiting.pop(event.address))
        else:
            # Its free was requested before the first event.
            self.allocator.free(self.live.pop(event.address))


@dataclass(frozen=True, kw_only=True)
class Exact:
    """An exact replay: the order of equal blocks, the sizes at the start, and peaks in bytes."""

    order: str
    sizes: Mapping[int, int]
    segments: int
    peak_allocated: int
    peak_reserved: int


def replay_exactly(device: Device, settings: AllocatorSettings, start: Memory) -> Exact:
    """Replay all events from the start, under the settings that they were recorded with.

    Raise DifferenceError for the first event in which our allocator differs in either order of
    equal blocks, and UnsupportedError if the events do not lead to the segments at their end.
    """
    try:
        return replay_in_order(device, settings, start, BY_AGE)
    except DifferenceError as error:
        try:
            return replay_in_order(device, settings, start, BY_ADDRESS)
        except DifferenceError as other:
            raise max(error, other, key=lambda each: each.place) from None


def replay_in_order(
    device: Device, settings: AllocatorSettings, start: Memory, order: str
) -> Exact:
    """Replay all events, and find the tails that older blocks must have.

    The tail of an older block is unknown if nothing is placed after the block while it is in use.
    If the recorded allocator skips the place, there is a tail, so large that the rest is too small
    for the request.
    """
    shown = ends_shown(device, start)
    least = block_sizes(start, settings, shown)
    ends = dict(shown)
    while True:
        sizes = block_sizes(start, settings, ends)
        try:
            return _Exact(device, settings, start, sizes, order).run()
        except DifferenceError as error:
            before = next(
                (address for address, size in sizes.items() if address + size == error.address),
                None,
            )
            if before is None or before in shown or start.used[before].size is not None:
                raise
            end = error.address + error.rest + MIN_BLOCK
            if ends.get(before) == end:
                raise
            ends[before] = end
            if ends[before] > before + least[before] + SMALL_REQUEST:
                raise


class _Exact:
    """Our allocator in the state before the first event of a snapshot."""

    def __init__(
        self,
        device: Device,
        settings: AllocatorSettings,
        start: Memory,
        sizes: Mapping[int, int],
        order: str,
    ) -> None:
        self._device, self._sizes, self._order = device, sizes, order
        self._driver = RecordedAddresses(order, expandable=settings.expandable_segments)
        self._allocator = CachingAllocator(settings, addresses=self._driver)
        laid = laid_out(device, start, settings, sizes)
        self._driver.coming[:] = [each.address for each in laid]
        self._requests = Requests.adopting(self._allocator, laid)
        self._driver.done.clear()
        self._reserved = self._allocator.reserved_bytes

    def run(self) -> Exact:
        """Make every request, and compare after every event."""
        segment_events: list[Event] = []
        place = -1
        for place, event in enumerate(self._device.events):
            if event.action in SEGMENT_ACTIONS:
                segment_events.append(event)
                continue
            if event.action == "oom":
                # The segments that it released or mapped before it failed come before it.
                self._react(segment_events, None, place)
            else:
                self._react(segment_events, event, place)
            segment_events.clear()
            if self._allocator.reserved_bytes != self._reserved:
                raise DifferenceError(
                    f"{_where(place, event)}: {self._allocator.reserved_bytes} bytes reserved,"
                    f" recorded were {self._reserved}",
                    place,
                )
        self._react(segment_events, None, place)
        self._compare_end(place)
        return Exact(
            order=self._order,
            sizes=self._sizes,
            segments=self._allocator.statistics()["num_device_alloc"],
            peak_allocated=self._allocator.peak_allocated_bytes,
            peak_reserved=self._allocator.peak_reserved_bytes,
        )

    def _react(self, segment_events: list[Event], event: Event | None, place: int) -> None:
        """Do what caused the segment events: release cached memory, then make the request."""
        expected = [(each.action, each.address, each.size) for each in segment_events]
        for each in segment_events:
            self._reserved += each.size if each.action in TAKING else -each.size
        taken = [each.address for each in segment_events if each.action in TAKING]
        if len(taken) < len(segment_events):
            self._allocator.empty_cache()
        if taken and (event is None or event.action != "alloc"):
            raise UnsupportedError(
                "memory is mapped for a request that fails, which needs the size of the device"
            )
        if event is not None and event.action == "alloc":
            self._allocate(event, taken, place)
        elif event is not None:
            self._requests.free(event)
        ours = sorted(self._driver.done)
        if ours != sorted(expected):
            raise DifferenceError(
                f"{_where(place, event)}: segments {_shown(ours)}, recorded were"
                f" {_shown(expected)}",
                place,
            )
        self._driver.done.clear()

    def _allocate(self, event: Event, taken: list[int], place: int) -> None:
        self._driver.coming[:] = taken
        try:
            block = self._requests.allocate(event)
        except _UnexpectedSegmentError as error:
            raise DifferenceError(
                f"{_where(place, event)}: a segment of {error} bytes is taken, recorded was none",
                place,
            ) from None
        self._driver.coming.clear()
        address = self._driver.address_of(block.segment + block.offset)
        if address != event.address:
            behind = block.next.size if block.next is not None and not block.next.allocated else 0
            rest = block.size + behind - self._allocator.rounded(event.size)
            raise DifferenceError(
                f"{_where(place, event)}: block at {address:#x}, recorded was {event.address:#x}",
                place,
                address,
                rest,
            )

    def _compare_end(self, place: int) -> None:
        """Compare the size of each block in use with the snapshot's own list of them."""
        blocks = self._requests.live | self._requests.waiting
        ours = {address: (block.requested, block.size) for address, block in blocks.items()}
        recorded = {
            block.address: (block.requested, block.size)
            for segment in self._device.segments
            for block in segment.blocks
            if block.state != "inactive"
        }
        if ours != recorded:
            raise DifferenceError("the blocks in use at the end differ", place)


def _where(place: int, event: Event | None) -> str:
    if event is None:
        return "after the last event"
    return f"event {place + 1}, {event.action} of {event.size} bytes"


def _shown(events: list[tuple[str, int, int]]) -> str:
    return ", ".join(f"{action} {address:#x} {size}" for action, address, size in events) or "none"
