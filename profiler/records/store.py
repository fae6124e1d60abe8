"""Store: the folder of a run, with its records, timelines and logs.

Each record is a line of `records.jsonl`, on the disk before the next scenario starts. One process
at a time writes, and locks that file. An interrupted write leaves at most one torn line at the end:
reading leaves it out, resuming moves it to `records.torn`. Other damage is left out too, and named,
until `repair` moves it. Reading follows no link, and opens nothing outside the run.
"""

import csv
import gc
import json
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import lru_cache
from io import TextIOWrapper
from itertools import count, takewhile
from pathlib import Path, PurePath
from typing import Any

import msgspec

from optprof.scenarios import schema
from optprof.scenarios.spec import Scenario

from ..safety import disk
from ..safety.locked_lines import LockedLines
from ..safety.plain import plain, spreadsheet_text
from .privacy import disclosed, disclosed_scenario
from .record import Record
from .record_lines import Line, read_lines
from .timeline import MOST_BYTES, Timeline, pack, unpack

# Folders next to the records.
FOLDERS = ("timelines", "logs", "snapshots", "tensorboard", "figures")
# The end of a log tells why its scenario has failed.
MOST_LOG_BYTES = 1 << 20
_MOST_WARNINGS = 10
_TIMELINE = ".json.gz"
_ASIDE = ".damaged"
_NO_WORD = re.compile(r"[^A-Za-z0-9.]+")


class DamageWarning(UserWarning):
    """A part of a run cannot be read, and is left out."""


