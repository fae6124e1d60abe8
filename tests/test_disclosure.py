"""The files of a user's run disclose neither the home folder nor the host."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent.parent / "src"
HOST, USER, SECRET = "box-of-alice-7", "alice-the-user", "hf_AbCdEfGhIjKlMnOpQrSt"

# The second model raises an exception with a secret and a path.
MINE = f"""
import os, torch
class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
    def forward(self, x): return self.layer(x).sum()
def build(api_key): return Net(), {{"x": torch.zeros(2, 4)}}
def broken(): open(os.path.expanduser("~/data/{SECRET}"))
"""
TRAINING = """
import optprof, sys, torch
layer = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
anonymous = "--anonymous" in sys.argv
with optprof.watch(optimizer, out=sys.argv[1], anonymous=anonymous) as run:
    for _ in range(3):
        layer(torch.ones(2, 4)).sum().backward()
        optimizer.step()
        optimizer.zero_grad()
run.report(sys.argv[1])
"""


def alice(folder: Path) -> tuple[Path, dict[str, str]]:
    """Return her home folder and environment, in which Python knows her host's name."""
    home = folder / "home" / USER
    site = folder / "site"
    site.mkdir(parents=True)
    home.mkdir(parents=True)
    (site / "sitecustomize.py").write_text(
        f"import socket\nsocket.gethostname = lambda: {HOST!r}\n"
    )
    (home / "mine.py").write_text(MINE)
    (home / "train.py").write_text(TRAINING)
    path = f"{site}{os.pathsep}{HERE}"
    message = {"HOME": str(home), "USER": USER, "LOGNAME": USER, "PYTHONPATH": path}
    return home, {**os.environ, **message}


def run(home: Path, environment: dict[str, str], *words: str, status: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, *words],
        cwd=home,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == status, done.stderr
    return done.stdout


def leaks(run: Path, *words: str, but: tuple[str, ...] = ()) -> list[str]:
    """Return the files of a run that contain one of the words, in their names or unpacked."""
    result: list[str] = []
    for path in sorted(run.rglob("*")):
        name = path.relative_to(run).as_posix()
        if path.is_file() and not name.startswith(but):
            data = path.read_bytes()
            data = gzip.decompress(data) if name.endswith(".gz") else data
            result += [
                f"{word} in {name}" for word in words if word in name or word.encode() in data
            ]
    return result


@pytest.fixture(scope="module")
def profiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    """Make a run with every optional file, in `run` below the home folder."""
    home, environment = alice(tmp_path_factory.mktemp("disclosed"))
    options = ["-c", f"api_key={SECRET}", "--steps", "2", f"--out={home}/run"]
    command = ["-m", "optprof", "profile", f"{home}/mine.py:build", "-o", "sgd:lr=0.1", *options]
    run(home, environment, *command, "--trace", "--snapshot", "--tensorboard")
    # Resumed, it finds every scenario finished.
    run(home, environment, *command, "--resume", "--no-report")
    return home, environment


