"""C++ kernels: compiled, stored, and checked before they are loaded."""

import ctypes
import os
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import Parameter

from optprof.optimizers import SM3, kernels

pytestmark = pytest.mark.compiler


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, bytes]:
    """Return the name and content of a kernel that is compiled with an option, in two seconds."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path_factory.mktemp("kernels")))
        patch.setenv("CXX", f"{kernels._compiler()[0]} -g0")
        patch.setenv("TMPDIR", "/not/there")
        kernels._library.cache_clear()
        assert step_once() == 0.75
        (library,) = kernels._folder().iterdir()
        return library.name, library.read_bytes()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Return a folder for kernels that does not exist yet, with nothing loaded."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    kernels._library.cache_clear()
    yield tmp_path / "optprof"
    kernels._library.cache_clear()


@pytest.fixture
def stored(folder: Path, built: tuple[str, bytes]) -> Path:
    """Return a kernel in that folder."""
    folder.mkdir(mode=0o700)
    path = folder / built[0]
    path.write_bytes(built[1])
    path.chmod(0o600)
    return path


def step_once() -> float:
    """Take a first step of SM3, which moves a weight by the learning rate."""
    param = Parameter(torch.ones(4, 3))
    param.grad = torch.ones(4, 3)
    SM3([param], lr=0.25, fused=True).step()
    return param[0, 0].item()


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch, built: tuple[str, bytes]) -> list[list[str]]:
    """Record every command that would compile a kernel, and write a kernel without compiling."""
    commands: list[list[str]] = []

    def compile_(command: list[str], source: Path, temporary: str) -> None:
        del source, temporary
        commands.append(command)
        Path(command[-1]).write_bytes(built[1])

    monkeypatch.setattr(kernels, "_compile", compile_)
    return commands


def test_a_stored_kernel_is_loaded_without_a_compiler(
    stored: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert stored.name.startswith("sm3-")
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert step_once() == 0.75
    assert list(stored.parent.iterdir()) == [stored]


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:1000])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def flipped(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


def another(path: Path) -> None:
    """Return another library that is not a kernel: one of Python's own."""
    path.write_bytes(Path(ctypes.__file__).read_bytes())


def link(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))
    path.symlink_to(path.with_name("elsewhere"))


def dangling(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.with_name("nowhere"))


def pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()
    (path / "file").write_text("")


def written_by_the_group(path: Path) -> None:
    path.chmod(0o620)


def written_by_all(path: Path) -> None:
    path.chmod(0o602)


def in_a_folder_for_all(path: Path) -> None:
    path.parent.chmod(0o777)


def in_a_folder_for_the_group(path: Path) -> None:
    path.parent.chmod(0o775)


DAMAGES = (
    *(cut, empty, flipped, longer, another, link, dangling, pipe, a_folder),
    *(written_by_the_group, written_by_all, in_a_folder_for_all, in_a_folder_for_the_group),
)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_foreign_or_damaged_kernel_is_compiled_again_and_never_loaded(
    stored: Path, built: tuple[str, bytes], compilations: list[Any], damage: Callable[[Path], None]
) -> None:
    damage(stored)
    assert step_once() == 0.75
    assert len(compilations) == 1
    assert stored.read_bytes() == built[1]
    assert not stored.is_symlink()
    assert stat.S_IMODE(stored.stat().st_mode) == 0o600
    assert stat.S_IMODE(stored.parent.stat().st_mode) == 0o700
    kernels._library.cache_clear()
    step_once()
    assert len(compilations) == 1


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)
def test_another_users_kernel_is_compiled_again(stored: Path, compilations: list[Any]) -> None:
    os.chown(stored, 65534, 65534)
    assert step_once() == 0.75
    assert len(compilations) == 1
    assert stored.stat().st_uid == 0


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() != 0, reason="only root gives files away"
)
def test_another_users_folder_is_refused_in_one_line(stored: Path, compilations: list[Any]) -> None:
    os.chown(stored.parent, 65534, 65534)
    message = (
        f"loads no kernel from {stored.parent}, to which another user may write .owner 65534, mode"
        " 700.; set TORCH_EXTENSIONS_DIR"
    )
    with pytest.raises(RuntimeError, match=message):
        step_once()
    assert not compilations


def test_a_link_in_the_place_of_the_folder_is_refused(
    stored: Path, compilations: list[Any], tmp_path: Path
) -> None:
    stored.parent.rename(tmp_path / "elsewhere")
    stored.parent.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(
        RuntimeError,
        match=f"cannot keep its kernel in {stored.parent}: .*; set TORCH_EXTENSIONS_DIR",
    ):
        step_once()
    assert not compilations


@pytest.mark.parametrize("umask", [0o000, 0o002, 0o277, 0o777])
def test_files_are_this_users_alone_under_any_umask(
    folder: Path, compilations: list[Any], umask: int
) -> None:
    before = os.umask(umask)
    try:
        assert step_once() == 0.75
    finally:
        os.umask(before)
    assert compilations
    (library,) = folder.iterdir()
    assert (stat.S_IMODE(library.stat().st_mode), stat.S_IMODE(folder.stat().st_mode)) == (
        0o600,
        0o700,
    )


def test_several_processes_may_compile_at_once_and_leftovers_do_no_harm(
    folder: Path,
) -> None:
    (folder / "tmp-left-by-one-that-was-killed").mkdir(parents=True)
    code = (
        "import torch; from optprof.optimizers import SM3; p = torch.ones(3).requires_grad_();"
        " p.grad = p.detach(); SM3([p], fused=True).step()"
    )
    processes = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(3)]
    assert [process.wait() for process in processes] == [0, 0, 0]
    assert len(list(folder.glob("sm3-*.so"))) == 1


