"""optprof history: one figure over many runs, in the order of their times."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .compare import command_line
from .options import AcrossMachines, Anonymous, AsJson, Markdown, Threshold
from .running import RUNS, expect_many_records, run_folder


def history(
    folders: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="FOLDER", help="Folders of runs, or single runs.", show_default=str(RUNS)
        ),
    ] = None,
    *,
    metric: Annotated[
        str,
        typer.Option(
            "--metric",
            "-m",
            metavar="METRIC",
            help="The figure: state, peak, reserved, step or another that `compare` shows.",
        ),
    ] = "state",
    threshold: Threshold = "5%",
    across_machines: AcrossMachines = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the history as a page too.")
    ] = None,
    figures: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER", help="Write the picture as PNG and SVG into this folder too."
        ),
    ] = None,
    anonymous: Anonymous = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Show one figure over many runs and commits, and the runs in which it got worse."""
    if markdown and as_json:
        raise ValueError("--markdown and --json both write to stdout; give one of them")
    from optprof.reports.comparison.gate import per_cent
    from optprof.reports.comparison.history import read_history
    from optprof.reports.comparison.history_document import (
        print_history,
        write_figures,
        write_json,
        write_page,
    )

    expect_many_records()
    named = folders or [RUNS]
    past = read_history(
        [*map(run_folder, folders or [])] or [RUNS],
        metric,
        threshold=per_cent(threshold),
        across_machines=across_machines,
        anonymous=anonymous,
    )
    if html:
        write_page(past, html, command_line(named, anonymous=anonymous))
        print(f"report: {html}", file=sys.stderr)
    for path in write_figures(past, figures) if figures else []:
        print(f"picture: {path}", file=sys.stderr)
    if as_json:
        write_json(past, sys.stdout)
    else:
        print_history(past, sys.stdout, as_markdown=markdown)
