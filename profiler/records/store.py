"""A run folder: records as JSON lines, each on disk before the next scenario starts, with a CSV of
the same and timelines beside them.

One process at a time writes into it, and holds a lock on `records.jsonl` while it does. A write
that is cut off leaves at most one torn line at the end: reading leaves it out, going on sets it
aside as `records.torn`. What else cannot be read is left out too and named, until `repair` sets it
aside. Nothing is followed or read that is not a file or folder of the run itself.
"""

import csv
import json
import os
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from hashlib import sha256
from io import TextIOWrapper
from itertools import count, takewhile
from pathlib import Path, PurePath
from typing import Any

from optprof.scenarios import schema
from optprof.scenarios.spec import Scenario

from ..safety import disk
from ..safety.locked_lines import LockedLines
from ..safety.plain import plain, spreadsheet_text
from .privacy import disclosed, disclosed_scenario
from .record import Record
from .record_lines import Line, read_lines
from .timeline import Timeline
from .timeline_file import MOST_BYTES, pack, unpack

# What stands beside the records, each below a folder of its own.
FOLDERS = ("timelines", "logs", "snapshots", "tensorboard", "figures")
# The end of a log is what tells why its scenario has failed.
MOST_LOG_BYTES = 1 << 20
_MOST_WARNINGS = 10
_TIMELINE = ".json.gz"
_ASIDE = ".damaged"


class DamageWarning(UserWarning):
    """A part of a run cannot be read, and is left out."""


_ENCODER = json.JSONEncoder(sort_keys=True, default=str)
_NO_WORD = re.compile(r"[^A-Za-z0-9.]+")