def test_a_stored_kernel_is_loaded_from_a_folder_that_cannot_be_written(
    stored: Path, compilations: list[Any]
) -> None:
    stored.chmod(0o400)
    stored.parent.chmod(0o500)
    try:
        assert step_once() == 0.75
        assert not compilations
        assert list(stored.parent.iterdir()) == [stored]
    finally:
        stored.parent.chmod(0o700)


@pytest.mark.skipif(
    not hasattr(os, "getuid") or os.getuid() == 0, reason="root may write to any folder"
)
def test_a_folder_that_cannot_be_written_and_has_no_kernel_is_named(folder: Path) -> None:
    folder.mkdir(mode=0o500)
    with pytest.raises(
        RuntimeError, match=f"cannot keep its kernel in {folder}: .*; set TORCH_EXTENSIONS_DIR"
    ):
        step_once()


def test_a_folder_may_have_spaces_and_may_be_relative(
    tmp_path: Path, compilations: list[Any], monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    del folder
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", "my kernels")
    assert step_once() == 0.75
    assert len(list((tmp_path / "my kernels" / "optprof").iterdir())) == len(compilations) == 1


@pytest.mark.usefixtures("folder")
def test_without_a_home_the_variable_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_EXTENSIONS_DIR")
    monkeypatch.setattr("os.path.expanduser", lambda path: path)
    with pytest.raises(
        RuntimeError,
        match=(
            r"cannot keep its kernel: Could not determine home directory.; set TORCH_EXTENSIONS_DIR"
        ),
    ):
        step_once()


# The compiler.

WRAPPING = 'exec "$@"'


def compiler(path: Path, script: str = 'exec g++ "$@"') -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("wanted", "begins"),
    [
        ("g++ -m64", ["g++", "-m64"]),
        ("  g++  -m64  -g0 ", ["g++", "-m64", "-g0"]),
        ("{folder}/wrapper g++", ["wrapper", "g++"]),
        ("{folder}/wrapper g++ -m64", ["wrapper", "g++", "-m64"]),
        ("{folder}/my tools/g++", ["g++"]),
        ("'{folder}/my tools/g++' -m64", ["g++", "-m64"]),
        ("{folder}/my\\ tools/g++", ["g++"]),
    ],
)
def test_cxx_is_read_as_a_shell_reads_it(
    folder: Path,
    compilations: list[list[str]],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    wanted: str,
    begins: list[str],
) -> None:
    del folder
    compiler(tmp_path / "wrapper", WRAPPING)
    compiler(tmp_path / "my tools" / "g++")
    monkeypatch.setenv("CXX", wanted.format(folder=tmp_path))
    assert step_once() == 0.75
    (command,) = compilations
    assert [Path(command[0]).name, *command[1 : len(begins)]] == begins
    assert command[len(begins)] == "-std=c++20"


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (
            "no-such-compiler",
            (
                r"needs a C\+\+ compiler, and there is no no-such-compiler; install one, or leave"
                r" fused out"
            ),
        ),
        (
            "no-such-compiler -m64",
            r"needs a C\+\+ compiler, and there is no no-such-compiler; install one",
        ),
        ("/no/such/g++", r"there is no /no/such/g\+\+; install one"),
        (
            "g++ 'and",
            r"CXX=\"g\+\+ 'and\" cannot be read: No closing quotation; quote it as a shell does",
        ),
        ("false", "false cannot compile sm3.cpp: status 1; set CXX to another"),
        ("true", "true cannot compile sm3.cpp: it made nothing; set CXX to another"),
    ],
)
def test_a_compiler_that_fails_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, command: str, message: str
) -> None:
    monkeypatch.setenv("CXX", command)
    with pytest.raises(RuntimeError, match=message):
        step_once()
    assert not list(folder.iterdir())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (
            "note: so far so good\nsm3.cpp:1: error: no C++20 here",
            r"sm3.cpp:1: error: no C\+\+20 here; set CXX",
        ),
        (
            "ld: final link failed: No space left on device",
            (
                "ld: final link failed: No space left on device; set TORCH_EXTENSIONS_DIR to a"
                " folder with room"
            ),
        ),
        ("one line\nand another", "one line and another; set CXX"),
    ],
)
@pytest.mark.usefixtures("folder")
def test_a_compiler_that_complains_is_quoted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, output: str, message: str
) -> None:
    monkeypatch.setenv(
        "CXX", str(compiler(tmp_path / "cxx", f"cat >&2 <<'END'\n{output}\nEND\nexit 1"))
    )
    with pytest.raises(RuntimeError, match=f"cannot compile sm3.cpp: {message}") as refusal:
        step_once()
    assert "\n" not in str(refusal.value)


def test_a_library_that_cannot_be_loaded_is_not_stored(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    script = 'for last; do :; done\necho "no library" > "$last"'
    monkeypatch.setenv("CXX", str(compiler(tmp_path / "cxx", script)))
    with pytest.raises(
        RuntimeError,
        match=r"the library that .*cxx made of sm3.cpp cannot be loaded: .*; set CXX to another",
    ):
        step_once()
    assert not list(folder.iterdir())


@pytest.mark.usefixtures("folder")
def test_a_folder_that_cannot_be_written_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_text("")
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(file))
    with pytest.raises(
        RuntimeError,
        match=f"cannot keep its kernel in {file}{os.sep}optprof: .*; set TORCH_EXTENSIONS_DIR",
    ):
        step_once()
