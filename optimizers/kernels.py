"""Kernels: sources in C++, compiled at their first use and kept, and checked before they are
loaded.

A kept kernel is code. Its folder and its file belong to this user or to root, nobody else may
write to them, and its name carries the checksum of its content. A file that was cut, changed or
put there by somebody else is never loaded; the kernel is compiled anew.
"""

import ctypes
import functools
import glob
import hashlib
import os
import platform
import shlex
import shutil
import stat
import subprocess
import tempfile
from contextlib import suppress
from pathlib import Path

import torch

_INSTRUCTIONS = {
    "AVX2": ("-mavx2", "-mfma", "-mf16c"),
    "AVX512": (
        *("-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mprefer-vector-width=512"),
        *("-mfma", "-mf16c"),
    ),
}
_FLAGS = (
    *("-std=c++20", "-O3", "-fno-math-errno", "-fno-trapping-math"),
    *("-fopenmp", "-fPIC", "-shared"),
)
# Windows has neither flag, and no owners by number.
_AS_IT_LIES = (
    getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
)
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def library(source: Path, weight: str) -> ctypes.CDLL:
    """Return the functions of a source for one type of weights; RuntimeError where there are
    none.
    """
    return _library(source, weight, torch.backends.cpu.get_cpu_capability())


@functools.cache
def _library(source: Path, weight: str, capability: str) -> ctypes.CDLL:
    flags = (
        *_FLAGS,
        *_INSTRUCTIONS.get(capability, ()),
        f"-DWEIGHT={weight}",
        f"-I{Path(torch.__file__).parent / 'include'}",
    )
    text = source.read_text(encoding="utf-8")
    written = "\n".join([text, *flags, platform.machine(), torch.__version__])
    stem = f"{source.stem}-{hashlib.sha256(written.encode()).hexdigest()[:16]}"
    folder = _folder()
    try:
        _make_private(folder)
        return _kept(folder, stem) or _made(folder, stem, source, flags)
    except OSError as error:
        raise RuntimeError(
            f"fused=True cannot keep its kernel in {folder}: {error}; set TORCH_EXTENSIONS_DIR"
        ) from error


def _folder() -> Path:
    if wanted := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(wanted).absolute() / "optprof"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise RuntimeError(
            f"fused=True cannot keep its kernel: {error}; set TORCH_EXTENSIONS_DIR"
        ) from error
    return home / ".cache" / "torch_extensions" / "optprof"


def _make_private(folder: Path) -> None:
    """Make the folder of kernels; RuntimeError where others could put code into it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        found = folder.lstat()
        if not stat.S_ISDIR(found.st_mode):
            raise
        if _is_private(found):
            return
        if found.st_uid != os.getuid():
            raise RuntimeError(
                f"fused=True loads no kernel from {folder}, to which another user may write (owner"
                f" {found.st_uid}, mode {stat.S_IMODE(found.st_mode):o}); set TORCH_EXTENSIONS_DIR"
                " to a folder of yours"
            ) from None
        for path in folder.glob("*.so"):
            # Others may have written them.
            path.unlink()
    folder.chmod(0o700)


def _is_private(found: os.stat_result) -> bool:
    """Return whether a file or folder is this user's or root's, and no other's to write."""
    if not hasattr(os, "getuid"):
        return True
    return found.st_uid in (0, os.getuid()) and not found.st_mode & _BY_OTHERS


def _kept(folder: Path, stem: str) -> ctypes.CDLL | None:
    """Load a kept kernel that is intact; None where there is none."""
    for path in sorted(folder.glob(f"{glob.escape(stem)}-*.so")):
        # An intact one may be of a machine with other system libraries, which shares the folder.
        with suppress(OSError):
            if _is_intact(path):
                return ctypes.CDLL(str(path))
    return None


def _is_intact(path: Path) -> bool:
    """Return whether a regular file of ours holds what its name says; OSError for a link."""
    descriptor = os.open(path, os.O_RDONLY | _AS_IT_LIES)
    with os.fdopen(descriptor, "rb") as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or not _is_private(found):
            return False
        return path.stem.endswith(f"-{_checksum(file.read())}")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _made(folder: Path, stem: str, source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Compile a kernel, keep it and load it."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        Path(temporary).chmod(0o700)
        made = Path(temporary) / f"{stem}.so"
        _compile([*compiler, *flags, str(source), "-o", str(made)], source, temporary)
        made.chmod(0o600)
        kept = folder / f"{stem}-{_checksum(made.read_bytes())}.so"
        if kept.is_dir() and not kept.is_symlink():
            shutil.rmtree(kept)
        # At once, whatever another process does here at the same time.
        made.replace(kept)
    try:
        loaded = ctypes.CDLL(str(kept))
    except OSError as error:
        kept.unlink(missing_ok=True)
        raise RuntimeError(
            f"fused=True: what {shlex.join(compiler)} made of {source.name} cannot be loaded:"
            f" {error}; set CXX to another, or leave fused out"
        ) from error
    _remove_spoiled(folder, stem)
    return loaded


def _remove_spoiled(folder: Path, stem: str) -> None:
    for path in folder.glob(f"{glob.escape(stem)}-*.so"):
        with suppress(OSError):
            if path.is_symlink() or not _is_intact(path):
                path.unlink()


def _compiler() -> list[str]:
    """Return the compiler and its own options, as CXX has them: 'g++ -m64', 'ccache g++'."""
    wanted = os.environ.get("CXX", "").strip()
    if not wanted:
        candidates = [[name] for name in ("g++", "clang++", "c++")]
    elif shutil.which(wanted):
        # A path may hold a space.
        candidates = [[wanted]]
    else:
        try:
            candidates = [shlex.split(wanted)]
        except ValueError as error:
            raise RuntimeError(
                f"fused=True: CXX={wanted!r} cannot be read: {error}; quote it as a shell does"
            ) from error
    for name, *options in candidates:
        if found := shutil.which(name):
            return [found, *options]
    names = " or ".join(name for name, *_ in candidates)
    raise RuntimeError(
        f"fused=True needs a C++ compiler, and there is no {names}; install one, or leave fused out"
    )


def _compile(command: list[str], source: Path, temporary: str) -> None:
    # What a compiler leaves on its way goes with the folder.
    environment = {**os.environ, "TMPDIR": temporary}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode == 0 and Path(command[-1]).is_file():
        return
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    status = f"status {done.returncode}" if done.returncode else "it made nothing"
    said = lines[0] if lines else " ".join(done.stderr.split()) or status
    full = "No space left on device" in done.stderr
    way_out = (
        "set TORCH_EXTENSIONS_DIR to a folder with room"
        if full
        else "set CXX to another, or leave fused out"
    )
    raise RuntimeError(f"fused=True: {command[0]} cannot compile {source.name}: {said}; {way_out}")
