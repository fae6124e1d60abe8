"""The command line as a user runs it: in its own process, in an empty folder."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import commands
import psutil
import pytest
import torch

from optprof.cli.listing import listing
from optprof.reports.explain import FIGURES

HERE = Path(__file__).resolve().parent.parent


def optprof(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": "120", "NO_COLOR": "1"}
    return commands.run(arguments, cwd=folder, env=environment)


@pytest.fixture(scope="module")
def profiled(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, subprocess.CompletedProcess[str]]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "chatty.py").write_text("""
import os, torch
class Chatty(torch.optim.SGD):
    def __init__(self, params, lr=0.1, momentum=0.9, foreach=None):
        print("hello from Python")
        super().__init__(params, lr=lr, momentum=momentum, foreach=foreach)
    def step(self, closure=None):
        os.write(1, b"hello from C")
        return super().step(closure)
""")
    return folder, optprof(
        folder,
        "profile",
        "resnet18",
        "-o",
        "adamw,sm3,sm3:momentum=0.9,chatty:Chatty",
        "-d",
        "sim",
        "--json",
    )


def test_profile_writes_a_run_and_prints_only_json(
    profiled: tuple[Path, subprocess.CompletedProcess[str]],
):
    folder, done = profiled
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert "hello from Python" in done.stderr
    run = folder / "runs" / "resnet18"
    assert [path.name for path in sorted(run.iterdir())] == [
        "figures",
        "logs",
        "records.csv",
        "records.json",
        "records.jsonl",
        "report.html",
        "timelines",
    ]
    assert "hello from C" in (run / message["records"][3]["log"]).read_text()
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    # Simulations that run at once are recorded as they end, and shown in order.
    lines.sort(key=lambda record: record["place"])
    assert message["records"] == lines
    assert [
        (r["scenario"]["workload"], r["scenario"]["model"], r["scenario"]["optimizer"])
        for r in lines[:4]
    ] == [("train", "resnet18", name) for name in ("adamw", "sm3", "sm3", "chatty:Chatty")]
    assert {r["outcome"] for r in lines} == {"ok"}


def test_progress_names_the_scenario_and_its_number(
    profiled: tuple[Path, subprocess.CompletedProcess[str]],
):
    _, done = profiled
    assert "[2/12] resnet18 sm3 train on sim" in done.stderr


def test_report_draws_a_run_again_without_measuring(
    profiled: tuple[Path, subprocess.CompletedProcess[str]],
):
    folder, _ = profiled
    page = folder / "runs" / "resnet18" / "report.html"
    page.unlink()
    done = optprof(folder, "report", "resnet18")
    assert (done.returncode, done.stdout.strip()) == (0, str(Path("runs/resnet18/report.html")))
    assert "resnet18" in page.read_text()


def test_a_second_run_has_another_folder(
    profiled: tuple[Path, subprocess.CompletedProcess[str]],
):
    folder, _ = profiled
    done = optprof(folder, "profile", "resnet18", "-o", "sgd", "-d", "sim", "--workload", "state")
    assert done.returncode == 0, done.stderr
    assert (folder / "runs" / "resnet18-2" / "report.html").is_file()
    assert "sgd" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("profile", "gpt3"), "optprof: no model named 'gpt3'; did you mean gpt2"),
        (
            ("profile", "gpt2", "-o", "adamv"),
            "optprof: no optimizer is named 'adamv'; did you mean adam",
        ),
        (
            ("profile", "gpt2", "-o", "adamw:lrr=1"),
            "optprof: no option of adamw is named 'lrr'; did you mean lr",
        ),
        (
            ("profile", "gpt2", "--dtype", "fp8"),
            "optprof: dtype must be one of fp32, bf16, fp16, fp64, got 'fp8'",
        ),
        (
            ("profile", "gpt2", "--device", "tpu"),
            "optprof: device must be one of auto, sim, cpu, cuda, got 'tpu'",
        ),
        (
            ("profile", "resnet18", "-d", "sim", "--out", "file/run"),
            "optprof: file/run: Not a directory",
        ),
        (
            ("report", "nowhere"),
            "optprof: no records.jsonl in runs/nowhere; name the folder of a run",
        ),
        (("fit", "gpt2", "--gpu", "h100"), "optprof: no GPU is named 'h100'; did you mean h100-80"),
        (
            ("fit", "gpt2", "--ranks", "1,2"),
            "optprof: several ranks need a way to share the work; add --parallel: ddp",
        ),
        (
            ("fit", "gpt2", "--ranks", "2,few", "--parallel", "fsdp2"),
            "optprof: --ranks takes numbers from 1 to 16,384, as in 1,2,4,8; got '2,few'",
        ),
        (
            ("fit", "gpt2", "--ranks", "1,2", "--parallel", "fsdp2+tp:4"),
            "optprof: tp:4 needs a number of ranks that 4 divides, got 1",
        ),
        (
            ("list", "datasets"),
            (
                "optprof: nothing to list under 'datasets'; ask for models, optimizers,"
                " accumulations, gpus or suites"
            ),
        ),
        (("compare", "here", "there"), "optprof: no run in"),
        (
            ("compare", "here", "there", "--fail-on", "state>=0"),
            "optprof: a gate reads METRIC>NUMBER",
        ),
        (
            ("compare", "here", "there", "--only", "same"),
            "optprof: --only takes regressed, got 'same'",
        ),
        (("compare", "here", "there", "--threshold", "5"), "optprof: a threshold reads NUMBER%"),
        (("explain", "peek"), "optprof: no metric named 'peek'; did you mean peak?"),
    ],
)
def test_an_error_is_one_line_and_status_2(
    tmp_path: Path, arguments: tuple[str, ...], message: str
):
    (tmp_path / "file").touch()
    done = optprof(tmp_path, *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith(message)
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "runs").exists()


BROKEN = """
import torch

