"""The command line's manners: help, completion, standing options, errors, narrow terminals."""

import errno
import json
import os
import re
import subprocess
import sys
import tomllib
from inspect import signature
from pathlib import Path

import commands
import pytest
from typer.testing import CliRunner

from optprof import optimizers
from optprof.cli import names
from optprof.cli.app import _message, app
from optprof.cli.running import run_name
from optprof.optimizers import accumulation
from optprof.profiler.machine import doctor
from optprof.reports.progress import TimeLeft, progress
from optprof.scenarios import Scenario

HERE = Path(__file__).resolve().parent.parent
COMMANDS = [
    each.name or (each.callback.__name__ if each.callback else "")
    for each in app.registered_commands
]


def optprof(
    folder: Path, *arguments: str, columns: int = 120, **variables: str
) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "COLUMNS": str(columns), "NO_COLOR": "1", **variables}
    return commands.run(arguments, cwd=folder, env=environment)


def printed(*arguments: str, columns: int = 120, **variables: str) -> str:
    """Return what a command prints that ends at once; it runs in this process."""
    environment = {"COLUMNS": str(columns), **variables}
    done = CliRunner().invoke(
        app, [*arguments], prog_name="optprof", env=environment, terminal_width=columns
    )
    assert done.exit_code == 0, done.output
    return done.output


