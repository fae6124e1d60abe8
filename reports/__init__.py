"""Reports: the records of a run as a page, pictures and tables."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from optprof.profiler.safety.disk import (
    open_to_read,
    require_no_link,
    require_own_folder,
    write_text,
    writing,
)

if TYPE_CHECKING:
    from optprof.profiler.records.fits import Fit, RankSearch
    from optprof.profiler.records.planned import Unfinished
    from optprof.profiler.records.record import Record
    from optprof.profiler.records.snapshots import SnapshotContents
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.forecast import Forecast

    from .document import Document
    from .pictures.picture import Drawing, Picture
    from .trace import TraceFindings

__all__ = [
    "print_fits",
    "print_forecasts",
    "print_run",
    "print_snapshot",
    "print_trace",
    "read_traces",
    "run_markdown",
    "write_figure",
    "write_fit_page",
    "write_report",
    "write_snapshot_page",
    "write_trace",
]

# The files and folders that a report writes into a run's folder.
OUTPUTS = ("report.html", "records.csv", "records.json", "figures", "tensorboard")
# The file that marks a folder of fits.
FITS = "fits.json"
# And that of a snapshot's answers.
SNAPSHOT = "snapshot.json"
# Pages of optprof name their generator; those of its first versions have these titles.
_OURS = re.compile(
    rb'<meta name="generator" content="optprof">|<title>What (an optimizer costs on |[^<]* fits'
    rb" on<)"
)
_HEAD_BYTES = 2000

# A page of 10,000 records has 80 MB, and no browser opens it.
MOST_ON_PAGE = 1_000


def write_report(
    folder: Path,
    *,
    tensorboard: bool = False,
    style: str = "paper",
    force: bool = False,
    anonymous: bool = False,
    baseline: str | None = None,
    drawn: "Iterable[tuple[Picture, Drawing]]" = (),
) -> Path:
    """Write the report of a run into its folder; return the page's path.

    The report is `report.html`, `figures/`, `records.csv` and `records.json`. Of more than
    MOST_ON_PAGE records the page and the pictures show the first, and say so. `tensorboard` adds
    event files below `tensorboard/`, and needs the package of that name; `style` is "paper" or
    "slides". `baseline` names the optimizer that the others are compared with. An `anonymous`
    report leaves out machine and paths; the run's records keep them. `drawn` has pictures with
    their drawings for a paper, so that the same pictures are not drawn again. Each file takes its
    name when it is complete. The page and a DamageWarning name the parts of the run that cannot be
    read, the page and an UnfinishedWarning the scenarios that are missing.

    ValueError for a run without records or that baseline, another style, and a symbolic link in
    the place of an output; FileNotFoundError for a folder without a run; FileExistsError for a page
    that is not optprof's, without `force`; another OSError for a folder that cannot be written.
    """
    from optprof.profiler.machine.doctor import require_installed
    from optprof.profiler.records.store import RunStore

    if tensorboard:
        require_installed("tensorboard=True", "tensorboard")
    store = RunStore(folder)
    records = _standing(store, anonymous)
    timelines = store.read_timelines(records)
    store.warn()
    unfinished = _unfinished(folder, records)
    # Checked before drawing, and again while writing.
    for path in (*(folder / name for name in OUTPUTS), *(folder / "figures").glob("*")):
        require_no_link(path)
    _require_our_page(folder / "report.html", force=force)

    # matplotlib loads slowly, and only a report needs it.
    from . import html
    from .arithmetic.findings import Findings
    from .page import run_page
    from .pictures import pictures
    from .pictures.drawing import draw_all, style_named

    page, chosen = folder / "report.html", style_named(style)
    try:
        findings = Findings.of(
            records[:MOST_ON_PAGE], timelines, baseline=baseline, unfinished=unfinished
        )
        shown = pictures(findings)
        drawings = draw_all(shown, folder / "figures", chosen, drawn)
        document = run_page(findings, store.damage, total=len(records), shown=shown)
        write_text(page, html.render(document, drawings), below=folder)
        store.write_csv(records)
        with writing(folder / "records.json", below=folder) as file:
            file.writelines(_json_lines(records))
        if tensorboard:
            from .tensorboard import write_tensorboard

            write_tensorboard(records, drawings, folder / "tensorboard")
    except OSError as error:
        # The error of a full disk does not name the disk.
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    return page


def _json_lines(records: "Sequence[Record]") -> Iterator[bytes]:
    """Yield the records as a JSON list, a line each."""
    yield b"["
    for number, record in enumerate(records):
        yield f"{',' if number else ''}\n{record.to_json()}".encode()
    yield b"\n]\n"


def run_markdown(folder: Path, *, anonymous: bool = False, baseline: str | None = None) -> str:
    """Return the summary of a run as a Markdown table; a DamageWarning names damaged lines.

    ValueError for a run without records or that baseline, FileNotFoundError for a folder without a
    run.
    """
    from optprof.profiler.records.store import RunStore

    from . import markdown
    from .arithmetic.findings import Findings
    from .summary import lean, run_summary

    store = RunStore(folder)
    records = _standing(store, anonymous, lean)
    store.warn()
    findings = Findings.of(records, baseline=baseline, unfinished=_unfinished(folder, records))
    return markdown.render(run_summary(findings))


def print_run(
    records: "Sequence[Record]",
    output: TextIO,
    *,
    width: int | None = None,
    baseline: str | None = None,
) -> None:
    """Print the summary of a run, in `width` columns or the terminal's; ValueError for a run
    without records or that baseline.
    """
    from . import terminal
    from .arithmetic.findings import Findings
    from .summary import terminal_summary

    findings = Findings.of(records, baseline=baseline)
    document = terminal_summary(findings, terminal.columns(output, width))
    terminal.render(document, output, width=width)


def print_forecasts(
    forecasts: "Sequence[Forecast]", output: TextIO, *, width: int | None = None
) -> None:
    """Print a row for each scenario of a sweep, and the sum of their times."""
    from . import terminal
    from .forecast import forecast_document

    terminal.render(forecast_document(forecasts), output, width=width)


def print_fits(
    fits: "Sequence[Fit]",
    output: TextIO,
    *,
    search: "RankSearch | None" = None,
    width: int | None = None,
) -> None:
    """Print the GPUs that each training step fits on, or the numbers that it needs if these were
    searched; ValueError for no answers.
    """
    from . import terminal
    from .fit import fit_summary
    from .gpus_needed import needed_summary

    document = fit_summary(fits) if search is None else needed_summary(fits, search)
    terminal.render(document, output, width=width)


def print_snapshot(
    contents: "SnapshotContents", output: TextIO, *, width: int | None = None
) -> None:
    """Print what a memory snapshot holds, and what it takes under other settings."""
    from . import terminal
    from .snapshot import snapshot_summary

    terminal.render(snapshot_summary(contents), output, width=width)


def _unfinished(folder: Path, records: "Sequence[Record]") -> "Unfinished | None":
    """Return what is missing from a run, after a warning in words."""
    from optprof.profiler.records.planned import UnfinishedWarning, unfinished

    from .failing import unfinished_text

    missing = unfinished(folder, records)
    if missing is not None:
        warnings.warn(unfinished_text(missing), UnfinishedWarning, stacklevel=3)
    return missing


def _standing(
    store: "RunStore", anonymous: bool, keep: "Callable[[Record], Record] | None" = None
) -> "list[Record]":
    from optprof.profiler.records.privacy import disclosed

    records = store.read_standing(keep)
    return [disclosed(record, anonymous=True) for record in records] if anonymous else records


def write_figure(folder: Path, name: str, *, style: str = "paper") -> list[Path]:
    """Write one picture that no report has into a run's `figures/`, as PNG and SVG; return the
    paths.

    The only one is "sgd-sai-4", the SGD-SaI paper's figure with the run's records. ValueError for
    another name or style, and for a run without the states that it shows.
    """
    from optprof.profiler.records.store import RunStore

    from .arithmetic.reproduction import COMMAND
    from .pictures.drawing import draw_published, style_named, write_drawing
    from .pictures.published import NAME

    if name != NAME:
        raise ValueError(f"no figure is named {name!r}; there is {NAME}")
    store, chosen = RunStore(folder), style_named(style)
    records = store.read_standing()
    store.warn()
    drawing = draw_published(records, chosen)
    if drawing is None:
        raise ValueError(
            f"the run has no state that {NAME} shows; this command adds them: {COMMAND}"
        )
    return write_drawing(drawing, folder / "figures")


def read_traces(path: Path, *, anonymous: bool = False) -> "TraceFindings":
    """Return what the traces of a run say, or a trace that torch.profiler has written.

    `anonymous` leaves out the names of GPUs. ValueError for a run without traces and a file that is
    none, FileNotFoundError for a missing path.
    """
    from .trace import of_file, of_run

    if not path.exists():
        raise FileNotFoundError(f"{path} is neither a run nor a file of torch.profiler")
    return (of_run if path.is_dir() else of_file)(path, anonymous=anonymous)


def write_trace(
    found: "TraceFindings", path: Path, *, style: str = "paper", force: bool = False
) -> list[Path]:
    """Write a page about traces with its pictures; return the paths.

    For a run these are `trace.html` and files in `figures/`. For a file they lie next to it: a page
    of its name, and a folder of that name with `-figures`. FileExistsError for a page that is not
    optprof's, without `force`.
    """
    from . import html
    from .pictures.drawing import draw, style_named, write_drawing
    from .trace import stem, trace_page, trace_pictures

    if path.is_file():
        name = stem(path)
        folder, page, figures = path.parent, path.with_name(f"{name}.html"), f"{name}-figures"
    else:
        folder, page, figures = path, path / "trace.html", "figures"
    chosen = style_named(style)
    require_no_link(page)
    require_no_link(folder / figures)
    _require_our_page(page, force=force)
    drawings = [draw(picture, chosen) for picture in trace_pictures(found)]
    write_text(page, html.render(trace_page(found), drawings), below=folder)
    written = [each for drawing in drawings for each in write_drawing(drawing, folder / figures)]
    return [page, *written]


def print_trace(found: "TraceFindings", output: TextIO, *, width: int | None = None) -> None:
    """Print the phases of an iteration in each trace, and what they recommend."""
    from . import terminal
    from .trace import trace_summary

    terminal.render(trace_summary(found), output, width=width)


def _require_our_page(page: Path, *, force: bool) -> None:
    """Raise FileExistsError for a file of that name that is no page of optprof."""
    if force or not page.exists():
        return
    with open_to_read(page) as file:
        is_ours = _OURS.search(file.read(_HEAD_BYTES))
    if not is_ours:
        raise FileExistsError(
            f"{page} is not a page of optprof; move it away, or give --force (in Python force=True)"
        )


def write_fit_page(
    fits: "Sequence[Fit]",
    folder: Path,
    command: Sequence[str],
    *,
    search: "RankSearch | None" = None,
    force: bool = False,
) -> Path:
    """Write `report.html` and `fits.json` into the folder, over older ones; return the page's path.

    A `search` over numbers of ranks adds its picture, in `figures/`. ValueError for no answers;
    FileExistsError for a folder of other files, without `force`.
    """
    from .fit import FitFindings, fit_page
    from .gpus_needed import needed_page, needed_pictures

    content = [fit.to_dict() for fit in fits]
    if search is None:
        return _write_answers(folder, FITS, fit_page(fits, command), content, force=force)
    page, pictures = needed_page(fits, search, command), FitFindings.of(fits, search)
    shown = needed_pictures(pictures)
    return _write_answers(folder, FITS, page, content, shown, force=force)


def write_snapshot_page(
    contents: "SnapshotContents", folder: Path, command: Sequence[str], *, force: bool = False
) -> Path:
    """Write `report.html` and `snapshot.json` into the folder, over older ones; return the page.

    FileExistsError for a folder of other files, without `force`.
    """
    from .snapshot import snapshot_page

    page = snapshot_page(contents, command)
    return _write_answers(folder, SNAPSHOT, page, contents.to_dict(), force=force)


def _write_answers(
    folder: Path,
    name: str,
    document: "Document",
    content: object,
    pictures: "Sequence[Picture]" = (),
    *,
    force: bool,
) -> Path:
    """Write a page, its pictures, and its data as JSON, whose name marks the folder as ours."""
    import json

    from . import html

    require_own_folder(folder, name, force=force)
    page = folder / "report.html"
    _require_our_page(page, force=force)
    drawings: list[Drawing] = []
    if pictures:
        # matplotlib loads slowly.
        from .pictures.drawing import draw_all

        require_no_link(folder / "figures")
        drawings = draw_all(pictures, folder / "figures")
    write_text(page, html.render(document, drawings), below=folder)
    write_text(folder / name, json.dumps(content, indent=1) + "\n", below=folder)
    return page