class RunStore:
    """The records of one run, under `runs/NAME/`.

    `damaged_lines` names what the last `read` could not read, a line each, and `damaged_timelines`
    says the same of `read_timelines`, by the names of the scenarios' files. `torn_bytes` is how
    much of a torn last line `resume` has set aside.
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
        """A new, empty run, locked; FileExistsError when the folder holds one already, OSError when
        it cannot be written.
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
        """A new, empty run in the first of NAME, NAME-2, NAME-3, ... under `parent` that holds
        none.
        """
        while True:
            # Another process may take the folder between the look and the make.
            with suppress(FileExistsError):
                return cls.create(free_folder(parent, name))

    @classmethod
    def resume(cls, folder: Path, *, patience: float = 0) -> "RunStore":
        """The run in the folder, locked, to be gone on with, or a new one; a torn last line is set
        aside as `records.torn`.

        `patience` is how many seconds another process may hold it. BlockingIOError while another
        process writes the run, OSError when it cannot be written, ValueError for a link or a pipe
        in it.
        """
        store = cls(folder)
        disk.make_folder(folder)
        store._open(os.O_CREAT, patience)
        store.torn_bytes = store._writable().set_torn_aside(store.torn_path)
        return store

    @classmethod
    def open(cls, folder: Path) -> "RunStore":
        """The run in the folder, locked, as it is; FileNotFoundError where there is none, and else
        as for `resume`.
        """
        store = cls(folder)
        try:
            store._open(0)
        except FileNotFoundError:
            raise store._no_run() from None
        return store

    def close(self) -> None:
        """Give the lock back; the run can still be read."""
        if self._lines is not None:
            self._lines.close()
            self._lines = None

    def append(self, record: Record) -> None:
        """Write one record as a line and see it onto the disk; OSError names the file when that
        fails, and leaves no part of the line.

        ValueError for a record that could not be read again, and for one more than a run may have.
        """
        lines, line = self._writable(), disclosed(record, anonymous=self.anonymous).to_line()
        schema.require_records(lines.count + 1)
        # What an append that failed could not take back would swallow this line.
        lines.set_torn_aside(self.torn_path)
        lines.append(line)

    def _open(self, how: int, patience: float = 0) -> None:
        self._require_own_folders()
        try:
            self._lines = LockedLines(self.records_path, how, patience=patience)
        except BlockingIOError:
            told = (
                f"another process is writing the run in {self.folder}; wait for it, or name another"
                " with --out"
            )
            raise BlockingIOError(told) from None

    def _require_own_folders(self) -> None:
        """ValueError where a link, or no folder, stands where the run's files go."""
        for path in (self.folder / name for name in FOLDERS):
            disk.require_no_link(path, below=self.folder)
            if path.exists() and not path.is_dir():
                raise ValueError(f"{path} is no folder; remove it")

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
        """Set aside what cannot be read of an open run, and close it; returns what was done, a line
        each.

        The bytes of lines go to `records.damaged` and `records.torn`, a timeline beside itself.
        What a newer optprof has written is whole, and left as it is.
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
            done += [f"{_told(line)}; left as it is"] if line.is_newer else []
        done += [f"{_told(line)}; set aside in {self.damaged_path.name}" for line in damaged]
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
        """Remove the parts of files that killed processes have left."""
        for folder in (self.folder, *(self.folder / name for name in FOLDERS)):
            disk.remove_parts(folder)

    def write_timeline(self, scenario: Scenario, timeline: Timeline) -> None:
        """Keep the timeline of a scenario's simulation as `timelines/NAME.json.gz`; OSError names
        the file when that fails.
        """
        disk.write_bytes(
            self._timeline_path(file_name(scenario)),
            pack(timeline, file_name(scenario)),
            below=self.folder,
        )

    def read_timeline(self, scenario: Scenario) -> Timeline | None:
        """The timeline of a scenario's simulation, None where there is none; ValueError names a
        file that is none.
        """
        return self._timeline(file_name(scenario))

    def read_timelines(
        self, records: Iterable[Record], *, all_files: bool = False
    ) -> dict[str, Timeline]:
        """The timelines that stand beside these records, by the `file_name` of their scenarios.

        `damaged_timelines` has those that cannot be read, or are not of their record; with
        `all_files` also of files that belong to no record.
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
        """The names of timelines of these records that cannot be read, or were set aside."""
        records = list(records)
        timelines = self.read_timelines(records)
        names = {file_name(record.scenario) for record in records} - timelines.keys()
        return {name for name in names if name in self.damaged_timelines or self._is_aside(name)}

    def set_timeline_aside(self, name: str) -> str:
        """Rename a timeline that cannot be read, if it is there; returns its new name."""
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
        """Say what is wrong with a file, without the folder that it lies in."""
        text = (
            error.strerror
            if isinstance(error, OSError)
            else str(error).removeprefix(f"{path}").removeprefix(":")
        )
        return " ".join(str(text).replace(f"{self.folder}{os.sep}", "").split())

    def log_path(self) -> Path:
        """A file that is not there yet, for what the next scenario prints."""
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
        """The end of what the record's scenario has printed; ValueError for a log that lies
        elsewhere.
        """
        log = PurePath(record.log or "")
        if log.is_absolute() or ".." in log.parts:
            raise ValueError(f"the log of a run lies in its folder, got {str(log)!r}")
        with disk.open_to_read(self.folder / log, below=self.folder) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - MOST_LOG_BYTES))
            return file.read(MOST_LOG_BYTES).decode(errors="replace")

    def snapshot_path(self, scenario: Scenario) -> Path:
        """Where the snapshot of a scenario goes."""
        return self.folder / "snapshots" / f"{file_name(scenario)}.pickle"

    def _timeline_path(self, name: str) -> Path:
        return self.timelines_path / f"{name}{_TIMELINE}"

    def read(self, keep: Callable[[Record], Record] | None = None) -> list[Record]:
        """All whole records, in the order they were found; `damaged_lines` names what is none.

        `keep` returns what to keep of each, for a reader who has no use for the samples of 100,000.
        FileNotFoundError for a folder without a run, ValueError for a link, a pipe, and for more
        lines than a run has.
        """
        records: list[Record] = []
        damaged: list[str] = []
        for line in self._read():
            # Older records hold what is masked now.
            shown = map(disclosed, line.records)
            records += map(keep, shown) if keep else shown
            if line.damage:
                damaged.append(_told(line))
        self.damaged_lines = tuple(damaged)
        return records

    @property
    def damage(self) -> tuple[str, ...]:
        """Parts that could not be read, a line each, with the files' names below the folder."""
        folder = self.timelines_path.name
        timelines = (
            # What is wrong with the folder is said once.
            reason if reason.startswith(f"{folder} ") else f"{folder}/{name}{_TIMELINE}: {reason}"
            for name, reason in self.damaged_timelines.items()
        )
        return (*self.damaged_lines, *dict.fromkeys(timelines))

    def warn(self) -> None:
        """Warn, in a line each, of a torn line that was set aside and of what could not be read."""
        damage, torn = self.damage, self.torn_bytes
        told = (
            [f"the last line was torn: its {torn} bytes are set aside in {self.torn_path}"]
            if torn
            else []
        )
        told += [f"left out: {self.folder / each}" for each in damage[:_MOST_WARNINGS]]
        told += (
            [f"left out: {len(damage) - _MOST_WARNINGS} more"]
            if len(damage) > _MOST_WARNINGS
            else []
        )
        told += [f"optprof repair {self.folder} sets aside what cannot be read"] if damage else []
        if told:
            warnings.warn("\n".join(told), DamageWarning, stacklevel=3)

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
        """Write the same records as a table: a row a record, a column a field, nested names joined
        by dots.

        None is an empty cell, a truth is true or false, and numbers in a list have blanks between
        them, with nan for one that is missing. Every other list is JSON. Text is as
        `spreadsheet_text` makes it.
        """
        rows = [_flat(record.to_dict()) for record in records]
        columns = list(dict.fromkeys(column for row in rows for column in row))
        with disk.writing(self.csv_path, below=self.folder) as file:
            table = TextIOWrapper(file, encoding="utf-8", newline="")
            writer = csv.writer(table)
            writer.writerow(map(spreadsheet_text, columns))
            writer.writerows([row.get(column, "") for column in columns] for row in rows)
            # Flushes; the file itself is closed by who opened it.
            table.detach()


