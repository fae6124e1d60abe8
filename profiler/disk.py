"""Disk: regular files, read through no link, written whole or not at all.

A run's folder may come from a stranger. A link in it could lead anywhere on this machine, and a
pipe would make its reader wait forever.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# Windows has neither; reports are read and drawn there too.
_NO_LINK = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
_BINARY = getattr(os, "O_BINARY", 0)


def open_to_read(path: Path, *, below: Path | None = None) -> BinaryIO:
    """Open a regular file; `below` is the folder under which no link is followed, by default the file's.

    FileNotFoundError where there is none; ValueError for a link, a folder, a pipe or a device.
    """
    require_no_link(path, below=below)
    descriptor = os.open(path, os.O_RDONLY | _NO_LINK | _BINARY)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file; remove it")
    return os.fdopen(descriptor, "rb")


def open_to_append(path: Path, how: int = 0, *, below: Path | None = None) -> int:
    """Return a descriptor that reads and appends to a regular file; `how` adds flags such as O_CREAT.

    OSError as os.open raises it; ValueError for a link, a folder, a pipe or a device.
    """
    require_no_link(path, below=below)
    descriptor = os.open(path, os.O_RDWR | os.O_APPEND | _NO_LINK | _BINARY | how, 0o666)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise ValueError(f"{path} is not a regular file; remove it")
    return descriptor


@contextmanager
def writing(path: Path, *, below: Path | None = None) -> Iterator[BinaryIO]:
    """Write a file inside; it takes its name when all of it is on the disk, and replaces an older one.

    The folders between `below` and the file are made. Whatever is raised inside leaves no part of
    the file. OSError names the file when it cannot be written; ValueError for a link on the way.
    """
    make_folder(path.parent, below=below)
    require_no_link(path, below=below)
    part = path.with_name(f".{path.name[-200:]}.{os.getpid()}.part")
    try:
        with suppress(FileNotFoundError):
            # Left by a process of the same number that was killed.
            part.unlink()
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | _NO_LINK | _BINARY, 0o666)
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        remove(part)
        raise OSError(error.errno, error.strerror, str(path)) from error
    except BaseException:
        remove(part)
        raise


def write_bytes(path: Path, data: bytes, *, below: Path | None = None) -> None:
    """Write a whole file, as `writing` does."""
    with writing(path, below=below) as file:
        file.write(data)


def write_text(path: Path, text: str, *, below: Path | None = None) -> None:
    """Write a whole file of text in UTF-8, as `writing` does."""
    write_bytes(path, text.encode(), below=below)


def make_folder(folder: Path, *, below: Path | None = None) -> None:
    """Make a folder with its parents, and see their names onto the disk; ValueError for a link below `below`."""
    require_no_link(folder, below=below or folder)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    for each in missing:
        sync_folder(each.parent)


def sync_folder(folder: Path) -> None:
    """See the names in a folder onto the disk: a file that is new or renamed could else be gone after a power failure."""
    with suppress(OSError):
        # Windows opens no folder, and some network file systems sync none.
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def remove(path: Path) -> None:
    """Remove a file if it is there and can be removed."""
    with suppress(OSError):
        path.unlink()


def require_no_link(path: Path, *, below: Path | None = None) -> None:
    """ValueError where `path`, or a folder between `below` and it, is a symbolic link.

    `below` itself may be one: its user has named it. By default it is the folder of `path`.
    """
    below = path.parent if below is None else below
    for each in (path, *path.parents):
        if each == below:
            return
        if each.is_symlink():
            raise ValueError(f"{each} is a symbolic link, and a run is read and written in its own folder alone; remove the link")


def require_own_folder(folder: Path, *markers: str, force: bool = False) -> None:
    """FileExistsError for a folder that holds files but none of the `markers`: it belongs to somebody else.

    Hidden files, such as a file manager's, make a folder nobody's.
    """
    if force or not folder.exists():
        return
    if not folder.is_dir():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(folder))
    holds_files = any(not each.name.startswith(".") for each in folder.iterdir())
    if holds_files and not any((folder / marker).exists() for marker in markers):
        wanted = " or ".join(markers)
        raise FileExistsError(f"{folder} holds files and no {wanted}; name another folder, or give --force (in Python force=True)")
