"""A recording's stream, given to our allocator and compared with torch's after every event."""

from collections.abc import Iterator
from typing import Any

from recording import Event, Phase, Recording, Stream, segment_addresses

from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.out_of_memory import OutOfMemoryError
from optprof.profiler.allocator.segments import LowestAddresses
from optprof.profiler.allocator.settings import AllocatorSettings


class DeviatesError(AssertionError):
    """Torch's allocator did at some event what ours does not do."""


class RecordedAddresses(LowestAddresses):
    """The addresses that the driver gave: up to torch 2.12 they order free blocks of equal size."""

    def __init__(self, addresses: Iterator[int]) -> None:
        super().__init__()
        self._addresses = addresses

    def take(self, nbytes: int) -> int:
        """Return the next segment's address."""
        del nbytes
        return next(self._addresses)

    def release(self, address: int, nbytes: int) -> None:
        """Do nothing: the driver knows itself what it may give again."""


def allocator_of(found: Recording) -> CachingAllocator:
    """Return the allocator of the recorded process, on a device as full as it was."""
    settings = AllocatorSettings.parse(found.scenario.get("alloc_conf", ""))
    version = tuple(map(int, found.torch.split(".")[:2]))
    by_address = version < (2, 13) and not settings.expandable_segments
    addresses = RecordedAddresses(segment_addresses(found.phases)) if by_address else None
    occupied = found.total - found.free_before
    return CachingAllocator(settings, total=found.total, occupied=occupied, addresses=addresses)


class Replayed:
    """Our allocator on its way through a recording; `count` is the number of events so far."""

    def __init__(self, found: Recording) -> None:
        self.count = 0
        self._allocator = allocator_of(found)
        self._stream = Stream()
        self._live: dict[int, Block] = {}
        self._bases: dict[int, int] = {}

    def run(self, phase: Phase) -> None:
        """Replay one phase; DeviatesError names the first event that differs."""
        for event in self._stream.read(phase.entries()):
            self.count += 1
            where = f"event {self.count}, in {phase.name}"
            self._take(event, where)
            reserved = self._allocator.reserved_bytes
            if reserved != event.reserved:
                raise DeviatesError(
                    f"{where}: {reserved} bytes reserved, recorded {event.reserved}"
                )
        for name, ours in self._allocator.statistics().items():
            if ours != phase.statistics[name]:
                told = f"{name} is {ours}, recorded {phase.statistics[name]}"
                raise DeviatesError(f"at the end of {phase.name}: {told}")

    def _take(self, event: Event, where: str) -> None:
        if event.kind == "free":
            self._allocator.free(self._live.pop(event.number))
            return
        try:
            block = self._allocator.malloc(event.nbytes)
        except OutOfMemoryError:
            if event.kind != "oom":
                raise DeviatesError(f"{where}: out of memory, which was not recorded") from None
            return
        if event.kind == "oom":
            raise DeviatesError(f"{where}: recorded out of memory, and {event.nbytes} bytes fit")
        self._live[event.number] = block
        base = self._bases.setdefault(block.segment, event.address - block.offset)
        if base + block.offset != event.address:
            raise DeviatesError(f"{where}: block at another place")


def replay_exactly(found: Any) -> int:
    """Replay a whole recording and return the number of its events; DeviatesError where it differs.

    Torch's history tells the address of each block and what was reserved, not the sizes of blocks:
    those are compared through the statistics at each phase's end, which hold the bytes of all
    blocks so far, their peak, and what lies free between them.
    """
    replayed = Replayed(found)
    for phase in found.phases:
        replayed.run(phase)
    return replayed.count
