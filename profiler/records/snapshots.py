"""Contents of a snapshot of torch.cuda.memory, and its requests under other settings.

The answers of `optprof snapshot` as plain data; all counts are exact bytes.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Group:
    """Blocks in use that one place in the code requested; `frames` is one of their stacks."""

    name: str
    nbytes: int
    blocks: int
    frames: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A run of bytes in a segment, in use for `group` (a place among the groups), None if free."""

    nbytes: int
    blocks: int
    group: int | None = None


@dataclass(frozen=True, kw_only=True)
class SegmentUse:
    """A segment at the peak, or a mapped run of an expandable one.

    `largest` is its largest run of free bytes. `holders` are the names of the places whose blocks
    keep it from being released, the smallest block first.
    """

    address: int
    nbytes: int
    lane: str
    used: int
    largest: int
    blocks: int
    holders: tuple[tuple[str, int], ...] = ()
    pieces: tuple[Piece, ...] = ()

    @property
    def free(self) -> int:
        """Bytes that are reserved and not in use."""
        return self.nbytes - self.used


@dataclass(frozen=True, kw_only=True)
class LaneUse:
    """Bytes of one pool of one stream at the peak of reserved memory."""

    lane: str
    segments: int
    reserved: int
    used: int
    largest: int


@dataclass(frozen=True, kw_only=True)
class OutOfMemory:
    """A request that failed.

    `wanted` are the bytes of the request and `free` those that the device still had. `unused` are
    free bytes of its own pool, and `largest` the largest run among them. `obstacle` is the segment
    that would have served the request if its blocks in use were elsewhere, if there is one.
    """

    event: int
    wanted: int
    free: int
    reserved: int
    used: int
    unused: int
    largest: int
    obstacle: SegmentUse | None = None

    @property
    def capacity(self) -> int:
        """Bytes of the device that this process could take."""
        return self.reserved + self.free


@dataclass(frozen=True, kw_only=True)
class Replayed:
    """One replay: its peaks, and the calls that took memory from the device.

    `failed` is the number of the event that ran out of memory, None if none did, and 0 if the
    memory before the first event does not fit. It may be one that failed in the recording too.
    """

    reserved: int
    allocated: int
    segments: int
    failed: int | None = None


@dataclass(frozen=True, kw_only=True)
class Trial:
    """The same requests under other settings.

    `conf` is the text of PYTORCH_CUDA_ALLOC_CONF, and `torch` the version whose order of equal
    blocks was used. `afresh` requests the blocks before the first event again, `kept` keeps the
    memory as it was; without a beginning of the recording the truth lies between the two.
    """

    conf: str
    torch: str
    afresh: Replayed
    kept: Replayed

    @property
    def failed(self) -> int | None:
        """The first event that runs out of memory in either replay."""
        ends = [each.failed for each in (self.afresh, self.kept) if each.failed is not None]
        return min(ends, default=None)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Bytes after some events: the largest of each stretch of events.

    `used` has a row for each name in `lanes`. `seconds` count from the first event; empty if the
    events have no times.
    """

    events: Sequence[int]
    seconds: Sequence[float]
    lanes: Sequence[str]
    used: Sequence[Sequence[int]]
    reserved: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class DeviceContents:
    """Contents of a snapshot for one GPU.

    `used` counts the requested bytes of blocks in use. The peaks are those during the events, with
    the number of their event; without events they are the state at the end. `problem` says why the
    events could not be undone or replayed, `exact` whether our allocator agreed with every event,
    and `allocated` is the peak of torch.cuda.memory_allocated that it then found. `order` is the
    torch version whose order of equal free blocks agrees, the newest if none does.
    """

    index: int
    events: int
    peak_used: int
    peak_used_event: int
    peak_reserved: int
    peak_reserved_event: int
    used_at_reserved: int
    allocated: int | None
    exact: bool
    order: str
    problem: str | None
    groups: Sequence[Group]
    other_groups: Group | None
    lanes: Sequence[LaneUse]
    segments: Sequence[SegmentUse]
    out_of_memory: Sequence[OutOfMemory]
    curve: Curve | None
    trials: Sequence[Trial] = ()

    @property
    def fragmented(self) -> int:
        """Bytes at the peak of reserved memory that were reserved and not in use."""
        return self.peak_reserved - self.used_at_reserved


@dataclass(frozen=True, kw_only=True)
class SnapshotContents:
    """The answers for one file."""

    file: str
    conf: str
    devices: Sequence[DeviceContents]
    passed_over: Mapping[str, int]

    def to_dict(self) -> dict[str, Any]:
        """The answers as JSON-ready data."""
        return asdict(self)
