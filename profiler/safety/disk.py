"""Disk: regular files, read through no link, written whole or not at all.

A run's folder may come from a stranger. A link in it could lead anywhere on this machine, and a
pipe would block its reader forever.
"""

import errno
import os
import re
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from secrets import token_hex
from typing import BinaryIO

# Windows has neither flag; reports are read and drawn there too.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
# The errors of file systems that cannot sync folders.
_NO_FOLDER_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}
_PART = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
# A run may have hundreds of MB; fewer, longer reads of them take a third of the time.
_BUFFER_BYTES = 1 << 17
# A name has at most 255 bytes; the name of its part needs the rest.
_MOST_NAME_BYTES = 200


def open_to_read(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file; no link is followed under the folder `below`, by default the file's.

    FileNotFoundError for a missing file; ValueError for a link, a folder, a pipe or a device.
    """
    return os.fdopen(_open(path, os.O_RDONLY, below), "rb", buffering=_BUFFER_BYTES)


def open_to_append(path: Path, flags: int = 0, *, below: Path | None = None) -> int:
    """Return a descriptor that reads and appends to a regular file; `flags` adds O_CREAT and such.

    OSError as os.open raises it; ValueError for a link, a folder, a pipe or a device.
    """
    return _open(path, os.O_RDWR | os.O_APPEND | flags, below)


def append(descriptor: int, path: Path, chunks: Iterable[bytes]) -> None:
    """Append to an open file, and wait until the data are on the disk.

    OSError names the file, which then has no part of the data.
    """
    length = os.fstat(descriptor).st_size
    try:
        for chunk in chunks:
            rest = memoryview(chunk)
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        os.fsync(descriptor)
    except OSError as error:
        with suppress(OSError):
            os.ftruncate(descriptor, length)
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def writing(path: Path, *, below: Path | None = None) -> Iterator[BinaryIO]:
    """Yield a file to write, which takes its name once all of it is on the disk.

    It replaces an older file, and keeps that one's permissions. The folders between `below` and the
    file are made. An exception in the block leaves no part of the file. OSError names a file that
    cannot be written; ValueError is for a link on the way, and for a name that is not a file's.
    """
    make_folder(path.parent, below=below)
    require_no_link(path, below=below)
    older = _regular(path)
    if older and not os.access(path, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
    part, lock = path, None
    try:
        part, descriptor, lock = _new_part(path)
        with os.fdopen(descriptor, "wb") as file:
            if older:
                part.chmod(stat.S_IMODE(older.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except BaseException as error:
        if part != path:
            remove(part)
        if isinstance(error, OSError) and error.errno is not None and _is_part(error.filename):
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise
    finally:
        if lock is not None:
            os.close(lock)


def write_bytes(path: Path, data: bytes, *, below: Path | None = None) -> None:
    """Write a whole file, as `writing` does."""
    with writing(path, below=below) as file:
        file.write(data)


def write_text(path: Path, text: str, *, below: Path | None = None) -> None:
    """Write a whole file of text in UTF-8, as `writing` does."""
    write_bytes(path, text.encode(), below=below)


def make_folder(folder: Path, *, below: Path | None = None) -> None:
    """Make a folder with its parents, and wait until their names are on the disk.

    ValueError for a link below `below`, NotADirectoryError if something else has the name.
    """
    require_no_link(folder, below=below or folder)
    for each in reversed((folder, *folder.parents)):
        if each.is_dir():
            continue
        try:
            each.mkdir()
        except FileExistsError:
            # Another process may have made it in between.
            if not each.is_dir():
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)
                ) from None
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """Wait until the names in a folder are on the disk.

    Otherwise a new or renamed file could be gone after a power failure.
    """
    try:
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        if error.errno not in _NO_FOLDER_SYNC:
            raise


def remove(path: Path) -> None:
    """Remove a file if it exists and can be removed."""
    with suppress(OSError):
        path.unlink()


def remove_parts(folder: Path) -> None:
    """Remove the parts that killed processes have left in a folder."""
    with suppress(OSError):
        for part in [path for path in folder.iterdir() if _PART.fullmatch(path.name)]:
            with suppress(OSError, ValueError), open_to_read(part) as file:
                if (lock := _lock(file.fileno())) is not None:
                    remove(part)
                    os.close(lock)


def require_no_link(path: Path, *, below: Path | None = None) -> None:
    """Raise ValueError if `path`, or a folder between `below` and it, is a symbolic link.

    `below` itself may be a link, since the user has named it. By default it is the folder of
    `path`. RuntimeError for a path outside of it, which is an error of the caller.
    """
    for each in _below(path, below) if below else (path,):
        if each.is_symlink():
            raise ValueError(
                f"{each} is a symbolic link, and a run is read and written in its own folder alone;"
                " remove the link"
            )


def require_own_folder(folder: Path, *markers: str, force: bool = False) -> None:
    """Raise FileExistsError for a folder with files but without any of the `markers`.

    It belongs to somebody else. Hidden files, such as a file manager's, do not count.
    """
    if force or not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    holds_files = any(not each.name.startswith(".") for each in folder.iterdir())
    if holds_files and not any((folder / marker).exists() for marker in markers):
        expected = " or ".join(markers)
        raise FileExistsError(
            f"{folder} holds files and no {expected}; name another folder, or give --force (in"
            " Python force=True)"
        )


def _open(path: Path, flags: int, below: Path | None) -> int:
    require_no_link(path, below=below)
    # Opening alone would wake the writer of a pipe, or rewind a tape.
    _regular(path)
    descriptor = os.open(path, flags | _NO_LINK | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return descriptor


def _below(path: Path, below: Path) -> list[Path]:
    """Return the path and the folders between `below` and it."""
    if path.is_absolute() != below.is_absolute():
        path, below = path.absolute(), below.absolute()
    if not path.is_relative_to(below) or ".." in path.relative_to(below).parts:
        raise RuntimeError(f"{path} does not lie below {below}")
    return [each for each in (path, *path.parents) if each != below and each.is_relative_to(below)]


def _regular(path: Path) -> os.stat_result | None:
    """Return the status of a file, None if it is missing; ValueError unless it is regular."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path)
    return status


def _is_part(name: object) -> bool:
    """Return whether an error names a part, or no file, as errors of writing do."""
    return name is None or bool(_PART.fullmatch(Path(str(name)).name))


def _irregular(path: Path) -> ValueError:
    return ValueError(f"{path} is not a regular file; remove it, or name another")


def _new_part(path: Path) -> tuple[Path, int, int | None]:
    """Return a new part of a file, a descriptor to write it, and one that locks it while open."""
    stem = os.fsencode(path.name)[:_MOST_NAME_BYTES].decode(errors="ignore")
    while True:
        part = path.with_name(f".{stem}.{token_hex(4)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
        # Until it is locked, another process may remove it as a killed process's.
        with suppress(BlockingIOError):
            lock = _lock(descriptor)
            if part.exists():
                return part, descriptor, lock
        os.close(descriptor)
        remove(part)


def _lock(descriptor: int) -> int | None:
    """Lock a part; return a descriptor that holds the lock until it is closed.

    BlockingIOError if another process has locked it. None on a system without locks, where parts of
    killed processes stay.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return None
    return os.dup(descriptor)
