"""A simulation as a snapshot such as torch.cuda.memory._snapshot() gives, for https://pytorch.org/memory_viz.

Sizes of events are the bytes that were asked for, as they are in torch's own; "block_bytes" in an event's "user_metadata" is what
`torch.cuda.memory_allocated` counts. Nothing has a time: no clock ran. A snapshot is only ever written here, never read.
"""

import pickle
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .allocator import CachingAllocator
from .blocks import Block
from .replay import play
from .segments import SMALL_SEGMENT
from .sources import Source
from .trace import Allocations, Segment

# Where a 64-bit driver puts device memory, more or less.
FIRST_ADDRESS = 0x7F00_0000_0000
# The newest protocol that the page reads.
PROTOCOL = 4

_Frame = dict[str, Any]


def write_snapshot(path: Path, segments: Sequence[Segment], allocations: Allocations) -> None:
    """Replay the stream and write its snapshot as a pickle; OSError names the file when that fails."""
    try:
        with path.open("wb") as file:
            pickle.dump(snapshot(segments, allocations), file, protocol=PROTOCOL)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def snapshot(segments: Sequence[Segment], allocations: Allocations) -> dict[str, Any]:
    """Every event of the stream, and the segments as they are when it ends."""
    history = _History()
    allocator = CachingAllocator(addresses=history)
    blocks: dict[int, Block] = {}
    for segment in segments:
        for event, block in play(segment, allocations, allocator, blocks):
            number = event if event >= 0 else ~event
            category, source = allocations.categories[number], allocations.sources[number]
            if event >= 0:
                history.allocate(number, block, category, _frames(source, segment.phase), segment.phase)
            else:
                history.free(number)
    return {
        "segments": [_segment(address, nbytes, history.held(address)) for address, nbytes in history.segments.items()],
        "device_traces": [history.entries],
        "external_annotations": [],
        "allocator_settings": {"PYTORCH_CUDA_ALLOC_CONF": ""},
    }


class _History:
    """The entries of a device's trace, and what it holds; it also says where segments lie, each behind the last, none twice."""

    def __init__(self) -> None:
        self.entries: list[dict[str, Any]] = []
        self.segments: dict[int, int] = {}
        self._next = FIRST_ADDRESS
        self._held: dict[int, dict[int, dict[str, Any]]] = {}
        self._alive: dict[int, dict[str, Any]] = {}

    def take(self, nbytes: int) -> int:
        """The address of a new segment."""
        address = self._next
        self._next += nbytes
        self.segments[address] = nbytes
        self._held[address] = {}
        self._note_segment("segment_alloc", address, nbytes)
        return address

    def give_back(self, address: int, nbytes: int) -> None:
        """Let a segment go."""
        del self.segments[address], self._held[address]
        self._note_segment("segment_free", address, nbytes)

    def allocate(self, number: int, block: Block, category: str, frames: list[_Frame], phase: str) -> None:
        """Note that a block was handed out."""
        address = block.segment + block.offset
        entry = {
            "action": "alloc",
            "addr": address,
            "size": block.requested,
            "stream": 0,
            "frames": frames,
            "category": category,
            "user_metadata": _metadata(phase, block.size),
        }
        self.entries.append(entry)
        self._alive[number] = {"segment": block.segment, "block_bytes": block.size, "entry": entry}
        self._held[block.segment][address] = {
            "address": address,
            "size": block.size,
            "requested_size": block.requested,
            "state": "active_allocated",
            "frames": frames,
            "category": category,
        }

    def free(self, number: int) -> None:
        """Note that the block of an allocation came back."""
        alive = self._alive.pop(number)
        address = alive["entry"]["addr"]
        del self._held[alive["segment"]][address]
        for action in ("free_requested", "free_completed"):
            self.entries.append({**alive["entry"], "action": action})

    def held(self, address: int) -> list[dict[str, Any]]:
        """The blocks in use of the segment at an address, in order."""
        return [block for _, block in sorted(self._held[address].items())]

    def _note_segment(self, action: str, address: int, nbytes: int) -> None:
        # The page stops at a snapshot that has categories and "unknown" not among them.
        entry = {"action": action, "addr": address, "size": nbytes, "stream": 0, "frames": [], "category": "unknown"}
        self.entries.append(entry)


@cache
def _metadata(phase: str, block_bytes: int) -> Mapping[str, Any]:
    return {"phase": phase, "block_bytes": block_bytes}


@cache
def _frames(source: Source, phase: str) -> list[_Frame]:
    """What memory_viz shows as the stack, the innermost first: operation, module, and the line or else the phase."""
    file, _, line = source.line.rpartition(":")
    stack = [("operation", 0, source.op), ("module", 0, source.module), (file or "phase", int(line or 0), phase)]
    return [{"filename": filename, "line": number, "name": name} for filename, number, name in stack if name]


def _segment(address: int, nbytes: int, held: list[dict[str, Any]]) -> dict[str, Any]:
    """A segment with its blocks in use and what is free between them."""
    blocks, reached = [], address
    for block in [*held, None]:
        start = address + nbytes if block is None else block["address"]
        if start > reached:
            free = {"address": reached, "size": start - reached, "requested_size": 0, "state": "inactive", "frames": []}
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
        "segment_type": "small" if nbytes == SMALL_SEGMENT else "large",
        "segment_pool_id": (0, 0),
        "is_expandable": False,
        "frames": [],
        "blocks": blocks,
    }