def free_folder(parent: Path, name: str) -> Path:
    """The first of NAME, NAME-2, NAME-3, ... under `parent` that holds no run."""
    return next(folder for folder in _folders(parent, name) if not _is_taken(folder))


def last_folder(parent: Path, name: str) -> Path:
    """The last of NAME, NAME-2, NAME-3, ... under `parent` that holds a run; NAME where none
    does.
    """
    taken = takewhile(_is_taken, _folders(parent, name))
    return max(enumerate(taken), default=(0, parent / name))[1]


def _is_taken(folder: Path) -> bool:
    """Return whether a folder holds a run, were it a broken link, or is none."""
    return os.path.lexists(folder / "records.jsonl") or (
        os.path.lexists(folder) and not folder.is_dir()
    )


def _folders(parent: Path, name: str) -> Iterator[Path]:
    return (parent / (name if number == 1 else f"{name}-{number}") for number in count(1))


def file_name(scenario: Scenario) -> str:
    """A name for what belongs to a scenario's record, the same for equal scenarios and no others:
    gpt2-xl-adamw-0f3c5a7b9d1e.

    It is that of the anonymous scenario, whether the record is anonymous or not.
    """
    scenario = disclosed_scenario(scenario, anonymous=True)
    # `asdict` would copy every value before, and a comparison names 100,000 scenarios.
    digest = sha256(_ENCODER.encode(vars(scenario)).encode()).hexdigest()[:12]
    words = _NO_WORD.sub("-", f"{scenario.model}-{scenario.optimizer}").strip("-.")
    return f"{words[:80]}-{digest}"


def _told(line: Line) -> str:
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
