"""The package: installed by pip, by uv or editable, it is `optprof` and no other name."""

import os
import re
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "optprof"
PLAIN_NAMES = {"optimizers", "profiler", "reports", "scenarios"}

# The user's own modules have our folders' names; the script imports them and optprof.
TRAINING = """
import datasets, optimizers, profiler, reports, scenarios
import torch
import optprof
from optprof.optimizers import SM3

assert {optimizers.OWN, profiler.OWN, reports.OWN, scenarios.OWN, datasets.OWN} == {True}
layer = torch.nn.Linear(4, 4, bias=False)
optimizer = SM3(layer.parameters(), lr=0.1)
with optprof.watch(optimizer, model=layer, out="run") as run:
    for _ in range(3):
        layer(torch.ones(1, 4)).sum().backward()
        optimizer.step()
print(run.records[0].memory.optimizer_state)
"""


def run(*words: str | Path, folder: Path = ROOT) -> str:
    # PYTHONPATH may name this checkout, which the installed package must not need.
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    done = subprocess.run(
        [*map(str, words)],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a wheel and an sdist of this checkout."""
    pytest.importorskip("hatchling", reason="needs hatchling, which make test installs")
    folder = tmp_path_factory.mktemp("dist")
    run(sys.executable, "-P", "-m", "hatchling", "build", "-d", folder)
    return folder


def only(folder: Path, pattern: str) -> Path:
    (path,) = folder.glob(pattern)
    return path


def contents(wheel: Path) -> dict[str, bytes]:
    with zipfile.ZipFile(wheel) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def environment(folder: Path) -> Path:
    """Make an environment that sees what is installed here, and return its Python."""
    run(sys.executable, "-P", "-m", "venv", "--without-pip", folder)
    python = folder / "bin" / "python"
    site = run(python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip()
    Path(site, "installed.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    return python


def install(how: str, python: Path, dist: Path) -> None:
    if how == "uv":
        uv = shutil.which(
            "uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        )
        if uv is None:
            pytest.skip("uv is not installed")
        run(
            uv,
            "pip",
            "install",
            "-q",
            "--offline",
            "--no-deps",
            "--python",
            python,
            only(dist, "*.whl"),
        )
        return
    what = ["--no-build-isolation", "-e", ROOT] if how == "editable" else [only(dist, "*.whl")]
    pip = [sys.executable, "-P", "-m", "pip", "--python", python, "install", "-q", "--no-compile"]
    run(*pip, "--no-index", "--no-deps", "--ignore-installed", *what)


def test_the_wheel_has_every_file_of_the_package_and_nothing_else(dist: Path):
    files = {
        Path(folder, name).relative_to(PACKAGE.parent).as_posix()
        for folder, _, names in os.walk(PACKAGE, followlinks=True)
        for name in names
        if not folder.endswith("__pycache__")
    }
    assert {Path(name).suffix for name in files} >= {".cpp", ".csv", ".j2", ".js", ".toml", ".txt"}
    assert "optprof/py.typed" in files
    names = contents(only(dist, "*.whl")).keys()
    assert {name for name in names if not name.startswith("optprof-")} == files


def test_the_sdist_builds_the_same_wheel(dist: Path, tmp_path: Path):
    with tarfile.open(only(dist, "*.tar.gz")) as archive:
        archive.extractall(tmp_path, filter="data")
    source = only(tmp_path, "optprof-*")
    run(
        sys.executable,
        "-P",
        "-m",
        "hatchling",
        "build",
        "-t",
        "wheel",
        "-d",
        tmp_path,
        folder=source,
    )
    assert contents(only(tmp_path, "*.whl")) == contents(only(dist, "*.whl"))


@pytest.mark.parametrize("how", ["pip", "uv", "editable"])
def test_an_installed_optprof_works_next_to_a_user_s_folders_of_our_names(
    how: str, dist: Path, tmp_path: Path
):
    python = environment(tmp_path / "env")
    install(how, python, dist)
    site = only(tmp_path / "env", "lib/python*/site-packages")
    names = {path.name for path in site.iterdir()} - {"installed.pth", "__pycache__"}
    package = {"_optprof.pth"} if how == "editable" else {"optprof"}
    assert names - package == {only(site, "optprof-*.dist-info").name}

    project = tmp_path / "mine"
    for name in (*PLAIN_NAMES - {"profiler"}, "datasets"):
        (project / name).mkdir(parents=True)
        (project / name / "__init__.py").write_text("OWN = True\n")
    (project / "profiler.py").write_text("OWN = True\n")
    (project / "train.py").write_text(TRAINING)
    # One accumulator for each row and each column of the 4 x 4 weight, in float32.
    assert run(python, "train.py", folder=project) == f"{4 * (4 + 4)}\n"
    command = tmp_path / "env" / "bin" / "optprof"
    for words in ([python, "-m", "optprof"], [command]):
        assert "rtx3090" in run(*words, "list", "gpus", folder=project)
    if how == "pip":
        tiny = ["profile", "tiny", "-T", "8", "-o", "sm3", "-d", "sim", "--workload", "state"]
        assert "sm3" in run(command, *tiny, "--out", "tiny", folder=project)
        assert (project / "tiny" / "report.html").is_file()


def test_our_code_imports_optprof_by_its_only_name():
    plain = re.compile(rf"^\s*(?:from|import) +(?:{'|'.join(PLAIN_NAMES)})\b", re.MULTILINE)
    paths = [
        path for folder in (*PLAIN_NAMES, "src", "tests") for path in (ROOT / folder).rglob("*.py")
    ]
    assert [path for path in paths if plain.search(path.read_text(encoding="utf-8"))] == []
