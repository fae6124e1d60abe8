"""A run folder: lines that can be read back, a table beside them, and nothing overwritten."""

import csv
import json
from pathlib import Path

import pytest

from profiler.record import SCHEMA, Memory, Record
from profiler.store import RunStore, free_folder
from scenarios import Scenario


def record(**changes: object) -> Record:
    memory = Memory(
        parameters=16,
        gradients=16,
        optimizer_state=36,
        state_by_key={"exp_avg": 16, "exp_avg_sq": 16, "step": 4},
        state_by_key_dtype={"exp_avg": {"float32": 16}, "exp_avg_sq": {"float32": 16}, "step": {"float32": 4}},
        peak_by_category={},
        peak_by_phase={},
    )
    values = {"scenario": Scenario(model="gpt2"), "origin": "simulated", "memory": memory, "environment": {"seed": 0}}
    return Record(**(values | changes))  # pyright: ignore[reportArgumentType]


def test_records_are_read_back_as_they_were_written(tmp_path: Path):
    store = RunStore.create(tmp_path / "run")
    written = [record(times={"step": (0.1, 0.2)}), record(outcome="failed", memory=None, error="no luck")]
    for each in written:
        store.append(each)
    assert store.read() == written


def test_a_line_has_the_contract_s_names_with_the_schema_first(tmp_path: Path):
    store = RunStore.create(tmp_path / "run")
    store.append(record())
    data = json.loads(store.records_path.read_text())
    assert next(iter(data)) == "schema"
    assert data["schema"] == SCHEMA
    assert {"scenario", "origin", "outcome", "parameter_count", "memory", "times", "environment"} <= data.keys()
    scenario = "model optimizer options implementation workload dtype batch_size sequence_length device seed"
    assert set(scenario.split()) <= data["scenario"].keys()
    memory = "parameters gradients optimizer_state optimizer_state_allocated peak_allocated peak_reserved peak_phase state_by_key"
    assert set(memory.split()) <= data["memory"].keys()


def test_the_table_has_a_column_for_every_field_of_any_record(tmp_path: Path):
    store = RunStore.create(tmp_path)
    store.write_csv([record(), record(times={"step": (0.1, 0.2)})])
    with store.csv_path.open(newline="") as table:
        rows = list(csv.DictReader(table))
    assert [row["memory.state_by_key.exp_avg"] for row in rows] == ["16", "16"]
    assert [row["times.step"] for row in rows] == ["", "0.1 0.2"]


def test_a_run_is_never_written_over(tmp_path: Path):
    RunStore.create(tmp_path / "gpt2").append(record())
    with pytest.raises(FileExistsError, match="already holds a run; name another folder"):
        RunStore.create(tmp_path / "gpt2")
    assert free_folder(tmp_path, "gpt2") == tmp_path / "gpt2-2"


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("{", "line 2: Expecting"),
        ("[]", "line 2: a record is a JSON object, got list"),
        ('{"schema": 9}', "line 2: schema 1 is read here, got 9"),
        ('{"schema": 1, "origin": "guessed"}', "line 2: origin must be one of"),
        ('{"schema": 1, "origin": "measured", "outcome": "ok"}', "line 2: not a record"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, line: str, told: str):
    store = RunStore.create(tmp_path)
    store.append(record())
    with store.records_path.open("a") as lines:
        lines.write(line + "\n")
    with pytest.raises(ValueError, match=told):
        store.read()


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl in"):
        RunStore(tmp_path).read()
