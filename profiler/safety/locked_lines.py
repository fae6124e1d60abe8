"""Locked lines: a file of lines that one process at a time writes.

A line survives a killed process and a power failure once `append` has returned. `append` waits
until the line is on the disk, after the file's name; bytes are cut off only when their copy is.
"""

import errno
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from time import monotonic, sleep

from . import disk

_CHUNK_BYTES = 1 << 16


class LockedLines:
    """A file of lines, locked until it is closed or its process ends."""

    def __init__(self, path: Path, flags: int = 0, *, patience: float = 0) -> None:
        """Open the file, with `flags` such as O_CREAT, and wait `patience` seconds for its lock.

        BlockingIOError if another process keeps the lock, OSError as os.open raises it, ValueError
        unless the file is regular.
        """
        self.path = path
        self._count: int | None = None
        self._descriptor = _locked(path, flags, patience)
        if self._length == 0:
            # The file is new, or its process was killed before this.
            disk.sync_folder(path.parent)
            disk.sync_folder(path.parent.parent)

    def close(self) -> None:
        """Release the lock."""
        os.close(self._descriptor)

    @property
    def count(self) -> int:
        """Number of lines, counted once and then as they are written."""
        if self._count is None:
            self._count = sum(chunk.count(b"\n") for chunk in self._chunks(0, self._length))
        return self._count

    def append(self, line: bytes) -> None:
        """Write a line, and wait until it is on the disk.

        OSError names the file, which then has no part of the line. FileNotFoundError if the name is
        no longer this file's: the line would be lost with the process.
        """
        self._require_name()
        count = self.count
        disk.append(self._descriptor, self.path, [line])
        self._count = count + 1

    def set_torn_aside(self, path: Path) -> int:
        """Move the bytes behind the last end of line to another file; return their number."""
        whole, length = self._end_of_last_line(), self._length
        if whole < length:
            self.copy_aside(path, [(whole, length)])
            os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)
        return length - whole

    def copy_aside(self, path: Path, spans: Sequence[tuple[int, int]]) -> None:
        """Append stretches of bytes to another file, each as lines, and sync it."""
        target = disk.open_to_append(path, os.O_CREAT)
        try:
            disk.append(target, path, self._as_lines(spans))
            disk.sync_folder(path.parent)
        finally:
            os.close(target)

    def rewrite(self, changes: Iterable[tuple[int, int, bytes]]) -> None:
        """Replace the bytes between `start` and `end` of each change, in a new file of the name.

        The lock is on the old file, so nothing may be appended afterwards.
        """
        with disk.writing(self.path) as file:
            place = 0
            for start, end, data in changes:
                file.writelines(self._chunks(place, start))
                file.write(data)
                place = end
            file.writelines(self._chunks(place, self._length))

    def _require_name(self) -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(self._descriptor), self.path.lstat()):
                return
        message = (
            "it was removed or replaced while this run was written; put it back, and go on with"
            " --resume"
        )
        raise FileNotFoundError(errno.ENOENT, message, str(self.path))

    @property
    def _length(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _chunks(self, start: int, end: int) -> Iterator[bytes]:
        while start < end and (
            chunk := os.pread(self._descriptor, min(_CHUNK_BYTES, end - start), start)
        ):
            start += len(chunk)
            yield chunk

    def _as_lines(self, spans: Sequence[tuple[int, int]]) -> Iterator[bytes]:
        for start, end in spans:
            yield from self._chunks(start, end)
            if os.pread(self._descriptor, 1, end - 1) != b"\n":
                yield b"\n"

    def _end_of_last_line(self) -> int:
        end = self._length
        while end:
            start = max(0, end - _CHUNK_BYTES)
            place = os.pread(self._descriptor, end - start, start).rfind(b"\n")
            if place >= 0:
                return start + place + 1
            end = start
        return 0


def _locked(path: Path, flags: int, patience: float) -> int:
    """Return a descriptor of the file that has the name once this process has the lock."""
    # Windows has no fcntl; runs can be read there.
    import fcntl

    until = monotonic() + patience
    while True:
        descriptor = disk.open_to_append(path, flags)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # The process that had the lock may have replaced the file.
            if os.path.samestat(os.fstat(descriptor), path.lstat()):
                return descriptor
            os.close(descriptor)
        except (BlockingIOError, FileNotFoundError):
            os.close(descriptor)
            if monotonic() >= until:
                raise
            sleep(0.02)
        except BaseException:
            os.close(descriptor)
            raise
