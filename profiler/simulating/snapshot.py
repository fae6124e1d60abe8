"""Write a simulation as a snapshot like torch.cuda.memory._snapshot()'s, for memory_viz.

The page is https://pytorch.org/memory_viz. As in torch's snapshots, an event's size is the
requested bytes; "block_bytes" in its "user_metadata" is what `torch.cuda.memory_allocated` counts.
Events have no times, as no clock ran. This code writes snapshots and never reads one.
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

# Roughly the address at which a 64-bit driver puts device memory.
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
    """Replay the stream on the scenario's device and write its snapshot as a pickle, atomically.

    No link is followed below the folder `below`. Raises what `disk.writing` raises.
    """
    with disk.writing(path, below=below) as file:
        pickle.dump(snapshot(scenario, segments, allocations), file, protocol=PROTOCOL)


def snapshot(
    scenario: Scenario, segments: Sequence[Segment], allocations: Allocations
) -> dict[str, Any]:
    """Return every event of the stream, and the segments at its end."""
    history = DeviceHistory(
        expandable=AllocatorSettings.parse(scenario.alloc_conf).expandable_segments
    )
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


class DeviceHistory:
    """The entries of a device's trace, and its memory now.

    As the allocator's `addresses`, it puts each new segment behind the last one.
    """

    def __init__(self, *, expandable: bool) -> None:
        self.entries: list[dict[str, Any]] = []
        self._expandable = expandable
        self._next = FIRST_ADDRESS
        # The bytes of each contiguous run of memory, by address.
        self._runs: dict[int, int] = {}
        # Addresses of memory for the pool of small requests, which always gets this size.
        self._small: set[int] = set()
        # The streams of runs, by their addresses, that are not the default one.
        self._streams: dict[int, int] = {}
        # The blocks in use by address, and the entries of their allocations by number.
        self._blocks: dict[int, dict[str, Any]] = {}
        self._alive: dict[int, dict[str, Any]] = {}

    def take(self, nbytes: int) -> int:
        """Return the address of a new segment."""
        address = self._next
        self._next += nbytes
        if not self._expandable:
            self._runs[address] = nbytes
            if nbytes == SMALL_SEGMENT:
                self._small.add(address)
            self._note("segment_alloc", address, nbytes)
        return address

    def give_back(self, address: int, nbytes: int) -> None:
        """Remove a segment."""
        if not self._expandable:
            del self._runs[address]
            self._note("segment_free", address, nbytes)

    def map(self, address: int, nbytes: int) -> None:
        """Map memory at the address, joined with the runs next to it."""
        self._note("segment_map", address, nbytes)
        if nbytes == SMALL_SEGMENT:
            self._small.add(address)
        nbytes += self._runs.pop(address + nbytes, 0)
        before = next(
            (start for start, size in self._runs.items() if start + size == address), address
        )
        self._runs[before] = self._runs.get(before, 0) + nbytes

    def unmap(self, address: int, nbytes: int) -> None:
        """Unmap memory at the address, inside a run."""
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
        """Note the allocation of a block."""
        address, stream = block.segment + block.offset, block.pool.lane.stream
        common = {
            "frames": frames,
            "category": category,
            "user_metadata": _metadata(phase, block.size),
        }
        request = {"addr": address, "size": block.requested, "stream": stream}
        entry = {"action": "alloc", **request, **common}
        # As in torch, segments that were taken or released for the request have its stack.
        for earlier in reversed(self.entries):
            if not earlier["action"].startswith("segment_") or earlier["frames"]:
                break
            earlier["frames"] = frames
            if stream and earlier["action"] in ("segment_alloc", "segment_map"):
                earlier["stream"] = self._streams[earlier["addr"]] = stream
        self.entries.append(entry)
        self._alive[number] = entry
        sizes = {"size": block.size, "requested_size": block.requested}
        self._blocks[address] = {"address": address, **sizes, "state": "active_allocated", **common}

    def free(self, number: int) -> None:
        """Note the free of an allocation's block."""
        entry = self._alive.pop(number)
        del self._blocks[entry["addr"]]
        self.entries += [
            {**entry, "action": action} for action in ("free_requested", "free_completed")
        ]

    def segments(self) -> list[dict[str, Any]]:
        """Return the segments now, in the order of their addresses."""
        blocks = [self._blocks[address] for address in sorted(self._blocks)]
        starts = [block["address"] for block in blocks]
        segments = []
        for address, nbytes in sorted(self._runs.items()):
            inside = blocks[bisect_left(starts, address) : bisect_left(starts, address + nbytes)]
            pool = "small" if address in self._small else "large"
            segment = _segment(address, nbytes, inside, pool, expandable=self._expandable)
            segments.append({**segment, "stream": self._streams.get(address, 0)})
        return segments

    def _note(self, action: str, address: int, nbytes: int) -> None:
        # The page fails on a snapshot with categories unless "unknown" is one of them.
        entry = {
            "action": action,
            "addr": address,
            "size": nbytes,
            "stream": self._streams.get(address, 0),
            "frames": [],
            "category": "unknown",
        }
        self.entries.append(entry)


@cache
def _metadata(phase: str, block_bytes: int) -> Mapping[str, Any]:
    return {"phase": phase, "block_bytes": block_bytes}


@cache
def _frames(source: Source, phase: str) -> list[_Frame]:
    """Return the stack for memory_viz, innermost first: operation, module, and line or phase."""
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
    address: int, nbytes: int, used: list[dict[str, Any]], pool: str, *, expandable: bool
) -> dict[str, Any]:
    """Return a segment with its blocks in use and the free ones between them."""
    blocks, reached = [], address
    for block in [*used, None]:
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
    allocated = sum(block["size"] for block in used)
    return {
        "device": 0,
        "address": address,
        "total_size": nbytes,
        "allocated_size": allocated,
        "active_size": allocated,
        "requested_size": sum(block["requested_size"] for block in used),
        "segment_type": pool,
        "segment_pool_id": (0, 0),
        "is_expandable": expandable,
        "frames": [],
        "blocks": blocks,
    }