class Numpy(torch.optim.SGD):
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                p.grad.numpy()

class Early(torch.optim.SGD):
    def __init__(self, params):
        raise ZeroDivisionError("early")

def build():
    raise SystemExit("no data")
"""


def test_fit_lists_the_optimizers_that_can_be_simulated(tmp_path: Path):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = optprof(tmp_path, "fit", "tiny", "-T", "16", "--gpu", "t4", "-o", "broken:Numpy,sgd")
    assert done.returncode == 4
    assert "✓" in done.stdout
    assert "broken.py, line 8, turns a tensor into a numpy array" in done.stdout
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("fit", "tiny", "--gpu", "t4", "-o", "broken:Early"),
            "ZeroDivisionError: early (broken.py, line 12)",
        ),
        (
            ("profile", "broken:build", "-d", "sim", "--checkpointing"),
            "SystemExit: no data (broken.py, line 15)",
        ),
    ],
)
def test_an_exception_of_the_users_code_is_one_line_or_a_traceback(
    tmp_path: Path, arguments: tuple[str, ...], message: str
):
    (tmp_path / "broken.py").write_text(BROKEN)
    done = optprof(tmp_path, *arguments)
    assert (done.returncode, done.stderr) == (
        2,
        f"optprof: {message}; --traceback shows the whole\n",
    )
    whole = optprof(tmp_path, *arguments, "--traceback")
    assert whole.returncode == 2
    assert whole.stderr.startswith("Traceback (most recent call last):")
    assert whole.stderr.endswith(done.stderr)


def test_a_scenario_that_fails_leaves_the_others_and_status_4(tmp_path: Path):
    done = optprof(
        tmp_path,
        "profile",
        "resnet18",
        "-o",
        "sgd,torch.optim:SparseAdam",
        "-d",
        "sim",
        "--workload",
        "state",
    )
    assert done.returncode == 4
    assert "2 of 4 scenarios failed; the report lists why" in done.stderr
    assert (
        "does not support dense gradients"
        in (tmp_path / "runs" / "resnet18" / "report.html").read_text()
    )


TINY = """
import os
import time
import torch

class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(8, 8)
    def forward(self, x):
        return self.layer(x).square().mean()

def build():
    return Model(), {"x": torch.ones(2, 8)}

class Slow(torch.optim.SGD):
    def step(self, closure=None):
        open("stepping", "w").close()
        time.sleep(0 if os.path.exists("quick") else 600)