class RunStore:
    """The records of one run, under `runs/NAME/`.

    `damaged_lines` names what the last `read` could not read, a line each. `damaged_timelines` does
    the same for `read_timelines`, by the names of the scenarios' files. `torn_bytes` is the length
    of the torn last line that `resume` has moved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.records_path = folder / "records.jsonl"
        self.csv_path = folder / "records.csv"
        self.timelines_path = folder / "timelines"
        self.torn_path = folder / "records.torn"
        self.damaged_path = folder / "records.damaged"
        # Leave machine and paths out of what is appended.
        self.anonymous = False
        self.torn_bytes = 0
        self.damaged_lines: tuple[str, ...] = ()
        self.damaged_timelines: Mapping[str, str] = {}
        self._lines: LockedLines | None = None

    @classmethod
    def create(cls, folder: Path) -> "RunStore":
        """Return a new, empty run, locked.

        FileExistsError if the folder holds a run, OSError if it cannot be written.
        """
        store = cls(folder)
        disk.make_folder(folder)
        try:
            store._open(os.O_CREAT | os.O_EXCL)
        except FileExistsError:
            raise FileExistsError(
                f"{folder} already holds a run; name another folder with --out, or go on with"
                " --resume"
            ) from None
        return store

    @classmethod
    def create_free(cls, parent: Path, name: str) -> "RunStore":
        """Return a new, empty run in the first free one of NAME, NAME-2, NAME-3, ..."""
        while True:
            # Another process may take the folder in between.
            with suppress(FileExistsError):
                return cls.create(free_folder(parent, name))

    @classmethod
    def resume(cls, folder: Path, *, patience: float = 0) -> "RunStore":
        """Return the run in the folder, locked, or a new one; a torn last line is moved.

        BlockingIOError if another process still writes the run after `patience` seconds, OSError
        if it cannot be written, ValueError for a link or a pipe in it.
        """
        store = cls(folder)
        disk.make_folder(folder)
        store._open(os.O_CREAT, patience)
        store.torn_bytes = store._writable().set_torn_aside(store.torn_path)
        return store

    @classmethod
    def open(cls, folder: Path) -> "RunStore":
        """Return the run in the folder, locked and unchanged; errors are those of `resume`.

        FileNotFoundError for a folder without a run.
        """
        store = cls(folder)
        try:
            store._open(0)
        except FileNotFoundError:
            raise store._no_run() from None
        return store

    def close(self) -> None:
        """Release the lock; the run can still be read."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def append(self, record: Record) -> None:
        """Write one record as a line, and wait until it is on the disk.

        OSError names the file, which then has no part of the line. ValueError for a record that
        could not be read again, and for one more than a run may have.
        """
        lines, line = self._writable(), disclosed(record, anonymous=self.anonymous).to_line()
        schema.require_records(lines.count + 1)
        # A part of a line that a failed append could not remove would damage this line.
        lines.set_torn_aside(self.torn_path)
        lines.append(line)

    def _open(self, how: int, patience: float = 0) -> None:
        self._require_own_folders()
        try:
            self._lines = LockedLines(self.records_path, how, patience=patience)
        except BlockingIOError:
            raise BlockingIOError(
                f"another process is writing the run in {self.folder}; wait for it, or name another"
                " with --out"
            ) from None

    def _require_own_folders(self) -> None:
        """Raise ValueError for a link or a file in place of a folder of the run."""
        for path in (self.folder / name for name in FOLDERS):
            disk.require_no_link(path, below=self.folder)
            if path.exists() and not path.is_dir():
                raise ValueError(f"{path} is not a folder; remove it")

    def _writable(self) -> LockedLines:
        if self._lines is None:
            raise ValueError(
                f"the run in {self.folder} is open for reading; create or resume it to write"
            )
        return self._lines

    def _no_run(self) -> FileNotFoundError:
        return FileNotFoundError(
            f"no records.jsonl in {self.folder}; name the folder of a run, such as runs/gpt2-xl"
        )

    def repair(self) -> list[str]:
        """Move what cannot be read of an open run, and close it; return a line for each move.

        The bytes of lines go to `records.damaged` and `records.torn`; a timeline is renamed. What a
        newer optprof wrote is whole, and stays.
        """
        lines = self._writable()
        torn = lines.set_torn_aside(self.torn_path)
        done = (
            [f"records.jsonl: torn, its last {torn} bytes are set aside in {self.torn_path.name}"]
            if torn
            else []
        )
        records: list[Record] = []
        damaged: list[Line] = []
        for line in self._read():
            records += line.records
            damaged += [line] if line.damage and not line.is_newer else []
            done += [f"{_line_text(line)}; left as it is"] if line.is_newer else []
        done += [f"{_line_text(line)}; set aside in {self.damaged_path.name}" for line in damaged]
        self.read_timelines(records, all_files=True)
        for name, reason in self.damaged_timelines.items():
            what = (
                "left as it is"
                if self._is_newer(name)
                else f"set aside as {self.set_timeline_aside(name)}"
            )
            done.append(f"timelines/{name}{_TIMELINE}: {reason}; {what}")
        self.remove_parts()
        if damaged:
            lines.copy_aside(self.damaged_path, [(line.start, line.end) for line in damaged])
            lines.rewrite((line.start, line.end, line.kept) for line in damaged)
        self.close()
        return done

    def remove_parts(self) -> None:
        """Remove the partly written files that killed processes have left."""
        for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
            disk.remove_parts(folder)

    def write_timeline(self, scenario: Scenario, timeline: Timeline) -> None:
        """Write the timeline of a scenario's simulation as `timelines/NAME.json.gz`.

        OSError names the file.
        """
        name = file_name(scenario)
        disk.write_bytes(self._timeline_path(name), pack(timeline, name), below=self.folder)

    def read_timelines(
        self, records: Iterable[Record], *, all_files: bool = False
    ) -> dict[str, Timeline]:
        """Return the timelines of these records, by the `file_name` of their scenarios.

        `damaged_timelines` names those that cannot be read, or belong to another record. With
        `all_files`, files that belong to no record are read too.
        """
        named = {
            file_name(record.scenario): record for record in records if record.origin == "simulated"
        }
        names = dict.fromkeys([*named, *(self._timeline_names() if all_files else ())])
        timelines: dict[str, Timeline] = {}
        damaged: dict[str, str] = {}
        for name in names:
            try:
                timeline = self._timeline(name, _peak(named.get(name)))
                if timeline is not None:
                    timelines[name] = timeline
            except (OSError, ValueError) as error:
                damaged[name] = self._reason(error, self._timeline_path(name))
        self.damaged_timelines = damaged
        return timelines

    def lost_timelines(self, records: Iterable[Record]) -> set[str]:
        """Return the names of these records' timelines that cannot be read, or were renamed."""
        records = list(records)
        timelines = self.read_timelines(records)
        names = {file_name(record.scenario) for record in records} - timelines.keys()
        return {name for name in names if name in self.damaged_timelines or self._is_aside(name)}

    def set_timeline_aside(self, name: str) -> str:
        """Rename a timeline that cannot be read, if it exists; return its new name."""
        path = self._timeline_path(name)
        names = (f"{path.name}{_ASIDE}{'' if number == 1 else f'-{number}'}" for number in count(1))
        aside = next(each for each in names if not os.path.lexists(path.with_name(each)))
        with suppress(FileNotFoundError):
            path.rename(path.with_name(aside))
            disk.sync_folder(path.parent)
        return aside

    def _is_aside(self, name: str) -> bool:
        path = self._timeline_path(name)
        return os.path.lexists(path.with_name(path.name + _ASIDE))

    def _is_newer(self, name: str) -> bool:
        try:
            self._timeline(name)
        except (OSError, ValueError) as error:
            return isinstance(error.__cause__, schema.NewerError)
        return False

    def _timeline(self, name: str, peak: int | None = None) -> Timeline | None:
        path = self._timeline_path(name)
        try:
            with disk.open_to_read(path, below=self.folder) as file:
                packed = file.read(MOST_BYTES + 1)
        except FileNotFoundError:
            return None
        try:
            if len(packed) > MOST_BYTES:
                raise ValueError(f"a timeline has at most {MOST_BYTES} bytes, got more")
            return unpack(packed, name, peak)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error

    def _timeline_names(self) -> list[str]:
        if not self.timelines_path.is_dir():
            return []
        return sorted(
            path.name.removesuffix(_TIMELINE)
            for path in self.timelines_path.iterdir()
            if path.name.endswith(_TIMELINE)
        )

    def _reason(self, error: OSError | ValueError, path: Path) -> str:
        """Return what is wrong with a file, without the run's folder."""
        text = (
            error.strerror
            if isinstance(error, OSError)
            else str(error).removeprefix(f"{path}").removeprefix(":")
        )
        return " ".join(str(text).replace(f"{self.folder}{os.sep}", "").split())

    def log_path(self) -> Path:
        """Return the path of a new file for the output of the next scenario."""
        folder = self.folder / "logs"
        disk.require_no_link(folder, below=self.folder)
        last = max(
            (
                int(path.stem)
                for path in folder.glob("*.log")
                if re.fullmatch("[0-9]{1,9}", path.stem)
            ),
            default=0,
        )
        return folder / f"{last + 1:03}.log"

    def read_log(self, record: Record) -> str:
        """Return the end of the output of the record's scenario.

        ValueError for a log outside the run's folder.
        """
        log = PurePath(record.log or "")
        if log.is_absolute() or ".." in log.parts:
            raise ValueError(f"the log of a run lies in its folder, got {str(log)!r}")
        with disk.open_to_read(self.folder / log, below=self.folder) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_LOG_BYTES))
            return file.read(MOST_LOG_BYTES).decode(errors="replace")

    def snapshot_path(self, scenario: Scenario) -> Path:
        """Return the path of the snapshot of a scenario."""
        return self.folder / "snapshots" / f"{file_name(scenario)}.pickle"

    def _timeline_path(self, name: str) -> Path:
        return self.timelines_path / f"{name}{_TIMELINE}"

    def read(self, keep: Callable[[Record], Record] | None = None) -> list[Record]:
        """Return all whole records, in the order of the file; `damaged_lines` names the others.

        `keep` returns the part of each record that stays in memory. FileNotFoundError for a folder
        without a run, ValueError for a link, a pipe, and for more lines than a run may have.
        """
        with without_collections():
            return list(self._records(keep))

    def next_place(self) -> int:
        """Return the place of the next scenario in the order of the run."""
        places = (record.place for record in self.read())
        return 1 + max((place for place in places if place is not None), default=-1)

    def read_standing(self, keep: Callable[[Record], Record] | None = None) -> list[Record]:
        """Return the last record of each scenario, as `read` does."""
        with without_collections():
            return standing(self._records(keep))

    def _records(self, keep: Callable[[Record], Record] | None) -> Iterator[Record]:
        damaged: list[str] = []
        for line in self._read():
            # Older records hold what is masked now.
            records = map(disclosed, line.records)
            for record in map(keep, records) if keep else records:
                _share(record.scenario)
                yield record
            if line.damage:
                damaged.append(_line_text(line))
        self.damaged_lines = tuple(damaged)

    @property
    def damage(self) -> tuple[str, ...]:
        """Parts that could not be read, a line each, with the names of their files."""
        folder = self.timelines_path.name
        timelines = (
            # An error of the folder is named once.
            reason if reason.startswith(f"{folder} ") else f"{folder}/{name}{_TIMELINE}: {reason}"
            for name, reason in self.damaged_timelines.items()
        )
        return (*self.damaged_lines, *dict.fromkeys(timelines))

    def warn(self) -> None:
        """Warn, in a line each, of a torn line that was moved and of what could not be read."""
        damage, torn = self.damage, self.torn_bytes
        lines: list[str] = []
        if torn:
            lines.append(
                f"the last line was torn: its {torn} bytes are set aside in {self.torn_path}"
            )
        lines += [f"left out: {self.folder / each}" for each in damage[:_MOST_WARNINGS]]
        if len(damage) > _MOST_WARNINGS:
            lines.append(f"left out: {len(damage) - _MOST_WARNINGS} more")
        if damage:
            lines.append(f"optprof repair {self.folder} sets aside what cannot be read")
        if lines:
            warnings.warn("\n".join(lines), DamageWarning, stacklevel=3)

    def _read(self) -> Iterator[Line]:
        try:
            with disk.open_to_read(self.records_path) as file:
                yield from read_lines(file)
        except FileNotFoundError:
            raise self._no_run() from None
        except ValueError as error:
            path = f"{self.records_path}"
            raise ValueError(str(error) if path in str(error) else f"{path}: {error}") from error

    def write_csv(self, records: Iterable[Record]) -> None:
        """Write the records as a table: a row for a record, a column for a field.

        Nested names are joined by dots. None is an empty cell, a truth is true or false. Numbers in
        a list are separated by blanks, with nan for None; every other list is JSON. Text is escaped
        by `spreadsheet_text`.
        """
        rows = [_flat(record.to_dict()) for record in records]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with disk.writing(self.csv_path, below=self.folder) as file:
            table = TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(table)
            writer.writerow(map(spreadsheet_text, columns))
            writer.writerows([row.get(column, "") for column in columns] for row in rows)
            # Flush and leave the file open: `writing` closes it.
            table.detach()


