"""Rehearsals of the campaign: the CPU and a stand-in replace CUDA, and all else is the same."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import absorb
import campaign
import kernel_marks
import kernels
import plan
import pytest
from budget import Budget
from campaign import SHARES, STAGES, Campaign
from children import Children, Job
from comparison import compare
from derived import derive
from journal import MOST_BYTES, MOST_FILES, Journal
from optprof.scenarios import Scenario
from record import listed
from replaying import replay_exactly
from result import Result

HERE = Path(__file__).resolve().parent
TINY = {"scenario": asdict(Scenario(model="gpt2", device="cuda"))}


def command(script: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / script), *map(str, arguments)]


def run(script: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(script, *arguments), capture_output=True, text=True, timeout=300, check=False
    )


@pytest.fixture(scope="module")
def rehearsed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of a campaign with one job per stage."""
    folder = tmp_path_factory.mktemp("campaign") / "out"
    done = run("campaign.py", "--out", folder, "--seconds", 200, "--most", 1, "--rehearse")
    assert done.returncode == 0, done.stderr
    assert "done" in done.stdout.splitlines()[-1]
    return folder


def test_every_stage_runs_and_all_of_its_jobs_succeed(rehearsed: Path):
    result = Result(rehearsed)
    assert [line["name"] for line in result.of_kind("stage")] == list(STAGES)
    assert [line["name"] for line in result.of_kind("stage ended")] == list(STAGES)
    ended = result.of_kind("ended")
    assert len(ended) == len(STAGES) - 1
    assert {line["how"] for line in ended} == {"ok"}
    assert {line["status"] for line in result.of_kind("tests")} == {0}
    assert {record.outcome for record in result.records} == {"ok"}
    assert len(result.records) == 2
    assert len(list(result.recordings())) == 3
    assert result.gpu == "h100-80"


def test_the_folder_has_a_few_files_with_plain_names(rehearsed: Path):
    files = list(rehearsed.iterdir())
    assert len(files) <= MOST_FILES
    assert all(path.is_file() and path.stat().st_size <= MOST_BYTES for path in files)
    assert all(set(path.name) <= set("abcdefghijklmnopqrstuvwxyz0123456789.-") for path in files)


def test_a_folder_that_cannot_be_written_or_read_is_one_line(tmp_path: Path):
    file = tmp_path / "file"
    file.write_text("no folder")
    for done in (
        run("campaign.py", "--out", file, "--rehearse"),
        run("campaign.py", "--out", tmp_path / "new", "--rehearse", "--only", "stages"),
        run("absorb.py", file),
    ):
        assert done.returncode == 2
        assert ": error: " in done.stderr.splitlines()[-1]
        assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("journal.jsonl", {"kind": "constant"}),
        ("recordings-1.jsonl", {"name": "gpt2", "xz": "AAAA"}),
        ("records.jsonl", {"schema": 1}),
    ],
)
def test_a_whole_line_that_no_campaign_writes_is_named(
    tmp_path: Path, name: str, line: dict[str, object]
):
    (tmp_path / "journal.jsonl").write_text('{"kind": "campaign", "rehearsed": true}\n')
    with (tmp_path / name).open("a") as file:
        file.write(json.dumps(line) + "\n")
    done = run("absorb.py", tmp_path, "--golden", tmp_path, "--results", tmp_path)
    assert done.returncode == 2
    assert "has a line that no campaign writes" in done.stderr.strip().splitlines()[-1]


def test_without_cuda_the_campaign_ends_at_once_and_says_why(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
):
    tried: list[str] = []

    def fails(_: Children, job: Job, seconds: float) -> str:
        tried.append(f"{job.name}, {seconds:.0f} s")
        return "status 1"

    monkeypatch.setattr(Children, "_run", fails)
    monkeypatch.setattr(sys, "argv", ["campaign.py", "--out", str(tmp_path)])
    assert campaign.main() == 1
    assert tried == ["probe, 120 s"] * 3
    assert capsys.readouterr().err == "no process can use CUDA: status 1\n"
    assert Result(tmp_path).of_kind("stage") == []


def test_a_rehearsal_is_absorbed_and_meets_its_simulation(rehearsed: Path, tmp_path: Path):
    places = ("--golden", tmp_path / "golden", "--results", tmp_path / "results")
    done = run("absorb.py", rehearsed, *places, "--all")
    # The step times are a CPU's, not the GPU's.
    assert done.returncode == 1, done.stderr
    names = {name for name, _ in Result(rehearsed).recordings() if not plan.is_rerun(name)}
    assert {path.name.removesuffix(".json.xz") for path in (tmp_path / "golden").iterdir()} == names
    folder = tmp_path / "results" / "h100-80"
    comparison = (folder / "comparison.md").read_text()
    assert "2 of 2 recordings meet theirs" in comparison
    assert "peak allocated, 2: median 0.000%, worst 0.000%, lowest +0.000%: met" in comparison
    assert "MISSED" in comparison
    # The first job compares SM3's kernels with the loop; it times none.
    steps = (folder / "kernels.md").read_text()
    assert "0 of our 16 targets are met." in steps
    assert "| sm3:momentum=0.9 | bf16 |" in steps
    # The stand-in's allocator is ours, so a prediction from the first run is exact.
    assert "1 of 1 predictions within 1%" in (folder / "settings.md").read_text()
    assert (folder / "report.html").is_file()
    assert json.loads((folder / "constants.json").read_text())["compute_capability"] == [9, 0]
    assert "multiprocessors=132," in done.stdout


