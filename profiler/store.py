"""A run folder: records as JSON lines, each on disk before the next scenario starts, with a CSV of the same and timelines beside them.

One process at a time writes into it, and holds a lock on `records.jsonl` while it does. A write that is cut off leaves at most one torn
line at the end: reading leaves it out, going on sets it aside as `records.torn`.
"""

import csv
import json
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict
from hashlib import sha256
from itertools import count, takewhile
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from scenarios import schema
from scenarios.schema import MOST_LINE_BYTES, MOST_RECORDS
from scenarios.spec import Scenario

from .record import Record
from .timeline import Timeline
from .timeline_file import MOST_BYTES, pack, unpack


class RunStore:
    """The records of one run, under `runs/NAME/`.

    `torn` is what the last `read` or `resume` found behind the last whole line: the start of a record that nobody finished writing.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self.csv_path = folder / "records.csv"
        self.timelines_path = folder / "timelines"
        self.torn_path = folder / "records.torn"
        self.torn = b""
        self._count = 0
        self._descriptor: int | None = None

    @classmethod
    def create(cls, folder: Path) -> "RunStore":
        """A new, empty run, locked; FileExistsError when the folder holds one already, OSError when it cannot be written."""
        store = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            store._open(os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            raise FileExistsError(f"{folder} already holds a run; name another folder with --out, or go on with --resume") from None
        return store

    @classmethod
    def create_free(cls, parent: Path, name: str) -> "RunStore":
        """A new, empty run in the first of NAME, NAME-2, NAME-3, ... under `parent` that holds none."""
        while True:
            # Another process may take the folder between the look and the make.
            with suppress(FileExistsError):
                return cls.create(free_folder(parent, name))

    @classmethod
    def resume(cls, folder: Path, *, patience: float = 0) -> "RunStore":
        """The run in the folder, locked, to be gone on with, or a new one; a torn last line is set aside as `records.torn`.

        `patience` is how many seconds another process may hold it. ValueError for a line that is no record, BlockingIOError while another
        process writes the run, OSError when it cannot be written.
        """
        store = cls(folder)
        folder.mkdir(parents=True, exist_ok=True)
        store._open(os.O_CREAT, patience)
        store.read()
        if store.torn:
            with store.torn_path.open("ab") as aside:
                aside.write(store.torn + b"\n")
            os.ftruncate(store._writable(), store.records_path.stat().st_size - len(store.torn))
        return store

    def close(self) -> None:
        """Give the lock back; the run can still be read."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def append(self, record: Record) -> None:
        """Write one record as a line and see it onto the disk; OSError names the file when that fails, and leaves no part of the line.

        ValueError for a record that could not be read again, before anything of it is written.
        """
        descriptor, whole = self._writable(), record.to_line()
        schema.require_records(self._count + 1)
        length = os.fstat(descriptor).st_size
        try:
            line = memoryview(whole)
            while line:
                line = line[os.write(descriptor, line) :]
            os.fsync(descriptor)
        except OSError as error:
            with suppress(OSError):
                os.ftruncate(descriptor, length)
            raise OSError(error.errno, error.strerror, str(self.records_path)) from error
        self._count += 1

    def _open(self, how: int, patience: float = 0) -> None:
        self._descriptor = os.open(self.records_path, os.O_RDWR | os.O_APPEND | how, 0o666)
        # Windows has no fcntl, and reads runs all the same.
        import fcntl

        until = monotonic() + patience
        while True:
            try:
                return fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                if monotonic() >= until:
                    break
            sleep(0.02)
        self.close()
        raise BlockingIOError(f"another process is writing the run in {self.folder}; wait for it, or name another with --out")

    def _writable(self) -> int:
        if self._descriptor is None:
            raise ValueError(f"the run in {self.folder} is open for reading; create or resume it to write")
        return self._descriptor

    def write_timeline(self, scenario: Scenario, timeline: Timeline) -> None:
        """Keep the timeline of a scenario's simulation as `timelines/NAME.json.gz`; OSError names the file when that fails."""
        self.timelines_path.mkdir(exist_ok=True)
        path = self._timeline_path(scenario)
        part = path.with_suffix(".part")
        try:
            part.write_bytes(pack(timeline))
            part.replace(path)
        except OSError as error:
            part.unlink(missing_ok=True)
            raise OSError(error.errno, error.strerror, str(path)) from error

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

    def log_path(self) -> Path:
        """A file that is not there yet, for what the next scenario prints."""
        folder = self.folder / "logs"
        last = max((int(path.stem) for path in folder.glob("*.log") if path.stem.isdecimal()), default=0)
        return folder / f"{last + 1:03}.log"

    def snapshot_path(self, scenario: Scenario) -> Path:
        """Where the snapshot of a scenario goes."""
        return self.folder / "snapshots" / f"{file_name(scenario)}.pickle"

    def _timeline_path(self, scenario: Scenario) -> Path:
        return self.timelines_path / f"{file_name(scenario)}.json.gz"

    def read(self) -> list[Record]:
        """All records, in the order they were found; a torn last line is kept as `torn`. ValueError names the line that is no record."""
        if not self.records_path.is_file():
            raise FileNotFoundError(f"no records.jsonl in {self.folder}; name the folder of a run, such as runs/gpt2-xl")
        records, self.torn = [], b""
        for number, line in self._lines():
            if not line.endswith(b"\n"):
                self.torn = line
                break
            try:
                records.append(Record.from_dict(schema.parse_json(line)))
            except ValueError as error:
                raise ValueError(f"{self.records_path}, line {number}: {error}") from error
        self._count = len(records)
        return records

    def torn_line(self) -> bytes:
        """What stands behind the last whole line, as `read` finds it, without reading the records."""
        return self.records_path.read_bytes().rpartition(b"\n")[2]

    def _lines(self) -> Iterator[tuple[int, bytes]]:
        with self.records_path.open("rb") as lines:
            for number in range(1, MOST_RECORDS + 1):
                line = lines.readline(MOST_LINE_BYTES + 1)
                if not line:
                    return
                if len(line) > MOST_LINE_BYTES:
                    raise ValueError(f"{self.records_path}, line {number}: a record has at most {MOST_LINE_BYTES} bytes, got more")
                yield number, line
            if lines.read(1):
                raise ValueError(f"{self.records_path}: a run has at most {MOST_RECORDS} records, got more")

    def write_csv(self, records: Iterable[Record]) -> None:
        """Write the same records as a table: a row a record, a column a field, nested names joined by dots.

        None is an empty cell, a truth is true or false, and numbers in a list have blanks between them, with
        nan for one that is missing. Every other list is JSON.
        """
        rows = [_flat(record.to_dict()) for record in records]
        columns = dict.fromkeys(column for row in rows for column in row)
        with self.csv_path.open("w", encoding="utf-8", newline="") as table:
            writer = csv.DictWriter(table, fieldnames=list(columns))
            writer.writeheader()
            writer.writerows(rows)


def free_folder(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... under `parent` that holds no run."""
    return next(folder for folder in _folders(parent, name) if not (folder / "records.jsonl").exists())


def last_folder(parent: Path, name: str) -> Path:
    """The last of NAME, NAME-2, NAME-3, ... under `parent` that holds a run; NAME where none does."""
    taken = takewhile(lambda folder: (folder / "records.jsonl").exists(), _folders(parent, name))
    return max(enumerate(taken), default=(0, parent / name))[1]


def _folders(parent: Path, name: str) -> Iterator[Path]:
    return (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))


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
        else:
            row[prefix + key] = _cell(value)
    return row


def _cell(value: Any) -> str:
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, list | tuple) and all(each is None or type(each) in (int, float) for each in value):
        return " ".join("nan" if each is None else str(each) for each in value)
    return json.dumps(value, ensure_ascii=False)
