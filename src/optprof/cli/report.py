"""optprof report: draw the report of a run."""

from typing import Annotated

import typer

from .options import Anonymous, Baseline, Markdown, Replace, RunFolder, TensorBoard
from .running import expect_many_records, run_folder, say_files


def report(
    run: RunFolder,
    *,
    markdown: Markdown = False,
    tensorboard: TensorBoard = False,
    style: Annotated[
        str, typer.Option(help="What pictures are for: paper (a column wide) or slides.")
    ] = "paper",
    figure: Annotated[
        str | None,
        typer.Option(
            help=(
                "Draw this picture alone: sgd-sai-4, the SGD-SaI paper's figure with these records."
            )
        ),
    ] = None,
    baseline: Baseline = None,
    anonymous: Anonymous = False,
    force: Replace = False,
) -> None:
    """Draw the report of a run again from its records."""
    from optprof.reports import run_markdown, write_figure, write_report

    expect_many_records()
    folder = run_folder(run)
    if markdown:
        print(run_markdown(folder, anonymous=anonymous, baseline=baseline))
    elif figure:
        print(*write_figure(folder, figure, style=style), sep="\n")
    else:
        print(
            write_report(
                folder,
                tensorboard=tensorboard,
                style=style,
                force=force,
                anonymous=anonymous,
                baseline=baseline,
            )
        )
        say_files(folder)
