"""Disk: regular files, read through no link, written whole or not at all.

A run's folder may come from a stranger. A link in it could lead anywhere on this machine, and a
pipe would make its reader wait forever.
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

# Windows has none of them; reports are read and drawn there too.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)
# A file system that syncs no folders answers with one of these.
_NO_FOLDER_SYNC = {
    errno.EINVAL,
    errno.ENOTSUP,
    errno.EOPNOTSUPP,
    errno.EACCES,
    errno.EPERM,
    errno.EISDIR,
}
_PART = re.compile(r"\..*\.[0-9a-f]{8}\.part", re.DOTALL)
# A name has at most 255 bytes; the rest is for what stands around it in the name of its part.
_MOST_NAME_BYTES = 200


def open_to_read(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file; no link is followed under the folder `below`, by default the file's.

    FileNotFoundError where there is none; ValueError for a link, a folder, a pipe or a device.
    """
    return os.fdopen(_open(path, os.O_RDONLY, below), "rb")


def open_to_append(path: Path, how: int = 0, *, below: Path | None = None) -> int:
    """Return a descriptor that reads and appends to a regular file; `how` adds flags as O_CREAT.

    OSError as os.open raises it; ValueError for a link, a folder, a pipe or a device.
    """
    return _open(path, os.O_RDWR | os.O_APPEND | how, below)


def append(descriptor: int, path: Path, chunks: Iterable[bytes]) -> None:
    """Append to an open file and see it onto the disk.

    OSError names the file when that fails, and leaves no part of what was to be appended.
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
    """Write a file inside; it takes its name when all of it is on the disk.

    An older file is replaced, and keeps its permissions. The folders between `below` and the file
    are made. Whatever is raised inside leaves no part of the file. OSError names the file when it
    cannot be written; ValueError for a link on the way, and where no regular file has the name.
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
    """Make a folder with its parents, and see their names onto the disk.

    ValueError for a link below `below`, NotADirectoryError where something else has the name.
    """
    require_no_link(folder, below=below or folder)
    for each in reversed((folder, *folder.parents)):
        if each.is_dir():
            continue
        try:
            each.mkdir()
        except FileExistsError:
            # Another process may have made it just now.
            if not each.is_dir():
                raise NotADirectoryError(
                    errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder)
                ) from None
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """See the names in a folder onto the disk.

    A file that is new or renamed could else be gone after a power failure.
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
    """Remove a file if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()


def remove_parts(folder: Path) -> None:
    """Remove the parts that `writing` has left in a folder because its process was killed."""
    with suppress(OSError):
        for part in [path for path in folder.iterdir() if _PART.fullmatch(path.name)]:
            with suppress(OSError, ValueError), open_to_read(part) as file:
                if (lock := _lock(file.fileno())) is not None:
                    remove(part)
                    os.close(lock)


def require_no_link(path: Path, *, below: Path | None = None) -> None:
    """ValueError where `path`, or a folder between `below` and it, is a symbolic link.

    `below` itself may be one, and lie behind others: its user has named it. By default it is the
    folder of `path`. RuntimeError for a path that does not stay below it, which its caller has to
    see to.
    """
    for each in _below(path, below) if below else (path,):
        if each.is_symlink():
            raise ValueError(
                f"{each} is a symbolic link, and a run is read and written in its own folder alone;"
                " remove the link"
            )


def require_own_folder(folder: Path, *markers: str, force: bool = False) -> None:
    """FileExistsError for a folder that holds files but none of the `markers`: it belongs to
    somebody else.

    Hidden files, such as a file manager's, make a folder nobody's.
    """
    if force or not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    holds_files = any(not each.name.startswith(".") for each in folder.iterdir())
    if holds_files and not any((folder / marker).exists() for marker in markers):
        wanted = " or ".join(markers)
        raise FileExistsError(
            f"{folder} holds files and no {wanted}; name another folder, or give --force (in Python"
            " force=True)"
        )


def _open(path: Path, how: int, below: Path | None) -> int:
    require_no_link(path, below=below)
    # Looked at before it is opened: that alone would wake the writer of a pipe, or rewind a tape.
    _regular(path)
    descriptor = os.open(path, how | _NO_LINK | _BINARY, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise _irregular(path)
    return descriptor


def _below(path: Path, below: Path) -> list[Path]:
    """The path and the folders between `below` and it."""
    if path.is_absolute() != below.is_absolute():
        path, below = path.absolute(), below.absolute()
    if not path.is_relative_to(below) or ".." in path.relative_to(below).parts:
        raise RuntimeError(f"{path} does not lie below {below}")
    return [each for each in (path, *path.parents) if each != below and each.is_relative_to(below)]


def _regular(path: Path) -> os.stat_result | None:
    """The status of a file, None where there is none; ValueError for what is no regular file."""
    try:
        status = path.lstat()
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(status.st_mode):
        raise _irregular(path)
    return status


def _is_part(name: object) -> bool:
    """Return whether an error names a part, or nothing, in which case it was written to."""
    return name is None or bool(_PART.fullmatch(Path(str(name)).name))


def _irregular(path: Path) -> ValueError:
    return ValueError(f"{path} is not a regular file; remove it, or name another")


def _new_part(path: Path) -> tuple[Path, int, int | None]:
    """A new part of a file, a descriptor to write it, and one that locks it until it is closed."""
    stem = os.fsencode(path.name)[:_MOST_NAME_BYTES].decode(errors="ignore")
    while True:
        part = path.with_name(f".{stem}.{token_hex(4)}.part")
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
        # Another process may take it for one that nobody writes, before it is locked.
        with suppress(BlockingIOError):
            lock = _lock(descriptor)
            if part.exists():
                return part, descriptor, lock
        os.close(descriptor)
        remove(part)


def _lock(descriptor: int) -> int | None:
    """Lock a part until the descriptor that is returned is closed or this process ends.

    BlockingIOError where another process has locked it. None where nothing can be locked: there a
    part of a killed process stays.
    """
    try:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except (ImportError, OSError):
        return None
    return os.dup(descriptor)
