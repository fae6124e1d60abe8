"""Disk: only regular files inside the run are read and written, and a write is whole or absent."""

import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from optprof.profiler.safety import disk

HERE = Path(__file__).resolve().parent.parent.parent / "src"


def read(path: Path, below: Path | None = None) -> bytes:
    with disk.open_to_read(path, below=below) as file:
        return file.read()


def append(path: Path, below: Path | None = None) -> None:
    os.close(disk.open_to_append(path, os.O_CREAT, below=below))


def write(path: Path, below: Path | None = None) -> None:
    disk.write_bytes(path, b"new", below=below)


WAYS = pytest.mark.parametrize("way", [read, append, write])


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """Return a folder to stay in, next to one with a private file."""
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "file").write_bytes(b"secret")
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@WAYS
@pytest.mark.parametrize("target", ["secret/file", "secret", "nothing"])
def test_a_link_is_not_followed_in_the_last_place(
    run: Path, way: Callable[..., object], target: str
):
    (run / "file").symlink_to(run.parent / target)
    with pytest.raises(ValueError, match=r"run/file is a symbolic link"):
        way(run / "file", run)
    with pytest.raises(ValueError, match=r"run/file is a symbolic link"):
        way(run / "file")
    assert (run.parent / "secret" / "file").read_bytes() == b"secret"
    assert not (run.parent / "nothing").exists()
    assert [path.name for path in run.iterdir()] == ["file"]


@WAYS
def test_a_link_is_not_followed_on_the_way(run: Path, way: Callable[..., object]):
    (run / "inner").mkdir()
    (run / "inner" / "timelines").symlink_to(run.parent / "secret")
    with pytest.raises(ValueError, match=r"run/inner/timelines is a symbolic link"):
        way(run / "inner" / "timelines" / "file", run)
    with pytest.raises(ValueError, match=r"run/inner/timelines is a symbolic link"):
        way(run / "inner" / "timelines" / "deeper" / "file", run)
    assert [path.name for path in (run.parent / "secret").iterdir()] == ["file"]
    assert (run.parent / "secret" / "file").read_bytes() == b"secret"


def test_folders_are_not_made_behind_a_link(run: Path):
    (run / "inner").symlink_to(run.parent / "secret")
    with pytest.raises(ValueError, match=r"run/inner is a symbolic link"):
        disk.make_folder(run / "inner" / "deeper", below=run)
    assert not (run.parent / "secret" / "deeper").exists()


@WAYS
def test_links_above_the_folder_are_its_user_s_choice(run: Path, way: Callable[..., object]):
    (run / "file").write_bytes(b"old")
    (run.parent / "latest").symlink_to(run)
    latest = run.parent / "latest"
    for below in (latest, None):
        way(latest / "file", below)
    # For example /tmp may be a link.
    (run.parent.parent / f"{run.parent.name}-link").symlink_to(run.parent)
    way(
        run.parent.parent / f"{run.parent.name}-link" / "run" / "file",
        run.parent.parent / f"{run.parent.name}-link" / "run",
    )


@WAYS
@pytest.mark.usefixtures("wakes_up")
def test_nothing_waits_for_a_pipe_or_reads_a_device(run: Path, way: Callable[..., object]):
    os.mkfifo(run / "pipe")
    (run / "folder").mkdir()
    for path in (run / "pipe", run / "folder", Path(os.devnull), Path("/dev/zero")):
        with pytest.raises(ValueError, match=f"{path} is not a regular file"):
            way(path)
    assert stat.S_ISFIFO((run / "pipe").stat().st_mode)
    assert stat.S_ISCHR(Path(os.devnull).stat().st_mode)


@pytest.fixture
def wakes_up() -> Iterator[None]:
    """End a test that hangs."""
    signal.alarm(20)
    yield
    signal.alarm(0)


def test_a_writer_that_waits_at_a_pipe_is_not_woken(run: Path):
    os.mkfifo(run / "pipe")
    writer = subprocess.Popen(["sh", "-c", "echo woken > pipe"], cwd=run)
    with pytest.raises(ValueError, match="not a regular file"):
        read(run / "pipe")
    with pytest.raises(subprocess.TimeoutExpired):
        writer.wait(0.3)
    writer.kill()
    writer.wait()


