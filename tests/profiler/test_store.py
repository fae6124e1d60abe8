"""A run folder: lines that can be read back, a table beside them, and nothing overwritten."""

import csv
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from profiler.record import SCHEMA, Course, GpuReading, HeldOut, Memory, Record, Watched
from profiler.store import RunStore, free_folder, last_folder
from scenarios import Scenario, schema


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


def test_a_cell_of_the_table_is_plain(tmp_path: Path):
    reading = GpuReading(
        clock_mhz=1980, memory_clock_mhz=None, temperature_celsius=61, slowed_by=("heat",), other_processes=0, process_bytes=1
    )
    watched = Watched(gpu=(reading,), warnings=("slow, and “hot”",))
    course = Course(draws=(2, 1), losses=(0.5, None, 2.0), held_out=(HeldOut(micro_batches=2, loss=None),), added_bytes=0, dropped=1)
    scenario = Scenario(model="gpt2", options={"betas": (0.9, 0.99), "amsgrad": True, "sides": ("left", None), "deep": [[1, 2], [3]]})
    environment = {"command": ["optprof", "profile", "a b"], "affinity": [0, 1], "keeps_freed_memory": False, "git_commit": None}
    store = RunStore.create(tmp_path)
    store.write_csv([record(scenario=scenario, watched=watched, course=course, environment=environment)])
    with store.csv_path.open(encoding="utf-8", newline="") as table:
        (row,) = csv.DictReader(table)
    assert {key.removeprefix("scenario.options."): row[key] for key in row if key.startswith("scenario.options.")} == {
        "betas": "0.9 0.99",
        "amsgrad": "true",
        "sides": '["left", null]',
        "deep": "[[1, 2], [3]]",
    }
    assert json.loads(row["watched.gpu"]) == [{**asdict(reading), "slowed_by": ["heat"]}]
    assert json.loads(row["course.held_out"]) == [{"micro_batches": 2, "loss": None}]
    assert row["watched.warnings"] == '["slow, and “hot”"]'
    assert (row["course.losses"], row["course.draws"], row["course.ended"]) == ("0.5 nan 2.0", "2 1", "")
    assert json.loads(row["environment.command"]) == environment["command"]
    assert (row["environment.affinity"], row["environment.keeps_freed_memory"], row["environment.git_commit"]) == ("0 1", "false", "")
    assert (row["scenario.set_to_none"], row["scenario.gpu"], row["log"]) == ("true", "", "")


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
        ('{"schema": 1, "origin": "guessed"}', "line 2: not a record: no scenario"),
        ('{"schema": 1, "scenario": {"model": "gpt2"}, "origin": "guessed"}', "line 2: not a record: origin must be one of measured, "),
        ('{"schema": 1, "scenario": {"model": 2}}', "line 2: not a record: scenario.model must be a text, got 2"),
        ('{"schema": 1, "scenario": {"model": "a", "config": {"a": NaN}}}', "line 2: NaN is no number of JSON"),
        ("[" * 100_000, "line 2: lists or objects stand inside each other too deep"),
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


def test_a_torn_last_line_is_left_out_by_readers_and_set_aside_by_who_goes_on(tmp_path: Path):
    store = RunStore.create(tmp_path)
    store.append(record())
    store.close()
    torn = record().to_json().encode()[:70]
    with store.records_path.open("ab") as lines:
        lines.write(torn)
    reader = RunStore(tmp_path)
    assert (reader.read(), reader.torn) == ([record()], torn)
    again = RunStore.resume(tmp_path)
    assert again.torn == torn
    again.append(record(outcome="failed", memory=None, error="no luck"))
    assert [each.outcome for each in again.read()] == ["ok", "failed"]
    assert again.torn == b""
    assert again.torn_path.read_bytes() == torn + b"\n"


def test_two_processes_do_not_write_one_run(tmp_path: Path):
    store = RunStore.create(tmp_path)
    code = "import sys; from pathlib import Path; from profiler.store import RunStore; RunStore.resume(Path(sys.argv[1]))"
    here = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent.parent.parent)}
    second = [sys.executable, "-c", code, str(tmp_path)]
    refused = subprocess.run(second, capture_output=True, text=True, check=False, env=here)
    assert f"another process is writing the run in {tmp_path}; wait for it" in refused.stderr
    store.close()
    assert subprocess.run(second, check=False, env=here).returncode == 0


def test_a_full_disk_loses_no_record_and_leaves_no_part_of_one(tmp_path: Path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", disk], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"a small disk cannot be mounted here: {mounted.stderr.strip()}")
    try:
        store = RunStore.create(disk / "run")
        large = record(environment={"padding": "x" * 9000})
        for _ in range(written := 6):
            store.append(large)
        with pytest.raises(OSError, match=r"No space left on device: .*records.jsonl"):
            store.append(large)
        store.close()
        again = RunStore.resume(disk / "run")
        assert (len(again.read()), again.torn) == (written, b"")
        again.close()
    finally:
        subprocess.run(["umount", disk], check=True)


def test_an_open_run_is_written_and_a_read_one_is_not(tmp_path: Path):
    RunStore.create(tmp_path).close()
    with pytest.raises(ValueError, match="open for reading"):
        RunStore(tmp_path).append(record())


def test_names_of_folders_are_counted_on_and_the_last_is_found_again(tmp_path: Path):
    assert last_folder(tmp_path, "gpt2") == tmp_path / "gpt2"
    made = [RunStore.create_free(tmp_path, "gpt2").folder.name for _ in range(11)]
    assert made[:2] + made[-1:] == ["gpt2", "gpt2-2", "gpt2-11"]
    assert last_folder(tmp_path, "gpt2") == tmp_path / "gpt2-11"


def test_a_record_that_could_not_be_read_again_is_not_written(tmp_path: Path):
    store = RunStore.create(tmp_path)
    bad = record(warnings=("x" * 20_001,)), record(times={"step": (-1.0,)}), record(parameter_count=2**63)
    for each in bad:
        with pytest.raises(ValueError, match=r"^a record of '.*' cannot be kept: "):
            store.append(each)
    assert store.read() == []


def test_a_run_takes_no_more_records_than_it_is_read_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(schema, "MOST_RECORDS", 2)
    store = RunStore.create(tmp_path)
    store.append(record())
    store.append(record())
    with pytest.raises(ValueError, match=r"^a run has at most 2 records, and would have 3"):
        store.append(record())
    store.close()
    again = RunStore.resume(tmp_path)
    with pytest.raises(ValueError, match=r"^a run has at most 2 records"):
        again.append(record())
    assert len(again.read()) == 2