"""


def test_ctrl_c_keeps_finished_scenarios_and_prints_how_to_go_on(tmp_path: Path):
    (tmp_path / "tiny.py").write_text(TINY)
    command = [
        "profile",
        "tiny:build",
        "-o",
        "sgd,tiny:Slow",
        "-d",
        "sim",
        "--workload",
        "train",
        "--jobs",
        "1",
        "--no-report",
    ]
    # Workers of torch.compile may remain from other tests.
    before = psutil.Process().children(recursive=True)
    cut_off = subprocess.Popen(
        [sys.executable, "-m", "optprof", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (tmp_path / "stepping").exists() and time.monotonic() < end:
        time.sleep(0.05)
    cut_off.send_signal(signal.SIGINT)
    _, message = cut_off.communicate(timeout=60)
    assert cut_off.returncode == 130
    going_on = f"optprof {' '.join(command)} --out runs/tiny.build --resume"
    assert message.splitlines()[-2:] == [
        "interrupted; what is finished is in runs/tiny.build; to go on:",
        f"  {going_on}",
    ]
    assert {*psutil.Process().children(recursive=True)} <= {*before}

    (tmp_path / "quick").touch()
    with (tmp_path / "runs/tiny.build/records.jsonl").open("a") as lines:
        lines.write('{"schema": 1, "scen')
    message = optprof(tmp_path, "report", "tiny.build", "--markdown")
    assert (message.returncode, message.stderr.splitlines()) == (
        0,
        [
            (
                "left out: runs/tiny.build/records.jsonl, line 2: torn after 19 bytes, without an"
                " end of line"
            ),
            "optprof repair runs/tiny.build sets aside what cannot be read",
            (
                "Unfinished: 3 of 4 scenarios are missing. The run was interrupted, or is still"
                f" going on. Go on with: {going_on}"
            ),
        ],
    )
    done = optprof(tmp_path, *going_on.split()[1:], "--json")
    assert done.returncode == 0, done.stderr
    assert (
        "the last line was torn: its 19 bytes are set aside in runs/tiny.build/records.torn"
        in done.stderr
    )
    assert "1 of 4 scenarios are recorded in runs/tiny.build" in done.stderr
    result = json.loads(done.stdout)
    assert result["report"] is None
    assert [
        (record["scenario"]["optimizer"], record["outcome"]) for record in result["records"][:2]
    ] == [("sgd", "ok"), ("tiny:Slow", "ok")]


def test_a_damaged_run_is_reported_passes_no_gate_is_resumed_and_repaired(tmp_path: Path):
    command = [
        "profile",
        "tiny",
        "-T",
        "8",
        "-o",
        "sgd,adamw",
        "-d",
        "sim",
        "--workload",
        "train",
        "--out",
        "run",
        "--jobs",
        "1",
        "--no-report",
    ]
    made = optprof(tmp_path, *command)
    assert made.returncode == 0, made.stderr
    lines = (tmp_path / "run" / "records.jsonl").read_bytes().splitlines(keepends=True)
    assert [json.loads(line)["scenario"]["optimizer"] for line in lines[:2]] == ["sgd", "adamw"]
    for path in (tmp_path / "run" / "timelines").glob("*-sgd-*"):
        path.write_bytes(b"")
    (tmp_path / "run" / "records.jsonl").write_bytes(
        lines[0] + b"\0" * 40 + b"\n" + lines[1] + lines[2][:50]
    )
    damage = [
        "records.jsonl, line 2: 40 zero bytes",
        "records.jsonl, line 4: torn after 50 bytes, without an end of line",
    ]

    report = optprof(tmp_path, "report", "run")
    assert (report.returncode, report.stdout) == (0, "run/report.html\n")
    (timeline,) = (path.name for path in (tmp_path / "run" / "timelines").glob("*-sgd-*"))
    *left_out, files = report.stderr.splitlines()
    assert left_out == [
        *(f"left out: run/{each}" for each in damage),
        f"left out: run/timelines/{timeline}: not a timeline: an empty file",
        "optprof repair run sets aside what cannot be read",
    ]
    assert files.startswith("also in run: records.jsonl, records.json, records.csv, figures/ (")
    gate = optprof(tmp_path, "compare", "run", "run", "--fail-on", "state>0")
    assert gate.returncode == 3
    assert (
        "stopped by every gate, because it cannot be read: before: records.jsonl, line 2: 40 zero"
        " bytes, and 3 more" in gate.stderr
    )

    going_on = optprof(tmp_path, *command, "--resume")
    assert going_on.returncode == 0, going_on.stderr
    assert "1 of 4 scenarios are recorded in run" in going_on.stderr
    assert [path.name for path in (tmp_path / "run" / "timelines").glob("*.damaged")] == [
        f"{timeline}.damaged"
    ]
    repaired = optprof(tmp_path, "repair", "run")
    assert (repaired.returncode, repaired.stdout) == (
        0,
        f"{damage[0]}; set aside in records.damaged\n",
    )
    assert (tmp_path / "run" / "records.damaged").read_bytes() == b"\0" * 40 + b"\n"
    assert (tmp_path / "run" / "records.torn").read_bytes() == lines[2][:50] + b"\n"
    again = optprof(tmp_path, "repair", "run")
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing is damaged\n", "")
    assert optprof(tmp_path, "report", "run", "--markdown").stderr == ""


def test_a_user_s_own_folders_of_our_names_are_not_in_the_children_s_way(tmp_path: Path):
    for name in ("optimizers", "profiler", "scenarios", "reports", "torch", "json"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('decoy')")
    (tmp_path / "tiny.py").write_text(TINY)
    code = "import sys; sys.path.pop(0); from optprof.cli import main; main()"
    arguments = ["profile", "tiny:build", "-o", "sgd", "-d", "cpu", "--no-report"]
    environment = {**os.environ, "PYTHONPATH": f"{HERE / 'src'}{os.pathsep}{HERE / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_measuring_needs_no_drawing_library(tmp_path: Path):
    """A GPU box may have only torch, transformers (which loads numpy), typer, rich and psutil."""
    (tmp_path / "site").mkdir()
    blocked = (
        "jinja2 matplotlib pandas plotly peft pynvml pytorch_optimizer scipy sklearn tensorboard"
        " torch_tb_profiler"
    )
    (tmp_path / "site" / "sitecustomize.py").write_text(
        f"import sys\nsys.modules.update(dict.fromkeys({blocked.split()}))\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{HERE / 'src'}"}
    command = [
        "profile",
        "tiny",
        "-T",
        "8",
        "-o",
        "adamw,sm3",
        "-d",
        "auto",
        "--no-report",
        "--trace",
        "--steps",
        "2",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "optprof", *command],
        cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    missing = subprocess.run(
        [sys.executable, "-m", "optprof", "report", "tiny"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (missing.returncode, missing.stderr) == (
        2,
        "optprof: jinja2 is not installed; pip install jinja2\n",
    )
    assert optprof(tmp_path, "report", "tiny").returncode == 0


def test_a_user_s_own_folders_of_our_names_are_not_in_the_way(tmp_path: Path):
    for name in ("optimizers", "profiler", "scenarios", "reports"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("raise SystemExit('decoy')")
    console_script = Path(sys.executable).with_name("optprof")
    if not console_script.exists():
        pytest.skip("optprof is not installed next to this interpreter; make test installs it")
    done = subprocess.run(
        [console_script, "list", "optimizers"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    command = [
        "profile",
        "tiny",
        "-T",
        "8",
        "-o",
        "sgd",
        "-d",
        "cpu",
        "--no-report",
        "--steps",
        "2",
    ]
    done = subprocess.run(
        [console_script, *command],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_a_sweep_runs_its_file_s_scenarios_but_no_code_that_only_the_file_names(tmp_path: Path):
    (tmp_path / "tiny.py").write_text(TINY)
    (tmp_path / "quick").touch()
    (tmp_path / "mine.toml").write_text("""
        [[scenarios]]
        model = "tiny:build"
        optimizer = ["sgd", "tiny:Slow"]
        micro_batches = [1, 2]
        device = "sim"
        """)
    refused = optprof(tmp_path, "sweep", "mine.toml", "--allow", "tiny:build")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(
        "optprof: a suite runs no code of its own, got 'tiny:Slow'; if you trust it, give --allow"
        " tiny:Slow"
    )
    allowed = ["sweep", "mine.toml", "--allow", "tiny:build", "--allow", "tiny:Slow"]
    forecast = optprof(tmp_path, *allowed, "--dry-run")
    assert forecast.returncode == 0, forecast.stderr
    assert "4 scenarios, " in forecast.stdout
    assert "micro_batches" in forecast.stdout
    assert not (tmp_path / "runs").exists()
    done = optprof(tmp_path, *allowed, "--no-report", "--json")
    assert done.returncode == 0, done.stderr
    result = [record["scenario"] for record in json.loads(done.stdout)["records"]]
    assert [(each["micro_batches"], each["optimizer"]) for each in result] == [
        (1, "sgd"),
        (1, "tiny:Slow"),
        (2, "sgd"),
        (2, "tiny:Slow"),
    ]


def test_doctor_lists_packages_and_devices(tmp_path: Path):
    done = optprof(tmp_path, "doctor")
    assert (done.returncode, done.stderr) == (0, "")
    assert f"torch              {torch.__version__}" in done.stdout
    assert "devices:" in done.stdout


def test_doctor_and_help_need_no_torch(tmp_path: Path):
    """The blocked packages behave as if they were not installed."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(
        "import sys\nclass Missing:\n    def find_spec(self, name, path=None, target=None):\n      "
        "  if name.split('.')[0] in ('torch', 'transformers', 'numpy', 'psutil'): raise"
        " ModuleNotFoundError(name)\nsys.meta_path.insert(0, Missing())\n"
    )
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path / 'site'}{os.pathsep}{HERE / 'src'}"}
    done = subprocess.run(
        [sys.executable, "-m", "optprof", "doctor"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert (
        "- torch              missing, for simulating and measuring\n                       pip"
        " install torch\n" in done.stdout
    )
    assert "- measure            nothing" in done.stdout


def test_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "ro", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    try:
        done = optprof(tmp_path, "profile", "tiny", "-d", "sim", "--out", str(disk / "run"))
        assert (done.returncode, done.stderr) == (
            2,
            f"optprof: {disk / 'run'}: Read-only file system; name another folder with --out\n",
        )
    finally:
        subprocess.run(["umount", disk], check=True)


def test_a_full_disk_is_one_line_and_keeps_the_records(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", disk],
        capture_output=True,
        text=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip(f"nothing can be mounted here: {mounted.stderr.strip()}")
    command = [
        "profile",
        "tiny",
        "-o",
        "sgd,adamw,sm3,lamb16",
        "-d",
        "sim",
        "--no-report",
        "--out",
        str(disk / "run"),
    ]
    try:
        # Leave room for one or two records and their timelines, not for four.
        (disk / "others").write_bytes(bytes((1 << 20) - 6 * 4096))
        done = optprof(tmp_path, *command)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1].endswith(
            ": No space left on device; make room, and go on with --resume"
        )
        records = (disk / "run" / "records.jsonl").read_bytes()
        assert records == b"" or records.endswith(b"\n")
        (disk / "others").unlink()
        done = optprof(tmp_path, *command, "--resume", "--json")
        assert done.returncode == 0, done.stderr
        assert [record["outcome"] for record in json.loads(done.stdout)["records"]] == ["ok"] * 8
        assert (disk / "run" / "records.jsonl").read_bytes().startswith(records)
    finally:
        subprocess.run(["umount", disk], check=True)


def test_of_two_runs_into_one_folder_the_second_is_refused_and_the_first_goes_on(tmp_path: Path):
    (tmp_path / "tiny.py").write_text(TINY)
    command = [
        "profile",
        "tiny:build",
        "-o",
        "sgd,tiny:Slow",
        "-d",
        "sim",
        "--jobs",
        "1",
        "--no-report",
        "--out",
        "run",
    ]
    first = subprocess.Popen(
        [sys.executable, "-m", "optprof", *command], cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    end = time.monotonic() + 120
    while not (tmp_path / "stepping").exists() and time.monotonic() < end:
        time.sleep(0.05)
    for more, message in (
        ([], "run already holds a run"),
        (["--resume"], "another process is writing the run in run; wait for it"),
    ):
        second = optprof(tmp_path, *command, *more)
        assert (second.returncode, second.stderr.count("\n")) == (2, 1)
        assert second.stderr.startswith(f"optprof: {message}")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=60)
    assert first.returncode == 130
    (record,) = (tmp_path / "run" / "records.jsonl").read_text().splitlines()
    assert json.loads(record)["outcome"] == "ok"


def test_names_are_listed_with_descriptions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    # pytest-xdist sets it, and lines would be wrapped.
    monkeypatch.delenv("COLUMNS", raising=False)
    assert optprof(tmp_path, "list", "gpus").stdout == "".join(
        f"{line}\n" for line in listing("gpus")
    )
    models, optimizers, gpus, ways = (
        list(listing(kind)) for kind in ("models", "optimizers", "gpus", "accumulations")
    )
    assert "gpt2-xl       1,557,611,200  parameters" in models
    assert (
        "rtx3090  GeForce RTX 3090          23.69 GiB    936 GB/s  fp32, tf32, bf16, fp16" in gpus
    )
    assert "gnts  steps once the norm of the mean gradient is below a threshold" in ways
    # Descriptions begin in one column, so no name runs into its own.
    for listed in (optimizers, gpus, ways):
        assert len({re.match(r"(\S+ +| +)\S", line).end() for line in listed}) == 1  # pyright: ignore[reportOptionalMemberAccess]


def test_help_loads_nothing_heavy(tmp_path: Path):
    """Help takes less than half a second, and loading torch alone takes longer."""
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "optprof", "--help"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert time.perf_counter() - start < 5
    assert not any(
        f" {name}\n" in done.stderr for name in ("torch", "transformers", "matplotlib", "numpy")
    )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("profile gpt3 -d sim", "no model named 'gpt3'; did you mean gpt2"),
        ("profile tiny -o adamw,adamww", "no optimizer is named 'adamww'; did you mean adamw"),
        ("profile tiny --gpu a101-80", "a101-80"),
        ("profile tiny --dtype fp17", "dtype"),
        ("fit tiny --gpu a101-80", "a101-80"),
        ("fit gpt3", "no model named 'gpt3'"),
    ],
)
def test_a_wrong_name_is_refused_before_torch_is_loaded(tmp_path: Path, words: str, message: str):
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-P", "-m", "optprof", *words.split()],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 2
    *imports, line = done.stderr.splitlines()
    assert message in line
    assert not any(each.endswith((" torch", " transformers", " numpy")) for each in imports)
    assert not list(tmp_path.iterdir())