@WAYS
def test_paths_may_be_relative_or_absolute(
    run: Path, way: Callable[..., object], monkeypatch: pytest.MonkeyPatch
):
    (run / "file").write_bytes(b"old")
    (run / "link").symlink_to(run.parent / "secret")
    monkeypatch.chdir(run.parent)
    for below in (Path("run"), run):
        for start in (Path("run"), run):
            way(start / "file", below)
            with pytest.raises(ValueError, match="run/link is a symbolic link"):
                way(start / "link" / "file", below)
    monkeypatch.chdir(run)
    way(Path("file"), Path())
    way(Path("file"))


@pytest.mark.parametrize("path", ["secret/file", "run/../secret/file", "runs", "."])
def test_a_path_that_leaves_its_folder_is_our_own_error(run: Path, path: str):
    with pytest.raises(RuntimeError, match="does not lie below"):
        read(run.parent / path, run)


def test_a_missing_file_is_not_found(run: Path):
    for way in (read, lambda path: disk.open_to_append(path)):
        with pytest.raises(FileNotFoundError):
            way(run / "nothing")


def test_a_written_file_replaces_the_old_one_with_its_permissions(run: Path):
    path = run / "deep" / "er" / "file"
    disk.write_text(path, "old …", below=run)
    path.chmod(0o640)
    old_file = path.open("rb")
    disk.write_bytes(path, b"new", below=run)
    assert (path.read_bytes(), stat.S_IMODE(path.stat().st_mode)) == (b"new", 0o640)
    # An open descriptor still reads the whole old file.
    assert old_file.read() == "old …".encode()
    old_file.close()
    assert [each.name for each in path.parent.iterdir()] == ["file"]


def test_a_read_only_file_is_not_replaced(run: Path, monkeypatch: pytest.MonkeyPatch):
    path = run / "file"
    path.write_bytes(b"old")
    path.chmod(0o444)
    # Root may write everywhere.
    monkeypatch.setattr(
        os, "access", lambda path, how: bool(path.stat().st_mode & 0o222) or how != os.W_OK
    )
    with pytest.raises(PermissionError, match="run/file"):
        write(path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in run.iterdir()] == ["file"]


@pytest.mark.parametrize("name", ["x" * 255, "é" * 127, "記" * 85, "x.html" + "é" * 124])
def test_a_name_may_be_as_long_as_names_are(run: Path, name: str):
    write(run / name)
    assert (run / name).read_bytes() == b"new"
    write(run / name)
    assert [each.name for each in run.iterdir()] == [name]


@pytest.mark.parametrize(
    "error",
    [KeyboardInterrupt(), SystemExit(3), ValueError("no"), OSError(28, "No space left on device")],
)
def test_after_any_error_the_old_file_stays_and_no_part_is_left(run: Path, error: BaseException):
    path = run / "file"
    path.write_bytes(b"old")

    def fail() -> None:
        with disk.writing(path) as file:
            file.write(b"new" * 100_000)
            raise error

    with pytest.raises(type(error)) as raised:
        fail()
    if isinstance(error, OSError):
        assert isinstance(raised.value, OSError)
        assert raised.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert [each.name for each in run.iterdir()] == ["file"]


def test_an_error_of_another_file_keeps_its_name(run: Path):
    with pytest.raises(FileNotFoundError, match="nothing"), disk.writing(run / "file"):
        read(run / "nothing")


def test_a_full_disk_is_one_error_and_leaves_no_part(run: Path):
    """A limit on the size of files stands in for the disk."""
    (run / "file").write_bytes(b"old")
    code = """
import resource, signal, sys
from pathlib import Path
from optprof.profiler.safety import disk
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
try:
    disk.write_bytes(Path(sys.argv[1]), b"x" * 50_000)
except OSError as error:
    print(error)
"""
    done = python(code, run / "file")
    assert done.communicate(timeout=60)[0] == f"[Errno 27] File too large: '{run / 'file'}'\n"
    assert (run / "file").read_bytes() == b"old"
    assert [each.name for each in run.iterdir()] == ["file"]


def python(code: str, path: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(HERE)}
    return subprocess.Popen(
        [sys.executable, "-c", code, str(path)], env=environment, stdout=subprocess.PIPE, text=True
    )


def test_a_kill_leaves_the_old_file_and_its_part_is_removed_once_unused(run: Path):
    (run / "file").write_bytes(b"old")
    (run / ".mine.part").touch()
    code = """
import sys, time
from pathlib import Path
from optprof.profiler.safety import disk
with disk.writing(Path(sys.argv[1])) as file:
    file.write(b"new")
    file.flush()
    print("writing", flush=True)
    time.sleep(600)
"""
    writer = python(code, run / "file")
    assert writer.stdout is not None
    assert writer.stdout.readline() == "writing\n"
    disk.remove_parts(run)
    assert len(list(run.glob(".file.*.part"))) == 1
    writer.kill()
    writer.communicate()
    assert (run / "file").read_bytes() == b"old"
    assert len(list(run.glob(".file.*.part"))) == 1
    disk.remove_parts(run)
    assert sorted(each.name for each in run.iterdir()) == [".mine.part", "file"]


@pytest.mark.usefixtures("wakes_up")
def test_a_link_or_a_pipe_that_looks_like_a_part_is_left_alone(run: Path):
    (run / ".a.00000000.part").symlink_to(run.parent / "secret" / "file")
    os.mkfifo(run / ".b.00000000.part")
    disk.remove_parts(run)
    assert len(list(run.iterdir())) == 2
    disk.remove_parts(run / "nothing")


def test_a_failed_append_is_undone(run: Path):
    code = """
import os, resource, signal, sys
from pathlib import Path
from optprof.profiler.safety import disk
path = Path(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
descriptor = disk.open_to_append(path, os.O_CREAT)
disk.append(descriptor, path, [b"a" * 3000])
try:
    disk.append(descriptor, path, [b"b" * 1000, b"c" * 3000])
except OSError as error:
    print(error)
"""
    assert (
        python(code, run / "file").communicate(timeout=60)[0]
        == f"[Errno 27] File too large: '{run / 'file'}'\n"
    )
    assert (run / "file").read_bytes() == b"a" * 3000


def test_a_folder_that_cannot_be_made_is_named(run: Path):
    (run / "file").touch()
    (run / "broken").symlink_to(run / "nothing")
    for name in ("file", "broken"):
        with pytest.raises(NotADirectoryError, match=f"run/{name}/deeper"):
            disk.make_folder(run / name / "deeper")


def test_a_folder_that_is_not_ours_needs_force(run: Path):
    disk.require_own_folder(run, "records.jsonl")
    (run / "report.html").touch()
    with pytest.raises(FileExistsError, match="give --force"):
        disk.require_own_folder(run, "records.jsonl")
    disk.require_own_folder(run, "records.jsonl", force=True)
    (run / "records.jsonl").touch()
    disk.require_own_folder(run, "records.jsonl")
    disk.require_own_folder(run / "new", "records.jsonl")
    with pytest.raises(NotADirectoryError):
        disk.require_own_folder(run / "report.html", "records.jsonl")


def test_many_can_write_one_file_and_it_is_always_whole(run: Path):
    code = """
import sys
from pathlib import Path
from optprof.profiler.safety import disk
for number in range(40):
    disk.write_bytes(Path(sys.argv[1]), bytes([65 + number]) * 200_000)
"""
    write(run / "file")
    writers = [python(code, run / "file") for _ in range(2)]
    end = time.monotonic() + 60
    while any(writer.poll() is None for writer in writers) and time.monotonic() < end:
        disk.remove_parts(run)
        data = (run / "file").read_bytes()
        assert data == b"new" or (len(data) == 200_000 and len(set(data)) == 1)
    for writer in writers:
        writer.communicate()
    assert [writer.returncode for writer in writers] == [0, 0]
    assert [each.name for each in run.iterdir()] == ["file"]