def alone(folder: Path, *arguments: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in a process that has loaded nothing."""
    return subprocess.run(
        [sys.executable, "-P", "-X", "importtime", "-m", "optprof", *arguments],
        cwd=folder,
        env={**os.environ, **variables},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )


@pytest.mark.parametrize("arguments", [(), *((name,) for name in COMMANDS)])
def test_help_fits_sixty_columns_and_cuts_no_sentence(arguments: tuple[str, ...]):
    text = printed(*arguments, "-h", columns=60)
    assert max(map(len, text.splitlines())) <= 60
    assert not re.search(r"[a-z]\.\.\.$", text, re.MULTILINE)
    assert text == printed(*arguments, "--help", columns=60)
    assert arguments or set(COMMANDS) <= {*text.split()}


def test_the_options_that_people_use_stand_first():
    text = printed("profile", "--help")
    first = (
        "-o,",
        "-d,",
        "--gpu",
        "-B,",
        "-T,",
        "--dtype",
        "--out",
        "\nTraining step:",
        "\n  --amp",
    )
    places = [text.index(name) for name in first]
    assert places == sorted(places)


def test_the_version_is_that_of_optprof_and_torch():
    assert re.fullmatch(r"optprof \S+, Python 3\.\S+, torch 2\.\S+\n", printed("--version"))


@pytest.mark.parametrize(
    ("words", "completed"),
    [
        (["prof"], ["profile"]),
        (["profile", "gpt2-"], ["gpt2-medium", "gpt2-large", "gpt2-xl"]),
        (["profile", "tiny", "-o", "adamw,sgd"], ["adamw,sgd", "adamw,sgd-sai"]),
        (["profile", "tiny", "--dtype", ""], ["fp32", "bf16", "fp16", "fp64"]),
        (["fit", "tiny", "--gpu", "t4,a100"], ["t4,a100-40", "t4,a100-80"]),
        (["list", "o"], ["optimizers"]),
        (["report", "mi"], ["mine"]),
    ],
)
def test_a_shell_completes_names(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: list[str], completed: list[str]
):
    (tmp_path / "runs" / "mine").mkdir(parents=True)
    (tmp_path / "runs" / "mine" / "records.jsonl").touch()
    monkeypatch.chdir(tmp_path)
    text = printed(
        COMP_WORDS=" ".join(["optprof", *words]),
        COMP_CWORD=str(len(words)),
        _OPTPROF_COMPLETE="complete_bash",
    )
    assert text.split() == completed


def test_completion_knows_every_name_and_loads_no_torch(tmp_path: Path):
    assert set(names.optimizer_names("")) == {*optimizers.available()}
    assert set(names.accumulation_names("")) == {*accumulation.available()}
    words = {"COMP_WORDS": "optprof profile tiny -o sm", "COMP_CWORD": "4"}
    done = alone(tmp_path, _OPTPROF_COMPLETE="complete_bash", **words)
    assert done.stdout.split() == ["sm3"]
    assert not re.search(r"\| +(torch|numpy|rich)$", done.stderr, re.MULTILINE)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("profile", "missing argument MODEL; optprof profile --help shows what it takes"),
        ("profil tiny", "no such command profil; did you mean profile? optprof --help"),
        ("profile tiny -B x", "--batch-size must be a whole number, got 'x'"),
        ("profile tiny --timeout soon", "--timeout must be a number, got 'soon'"),
        (
            "profile tiny --no-such-option",
            "no such option: --no-such-option",
        ),
        ("profile tiny --gpus t4", "no such option: --gpus; did you mean --gpu? optprof profile"),
        ("history", "no run in runs; name the folder of a run"),
        ("profile tiny -T 0", "sequence_length must be a whole number >= 1, got 0"),
        ("profile tiny -o sm3:momentum", "option 'momentum' of sm3 has no value; write sm3:"),
        ("profile bert", "no model named 'bert'; there are gpt2, gpt2-medium"),
        ("profile mine.py", "'mine.py' names no factory; write mine.py:NAME for the function"),
        ("profile vit", "no model named 'vit'; did you mean vit-s16, vit-b16, vit-h14?"),
        ("fit tiny --gpu tpu", "no GPU is named 'tpu'; there are rtx3060"),
        ("profile tiny --amp float16 --dtype half", "amp runs fp32 parameters under autocast, got"),
    ],
)
def test_what_cannot_be_read_is_one_line(tmp_path: Path, arguments: str, message: str):
    done = optprof(tmp_path, *arguments.split(), "--json" if "fit" in arguments else "-q")
    assert done.returncode == 2
    assert done.stderr.startswith(f"optprof: {message}")
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    "arguments", ["profile gpt3", "profile tiny -B x", "fit gpt3", "sweep papr", "compare a b"]
)
def test_json_of_a_failure_is_an_object_with_its_error(tmp_path: Path, arguments: str):
    done = optprof(tmp_path, *arguments.split(), "--json")
    assert json.loads(done.stdout) == {
        "error": done.stderr.removeprefix("optprof: ").rstrip("\n"),
        "status": done.returncode,
    }


SMALL = ("-d", "sim", "-T", "8", "--workload", "state", "-q")
STANDING = """
[tool.optprof]
optimizers = ["sgd", "sm3:momentum=0.9"]
dtype = "bfloat16"
no-report = true
[tool.optprof.compare]
fail-on = ["state>0"]
"""


def scenarios(folder: Path) -> list[tuple[str, str | None]]:
    lines = (folder / "runs" / "tiny" / "records.jsonl").read_text().splitlines()
    asked = [json.loads(line)["scenario"] for line in lines]
    return [(each["optimizer"], each["dtype"]) for each in asked]


def test_standing_options_hold_below_the_command_line_and_are_recorded_as_typed(tmp_path: Path):
    folder = tmp_path / "project"
    folder.mkdir()
    (folder / "pyproject.toml").write_text(STANDING)
    done = optprof(folder, "profile", "tiny", *SMALL, "--dtype", "fp32", "--report")
    assert (done.returncode, done.stderr) == (0, "")
    assert scenarios(folder) == [("sgd", "fp32"), ("sm3", "fp32")]
    assert (folder / "runs" / "tiny" / "report.html").is_file()

    line = (folder / "runs" / "tiny" / "records.jsonl").read_text().splitlines()[0]
    command = json.loads(line)["environment"]["command"]
    (tmp_path / "elsewhere").mkdir()
    again = optprof(tmp_path / "elsewhere", *command[1:])
    assert again.returncode == 0, again.stderr
    assert scenarios(tmp_path / "elsewhere") == scenarios(folder)

    gate = optprof(folder, "compare", "tiny", "tiny")
    assert gate.stderr.startswith("standing options from pyproject.toml: --fail-on state>0\n")


def test_a_file_of_standing_options_replaces_the_project_s(tmp_path: Path):
    (tmp_path / "pyproject.toml").write_text(STANDING)
    (tmp_path / "mine.toml").write_text('dtype = "bfloat16"\noptimizers = "adamw"\nno-report=true')
    done = optprof(tmp_path, "profile", "tiny", *SMALL, "--config", "mine.toml")
    assert (done.returncode, done.stderr) == (0, "")
    assert scenarios(tmp_path) == [("adamw", "bf16")]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gpus = 't4'", ": no option is named 'gpus'; did you mean gpu?"),
        ("xyz = 1", ": no option is named 'xyz'; options are named as in --help"),
        ("[profil]\ngpu = 't4'", ": no option is named 'profil'; did you mean profile?"),
        ("trace = 'yes'", ": trace must be true or false, got 'yes'"),
        ("gpu = {a = 1}", ": gpu must be a text, a number or a list of them, got {'a': 1}"),
        ("out = '/tmp'", ": out is for one call; give --out on the command line"),
        ("[profile]\nforce = true", ": force is for one call; give --force on the command line"),
        ("optimizers = 'mine:Class'", ": optimizers names code, got 'mine:Class'"),
        ("gpu = ", ": Invalid value"),
        ("report = 5", ": report is a command; its options are a table of their own, [report]"),
        ("[report]\nfit = {}", ": fit is a command; its options are a table of their own, [fit]"),
        ("[tool]\noptprof = 5", ": tool.optprof must be a table, got 5"),
        ("[[tool.optprof]]\ngpu = 't4'", ": tool.optprof must be a table, got [{'gpu': 't4'}]"),
        # Python's reader would take ten seconds for a key of 30,000 names, and an hour for more.
        (f"{'a.' * 40_000}a = 1", " has more than 64 KiB; keep the options in a smaller file"),
    ],
)
def test_a_wrong_standing_option_is_one_line(tmp_path: Path, text: str, message: str):
    (tmp_path / "mine.py").write_text("raise SystemExit('this code ran')")
    (tmp_path / "my.toml").write_text(text)
    done = optprof(tmp_path, "profile", "tiny", "--config", "my.toml")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert done.stderr.startswith(f"optprof: my.toml{message}")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[tool.optprof]",
        "[project]\ndependencies = ['optprof']",
        "[tool.other]\ngpu = 5",
        "this is not TOML",
        "# " + "x" * 100_000,
    ],
)
def test_a_project_without_standing_options_changes_nothing(tmp_path: Path, text: str):
    (tmp_path / "pyproject.toml").write_text(text)
    done = optprof(tmp_path, "report", "nothing")
    assert done.stderr.startswith("optprof: no records.jsonl in runs/nothing; ")


@pytest.mark.parametrize(
    ("name", "message"),
    [("missing.toml", "missing.toml: No such file or directory"), (".", ".: Is a directory")],
)
def test_standing_options_that_cannot_be_read_are_an_error_in_json_too(
    tmp_path: Path, name: str, message: str
):
    done = optprof(tmp_path, "compare", "a", "b", "--json", "--config", name)
    assert (done.returncode, done.stderr) == (2, f"optprof: {message}\n")
    assert json.loads(done.stdout) == {"error": message, "status": 2}


@pytest.mark.parametrize(
    ("error", "command", "advice"),
    [
        (errno.ENOSPC, "profile", "; make room, and go on with --resume"),
        (errno.ENOSPC, "report", "; make room, and try again"),
        (errno.EROFS, "fit", "; name another folder with --out"),
        (errno.EROFS, "report", "; copy the run to a folder that can be written"),
        (errno.EROFS, "compare", ""),
        (errno.EACCES, "profile", ""),
    ],
)
def test_the_advice_of_an_error_names_options_that_the_command_has(
    error: int, command: str, advice: str
):
    (callback,) = (
        each.callback
        for each in app.registered_commands
        if each.callback and each.callback.__name__ == command
    )
    message = _message(OSError(error, "Reason", "file"), signature(callback).parameters)
    assert message == f"file: Reason{advice}"


@pytest.mark.parametrize(
    ("models", "name"),
    [
        ("gpt2+tiny", "gpt2+tiny"),
        ("mine.py:build", "mine.py.build"),
        ("/data/mine.py:build", "data.mine.py.build"),
        ("../mine.py:build", "mine.py.build"),
        ("ä" * 150, "ä" * 50 + "-a9f41bcd"),
    ],
)
def test_a_run_has_a_folder_below_runs_that_is_seen_and_can_be_made(models: str, name: str):
    assert run_name(models) == name


def test_one_model_twice_is_one_model_and_all_files_are_named(tmp_path: Path):
    done = optprof(tmp_path, "profile", "tiny", "tiny", *SMALL[:-1], "-o", "sgd", "-v")
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "tiny"
    named = {line.strip() for line in done.stderr.splitlines() if line.startswith("  runs/")}
    files = {f"{path.relative_to(tmp_path)}" for path in folder.rglob("*") if path.is_file()}
    assert named | {"runs/tiny/report.html"} == files
    assert "report: runs/tiny/report.html\n" in done.stderr
    assert "also in runs/tiny: records.jsonl, records.json, records.csv, figures/" in done.stderr


def test_results_are_printed_even_if_the_report_cannot_be_written(tmp_path: Path):
    arguments = ("profile", "tiny", *SMALL, "-o", "sgd", "--out", "mine")
    assert optprof(tmp_path, *arguments, "--no-report").returncode == 0
    (tmp_path / "mine" / "report.html").write_text("a page of the user's")
    done = optprof(tmp_path, *arguments, "--resume")
    assert done.returncode == 2
    assert "sgd" in done.stdout
    assert "mine/report.html is not a page of optprof" in done.stderr


def test_a_failure_without_a_report_names_none(tmp_path: Path):
    done = optprof(
        tmp_path, "profile", "tiny", *SMALL, "-o", "torch.optim:SparseAdam", "--no-report", "--json"
    )
    assert done.returncode == 4
    assert done.stderr.endswith("1 of 1 scenarios failed; their records say why\n")
    message = json.loads(done.stdout)
    assert (message["error"], message["status"]) == ("1 of 1 scenarios failed", 4)
    assert len(message["records"]) == 1


@pytest.mark.parametrize(
    "arguments",
    [
        *(f"list {kind}" for kind in ("models", "optimizers", "accumulations", "gpus", "suites")),
        "doctor",
        "explain",
    ],
)
def test_lists_are_wrapped_at_sixty_columns(monkeypatch: pytest.MonkeyPatch, arguments: str):
    narrow = printed(*arguments.split(), columns=60)
    assert max(map(len, narrow.splitlines())) <= 60
    monkeypatch.delenv("COLUMNS", raising=False)
    whole = CliRunner().invoke(app, arguments.split()).output
    # The free memory changes from one call to the next.
    assert re.findall("[a-z]+", whole) == re.findall("[a-z]+", narrow)
    assert max(map(len, whole.splitlines())) > 60 or arguments == "list models"


def scenario(model: str, device: str) -> Scenario:
    return Scenario(model=model, device=device)  # pyright: ignore[reportArgumentType]


def test_the_rest_takes_as_long_as_scenarios_of_its_kind_took():
    left = TimeLeft([*(scenario("tiny", "sim"),) * 3, *(scenario("gpt2", "cpu"),) * 3])
    assert left.start(0, 100.0) is None
    assert left.text() == ""
    assert left.start(1, 110.0) == 10.0
    assert left.text() == "more than 20 s left"
    left.start(2, 116.0)
    assert left.text() == "more than 8 s left"
    left.start(3, 124.0)
    assert left.text() == ""
    left.start(4, 174.0)
    assert left.text() == "about 2 min left"


def test_a_line_of_progress_says_how_ranks_share_the_work(capsys: pytest.CaptureFixture[str]):
    scenarios = [Scenario(model="tiny", ranks=2, rank=rank, parallel="ddp") for rank in (0, 1)]
    with progress(scenarios) as shown:
        for place, scenario in enumerate(scenarios):
            shown.started(place, scenario)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "[1/2] tiny adamw train on sim, ddp on 2 ranks"
    assert lines[1].startswith("[2/2] tiny adamw train on sim, ddp on 2 ranks, rank 1")


def test_several_jobs_share_the_time_that_is_left():
    left = TimeLeft((scenario("tiny", "sim"),) * 6, jobs=2)
    left.start(0, 100.0)
    left.start(1, 100.0)
    assert left.end(1, 120.0) == 20.0
    # Five of twenty seconds, two at a time.
    assert (left.done, left.text()) == (1, "about 50 s left")
    assert left.start(2, 120.0) is None
    assert left.end(0, 120.0) == 20.0
    assert left.text() == "about 40 s left"


BLOCKED = """
import sys
class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] in {names!r}: raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Missing())
"""


INTERRUPTED = """
import sys
class Interrupted:
    def find_spec(self, name, path=None, target=None):
        if name == 'typer': raise KeyboardInterrupt
