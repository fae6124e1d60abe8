"""Read a snapshot of torch.cuda.memory: a pickle, the same gzip'd, or JSON; nothing is executed."""

import gzip
import io
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from ..safety.plain import plain
from .form import AGAIN, FEWER, MOST_DEVICES, RowNumber, SnapshotMaker, snapshot_of
from .json_stream import JsonReader
from .pickles import PickleReader
from .snapshot import ShownSegment, Snapshot

Progress = Callable[[int, int], None]
MOST_BYTES = 8 << 30
MOST_MEMORY = 3 << 29
# A trace of events shrinks to a tenth; only a file made for it, a gzip bomb, shrinks to less.
MOST_SHRUNK, ALWAYS_READ = 200, 64 << 20
# A JSON segment's blocks are kept until its address is known.
MOST_KEYS, MOST_BLOCKS = 1000, 1 << 20
_GZIP, _PICKLE, _ZIP = b"\x1f\x8b", b"\x80", b"PK"


class UnreadableSnapshotError(ValueError):
    """The file is not a snapshot that can be read; the message is one line."""


def read_snapshot(
    path: Path,
    progress: Progress | None = None,
    *,
    most_bytes: int = MOST_BYTES,
    most_memory: int = MOST_MEMORY,
) -> Snapshot:
    """Return the snapshot of a file, whatever its name.

    `progress` is called with the bytes of the file that were read and all its bytes. No more than
    `most_bytes` are unpacked, and the snapshot may need `most_memory` bytes, roughly. Raise
    UnreadableSnapshotError for any other file.
    """
    try:
        with path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            source = _Source(file, size, progress, most_bytes)
            return _read(source, most_memory)
    except OSError as error:
        # gzip's errors are some of these.
        reason = error.strerror or "its gzip'd data is damaged; copy or download it again"
        raise UnreadableSnapshotError(f"{_name(path)} cannot be read: {reason}") from None
    except (EOFError, zlib.error):
        raise UnreadableSnapshotError(
            f"{_name(path)} cannot be read: its gzip'd data is damaged; copy or download it again"
        ) from None
    except ValueError as error:
        raise UnreadableSnapshotError(
            f"{_name(path)} is not a readable snapshot: {error}"
        ) from None


class _Source(io.RawIOBase):
    """A file, unpacked if it is gzip'd, with its limit and its progress."""

    def __init__(
        self, file: BinaryIO, size: int, progress: Progress | None, most_bytes: int
    ) -> None:
        self._file, self._size, self._progress = file, size, progress
        self._unpacked = 0
        self._most = most_bytes
        self._data: Any = file
        packed = file.read(2) == _GZIP
        file.seek(0)
        if packed:
            self._data = gzip.GzipFile(fileobj=file)
            self._most = min(most_bytes, max(ALWAYS_READ, MOST_SHRUNK * size))
        self.first = self._data.read(64)
        self._data.seek(0)

    def readable(self) -> bool:
        """Return True."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer."""
        data = self.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def read(self, size: int = -1) -> bytes:
        """Return so many bytes, fewer only before the end; ValueError beyond the limit."""
        data = self._data.read(size)
        self._unpacked += len(data)
        if self._unpacked > self._most:
            raise ValueError(f"it has more than {self._most >> 20} MiB, unpacked; {FEWER}")
        if self._progress is not None:
            self._progress(min(self._file.tell(), self._size), self._size)
        return data


def _read(source: _Source, most_memory: int) -> Snapshot:
    maker = SnapshotMaker()
    first = source.first.lstrip()
    if source.first[:1] == _PICKLE:
        reader: PickleReader | JsonReader = PickleReader(source.read, maker, most_memory)
    elif first[:1] in (b"{", b"["):
        text = io.TextIOWrapper(io.BufferedReader(source, 1 << 20), encoding="utf-8")
        reader = JsonReader(text)
    else:
        raise ValueError(_other(source.first))
    try:
        if isinstance(reader, JsonReader):
            return _Json(reader, maker, most_memory).snapshot()
        data = reader.read()
    except UnicodeDecodeError:
        raise ValueError("its JSON is not UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{error} (read up to byte {reader.place:,})") from None
    return snapshot_of(data, maker)


@dataclass(frozen=True)
class _Json:
    """Reads a snapshot of JSON event by event and block by block."""

    reader: JsonReader
    maker: SnapshotMaker
    most_memory: int

    def snapshot(self) -> Snapshot:
        """Return the snapshot."""
        reader, maker = self.reader, self.maker
        if reader.next() == "[":
            return snapshot_of([next(reader.elements(reader.value), None)], maker)
        settings, traces, segments = None, None, None
        for key in _few(reader.members()):
            if key == "device_traces":
                traces = self._traces()
            elif key == "segments":
                segments = list(reader.elements(self._segment))
            elif key == "allocator_settings":
                settings = reader.value()
            elif reader.next() == "[":
                for _ in reader.elements(reader.value):
                    pass
            else:
                reader.value()
        if reader.next():
            raise ValueError("values are left over after its end")
        if segments is None or traces is None:
            raise ValueError("segments or device_traces are missing, expected was a dict of both")
        return maker.snapshot(traces, segments, settings)

    def _traces(self) -> list[list[RowNumber]]:
        traces: list[list[RowNumber]] = []
        for _ in self.reader.elements(lambda: None):
            events = self.reader.elements(lambda: self.maker.event(self._dict("an event")))
            traces.append([row for row in events if row >= 0])
            if len(traces) > MOST_DEVICES:
                raise ValueError(f"it has events of more than {MOST_DEVICES} devices")
        return traces

    def _segment(self) -> tuple[int, ShownSegment]:
        parts = {
            key: self._blocks() if key == "blocks" else self._value()
            for key in _few(self.reader.members())
        }
        return self.maker.segment(parts)

    def _blocks(self) -> list[dict[str, Any]]:
        blocks: list[dict[str, Any]] = []
        for block in self.reader.elements(lambda: self._dict("a block")):
            if "frames" in block:
                block["frames"] = self.maker.stack(block["frames"])
            blocks.append(block)
            if len(blocks) > MOST_BLOCKS:
                raise ValueError(f"it has a segment of more than {MOST_BLOCKS} blocks")
        return blocks

    def _dict(self, name: str) -> dict[str, Any]:
        value = self._value()
        if type(value) is not dict:
            raise ValueError(f"{name} is not a dict; {AGAIN}")
        return value

    def _value(self) -> Any:
        if self.maker.memory > self.most_memory:
            raise ValueError(
                f"its values need more than {self.most_memory >> 20} MiB of memory; {FEWER}"
            )
        return self.reader.value()


def _few(keys: Iterator[str]) -> Iterator[str]:
    """Return the keys; ValueError if one is there twice, or if they are too many."""
    known: set[str] = set()
    for key in keys:
        if key in known or len(known) == MOST_KEYS:
            raise ValueError(f"it has {key[:40]!r} twice, or more than {MOST_KEYS} keys")
        known.add(key)
        yield key


def _other(first: bytes) -> str:
    """Return words for a file that is something else, by its first bytes."""
    if not first:
        return "it is empty"
    if first.startswith(_ZIP):
        return "it is a zip archive; torch.cuda.memory._dump_snapshot writes a pickle"
    if first.startswith(_GZIP):
        return "it is gzip'd twice; unpack it once"
    if first.lstrip()[:1] == b"<":
        return "it is a web page; download the snapshot itself"
    return f"it begins with {first[:8].hex(' ')}, expected was a pickle, gzip or JSON"


def _name(path: Path) -> str:
    return plain(str(path)).replace("\n", "\\n")