def free_folder(parent: Path, name: str) -> Path:
    """Return the first of NAME, NAME-2, NAME-3, ... under `parent` that holds no run."""
    return next(folder for folder in _folders(parent, name) if not _is_taken(folder))


def last_folder(parent: Path, name: str) -> Path:
    """Return the last of NAME, NAME-2, NAME-3, ... under `parent` that holds a run, else NAME."""
    taken = takewhile(_is_taken, _folders(parent, name))
    return max(enumerate(taken), default=(0, parent / name))[1]


def _is_taken(folder: Path) -> bool:
    """Return whether a folder holds a run, even a broken link, or is not a folder."""
    return os.path.lexists(folder / "records.jsonl") or (
        os.path.lexists(folder) and not folder.is_dir()
    )


def _folders(parent: Path, name: str) -> Iterator[Path]:
    return (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))


def _share(scenario: Scenario) -> None:
    """Let a scenario that was read share equal parts with others: a run may have 100,000."""
    values = vars(scenario)
    for name in ("config", "options"):
        values[name] = _decoded(msgspec.json.encode(values[name]))
    for name in ("model", "optimizer"):
        values[name] = sys.intern(values[name])


@lru_cache(maxsize=1_000)
def _decoded(text: bytes) -> Any:
    return msgspec.json.decode(text)


