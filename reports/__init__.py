"""Reports: what a run found, as a page, pictures and tables. Reads records and nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from profiler.fits import Fit

__all__ = ["run_markdown", "write_figure", "write_fit_page", "write_report"]

# What a report writes into a run's folder.
OUTPUTS = ("report.html", "records.csv", "records.json", "figures", "tensorboard")

# A page of 10,000 records has 80 MB, and no browser opens it.
MOST_ON_PAGE = 1_000


def write_report(folder: Path, *, tensorboard: bool = False, style: str = "paper") -> Path:
    """Write `report.html`, `figures/`, `records.csv` and `records.json` beside a run's records; returns the page's path.

    Of more than MOST_ON_PAGE records the page and the pictures show the first, and say so.
    `tensorboard` writes event files below `tensorboard/` too, which takes the package of that name; `style` is "paper" or "slides".
    ValueError for a run without records, another style, and a symbolic link where something is to be written; FileNotFoundError for a
    folder that is no run, another OSError when it cannot be written.
    """
    from profiler.running.resume import standing
    from profiler.store import RunStore

    store = RunStore(folder)
    records = standing(store.read())
    timelines = store.read_timelines(records)
    _refuse_links(folder)

    # matplotlib takes its time to load, and nothing but a report wants it.
    from .figures import draw_all, style_named
    from .page import render_page

    page, chosen = folder / "report.html", style_named(style)
    try:
        shown = records[:MOST_ON_PAGE]
        drawings = draw_all(shown, folder / "figures", timelines, chosen)
        page.write_text(render_page(shown, drawings, timelines, total=len(records)), encoding="utf-8")
        store.write_csv(records)
        lines = ",\n".join(record.to_json() for record in records)
        (folder / "records.json").write_text(f"[\n{lines}\n]\n", encoding="utf-8")
        if tensorboard:
            from .tensorboard import write_tensorboard

            write_tensorboard(records, drawings, folder / "tensorboard")
    except OSError as error:
        # A full disk alone would not say which.
        raise OSError(error.errno, error.strerror, error.filename or str(folder)) from error
    return page


def run_markdown(folder: Path) -> str:
    """The summary of a run as a Markdown table; ValueError for a run without records, FileNotFoundError for a folder that is no run."""
    from profiler.running.resume import standing
    from profiler.store import RunStore

    from .markdown import lean, run_markdown

    return run_markdown(standing(RunStore(folder).read(lean)))


def write_figure(folder: Path, name: str, *, style: str = "paper") -> list[Path]:
    """Write one picture of a run that no report has into its `figures/`, as PNG and SVG; returns the paths.

    The only one is "sgd-sai-4", the SGD-SaI paper's figure beside the run's records. ValueError for another name or style, and for a run
    that has nothing to draw it from.
    """
    from profiler.running.resume import standing
    from profiler.store import RunStore

    from .arithmetic.reproduction import COMMAND
    from .figures import draw_published, style_named, write_drawing
    from .figures.published import NAME

    if name != NAME:
        raise ValueError(f"no figure is named {name!r}; there is {NAME}")
    records, chosen = standing(RunStore(folder).read()), style_named(style)
    _refuse_links(folder)
    drawing = draw_published(records, chosen)
    if drawing is None:
        raise ValueError(f"the run has none of the states that {NAME} shows; this gives them: {COMMAND}")
    return write_drawing(drawing, folder / "figures")


def _refuse_links(folder: Path) -> None:
    """ValueError for a symbolic link where a report writes: it would write over what lies outside of the run."""
    for path in (*(folder / name for name in OUTPUTS), *(folder / "figures").glob("*")):
        if path.is_symlink():
            raise ValueError(f"{path} is a symbolic link, and a report writes into its run alone; remove the link")


def write_fit_page(fits: "Sequence[Fit]", folder: Path, command: Sequence[str]) -> Path:
    """Write `report.html` and `fits.json` into the folder, over older ones; returns the page's path. ValueError for no answers."""
    import json

    from .fitting.page import render_fit_page

    folder.mkdir(parents=True, exist_ok=True)
    page = folder / "report.html"
    page.write_text(render_fit_page(fits, command), encoding="utf-8")
    (folder / "fits.json").write_text(json.dumps([fit.to_dict() for fit in fits], indent=1) + "\n", encoding="utf-8")
    return page
