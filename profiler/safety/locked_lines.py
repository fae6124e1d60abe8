"""Locked lines: a file of lines into which one process at a time writes.

What `append` has returned from outlives a killed process and a power failure: a line is seen onto
the disk, the file's name before its first line, and what is to be cut off when it is copied.
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
    """A file of lines, open and locked until it is closed or its process ends."""

    def __init__(self, path: Path, how: int = 0, *, patience: float = 0) -> None:
        """Open the file; `how` adds flags as O_CREAT, `patience` is the seconds to wait for a lock.

        BlockingIOError while another process holds it, OSError as os.open raises it, ValueError for
        what is no regular file.
        """
        self.path = path
        self._count: int | None = None
        self._descriptor = _locked(path, how, patience)
        if self._length == 0:
            # Made by this process, or by one that was killed before it could see to that.
            disk.sync_folder(path.parent)
            disk.sync_folder(path.parent.parent)

    def close(self) -> None:
        """Give the lock back."""
        os.close(self._descriptor)

    @property
    def count(self) -> int:
        """The number of lines; they are counted once, and then as they are written."""
        if self._count is None:
            self._count = sum(chunk.count(b"\n") for chunk in self._chunks(0, self._length))
        return self._count

    def append(self, line: bytes) -> None:
        """Write a line and see it onto the disk.

        OSError names the file when that fails, and leaves no part of the line. FileNotFoundError
        where the name is no longer this file's: what is written would be gone with the process.
        """
        self._require_name()
        count = self.count
        disk.append(self._descriptor, self.path, [line])
        self._count = count + 1

    def set_torn_aside(self, path: Path) -> int:
        """Move what stands behind the last end of line to another file; returns its bytes."""
        whole, length = self._end_of_last_line(), self._length
        if whole < length:
            self.copy_aside(path, [(whole, length)])
            os.ftruncate(self._descriptor, whole)
            os.fsync(self._descriptor)
        return length - whole

    def copy_aside(self, path: Path, spans: Sequence[tuple[int, int]]) -> None:
        """Append stretches to another file, each as lines, and see them onto the disk."""
        target = disk.open_to_append(path, os.O_CREAT)
        try:
            disk.append(target, path, self._as_lines(spans))
            disk.sync_folder(path.parent)
        finally:
            os.close(target)

    def rewrite(self, changes: Iterable[tuple[int, int, bytes]]) -> None:
        """Put a file in place of this one that has other bytes between `start` and `end` of each.

        The lock is on the old file, so nothing may be appended after that.
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
        told = (
            "it was removed or replaced while this run was written; put it back, and go on with"
            " --resume"
        )
        raise FileNotFoundError(errno.ENOENT, told, str(self.path))

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


def _locked(path: Path, how: int, patience: float) -> int:
    """Return a descriptor of the file that has its name once the lock is held."""
    # Windows has no fcntl, and reads runs all the same.
    import fcntl

    until = monotonic() + patience
    while True:
        descriptor = disk.open_to_append(path, how)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Whoever held it may have put another file in its place.
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
