"""Golden recordings: small files with the history of CUDA's caching allocator on a real GPU.

The history is that of torch.cuda.memory._snapshot: entries with an action, an address and a size,
cut into phases by the length of the history at the end of each. A recording keeps these three
columns unchanged, and the CUDA stream of each entry if there is more than one; `Stream` turns them
into events.
"""

import json
import lzma
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal, NamedTuple

# Action, address, size and stream.
Entry = tuple[str, int, int, int]

FORMAT = 1
SUFFIX = ".json.xz"
ACTIONS = (
    "alloc",
    "free_requested",
    "free_completed",
    "segment_alloc",
    "segment_free",
    "segment_map",
    "segment_unmap",
    "oom",
)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """One phase: the columns of its history, and statistics and the driver's free bytes at its end.

    `actions` has a digit for each entry, its place in ACTIONS. The statistics are those of
    torch.cuda.memory_stats. `streams` has numbers in the order of first use, 0 for the first; it is
    empty if all are 0.
    """

    name: str
    actions: str
    addresses: tuple[int, ...]
    sizes: tuple[int, ...]
    statistics: Mapping[str, int]
    device_free: int
    streams: tuple[int, ...] = ()

    def entries(self) -> Iterator["Entry"]:
        """Yield the entries in order."""
        streams = self.streams or (0,) * len(self.actions)
        columns = zip(self.actions, self.addresses, self.sizes, streams, strict=True)
        for digit, address, size, stream in columns:
            yield ACTIONS[int(digit)], address, size, stream


@dataclass(frozen=True, kw_only=True)
class Recording:
    """A run of a scenario on a GPU.

    `total` and `free_before` are the driver's figures before the first allocation, when the CUDA
    context exists already. `nvml_used` are the bytes in use at the end by NVML, None without it.
    `state_bytes` are those of the optimizer's tensors by key.
    """

    scenario: Mapping[str, Any]
    torch: str
    driver: str | None
    gpu: str
    compute_capability: tuple[int, int]
    total: int
    free_before: int
    nvml_used: int | None
    versions: Mapping[str, str]
    state_bytes: Mapping[str, int]
    phases: tuple[Phase, ...]

    @property
    def ran_out(self) -> bool:
        """True if the device ran out of memory, which ends the last phase."""
        return any(str(ACTIONS.index("oom")) in phase.actions for phase in self.phases)

    def write(self, path: Path) -> None:
        """Write the recording as compressed JSON."""
        path.write_bytes(self.pack(preset=9))

    def pack(self, *, preset: int) -> bytes:
        """Return the recording as JSON under lzma's `preset`."""
        text = json.dumps({"format": FORMAT, **asdict(self)}, separators=(",", ":"))
        return lzma.compress(text.encode(), preset=preset)

    @classmethod
    def read(cls, path: Path) -> "Recording":
        """Return the recording that `write` wrote; ValueError if it has another format."""
        return cls.unpack(path.read_bytes(), str(path))

    @classmethod
    def unpack(cls, packed: bytes, path: str) -> "Recording":
        """Return the recording that `pack` made.

        Raise ValueError with the `path` if it has another format.
        """
        data = json.loads(lzma.decompress(packed))
        if data.get("format") != FORMAT:
            raise ValueError(
                f"{path} has format {data.get('format')!r}, {FORMAT} is read here; record it again"
            )
        phases = tuple(_phase(phase) for phase in data["phases"])
        values = {item.name: data[item.name] for item in fields(cls)}
        return cls(
            **{**values, "phases": phases, "compute_capability": tuple(data["compute_capability"])}
        )


def _phase(data: Mapping[str, Any]) -> Phase:
    columns = {name: tuple(data.get(name, ())) for name in ("addresses", "sizes", "streams")}
    return Phase(**{**data, **columns})


# Actions, addresses, sizes and streams.
Columns = tuple[str, tuple[int, ...], tuple[int, ...], tuple[int, ...]]


def cut(history: Sequence[Mapping[str, Any]], ends: Sequence[int]) -> list[Columns]:
    """Return the columns of each phase; `ends` are the lengths of the history at their ends.

    Entries after the last end are left out, as are torch's marks of the snapshots that gave the
    lengths. Raise ValueError if the history is shorter than it was, or has a private pool, which a
    replay does not follow.
    """
    if ends and len(history) < ends[-1]:
        raise ValueError(
            f"history has {len(history)} entries, and had {ends[-1]}; record with room for all of"
            " them"
        )
    entries = history[: ends[-1]] if ends else []
    if any(map(_is_private, entries)):
        raise ValueError("history has a private pool; record a run without")
    used = dict.fromkeys(entry["stream"] for entry in entries if entry["action"] != "snapshot")
    numbers = {stream: number for number, stream in enumerate(used)}
    return [_columns(history[start:end], numbers) for start, end in pairwise([0, *ends])]


def _is_private(entry: Mapping[str, Any]) -> bool:
    return entry["action"] != "snapshot" and tuple(entry.get("pool_id", (0, 0))) != (0, 0)


def _columns(entries: Iterable[Mapping[str, Any]], numbers: Mapping[int, int]) -> Columns:
    actions: list[str] = []
    streams: list[int] = []
    addresses: list[int] = []
    sizes: list[int] = []
    for entry in entries:
        action = entry["action"]
        if action == "snapshot":
            continue
        if action not in ACTIONS:
            raise ValueError(
                f"history has an unknown action {action!r}; known are {', '.join(ACTIONS)}"
            )
        actions.append(str(ACTIONS.index(action)))
        # An entry for running out of memory has the device's free bytes instead of an address.
        addresses.append(entry["device_free"] if action == "oom" else entry["addr"])
        sizes.append(entry["size"])
        streams.append(numbers[entry["stream"]])
    columns = "".join(actions), tuple(addresses), tuple(sizes)
    return *columns, tuple(streams) if any(streams) else ()


class Event(NamedTuple):
    """An event of an allocation: number, bytes, address, reserved bytes so far, and stream."""

    kind: Literal["alloc", "free", "oom"]
    number: int
    nbytes: int
    address: int
    reserved: int
    stream: int


class Stream:
    """The events of a recording, phase by phase."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._count = 0
        self._freed: int | None = None
        self._reserved = 0

    def read(self, entries: Iterable[Entry]) -> Iterator[Event]:
        """Yield the events of one phase.

        Segments are taken before the block that needs them, so `reserved` equals torch's count
        after each event. Raise ValueError if a block was freed late, as one of `record_stream` is.
        """
        for action, address, size, stream in entries:
            if action in ("segment_alloc", "segment_map"):
                self._reserved += size
            elif action in ("segment_free", "segment_unmap"):
                self._reserved -= size
            elif action == "alloc":
                self._numbers[address] = self._count
                yield Event("alloc", self._count, size, address, self._reserved, stream)
                self._count += 1
            elif action == "free_requested":
                self._freed = address
            elif action == "free_completed":
                if address != self._freed:
                    raise ValueError(
                        f"the block at {address:#x} was freed late; record a run without"
                        " record_stream"
                    )
                number = self._numbers.pop(address)
                yield Event("free", number, size, address, self._reserved, stream)
            else:
                yield Event("oom", -1, size, 0, self._reserved, stream)


def segment_addresses(phases: Iterable[Phase]) -> Iterator[int]:
    """Yield the addresses of new segments, in order of time."""
    for phase in phases:
        yield from (
            address for action, address, _, _ in phase.entries() if action == "segment_alloc"
        )
