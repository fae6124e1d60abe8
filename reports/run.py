"""Run: the records that a notebook works with, as a data frame, a small table and a report."""

from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import TYPE_CHECKING
from weakref import finalize

from optprof.profiler.records.planned import unfinished
from optprof.profiler.records.privacy import disclosed
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore, file_name, standing
from optprof.profiler.safety.disk import open_to_read, require_own_folder, write_bytes
from optprof.profiler.safety.plain import plain
from optprof.scenarios.schema import require_records

if TYPE_CHECKING:
    from pandas import DataFrame

    from optprof.profiler.records.timeline import Timeline

    from .arithmetic.findings import Findings
    from .pictures.picture import Picture

# Seconds to wait for other processes that write into the same run.
PATIENCE = 10.0


# A notebook shows the first picture of each kind, up to so many; the report has all.
MOST_PICTURES = 5


@dataclass(kw_only=True, repr=False)
class Run:
    """The records of a run, the latest of each scenario, and the folder that holds them.

    A run without a folder keeps its other files, such as timelines, in a temporary one, which is
    removed with it. An `anonymous` run leaves machine and paths out of the records that it adds.
    Its reports compare optimizers with the `baseline`: without one with adamw, else adam, else the
    first.
    """

    records: list[Record] = field(default_factory=list)
    folder: Path | None = None
    anonymous: bool = False
    baseline: str | None = None

    @classmethod
    def temporary(cls) -> "Run":
        """Return a run without records, in a folder that is removed with it."""
        folder = Path(mkdtemp(prefix="optprof-"))
        run = cls(folder=folder / "run")
        finalize(run, rmtree, folder, ignore_errors=True)
        return run

    @classmethod
    def read(cls, folder: Path | str) -> "Run":
        """Return the run in a folder; FileNotFoundError for a folder without one.

        A DamageWarning names lines that are no records.
        """
        store = RunStore(Path(folder))
        records = store.read_standing()
        store.warn()
        return cls(records=records, folder=Path(folder))

    @classmethod
    def going_on(cls, folder: Path, *, force: bool = False) -> "Run":
        """Return the run in a folder, or a new one there, to which records are added.

        OSError where the folder cannot be written; FileExistsError for a folder of other files,
        without `force`. A DamageWarning names lines that are no records, and a torn one, which is
        set aside.
        """
        require_own_folder(folder, "records.jsonl", force=force)
        store = RunStore.resume(folder, patience=PATIENCE)
        store.remove_parts()
        store.close()
        records = store.read()
        store.warn()
        # Checked before the training, whose record would have no place.
        require_records(len(records) + 1)
        return cls(records=standing(records), folder=folder)

    @property
    def where(self) -> Path:
        """The folder; ValueError for a run without one."""
        if self.folder is None:
            raise ValueError("the run is not kept in a folder; name one")
        return self.folder

    def add(self, record: Record) -> None:
        """Add a record, to the folder too."""
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
        """Return a row a record: the scenario and its main figures.

        Bytes are exact (nullable) whole numbers, times are in seconds.
        """
        from .frame import frame

        return frame(self.records)

    def report(self, path: Path | str, *, baseline: str | None = None, force: bool = False) -> Path:
        """Write the records and their whole report into a folder; return the page's path.

        It replaces an earlier report there. Without a `baseline` it uses the run's. ValueError for
        a run without records or that baseline; FileExistsError for a folder of other records, and
        without `force` for a folder of other files.
        """
        from . import write_report

        folder = Path(path)
        if self.folder is None or folder.resolve() != self.folder.resolve():
            self._copy_to(folder, force=force)
        return write_report(folder, force=force, baseline=baseline or self.baseline)

    def _copy_to(self, folder: Path, *, force: bool) -> None:
        """Write the records into the folder, and their timelines."""
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

    def __repr__(self) -> str:
        """Return a line: the number of records, models, optimizers and the folder."""
        scenarios = [record.scenario for record in self.records]
        models, optimizers = (
            ", ".join(dict.fromkeys(" ".join(plain(name).split()) for name in names))
            for names in (
                [scenario.model for scenario in scenarios],
                [scenario.optimizer for scenario in scenarios],
            )
        )
        count = f"{len(scenarios)} {'record' if len(scenarios) == 1 else 'records'}"
        about = f"{count} of {models}; {optimizers}" if scenarios else "no records"
        return f"Run({about}{f'; {plain(str(self.folder))}' if self.folder else ''})"

    def _repr_html_(self) -> str:
        """Return the summary of the run and its pictures, for a notebook.

        The pictures are SVG images in the text itself: a notebook shows them without a network and
        without scripts, in Jupyter, VS Code and in what nbconvert makes of it.
        """
        from . import html
        from .arithmetic.findings import Findings
        from .summary import run_summary

        if not self.records:
            return "<p>The run holds no records yet.</p>"
        missing = unfinished(self.folder, self.records) if self.folder else None
        findings = Findings.of(
            self.records, self._timelines(), baseline=self.baseline, unfinished=missing
        )
        return html.fragment(run_summary(findings), _drawn(findings))

    def _timelines(self) -> "dict[str, Timeline]":
        """The timelines of the records; a damaged one is left to the report to name."""
        if self.folder is None or not self.folder.is_dir():
            return {}
        return RunStore(self.folder).read_timelines(self.records)


def _drawn(findings: "Findings") -> dict[str, str]:
    """Return the first picture of each kind as SVG, by its title."""
    from .pictures import pictures
    from .pictures.drawing import STYLES, draw_svg

    kinds: dict[str, Picture] = {}
    for picture in pictures(findings):
        kinds.setdefault(picture.kind, next(iter(picture.files.values())))
    shown = list(kinds.values())[:MOST_PICTURES]
    return {picture.title: draw_svg(picture, STYLES["paper"]) for picture in shown}
