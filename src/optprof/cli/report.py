"""optprof report: draw the report of a run."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .names import run_names
from .options import Anonymous, Baseline, Markdown, Replace, TensorBoard
from .running import expect_many_records, run_folder, say_files


def report(
    run: Annotated[
        Path,
        typer.Argument(
            metavar="RUN",
            help=(
                "Folder of a run, or its name in runs/; with --trace also a file of torch.profiler."
            ),
            autocompletion=run_names,
        ),
    ],
    *,
    trace: Annotated[
        bool,
        typer.Option(
            "--trace",
            help=(
                "Draw a page about torch.profiler's traces: the time of each phase, operators,"
                " kernels, memory and recommendations."
            ),
        ),
    ] = False,
    markdown: Markdown = False,
    tensorboard: TensorBoard = False,
    style: Annotated[
        str,
        typer.Option(
            metavar="STYLE", help="Size of the pictures: paper (a column wide) or slides."
        ),
    ] = "paper",
    figure: Annotated[
        str | None,
        typer.Option(
            help=(
                "Draw this picture alone: sgd-sai-4, the SGD-SaI paper's figure with these records."
            ),
            metavar="NAME",
        ),
    ] = None,
    baseline: Baseline = None,
    anonymous: Anonymous = False,
    force: Replace = False,
) -> None:
    """Draw the report of a run again from its records."""
    from optprof.reports import (
        print_trace,
        read_traces,
        run_markdown,
        write_figure,
        write_report,
        write_trace,
    )

    expect_many_records()
    folder = run_folder(run)
    others = {"--markdown": markdown, "--figure": figure, "--tensorboard": tensorboard}
    if trace and any(others.values()):
        chosen = ", ".join(name for name, value in others.items() if value)
        raise ValueError(f"--trace draws a page of its own; leave out {chosen}")
    if folder.exists() and not folder.is_dir() and not trace:
        raise ValueError(f"{folder} is a file and no run; --trace draws a trace")
    if trace:
        traces = read_traces(folder, anonymous=anonymous)
        print_trace(traces, sys.stdout)
        paths = write_trace(traces, folder, style=style, force=force)
        print(f"\npage: {paths[0]}; pictures: {paths[1].parent}")
    elif markdown:
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
