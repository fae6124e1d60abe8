"""The library in a notebook, from `import optprof` to a report in a folder."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import optprof
from optprof.profiler.records.store import RunStore
from optprof.reports.run import Run


@pytest.fixture(scope="module")
def run() -> Run:
    return optprof.profile("resnet18", ["adamw", "sm3"], device="sim", workload="state")


def test_a_profile_has_the_records_that_the_command_makes(run: Run):
    assert [(record.scenario.optimizer, record.outcome) for record in run.records] == [
        ("adamw", "ok"),
        ("sm3", "ok"),
    ] * 2
    first = run.records[0].memory
    assert first is not None
    # 11,689,512 parameters: two moments in float32, and a float32 step count for each of the 62
    # tensors.
    assert first.optimizer_state == 8 * 11_689_512 + 4 * 62


def test_a_frame_has_a_row_per_record_and_whole_bytes(run: Run):
    frame = run.frame()
    assert list(frame["optimizer"]) == ["adamw", "sm3"] * 2
    assert str(frame.dtypes["state_bytes"]) == "Int64"
    assert next(iter(frame["state_bytes"])) == 8 * 11_689_512 + 4 * 62
    assert not list(frame["step_seconds"].dropna())
    assert Run().frame().empty


def test_a_notebook_shows_a_table_in_which_names_stay_text(run: Run):
    html = run._repr_html_()
    assert html.count("<tr>") == 1 + 4
    assert "adamw" in html
    assert "89.2 MiB" in html
    model = torch.nn.Linear(2, 2)
    with optprof.watch(torch.optim.SGD(model.parameters(), lr=0.1), model="<script>") as watched:
        assert watched._repr_html_() == "<p>The run holds no records yet.</p>"
    assert "<script>" not in watched._repr_html_()
    assert "own:&lt;script&gt;" in watched._repr_html_()


def test_a_report_is_a_run_folder_that_the_command_reads(run: Run, tmp_path: Path):
    page = run.report(tmp_path / "shared")
    assert page == tmp_path / "shared" / "report.html"
    assert page.is_file()
    assert RunStore(tmp_path / "shared").read() == run.records
    assert run.report(tmp_path / "shared") == page
    assert optprof.read_run(tmp_path / "shared").records == run.records
    with pytest.raises(FileExistsError, match="another run's records"):
        Run(records=run.records[:1]).report(tmp_path / "shared")
    with pytest.raises(ValueError, match="nothing to report"):
        Run().report(tmp_path / "empty")


def test_a_temporary_run_is_deleted_with_its_folder():
    run = Run.temporary()
    folder = run.where.parent
    assert folder.is_dir()
    del run
    assert not folder.exists()


def test_watches_add_to_one_folder_and_the_latest_of_a_scenario_is_shown(tmp_path: Path):
    def watched(factory: Callable[..., torch.optim.Optimizer]) -> Run:
        model = torch.nn.Linear(4, 4, bias=False)
        optimizer = factory(model.parameters())
        with optprof.watch(optimizer, model=model, out=tmp_path / "mine") as run:
            for _ in range(3):
                model(torch.ones(1, 4)).sum().backward()
                optimizer.step()
        return run

    watched(torch.optim.AdamW)
    watched(torch.optim.Adagrad)
    run = watched(torch.optim.AdamW)
    assert [record.scenario.optimizer for record in run.records] == ["adamw", "adagrad"]
    assert list(run.frame()["state_bytes"]) == [2 * 64 + 4, 64 + 4]
    assert len(RunStore(tmp_path / "mine").read()) == 3
    assert run.report(tmp_path / "mine").is_file()


def test_a_folder_of_another_run_is_refused_before_any_training(tmp_path: Path):
    (tmp_path / "file").touch()
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(OSError, match="file"), optprof.watch(optimizer, out=tmp_path / "file"):
        pytest.fail("the training has begun")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batchsize": 2}, "no option is named 'batchsize'; did you mean batch_size"),
        ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, fp16, fp64, got 'fp8'"),
        ({"device": "tpu"}, "device must be one of"),
    ],
)
def test_an_impossible_request_is_an_error_before_anything_runs(
    options: dict[str, Any], message: str, tmp_path: Path
):
    with pytest.raises(ValueError, match=message):
        optprof.profile("resnet18", "adamw", out=tmp_path / "run", **options)
    assert not (tmp_path / "run").exists()


def test_an_existing_run_is_not_overwritten(tmp_path: Path):
    RunStore.create(tmp_path).close()
    with pytest.raises(FileExistsError, match="already holds a run"):
        optprof.profile("resnet18", "adamw", device="sim", out=tmp_path)


def test_importing_loads_neither_torch_nor_drawing_libraries():
    heavy = ("torch", "numpy", "pandas", "matplotlib", "jinja2")
    code = (
        f"import sys, json, optprof; print(json.dumps([name for name in {heavy} if name in"
        " sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []
