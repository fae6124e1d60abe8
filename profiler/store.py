"""A run folder: records as JSON lines, each on disk before the next scenario starts, with a CSV of the same and timelines beside them."""

import csv
import json
import os
import re
from collections.abc import Iterable
from dataclasses import asdict
from hashlib import sha256
from pathlib import Path
from typing import Any

from scenarios.spec import Scenario

from .record import Record
from .timeline import Timeline
from .timeline_file import MOST_BYTES, pack, unpack


class RunStore:
    """The records of one run, under `runs/NAME/`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self.csv_path = folder / "records.csv"
        self.timelines_path = folder / "timelines"

    @classmethod
    def create(cls, folder: Path) -> "RunStore":
        """A new, empty run; FileExistsError when the folder holds one already, OSError when it cannot be written."""
        store = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            store.records_path.touch(exist_ok=False)
        except FileExistsError:
            raise FileExistsError(f"{folder} already holds a run; name another folder with --out") from None
        return store

    def append(self, record: Record) -> None:
        """Write one record as a line and see it onto the disk; OSError names the file when that fails."""
        try:
            with self.records_path.open("a", encoding="utf-8") as lines:
                lines.write(record.to_json() + "\n")
                lines.flush()
                os.fsync(lines.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.records_path)) from error

    def write_timeline(self, scenario: Scenario, timeline: Timeline) -> None:
        """Keep the timeline of a scenario's simulation as `timelines/NAME.json.gz`; OSError names the file when that fails."""
        self.timelines_path.mkdir(exist_ok=True)
        self._timeline_path(scenario).write_bytes(pack(timeline))

    def read_timeline(self, scenario: Scenario) -> Timeline | None:
        """The timeline of a scenario's simulation, None where there is none; ValueError names a file that is none."""
        path = self._timeline_path(scenario)
        if not path.is_file():
            return None
        try:
            if path.stat().st_size > MOST_BYTES:
                raise ValueError(f"a timeline has at most {MOST_BYTES} bytes, got {path.stat().st_size}")
            return unpack(path.read_bytes())
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def read_timelines(self, records: Iterable[Record]) -> dict[str, Timeline]:
        """The timelines that stand beside these records, by the `file_name` of their scenarios."""
        found = {file_name(record.scenario): self.read_timeline(record.scenario) for record in records if record.origin == "simulated"}
        return {name: timeline for name, timeline in found.items() if timeline is not None}

    def snapshot_path(self, scenario: Scenario) -> Path:
        """Where the snapshot of a scenario's simulation goes, in a folder that is there; OSError when it cannot be made."""
        folder = self.folder / "snapshots"
        folder.mkdir(exist_ok=True)
        return folder / f"{file_name(scenario)}.pickle"

    def _timeline_path(self, scenario: Scenario) -> Path:
        return self.timelines_path / f"{file_name(scenario)}.json.gz"

    def read(self) -> list[Record]:
        """All records, in the order they were found; ValueError names the line that is none."""
        if not self.records_path.is_file():
            raise FileNotFoundError(f"no records.jsonl in {self.folder}; name the folder of a run, such as runs/gpt2-xl")
        records = []
        with self.records_path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    records.append(Record.from_dict(json.loads(line)))
                except ValueError as error:
                    raise ValueError(f"{self.records_path}, line {number}: {error}") from error
        return records

    def write_csv(self, records: Iterable[Record]) -> None:
        """The same records as a table: one row a record, one column a field, nested names joined by dots."""
        rows = [_flat(record.to_dict()) for record in records]
        columns = dict.fromkeys(column for row in rows for column in row)
        with self.csv_path.open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(rows)


def free_folder(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... under `parent` that holds no run."""
    folder, number = parent / name, 1
    while (folder / "records.jsonl").exists():
        number += 1
        folder = parent / f"{name}-{number}"
    return folder


def file_name(scenario: Scenario) -> str:
    """A name for what belongs to a scenario's record, the same for equal scenarios and no others: gpt2-xl-adamw-0f3c5a7b9d1e."""
    digest = sha256(json.dumps(asdict(scenario), sort_keys=True, default=str).encode()).hexdigest()[:12]
    words = re.sub(r"[^A-Za-z0-9.]+", "-", f"{scenario.model}-{scenario.optimizer}").strip("-.")
    return f"{words[:80]}-{digest}"


def _flat(data: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    row: dict[str, Any] = {}
    for key, value in data.items():
        if isinstance(value, dict):
            row |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list | tuple):
            row[prefix + key] = " ".join(map(str, value))
        else:
            row[prefix + key] = value
    return row
