"""Run: records in hand, as a notebook wants them: a data frame, a small table, a report."""

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING
from weakref import finalize

from optprof.profiler.records.privacy import disclosed
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore, file_name, standing
from optprof.profiler.safety.disk import open_to_read, require_own_folder, write_bytes
from optprof.profiler.safety.plain import plain
from optprof.scenarios.schema import require_records

if TYPE_CHECKING:
    from pandas import DataFrame

    from .tables.table import Cell, Table

# Seconds that others may take to write a line of theirs into the same run.
PATIENCE = 10.0


@dataclass(kw_only=True)
class Run:
    """The records of a run, the latest of each scenario, and the folder that holds them where there
    is one.

    A run that nobody gave a folder to keeps what lies beside its records, such as timelines, in a
    temporary one that goes when it does. One that is `anonymous` leaves machine and paths out of
    what is added.
    """

    records: list[Record] = field(default_factory=list)
    folder: Path | None = None
    anonymous: bool = False

    @classmethod
    def temporary(cls) -> "Run":
        """A run without records, in a folder that is removed with it."""
        folder = Path(mkdtemp(prefix="optprof-"))
        run = cls(folder=folder / "run")
        finalize(run, rmtree, folder, ignore_errors=True)
        return run

    @classmethod
    def read(cls, folder: Path | str) -> "Run":
        """The run in a folder; FileNotFoundError for a folder that is no run, a DamageWarning for a
        line that is no record.
        """
        store = RunStore(Path(folder))
        records = store.read_standing()
        store.warn()
        return cls(records=records, folder=Path(folder))

    @classmethod
    def going_on(cls, folder: Path, *, force: bool = False) -> "Run":
        """The run in a folder, or a new one there, to which records are added; OSError when it
        cannot be written.

        FileExistsError for a folder that holds other files and no run, unless `force` is given. A
        DamageWarning for a line that is no record, and for a torn one, which is set aside.
        """
        require_own_folder(folder, "records.jsonl", force=force)
        store = RunStore.resume(folder, patience=PATIENCE)
        store.remove_parts()
        store.close()
        found = store.read()
        store.warn()
        # Told before the training, whose record would have no place.
        require_records(len(found) + 1)
        return cls(records=standing(found), folder=folder)

    @property
    def where(self) -> Path:
        """The folder; ValueError where the run has none."""
        if self.folder is None:
            raise ValueError("the run is not kept in a folder; name one")
        return self.folder

    def add(self, record: Record) -> None:
        """Take a record in, and write it into the folder where there is one."""
        record = disclosed(record, anonymous=self.anonymous)
        self.records = standing([*self.records, record])
        if self.folder is not None:
            # Opened for this line alone: the ranks of a training may write to one folder.
            store = RunStore.resume(self.folder, patience=PATIENCE)
            try:
                store.append(record)
            finally:
                store.close()

    def frame(self) -> "DataFrame":
        """A row a record: what was asked and its main figures; bytes are exact (nullable) whole
        numbers, times are in seconds.

        ValueError where pandas is not installed.
        """
        from .frame import frame

        return frame(self.records)

    def report(self, path: Path | str, *, force: bool = False) -> Path:
        """Write the records and all of their report into a folder, over an earlier report there;
        returns the page's path.

        ValueError for a run without records; FileExistsError for a folder that holds other records,
        and unless `force` is given for one that holds other files.
        """
        from . import write_report

        folder = Path(path)
        if self.folder is None or folder.resolve() != self.folder.resolve():
            self._copy_to(folder, force=force)
        return write_report(folder, force=force)

    def _copy_to(self, folder: Path, *, force: bool) -> None:
        """Leave the records in the folder, and the timelines that stand beside them."""
        if not self.records:
            raise ValueError("the run holds no records, so there is nothing to report")
        require_own_folder(folder, "records.jsonl", force=force)
        lines = b"".join(record.to_line() for record in self.records)
        target = RunStore(folder)
        with suppress(FileNotFoundError), open_to_read(target.records_path) as file:
            if file.read() != lines:
                raise FileExistsError(f"{folder} holds another run's records; name another folder")
        write_bytes(target.records_path, lines, below=folder)
        if self.folder is not None:
            source = RunStore(self.folder)
            timelines = source.read_timelines(self.records)
            source.warn()
            for record in self.records:
                if timeline := timelines.get(file_name(record.scenario)):
                    target.write_timeline(record.scenario, timeline)

    def _repr_html_(self) -> str:
        """The summary of the run as a table, for a notebook."""
        from .arithmetic.findings import Findings
        from .tables.overview import failure_table
        from .tables.summary import summary_table
        from .tables.verdict import sources

        if not self.records:
            return "<p>The run holds no records yet.</p>"
        findings = Findings.of(self.records)
        tables = [
            table for table in (summary_table(findings), failure_table(findings)) if table.rows
        ]
        return "".join(
            [
                *map(_html_table, tables),
                *(f"<p>{escape(plain(source))}</p>" for source in sources(findings)),
            ]
        )


def _html_table(table: "Table") -> str:
    head = "".join(f'<th scope="col">{escape(plain(name))}</th>' for name in table.head)
    body = "".join(map(_html_row, table.rows))
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _html_row(row: "Iterable[Cell]") -> str:
    cells = (
        (f' title="{escape(cell.exact)}"' if cell.exact else "", escape(plain(cell.text)))
        for cell in row
    )
    return f"<tr>{''.join(f'<td{title}>{text}</td>' for title, text in cells)}</tr>"