def test_fit_lists_the_gpus_of_each_optimizer_and_writes_a_page(tmp_path: Path):
    done = optprof(
        tmp_path,
        "fit",
        "resnet18",
        "-o",
        "adamw,sgd",
        "-B",
        "4096",
        "--gpu",
        "t4,a100-80",
        "--json",
    )
    assert done.returncode == 0, done.stderr
    message = json.loads(done.stdout)
    assert message["report"] == "runs/resnet18-fit/report.html"
    assert (tmp_path / message["report"]).is_file()
    assert [
        (result["scenario"]["gpu"], result["scenario"]["optimizer"]) for result in message["fits"]
    ] == [
        ("t4", "adamw"),
        ("t4", "sgd"),
        ("a100-80", "adamw"),
        ("a100-80", "sgd"),
    ]
    assert not any(result["fits"] for result in message["fits"])
    assert all(
        0 < result["largest_batch"] < 4096 and result["changes"] for result in message["fits"]
    )


def test_compare_lists_changes_and_a_gate_ends_with_status_3(
    profiled: tuple[Path, subprocess.CompletedProcess[str]], tmp_path: Path
):
    folder, _ = profiled
    run, more = folder / "runs" / "resnet18", tmp_path / "runs" / "more"
    more.mkdir(parents=True)
    lines = [json.loads(line) for line in (run / "records.jsonl").read_text().splitlines()]
    lines[0]["memory"]["optimizer_state"] += 4
    (more / "records.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    done = optprof(
        tmp_path,
        "compare",
        str(run),
        "more",
        "--fail-on",
        "state>0",
        "--only",
        "regressed",
        "--html",
        "pages/changed.html",
    )
    assert (done.returncode, done.stderr.splitlines()[-1]) == (3, "stopped by a gate: 1")
    assert "state>0: resnet18 · adamw" in done.stdout
    assert "resnet18 · adamw" in (tmp_path / "pages" / "changed.html").read_text()
    done = optprof(tmp_path, "compare", str(run), "more", "--fail-on", "state>4", "--json")
    assert (done.returncode, json.loads(done.stdout)["stopped"]) == (0, [])
    done = optprof(tmp_path, "report", "more", "--markdown")
    assert (done.returncode, done.stdout.splitlines()[1][:5]) == (0, "| ---")


def test_explain_describes_a_figure(tmp_path: Path):
    words = optprof(tmp_path, "explain", "state").stdout.split()
    assert "Storage that two tensors share counts once" in " ".join(words)
    assert optprof(tmp_path, "explain").stdout.count("leaves out: ") == len(FIGURES)