sys.meta_path.insert(0, Interrupted())
"""


@pytest.mark.parametrize(
    ("arguments", "missing", "message"),
    [
        (
            "profile tiny --tensorboard",
            ("tensorboard",),
            '--tensorboard needs tensorboard, which is not installed; pip install "optprof[tensor',
        ),
        (
            "fit tiny --lora 4",
            ("peft",),
            '--lora needs peft, which is not installed; pip install "optprof[lora]"',
        ),
        (
            "profile tiny",
            ("matplotlib",),
            "a report needs matplotlib, which is not installed; pip install matplotlib",
        ),
        ("report mine --tensorboard", ("tensorboard",), "--tensorboard needs tensorboard, which"),
    ],
)
def test_a_missing_extra_is_refused_before_torch_is_loaded(
    tmp_path: Path, arguments: str, missing: tuple[str, ...], message: str
):
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(BLOCKED.format(names=(*missing, "torch")))
    place = f"{tmp_path / 'site'}{os.pathsep}{HERE / 'src'}"
    done = alone(tmp_path, *arguments.split(), PYTHONPATH=place)
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert done.returncode == 2
    assert line.startswith(f"optprof: {message}")


def test_the_extras_install_what_the_doctor_says():
    extras = tomllib.loads((HERE / "pyproject.toml").read_text())["project"][
        "optional-dependencies"
    ]
    by_extra: dict[str, set[str]] = {}
    for package, module, _, extra in doctor._PACKAGES:
        if extra:
            by_extra.setdefault(extra, set()).add(package)
            assert doctor.installed_by(module) == f'pip install "optprof[{extra}]"'
    assert {
        extra: {re.split(r"[\[>=]", each)[0] for each in packages}
        for extra, packages in extras.items()
    } == by_extra
    # Make's environment has what TensorBoard needs.
    assert "--editable '.[tensorboard]'" in (HERE / "Makefile").read_text()


def test_ctrl_c_while_modules_are_loaded_is_one_line(tmp_path: Path):
    (tmp_path / "sitecustomize.py").write_text(INTERRUPTED)
    place = f"{tmp_path}{os.pathsep}{HERE / 'src'}"
    done = alone(tmp_path, "list", "gpus", PYTHONPATH=place)
    (line,) = (line for line in done.stderr.splitlines() if not line.startswith("import time:"))
    assert (done.returncode, line, done.stdout) == (130, "optprof: interrupted", "")
