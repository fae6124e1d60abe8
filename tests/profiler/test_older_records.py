"""Records of older releases: each shape of the schema is still read, with the new fields empty."""

import json
from pathlib import Path
from typing import Any

import pytest

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore
from optprof.reports import run_markdown

# The older the shape, the higher its number; each is named for the fields that it does not have.
FILES = sorted((Path(__file__).parent.parent / "data" / "records").glob("*.jsonl"))


def run_of(file: Path, folder: Path) -> RunStore:
    (folder / "records.jsonl").write_bytes(file.read_bytes())
    return RunStore(folder)


def holds(data: Any, older: Any) -> bool:
    """Return whether data have all names and values of the older ones."""
    if isinstance(older, dict):
        return all(name in data and holds(data[name], older[name]) for name in older)
    return data == older


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_record_of_an_older_shape_is_read_with_all_its_values(file: Path, tmp_path: Path):
    store = run_of(file, tmp_path)
    records = store.read()
    lines = file.read_text().splitlines()
    assert (len(records), store.damage) == (len(lines), ())
    for record, line in zip(records, lines, strict=True):
        written = json.loads(record.to_json())
        assert holds(written, json.loads(line))
        assert Record.from_dict(written) == record
    assert "adamw" in run_markdown(tmp_path)


def test_fields_that_an_older_record_does_not_have_are_empty(tmp_path: Path):
    record = run_of(FILES[-1], tmp_path).read()[0]
    assert (record.lost, record.warnings, record.watched, record.estimate) == ((), (), None, None)
    assert (record.scenario.micro_batches, record.scenario.attention) == (1, "sdpa")
    assert record.environment.affinity is None
    assert record.environment.machine is not None
    assert record.environment.machine.gpu_memory_bytes is None
    assert record.memory is not None
    assert record.memory.parameters_by_dtype == {}


def test_a_watched_accumulation_of_an_older_release_has_its_name_of_today() -> None:
    data = {
        "schema": 1,
        "scenario": {"model": "m:N", "optimizer": "optimizers.accumulation.wrappers:Own"},
        "origin": "measured",
        "environment": {"seed": None},
    }
    optimizer = Record.from_dict(data).scenario.optimizer
    assert optimizer == "optprof.optimizers.accumulation:Own"