@contextmanager
def without_collections() -> Iterator[None]:
    """Pause the garbage collector: it would look through all records again and again for cycles."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def standing(records: Iterable[Record]) -> list[Record]:
    """Return the last record of each scenario, in the order of the first.

    Records go by their `place`: scenarios that ran at once have ended in another order. A record
    without a place stays behind those before it.
    """
    last: dict[bytes, Record] = {}
    places: dict[bytes, int] = {}
    latest = -1
    for record in records:
        place = latest if record.place is None else record.place
        latest = max(latest, place)
        key = scenario_key(record.scenario)
        places.setdefault(key, place)
        last[key] = record
    return [last[key] for key in sorted(last, key=places.__getitem__)]


def by_place(records: Iterable[Record]) -> list[Record]:
    """Return all records in the order of the command, those of one place as they were written."""
    latest = -1
    placed: list[tuple[int, Record]] = []
    for record in records:
        place = latest if record.place is None else record.place
        latest = max(latest, place)
        placed.append((place, record))
    return [record for _, record in sorted(placed, key=lambda pair: pair[0])]


def scenario_key(scenario: Scenario) -> bytes:
    """Return the key of the anonymous scenario, which an anonymous record has too."""
    return disclosed_scenario(scenario, anonymous=True).key


def file_name(scenario: Scenario) -> str:
    """Return the name of a scenario's files, as gpt2-xl-adamw-0f3c5a7b9d1e.

    It is the same for equal scenarios, in an anonymous run too, and for no others.
    """
    scenario = disclosed_scenario(scenario, anonymous=True)
    words = _NO_WORD.sub("-", f"{scenario.model}-{scenario.optimizer}").strip("-.")
    return f"{words[:80]}-{scenario.key.hex()[:12]}"


def _line_text(line: Line) -> str:
    return f"records.jsonl, line {line.number}: {line.damage}"


def _peak(record: Record | None) -> int | None:
    return record.memory.peak_allocated if record and record.memory else None


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
        return spreadsheet_text(value or "")
    if isinstance(value, list | tuple) and all(
        each is None or type(each) in (int, float) for each in value
    ):
        return " ".join("nan" if each is None else str(each) for each in value)
    text = json.dumps(value, ensure_ascii=False)
    return spreadsheet_text(text if plain(text) == text else json.dumps(value))
