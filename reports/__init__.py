"""Reports: what a run found, as a page, pictures and tables. Reads records and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.fits import Fit

__all__ = ["run_markdown", "write_fit_page", "write_report"]


def write_report(folder: Path, *, tensorboard: bool = False) -> Path:
    """Write `report.html`, `figures/*.png`, `records.csv` and `records.json` beside a run's records; returns the page's path.

    `tensorboard` writes event files below `tensorboard/` too, which takes the package of that name.
    ValueError for a run without records, FileNotFoundError for a folder that is no run, another OSError when it cannot be written.
    """
    import json

    from profiler.running.resume import standing
    from profiler.store import RunStore

    store = RunStore(folder)
    records = standing(store.read())
    timelines = store.read_timelines(records)

    # matplotlib takes its time to load, and nothing but a report wants it.
    from .figures import draw_all
    from .page import render_page

    page = folder / "report.html"
    try:
        drawings = draw_all(records, folder / "figures", timelines)
        page.write_text(render_page(records, drawings, timelines), encoding="utf-8")
        store.write_csv(records)
        (folder / "records.json").write_text(json.dumps([record.to_dict() for record in records], indent=1) + "\n", encoding="utf-8")
        if tensorboard:
            from .tensorboard import write_tensorboard

            write_tensorboard(records, drawings, folder / "tensorboard")
    except OSError as error:
        # A full disk alone would not say which.
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    return page


def run_markdown(folder: Path) -> str:
    """The summary of a run as a Markdown table; ValueError for a run without records, FileNotFoundError for a folder that is no run."""
    from profiler.store import RunStore

    from .markdown import run_markdown

    return run_markdown(RunStore(folder).read())


def write_fit_page(fits: "Sequence[Fit]", folder: Path, command: Sequence[str]) -> Path:
    """Write `report.html` and `fits.json` into the folder, over older ones; returns the page's path. ValueError for no answers."""
    import json

    from .fit_page import render_fit_page

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render_fit_page(fits, command), encoding="utf-8")
    (folder / "fits.json").write_text(json.dumps([fit.to_dict() for fit in fits], indent=1) + "\n", encoding="utf-8")
    return page
