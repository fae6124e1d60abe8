"""A simulation as a snapshot such as torch.cuda.memory._snapshot() gives, for
https://pytorch.org/memory_viz.

Sizes of events are the bytes that were asked for, as they are in torch's own; "block_bytes" in an
event's "user_metadata" is what `torch.cuda.memory_allocated` counts. Nothing has a time: no clock
ran. A snapshot is only ever written here, never read.
"""

import pickle
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from optprof.scenarios import Scenario

from ..allocator.blocks import Block
from ..allocator.segments import SMALL_SEGMENT
from ..allocator.settings import AllocatorSettings
from ..safety import disk
from ..tracing.sources import Source
from ..tracing.stream import Allocations, Segment
from .replay import play
from .simulation import simulated_allocator

# Where a 64-bit driver puts device memory, more or less.
FIRST_ADDRESS = 0x7F00_0000_0000
# The newest protocol that the page reads.
PROTOCOL = 4

_Frame = dict[str, Any]


def write_snapshot(
    path: Path,
    scenario: Scenario,
    segments: Sequence[Segment],
    allocations: Allocations,
    *,
    below: Path | None = None,
) -> None:
    """Replay the stream on the scenario's device and write its snapshot as a pickle, whole or not
    at all.

    `below` is the folder under which no link is followed, as in `disk.writing`, which says what is
    raised.
    """
    with disk.writing(path, below=below) as file:
        pickle.dump(snapshot(scenario, segments, allocations), file, protocol=PROTOCOL)


def snapshot(
    scenario: Scenario, segments: Sequence[Segment], allocations: Allocations
) -> dict[str, Any]:
    """Every event of the stream, and the segments as they are when it ends."""
    history = _History(expandable=AllocatorSettings.parse(scenario.alloc_conf).expandable_segments)
    allocator = simulated_allocator(scenario, history)
    blocks: dict[int, Block] = {}
    for segment in segments:
        for event, block in play(segment, allocations, allocator, blocks):
            if event >= 0:
                frames = _frames(allocations.sources[event], segment.phase)
                history.allocate(event, block, allocations.categories[event], frames, segment.phase)
            else:
                history.free(~event)
    return {
        "segments": history.segments(),
        "device_traces": [history.entries],
        "external_annotations": [],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": scenario.alloc_conf},
    }


class _History:
    """The entries of a device's trace, and what it holds; it also says where segments lie, each
    behind the last, none twice.
    """

    def __init__(self, *, expandable: bool) -> None:
        self.entries: list[dict[str, Any]] = []
        self._expandable = expandable
        self._next = FIRST_ADDRESS
        # Bytes of each run of memory and the block of each allocation that is in use, by address;
        # the addresses of those by number.
        self._runs: dict[int, int] = {}
        # Where the pool of small requests got memory; it is always given that size at a time.
        self._small: set[int] = set()
        self._blocks: dict[int, dict[str, Any]] = {}
        self._alive: dict[int, dict[str, Any]] = {}

    def take(self, nbytes: int) -> int:
        """The address of a new segment."""
        address = self._next
        self._next += nbytes
        if not self._expandable:
            self._runs[address] = nbytes
            if nbytes == SMALL_SEGMENT:
                self._small.add(address)
            self._note("segment_alloc", address, nbytes)
        return address

    def give_back(self, address: int, nbytes: int) -> None:
        """Let a segment go."""
        if not self._expandable:
            del self._runs[address]
            self._note("segment_free", address, nbytes)

    def map(self, address: int, nbytes: int) -> None:
        """Put memory behind addresses, joined with what stands behind their neighbours."""
        self._note("segment_map", address, nbytes)
        if nbytes == SMALL_SEGMENT:
            self._small.add(address)
        nbytes += self._runs.pop(address + nbytes, 0)
        before = next(
            (start for start, size in self._runs.items() if start + size == address), address
        )
        self._runs[before] = self._runs.get(before, 0) + nbytes

    def unmap(self, address: int, nbytes: int) -> None:
        """Take memory from addresses, out of the run that they lie in."""
        self._note("segment_unmap", address, nbytes)
        start, size = next(
            (start, size) for start, size in self._runs.items() if start <= address < start + size
        )
        del self._runs[start]
        for low, high in ((start, address), (address + nbytes, start + size)):
            if low < high:
                self._runs[low] = high - low

    def allocate(
        self, number: int, block: Block, category: str, frames: list[_Frame], phase: str
    ) -> None:
        """Note that a block was handed out."""
        address = block.segment + block.offset
        known = {
            "frames": frames,
            "category": category,
            "user_metadata": _metadata(phase, block.size),
        }
        entry = {"action": "alloc", "addr": address, "size": block.requested, "stream": 0, **known}
        self.entries.append(entry)
        self._alive[number] = entry
        sizes = {"size": block.size, "requested_size": block.requested}
        self._blocks[address] = {"address": address, **sizes, "state": "active_allocated", **known}

    def free(self, number: int) -> None:
        """Note that the block of an allocation came back."""
        entry = self._alive.pop(number)
        del self._blocks[entry["addr"]]
        self.entries += [
            {**entry, "action": action} for action in ("free_requested", "free_completed")
        ]

    def segments(self) -> list[dict[str, Any]]:
        """The segments as they are now, in the order of their addresses."""
        held = [self._blocks[address] for address in sorted(self._blocks)]
        starts = [block["address"] for block in held]
        found = []
        for address, nbytes in sorted(self._runs.items()):
            inside = held[bisect_left(starts, address) : bisect_left(starts, address + nbytes)]
            pool = "small" if address in self._small else "large"
            found.append(_segment(address, nbytes, inside, pool, expandable=self._expandable))
        return found

    def _note(self, action: str, address: int, nbytes: int) -> None:
        # The page stops at a snapshot that has categories and "unknown" not among them.
        entry = {
            "action": action,
            "addr": address,
            "size": nbytes,
            "stream": 0,
            "frames": [],
            "category": "unknown",
        }
        self.entries.append(entry)


@cache
def _metadata(phase: str, block_bytes: int) -> Mapping[str, Any]:
    return {"phase": phase, "block_bytes": block_bytes}


@cache
def _frames(source: Source, phase: str) -> list[_Frame]:
    """What memory_viz shows as the stack, the innermost first: operation, module, and the line or
    else the phase.
    """
    file, _, line = source.line.rpartition(":")
    stack = [
        ("operation", 0, source.op),
        ("module", 0, source.module),
        (file or "phase", int(line or 0), phase),
    ]
    return [
        {"filename": filename, "line": number, "name": name}
        for filename, number, name in stack
        if name
    ]


def _segment(
    address: int, nbytes: int, held: list[dict[str, Any]], pool: str, *, expandable: bool
) -> dict[str, Any]:
    """A segment with its blocks in use and what is free between them."""
    blocks, reached = [], address
    for block in [*held, None]:
        start = address + nbytes if block is None else block["address"]
        if start > reached:
            free = {
                "address": reached,
                "size": start - reached,
                "requested_size": 0,
                "state": "inactive",
                "frames": [],
            }
            blocks.append(free)
        if block is not None:
            blocks.append(block)
            reached = start + block["size"]
    allocated = sum(block["size"] for block in held)
    return {
        "device": 0,
        "address": address,
        "total_size": nbytes,
        "allocated_size": allocated,
        "active_size": allocated,
        "requested_size": sum(block["requested_size"] for block in held),
        "stream": 0,
        "segment_type": pool,
        "segment_pool_id": (0, 0),
        "is_expandable": expandable,
        "frames": [],
        "blocks": blocks,
    }
