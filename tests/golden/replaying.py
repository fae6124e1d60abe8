"""Replay of a recording's stream on our allocator, compared with torch's after every event."""

from collections.abc import Iterator
from typing import Any

from recording import Event, Phase, Recording, Stream, segment_addresses

from optprof.profiler.allocator.blocks import Block, Lane
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.out_of_memory import OutOfMemoryError
from optprof.profiler.allocator.segments import LowestAddresses
from optprof.profiler.allocator.settings import AllocatorSettings


class DeviatesError(AssertionError):
    """Our allocator behaves unlike torch's at an event."""


class RecordedAddresses(LowestAddresses):
    """The driver's addresses, which order free blocks of equal size up to torch 2.12."""

    def __init__(self, addresses: Iterator[int]) -> None:
        super().__init__()
        self._addresses = addresses

    def take(self, nbytes: int) -> int:
        """Return the next segment's address."""
        del nbytes
        return next(self._addresses)

    def give_back(self, address: int, nbytes: int) -> None:
        """Do nothing: the recorded driver chooses the addresses."""


def allocator_of(recording: Recording) -> CachingAllocator:
    """Return the allocator of the recorded process, on a device as full as it was."""
    settings = AllocatorSettings.parse(recording.scenario.get("alloc_conf", ""))
    version = tuple(map(int, recording.torch.split(".")[:2]))
    by_address = version < (2, 13) and not settings.expandable_segments
    addresses = RecordedAddresses(segment_addresses(recording.phases)) if by_address else None
    occupied = recording.total - recording.free_before
    return CachingAllocator(settings, total=recording.total, occupied=occupied, addresses=addresses)


class Replayed:
    """A replay of a recording on our allocator; `count` is the number of events so far."""

    def __init__(self, recording: Recording) -> None:
        self.count = 0
        self._allocator = allocator_of(recording)
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
                raise DeviatesError(
                    f"at the end of {phase.name}: {name} is {ours},"
                    f" recorded {phase.statistics[name]}"
                )

    def _take(self, event: Event, where: str) -> None:
        if event.kind == "free":
            self._allocator.free(self._live.pop(event.number))
            return
        try:
            block = self._allocator.malloc(event.nbytes, Lane(event.stream))
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


def replay_exactly(recording: Any) -> int:
    """Replay a whole recording and return the number of its events.

    Raise DeviatesError at the first difference. torch's history has the address of each block and
    the reserved bytes, but not the sizes of blocks. Those are compared through the statistics at
    the end of each phase: the bytes of all blocks so far, their peak, and the free bytes between.
    """
    replayed = Replayed(recording)
    for phase in recording.phases:
        replayed.run(phase)
    return replayed.count
