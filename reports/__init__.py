"""Reports: what a run found, as a page, pictures and tables. Reads records and nothing else."""

from pathlib import Path

__all__ = ["write_report"]


def write_report(folder: Path) -> Path:
    """Write `report.html`, `figures/*.png` and `records.csv` beside a run's records; returns the page's path.

    ValueError for a run without records, FileNotFoundError for a folder that is no run, another OSError when it cannot be written.
    """
    from profiler.store import RunStore

    store = RunStore(folder)
    records = store.read()
    timelines = store.read_timelines(records)

    # matplotlib takes its time to load, and nothing but a report wants it.
    from .figures import draw_all
    from .page import render_page

    page = folder / "report.html"
    try:
        page.write_text(render_page(records, draw_all(records, folder / "figures", timelines), timelines), encoding="utf-8")
        store.write_csv(records)
    except OSError as error:
        # A full disk alone would not say which.
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    return page
