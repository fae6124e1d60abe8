"""Reports: what a run found, as a page, pictures and tables. Reads records and nothing else."""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from optprof.profiler.safety.disk import (
    open_to_read,
    require_no_link,
    require_own_folder,
    write_text,
    writing,
)

if TYPE_CHECKING:
    from optprof.profiler.records.fits import Fit
    from optprof.profiler.records.record import Record
    from optprof.profiler.records.store import RunStore

__all__ = ["run_markdown", "write_figure", "write_fit_page", "write_report"]

# What a report writes into a run's folder.
OUTPUTS = ("report.html", "records.csv", "records.json", "figures", "tensorboard")
# What a folder of fits is known by.
FITS = "fits.json"
# The pages of optprof say so in their heads; those of its first versions have these titles.
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
) -> Path:
    """Write `report.html`, `figures/`, `records.csv` and `records.json` beside a run's records;
    returns the page's path.

    Of more than MOST_ON_PAGE records the page and the pictures show the first, and say so.
    `tensorboard` writes event files below `tensorboard/` too, which takes the package of that name;
    `style` is "paper" or "slides". What is `anonymous` leaves out machine and paths; the run's
    records stay as they are. Each file takes its name when it is whole. ValueError for a run
    without records, another style, and a symbolic link where something is to be written;
    FileNotFoundError for a folder that is no run, FileExistsError for a page there that is not
    optprof's unless `force` is given, another OSError when it cannot be written. What cannot be
    read of the run is left out, named on the page, and a DamageWarning.
    """
    from optprof.profiler.records.store import RunStore

    store = RunStore(folder)
    records = _standing(store, anonymous)
    timelines = store.read_timelines(records)
    store.warn()
    # Before anything is drawn; writing looks again.
    for path in (*(folder / name for name in OUTPUTS), *(folder / "figures").glob("*")):
        require_no_link(path)
    _require_our_page(folder / "report.html", force=force)

    # matplotlib takes its time to load, and nothing but a report wants it.
    from .figures import draw_all, style_named
    from .page import render_page

    page, chosen = folder / "report.html", style_named(style)
    try:
        shown = records[:MOST_ON_PAGE]
        drawings = draw_all(shown, folder / "figures", timelines, chosen)
        text = render_page(shown, drawings, timelines, damage=store.damage, total=len(records))
        write_text(page, text, below=folder)
        store.write_csv(records)
        with writing(folder / "records.json", below=folder) as file:
            file.writelines(_json_lines(records))
        if tensorboard:
            from .tensorboard import write_tensorboard

            write_tensorboard(records, drawings, folder / "tensorboard")
    except OSError as error:
        # A full disk alone would not say which.
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    return page


def _json_lines(records: "Sequence[Record]") -> Iterator[bytes]:
    """The records as a JSON list, a line each."""
    yield b"["
    for number, record in enumerate(records):
        yield f"{',' if number else ''}\n{record.to_json()}".encode()
    yield b"\n]\n"


def run_markdown(folder: Path, *, anonymous: bool = False) -> str:
    """The summary of a run as a Markdown table; ValueError for a run without records,
    FileNotFoundError for a folder that is no run.

    A DamageWarning for what cannot be read of it.
    """
    from optprof.profiler.records.store import RunStore

    from .markdown import lean, run_markdown

    store = RunStore(folder)
    records = _standing(store, anonymous, lean)
    store.warn()
    return run_markdown(records)


def _standing(
    store: "RunStore", anonymous: bool, keep: "Callable[[Record], Record] | None" = None
) -> "list[Record]":
    from optprof.profiler.records.privacy import disclosed

    records = store.read_standing(keep)
    return [disclosed(record, anonymous=True) for record in records] if anonymous else records


def write_figure(folder: Path, name: str, *, style: str = "paper") -> list[Path]:
    """Write one picture of a run that no report has into its `figures/`, as PNG and SVG; returns
    the paths.

    The only one is "sgd-sai-4", the SGD-SaI paper's figure beside the run's records. ValueError for
    another name or style, and for a run that has nothing to draw it from.
    """
    from optprof.profiler.records.store import RunStore

    from .arithmetic.reproduction import COMMAND
    from .figures import draw_published, style_named, write_drawing
    from .figures.published import NAME

    if name != NAME:
        raise ValueError(f"no figure is named {name!r}; there is {NAME}")
    store, chosen = RunStore(folder), style_named(style)
    records = store.read_standing()
    store.warn()
    drawing = draw_published(records, chosen)
    if drawing is None:
        raise ValueError(
            f"the run has none of the states that {NAME} shows; this gives them: {COMMAND}"
        )
    return write_drawing(drawing, folder / "figures")


def _require_our_page(page: Path, *, force: bool) -> None:
    """FileExistsError for a file of that name that is no page of optprof."""
    if force or not page.exists():
        return
    with open_to_read(page) as file:
        is_ours = _OURS.search(file.read(_HEAD_BYTES))
    if not is_ours:
        raise FileExistsError(
            f"{page} is not a page of optprof; move it away, or give --force (in Python force=True)"
        )


def write_fit_page(
    fits: "Sequence[Fit]", folder: Path, command: Sequence[str], *, force: bool = False
) -> Path:
    """Write `report.html` and `fits.json` into the folder, over older ones; returns the page's
    path.

    ValueError for no answers, FileExistsError for a folder that holds other files, unless `force`
    is given.
    """
    import json

    from .fitting.page import render_fit_page

    require_own_folder(folder, FITS, force=force)
    page = folder / "report.html"
    _require_our_page(page, force=force)
    write_text(page, render_fit_page(fits, command), below=folder)
    write_text(
        folder / FITS, json.dumps([fit.to_dict() for fit in fits], indent=1) + "\n", below=folder
    )
    return page
