"""Ten rows of docs/results/optimizers.csv are simulated afresh, and its pages are written."""

import csv
import sys
from pathlib import Path

import pytest

from optprof.profiler.running.plan import plan
from optprof.profiler.simulating.simulation import simulate

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "docs" / "results" / "optimizers.csv"
MODEL = "gpt2-xl"
TEN = (
    "adafactor",
    "adamw",
    "lamb",
    "lamb16",
    "lion",
    "muon",
    "sgd",
    "sgd-sai",
    "sm3",
    "pytorch_optimizer:ADOPT",
)


@pytest.mark.skipif(not TABLE.exists(), reason="needs the table; run make results")
@pytest.mark.filterwarnings("ignore")
def test_ten_rows_of_the_table_are_what_a_fresh_simulation_says():
    # One test, because all ten share the trace of the model: a second and a half.
    with TABLE.open(newline="") as file:
        rows = {row["optimizer"]: row for row in csv.DictReader(file)}
    for spec in TEN:
        (scenario,) = plan([{"model": MODEL, "optimizer": spec, "device": "sim"}])
        memory = simulate(scenario).memory
        assert memory is not None
        row = rows[spec]
        assert (int(row[f"{MODEL} state bytes"]), int(row[f"{MODEL} peak bytes"])) == (
            memory.optimizer_state,
            memory.peak_allocated,
        ), spec
        per_parameter = memory.optimizer_state / 1_557_611_200
        assert float(row[f"{MODEL} bytes a parameter"]) == pytest.approx(per_parameter), spec


def test_a_failed_optimizer_is_a_row_that_says_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.syspath_prepend(ROOT / "tests" / "bench")
    try:
        from results import pages, rows
    finally:
        for name in [each for each in sys.modules if each.split(".")[0] == "results"]:
            del sys.modules[name]
    words = {"FSDP2": {"mine": "no: RuntimeError: no shard"}}
    found = rows.rows_of(["mine"], [], words, {"mine": "betas must be given"})
    pages.write(found, tmp_path)
    (row,) = csv.DictReader((tmp_path / "optimizers.csv").read_text().splitlines())
    assert row["remark"] == "betas must be given"
    assert row["FSDP2"] == "no: RuntimeError: no shard"
    assert row[f"{MODEL} state bytes"] == ""
    for name in ("optimizers.md", "optimizers-sortable.html"):
        text = (tmp_path / name).read_text().replace("\\", "")
        assert "betas must be given" in text
        assert "RuntimeError: no shard" in text
