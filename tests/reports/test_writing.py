"""Reports write into their own folders, whole files or none, and never through a link."""

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

import optprof
from optprof.profiler.records.fits import Fit
from optprof.profiler.records.store import DamageWarning, RunStore
from optprof.reports import write_figure, write_fit_page, write_report
from optprof.reports.comparison.compare import compare
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.run import Run
from optprof.scenarios.spec import Scenario

FITS = [Fit(scenario=Scenario(model="tiny", gpu="t4"), usable=1, needed=2)]


@pytest.fixture
def run(simulated: Any, tmp_path: Path) -> Path:
    """The folder of a run of one record, without a report."""
    store = RunStore.create(tmp_path / "run")
    store.append(simulated("adamw"))
    store.close()
    return store.folder


@pytest.fixture
def user_folder(tmp_path: Path) -> Path:
    """The user's own folder with a page in it."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "report.html").write_text("<title>My report</title>", encoding="utf-8")
    return tmp_path / "mine"


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: Run.read(folder.parent / "run").report(folder),
        lambda folder: Run.going_on(folder),
        lambda folder: write_fit_page(FITS, folder, []),
        lambda folder: optprof.profile("gpt2", out=folder),
    ],
)
@pytest.mark.usefixtures("run")
def test_a_folder_of_other_files_is_refused(user_folder: Path, write: Callable[[Path], Any]):
    with pytest.raises(FileExistsError, match=r"mine holds files and no (records|fits)"):
        write(user_folder)
    assert [path.name for path in user_folder.iterdir()] == ["report.html"]


def test_force_allows_writing_into_a_folder_of_other_files(run: Path, user_folder: Path):
    page = Run.read(run).report(user_folder, force=True)
    assert "What an optimizer costs on tiny" in page.read_text(encoding="utf-8")
    (user_folder / "report.html").write_text("mine again", encoding="utf-8")
    assert "What tiny fits on" in write_fit_page(FITS, user_folder, [], force=True).read_text(
        "utf-8"
    )


def test_hidden_files_do_not_make_a_folder_the_user_s(run: Path, tmp_path: Path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".DS_Store").touch()
    assert Run.read(run).report(tmp_path / "new").is_file()
    # It is optprof's folder now.
    assert Run.read(run).report(tmp_path / "new").is_file()


def test_a_page_of_the_user_s_stays_in_a_run(run: Path):
    page = run / "report.html"
    page.write_text("<title>What I think of optimizers</title>", encoding="utf-8")
    with pytest.raises(FileExistsError, match=r"report\.html is not a page of optprof"):
        write_report(run)
    assert "What I think" in page.read_text(encoding="utf-8")
    assert not (run / "records.csv").exists()
    page.write_text("<title>What an optimizer costs on gpt2</title>", encoding="utf-8")
    assert "tiny" in write_report(run).read_text(encoding="utf-8")


@contextmanager
def most_bytes(limit: int) -> Iterator[None]:
    """Let no file of this process grow beyond the limit, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_the_old_report_stays_whole(run: Path):
    page = write_report(run)
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    with most_bytes(1_000), pytest.raises(OSError, match="figures"):
        write_report(run)
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    # The pictures fit, and the page does not.
    with most_bytes(len(before[page]) - 1), pytest.raises(OSError, match=r"report\.html"):
        write_report(run)
    assert set(before) == {path for path in run.rglob("*") if path.is_file()}
    assert page.read_bytes() == before[page]


def test_a_page_that_is_replaced_is_never_seen_half(run: Path, simulated: Any):
    with write_report(run).open("rb") as old:
        size = os.fstat(old.fileno()).st_size
        store = RunStore.resume(run)
        store.append(simulated("sm3"))
        store.close()
        assert b"sm3" in write_report(run).read_bytes()
        # A reader of the old page gets all of it.
        assert len(old.read()) == size


def test_event_files_are_neither_written_nor_deleted_through_a_link(run: Path, tmp_path: Path):
    pytest.importorskip("tensorboard")
    write_report(run, tensorboard=True)
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "events.out.tfevents.1").write_bytes(b"mine")
    for folder in (run / "tensorboard" / "report", run / "tensorboard"):
        folder.rename(tmp_path / f"aside-{folder.name}")
        folder.symlink_to(outside)
        with pytest.raises(ValueError, match="is a symbolic link"):
            write_report(run, tensorboard=True)
        folder.unlink()
        (tmp_path / f"aside-{folder.name}").rename(folder)
    assert [path.read_bytes() for path in outside.iterdir()] == [b"mine"]


def test_a_copied_run_follows_no_link_to_timelines(run: Path, tmp_path: Path):
    (tmp_path / "outside").mkdir()
    (run / "timelines").symlink_to(tmp_path / "outside")
    with pytest.warns(DamageWarning, match="timelines is a symbolic link"):
        Run.read(run).report(tmp_path / "copy")
    assert not (tmp_path / "copy" / "timelines").exists()


def test_a_link_or_a_pipe_in_place_of_a_page_is_refused(run: Path, simulated: Any, tmp_path: Path):
    target = tmp_path / "target.html"
    target.write_text("mine", encoding="utf-8")
    link = tmp_path / "link.html"
    link.symlink_to(target)
    with pytest.raises(ValueError, match=r"link\.html is a symbolic link"):
        Comparing(compared=compare([simulated()], [simulated()]), stopped=[]).write_page(link, [])
    assert target.read_text(encoding="utf-8") == "mine"
    os.mkfifo(run / "report.html")
    with pytest.raises(ValueError, match="is not a regular file"):
        write_report(run)


def test_a_picture_is_not_written_through_a_link(simulated: Any, tmp_path: Path):
    store = RunStore.create(tmp_path / "run")
    for name in ("adamw", "sgd-sai"):
        store.append(simulated(name, model="gpt2-xl", workload="state"))
    (tmp_path / "outside").mkdir()
    (store.folder / "figures").symlink_to(tmp_path / "outside")
    with pytest.raises(ValueError, match="figures is a symbolic link"):
        write_figure(store.folder, "sgd-sai-4")
    assert not list((tmp_path / "outside").iterdir())


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
@pytest.mark.parametrize("arguments", [("list", "gpus"), ("--help",), ("explain",)])
def test_a_full_disk_under_stdout_is_one_line_and_status_2(arguments: tuple[str, ...]):
    command = [sys.executable, "-m", "optprof", *arguments]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, stdout=full, stderr=subprocess.PIPE, text=True, timeout=60, check=False
        )
        unheard = subprocess.run(command, stdout=full, stderr=full, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (2, "optprof: stdout: No space left on device\n")
    assert unheard.returncode == 2