def test_a_campaign_interrupted_at_once_is_absorbed_and_meets_no_target(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    Journal(tmp_path).note("campaign", seconds=480, rehearsed=False)
    (tmp_path / "recordings-1.jsonl").write_text('{"name": "gpt2", "xz": "cut o')
    places = ["--golden", str(tmp_path / "golden"), "--results", str(tmp_path / "results")]
    monkeypatch.setattr(sys, "argv", ["absorb.py", str(tmp_path), *places])
    assert absorb.main() == 1
    printed = capsys.readouterr().out
    assert "0 of 0 recordings meet theirs" in printed
    assert "step times: none to judge" in printed
    assert list((tmp_path / "golden").iterdir()) == []


def test_a_rehearsal_is_not_written_into_the_repository(
    rehearsed: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setattr(sys, "argv", ["absorb.py", str(rehearsed)])
    assert absorb.main() == 2
    assert "this is a rehearsal" in capsys.readouterr().err


def test_a_killed_campaign_leaves_its_results_and_no_process(tmp_path: Path):
    arguments = ("--out", tmp_path, "--seconds", 200, "--only", "recordings", "--rehearse")
    process = subprocess.Popen(command("campaign.py", *arguments), stdout=subprocess.DEVNULL)
    journal, end = Journal(tmp_path), time.monotonic() + 120
    while len(list(journal.lines("recordings-*.jsonl"))) < 2 and time.monotonic() < end:
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    result = Result(tmp_path)
    assert len(list(result.recordings())) >= 2
    (zygote,) = result.of_kind("zygote")
    while Path(f"/proc/{zygote['ready']}").exists() and time.monotonic() < end:
        time.sleep(0.05)
    assert not Path(f"/proc/{zygote['ready']}").exists()


def test_after_an_exception_in_a_stage_the_next_stage_begins(tmp_path: Path):
    entered = []

    def fails(run: Campaign, end: float) -> None:
        del run, end
        raise RuntimeError("the device is gone")

    whole = Campaign(Journal(tmp_path), 10, tmp_path, rehearse=True)
    whole.stage("constants", fails)
    whole.stage("recordings", lambda *_: entered.append("recordings"))
    assert entered == ["recordings"]
    (failed,) = Result(tmp_path).of_kind("failed")
    assert "RuntimeError: the device is gone" in failed["traceback"]
    assert Result(tmp_path).failures() == ["constants: RuntimeError: the device is gone"]


@pytest.fixture(scope="module")
def children(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Children]:
    """Yield children that share a zygote."""
    folder = tmp_path_factory.mktemp("children")
    made = Children(Journal(folder), folder, rehearse=True)
    yield made
    made.end()


def test_a_job_that_fails_or_hangs_affects_no_other(children: Children):
    unknown = {"scenario": {**TINY["scenario"], "optimizer": "no-such-thing"}}
    assert children.run(Job(name="fails", task="record", arguments=unknown), 60) == "status 1"
    slow = {**TINY, "seconds": 600.0}
    assert children.run(Job(name="hangs", task="measure", arguments=slow), 0.1).startswith("killed")
    assert children.run(Job(name="works", task="record", arguments=TINY), 60) == "ok"
    result = Result(children.journal.folder)
    (failed,) = (line for line in result.of_kind("failed") if line["name"] == "fails")
    assert "no optimizer is named 'no-such-thing'" in failed["traceback"]
    assert [name for name, _ in result.recordings()] == ["works"]


def test_a_scenario_is_recorded_until_it_runs_out_of_memory(children: Children):
    (job,) = (job for job in plan.core_recordings() if job.name.endswith("out-of-memory"))
    assert children.run(job, 60) == "ok"
    recording = dict(Result(children.journal.folder).recordings())[job.name]
    assert recording.ran_out
    assert [phase.name for phase in recording.phases] == ["build", "forward"]
    assert replay_exactly(recording) > 1
    # The tiny model in its place fits on every GPU.
    assert not compare(job.name, recording).same_end


def test_every_group_of_constants_is_measured_except_those_of_the_driver(children: Children):
    for job in plan.constants():
        assert children.run(job, 60) == "ok"
    result = Result(children.journal.folder)
    assert set(result.constants) == set(plan.CONSTANTS)
    failed = {line["name"] for line in result.of_kind("failed")} - {"fails"}
    assert failed <= {"device, cudnn", "device, nvidia-smi", "context, used before"}
    constants = derive(result.constants)
    needed = {"copy_bandwidth", "launch_seconds", "foreach_seconds_per_tensor", "item_seconds"}
    needed |= {"kernel_gap_seconds", "workspace_bytes", "small_steps", "staging_bytes", "attention"}
    assert needed <= set(constants)


def test_a_way_that_fails_is_noted_and_the_next_one_is_timed(children: Children):
    scenario = Scenario(device="cuda", workload="state", model="gpt2", dtype="bf16")
    # torch's SGD has no compiled way.
    ways = [("sgd", "compiled"), ("sgd", "foreach"), ("sm3", "foreach")]
    arguments = {"scenario": asdict(scenario), "ways": ways}
    job = Job(name="kernels gpt2 bf16 some", task="kernel-steps", arguments=arguments)
    assert children.run(job, 60) == "ok"
    result = Result(children.journal.folder)
    failed = [line["name"] for line in result.of_kind("failed")]
    assert failed[-1] == "kernels gpt2 bf16 some, sgd compiled: size"
    rows = list(kernel_marks.steps(result.kernels))
    assert [(row.model, row.optimizer) for row in rows] == [
        ("gpt2 bf16", "sgd"),
        ("gpt2 bf16", "sm3"),
    ]
    size = result.kernels[job.name]["sm3 foreach: size"]["parameters"]
    assert [row.nbytes for row in rows] == [10 * size, 6 * size]
    assert all(row.seconds > 0 and row.share is not None and row.kernels for row in rows)
    warm_up = result.kernels[job.name]["sm3 foreach: times"]["warm_up"]
    assert len(warm_up) == kernels.WARM_UP


def test_if_a_fork_cannot_use_cuda_each_job_loads_torch(tmp_path: Path):
    children = Children(Journal(tmp_path), tmp_path, rehearse=True)
    children.forks = False
    assert children.run(Job(name="works", task="record", arguments=TINY), 60) == "ok"
    assert [name for name, _ in Result(tmp_path).recordings()] == ["works"]
    assert [line["name"] for line in Result(tmp_path).of_kind("done")] == ["works"]


def test_an_incomplete_line_is_skipped_and_the_next_one_is_whole(tmp_path: Path):
    journal = Journal(tmp_path)
    journal.note("first", value=1)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"kind": "torn", "val')
    journal.note("last", value=2)
    assert [line["kind"] for line in journal.lines("journal.jsonl")] == ["first", "last"]


def test_recordings_continue_in_the_next_file_when_one_is_full(tmp_path: Path):
    journal = Journal(tmp_path)
    with (tmp_path / "recordings-1.jsonl").open("wb") as file:
        file.truncate(MOST_BYTES - 10)
    with pytest.raises(ValueError, match=r"recordings-1.jsonl has 16777206 bytes, and no room"):
        journal.append("recordings-1.jsonl", name="one")
    assert journal.recordings() == "recordings-2.jsonl"


def test_later_stages_get_the_time_that_a_stage_leaves():
    now = time.monotonic()
    budget = Budget(100, {"one": 1, "two": 3}, now)
    assert budget.deadline("one") - now == pytest.approx(97 / 4, abs=0.1)
    assert budget.deadline("two") - now == pytest.approx(97, abs=0.1)
    assert budget.left == pytest.approx(97, abs=0.1)


def test_the_core_has_every_mechanism_and_the_rest_has_all_other_recordings():
    core = [job.name for job in plan.core_recordings()]
    rest = [job.name for job in plan.other_recordings()]
    assert len(set(core)) == len(core) == 43
    assert sorted(core + rest) == sorted(listed())
    needed = {"gpt2", "gpt2-medium", "gpt2-xl", "llama2-7b", "vit-b16", "resnet50"}
    needed |= {"fp32", "bf16", "amp bf16", "amp fp16", "checkpointing", "loop", "foreach", "fused"}
    needed |= {"sgd-sai", "sm3", "lamb16", "adafactor", "expandable_segments:True", "out-of-memory"}
    needed |= {"fsdp2", "ddp"}
    assert needed <= set(plan.mechanisms())


def test_the_harness_measures_each_of_ours_in_both_dtypes_and_the_paper_s_claim():
    scenarios = [job.arguments["scenario"] for job in plan.harness()]
    for optimizer in plan.OURS:
        for dtype in ("fp32", "bf16"):
            models = {
                one["model"]
                for one in scenarios
                if (one["optimizer"], one["dtype"]) == (optimizer, dtype)
            }
            assert models == {"gpt2", "gpt2-xl", "llama2-7b"}
    claims = [one for one in scenarios if one["model"] == "llama2-7b" and not one["config"]]
    assert {(one["optimizer"], one["dtype"], one["batch_size"]) for one in claims} == {
        ("sgd-sai", "fp32", 1)
    }
    assert all(one["checkpointing"] for one in claims)


def test_every_stage_has_a_share_of_the_time():
    assert list(SHARES) == list(STAGES)
