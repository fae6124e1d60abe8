"""Kernels: C++ sources that are compiled at their first use, stored, and checked before loading.

A stored kernel is code. Its folder and file must belong to this user or root, no other user may
write to them, and the file's name has the checksum of its content. A truncated, changed or foreign
file is never loaded; the kernel is compiled again. The folder is in TORCH_EXTENSIONS_DIR, else in
~/.cache/torch_extensions. Flags are for the instructions that torch finds on the machine.
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
# Windows has neither of the first two flags, nor numeric owners.
_RAW = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH


def library(source: Path, weight: str) -> ctypes.CDLL:
    """Return the functions of a source for one type of weights; RuntimeError if it fails."""
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
        return _stored(folder, stem) or _compiled(folder, stem, source, flags)
    except OSError as error:
        raise RuntimeError(
            f"fused=True cannot keep its kernel in {folder}: {error}; set TORCH_EXTENSIONS_DIR"
        ) from error


def _folder() -> Path:
    if chosen := os.environ.get("TORCH_EXTENSIONS_DIR"):
        return Path(chosen).absolute() / "optprof"
    try:
        home = Path.home()
    except RuntimeError as error:
        raise RuntimeError(
            f"fused=True cannot keep its kernel: {error}; set TORCH_EXTENSIONS_DIR"
        ) from error
    return home / ".cache" / "torch_extensions" / "optprof"


def _make_private(folder: Path) -> None:
    """Make the folder of kernels; RuntimeError if other users may write to it."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    try:
        folder.mkdir()
    except FileExistsError:
        status = folder.lstat()
        if not stat.S_ISDIR(status.st_mode):
            raise
        if _is_private(status):
            return
        if status.st_uid != os.getuid():
            raise RuntimeError(
                f"fused=True loads no kernel from {folder}, to which another user may write (owner"
                f" {status.st_uid}, mode {stat.S_IMODE(status.st_mode):o}); set"
                " TORCH_EXTENSIONS_DIR to a folder of yours"
            ) from None
        for path in folder.glob("*.so"):
            # Other users may have written these.
            path.unlink()
    folder.chmod(0o700)


def _is_private(status: os.stat_result) -> bool:
    """Return whether only this user or root owns and may write a file or folder."""
    if not hasattr(os, "getuid"):
        return True
    return status.st_uid in (0, os.getuid()) and not status.st_mode & _BY_OTHERS


def _stored(folder: Path, stem: str) -> ctypes.CDLL | None:
    """Load a stored kernel that is intact; None if there is none."""
    for path in sorted(folder.glob(f"{glob.escape(stem)}-*.so")):
        # An intact kernel may need system libraries of another machine that shares the folder.
        with suppress(OSError):
            if _is_intact(path):
                return ctypes.CDLL(str(path))
    return None


def _is_intact(path: Path) -> bool:
    """Return whether a file is private and has its name's checksum; OSError for a link."""
    descriptor = os.open(path, os.O_RDONLY | _RAW)
    with os.fdopen(descriptor, "rb") as file:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode) or not _is_private(status):
            return False
        return path.stem.endswith(f"-{_checksum(file.read())}")


def _checksum(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


def _compiled(folder: Path, stem: str, source: Path, flags: tuple[str, ...]) -> ctypes.CDLL:
    """Compile, store and load a kernel."""
    compiler = _compiler()
    with tempfile.TemporaryDirectory(dir=folder) as temporary:
        Path(temporary).chmod(0o700)
        output = Path(temporary) / f"{stem}.so"
        _compile([*compiler, *flags, str(source), "-o", str(output)], source, temporary)
        output.chmod(0o600)
        stored = folder / f"{stem}-{_checksum(output.read_bytes())}.so"
        if stored.is_dir() and not stored.is_symlink():
            shutil.rmtree(stored)
        # Atomic, because another process may do the same at this time.
        output.replace(stored)
    try:
        loaded = ctypes.CDLL(str(stored))
    except OSError as error:
        stored.unlink(missing_ok=True)
        raise RuntimeError(
            f"fused=True: the library that {shlex.join(compiler)} made of {source.name} cannot be"
            f" loaded: {error}; set CXX to another compiler, or leave fused out"
        ) from error
    _remove_damaged(folder, stem)
    return loaded


def _remove_damaged(folder: Path, stem: str) -> None:
    for path in folder.glob(f"{glob.escape(stem)}-*.so"):
        with suppress(OSError):
            if path.is_symlink() or not _is_intact(path):
                path.unlink()


def _compiler() -> list[str]:
    """Return the compiler with its options as CXX gives them: 'g++ -m64', 'ccache g++'."""
    chosen = os.environ.get("CXX", "").strip()
    if not chosen:
        candidates = [[name] for name in ("g++", "clang++", "c++")]
    elif shutil.which(chosen):
        # A path may contain a space.
        candidates = [[chosen]]
    else:
        try:
            candidates = [shlex.split(chosen)]
        except ValueError as error:
            raise RuntimeError(
                f"fused=True: CXX={chosen!r} cannot be read: {error}; quote it as a shell does"
            ) from error
    for name, *options in candidates:
        if path := shutil.which(name):
            return [path, *options]
    names = " or ".join(name for name, *_ in candidates)
    raise RuntimeError(
        f"fused=True needs a C++ compiler, and there is no {names}; install one, or leave fused out"
    )


def can_compile() -> bool:
    """Return whether this machine has a C++ compiler that takes the flags of the kernels."""
    return _takes_flags(os.environ.get("CXX"), os.environ.get("PATH"))


@functools.cache
def _takes_flags(cxx: str | None, path: str | None) -> bool:
    del cxx, path  # the result depends on them
    try:
        command = [*_compiler(), *_FLAGS, "-fsyntax-only", "-x", "c++", "-"]
        # Apple's clang++ is a compiler without OpenMP.
        done = subprocess.run(command, input=b"#include <omp.h>", capture_output=True, check=False)
    except (RuntimeError, OSError):
        return False
    return done.returncode == 0


def _compile(command: list[str], source: Path, temporary: str) -> None:
    # The compiler's temporary files are removed with the folder.
    environment = {**os.environ, "TMPDIR": temporary}
    done = subprocess.run(
        command, capture_output=True, text=True, errors="replace", check=False, env=environment
    )
    if done.returncode == 0 and Path(command[-1]).is_file():
        return
    lines = [line for line in done.stderr.splitlines() if "error" in line]
    status = f"status {done.returncode}" if done.returncode else "it made nothing"
    reason = lines[0] if lines else " ".join(done.stderr.split()) or status
    is_full = "No space left on device" in done.stderr
    way_out = (
        "set TORCH_EXTENSIONS_DIR to a folder with room"
        if is_full
        else "set CXX to another compiler, or leave fused out"
    )
    raise RuntimeError(
        f"fused=True: {command[0]} cannot compile {source.name}: {reason}; {way_out}"
    )