def test_a_run_discloses_no_secret_no_home_no_user_and_no_host(
    profiled: tuple[Path, dict[str, str]],
):
    home, _ = profiled
    # Logs have the text that the user's own code printed; docs/report.md says so.
    aside = "logs/", "tensorboard/"
    assert leaks(home / "run", SECRET, str(home), USER, HOST, but=aside) == []
    lines = (home / "run/records.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    assert [record["outcome"] for record in records] == ["ok"] * 3
    words = ["optprof", "profile", "~/mine.py:build", "-o", "sgd:lr=0.1", "-c", "api_key=***"]
    options = ["--steps", "2", "--out=~/run", "--trace", "--snapshot", "--tensorboard"]
    assert records[0]["environment"]["command"] == [*words, *options]
    page = (home / "run/report.html").read_text()
    assert "optprof profile ~/mine.py:build -o sgd:lr=0.1" in page


def test_traces_and_event_files_name_no_host_and_no_folder(profiled: tuple[Path, dict[str, str]]):
    folder = profiled[0] / "run/tensorboard"
    assert leaks(folder, SECRET, str(profiled[0]), USER, HOST) == []
    (trace,) = folder.rglob("*.pt.trace.json.gz")
    message = json.loads(gzip.decompress(trace.read_bytes()))
    assert not message.get("host_name")
    assert "/" not in message["traceName"]


def test_an_anonymous_report_leaves_the_records_as_they_are(profiled: tuple[Path, dict[str, str]]):
    home, environment = profiled
    before = (home / "run/records.jsonl").read_bytes()
    recorded = json.loads(before.splitlines()[0])["environment"]
    words = recorded["machine"]["cpu"], recorded["platform"]
    assert leaks(home / "run", *words, but=("records.jsonl",))
    run(home, environment, "-m", "optprof", "report", "run", "--tensorboard", "--anonymous")
    assert leaks(home / "run", *words, but=("records.jsonl", "logs/")) == []
    assert (home / "run/records.jsonl").read_bytes() == before


def test_a_model_s_exception_is_recorded_without_secrets_and_folders(tmp_path: Path):
    home, environment = alice(tmp_path)
    command = ["-m", "optprof", "profile", "mine:broken", "-o", "sgd:lr=0.1", "-d", "sim"]
    run(home, environment, *command, "--out", "run", "--workload", "state", status=4)
    (line,) = (home / "run/records.jsonl").read_text().splitlines()
    missing = (
        "FileNotFoundError: [Errno 2] No such file or directory: '~/data/***' (mine.py, line 9)"
    )
    assert json.loads(line)["error"] == missing
    assert leaks(home / "run", SECRET, str(home), but=("logs/",)) == []


def test_an_anonymous_run_names_no_machine_and_no_path_and_can_go_on(tmp_path: Path):
    home, environment = alice(tmp_path)
    (home / "private").mkdir()
    (home / "mine.py").rename(home / "private/mine.py")
    command = ["-m", "optprof", "profile", "private/mine.py:build", "-o", "sgd:lr=0.1", "-d", "cpu"]
    options = ["-c", "api_key=abc", "--steps", "2", "--out", "secret-name", "--anonymous"]
    run(home, environment, *command, *options)
    assert leaks(home / "secret-name", "private", "secret-name", str(home), but=("logs/",)) == []
    (line,) = (home / "secret-name/records.jsonl").read_text().splitlines()
    result = json.loads(line)["environment"]
    assert result["anonymous"] is True
    assert not result.keys() & {"machine", "platform", "affinity", "git_commit"}
    assert (
        "machine, platform, commit and paths are left out"
        in (home / "secret-name/report.html").read_text()
    )

    run(home, environment, *command, *options, "--resume", "--no-report")
    assert len((home / "secret-name/records.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize("anonymous", [False, True])
def test_a_watched_script_is_recorded_without_its_arguments(anonymous: bool, tmp_path: Path):
    home, environment = alice(tmp_path)
    more = ["--anonymous"] if anonymous else []
    run(home, environment, "train.py", "run", f"--hf-token={SECRET}", "positional-secret", *more)
    result = json.loads((home / "run/records.jsonl").read_text())["environment"]
    assert result["command"] == ([] if anonymous else ["train.py"])
    assert leaks(home / "run", SECRET, "positional-secret", str(home), USER, HOST) == []
    if anonymous:
        assert leaks(home / "run", "train.py") == []


def test_pages_of_fits_and_comparisons_mask_their_commands(tmp_path: Path):
    home, environment = alice(tmp_path)
    state = ["-o", "sgd:lr=0.1", "--workload", "state", "-d", "sim", "--no-report"]
    run(home, environment, "-m", "optprof", "profile", "tiny", *state, "--out", "run")
    page = home / "page.html"
    compare = ["-m", "optprof", "compare", f"{home}/run", "run", "--html", str(page)]
    run(home, environment, *compare)
    assert "optprof compare ~/run run --html ~/page.html" in page.read_text()
    run(home, environment, *compare, "--anonymous")
    assert "optprof compare A B --html PATH --anonymous" in page.read_text()

    fit = ["-m", "optprof", "fit", f"{home}/mine.py:build", "--gpu", "t4", "-o", "sgd:lr=0.1"]
    run(home, environment, *fit, "-c", f"api_key={SECRET}", "--out", "fit")
    assert leaks(home / "fit", SECRET, str(home), USER) == []
