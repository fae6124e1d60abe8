"""optprof compare: compare two runs, and stop at gates."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from .options import Anonymous, AsJson, Markdown
from .running import expect_many_records, run_folder

GATE_STOPPED = 3


def compare(
    before: Annotated[
        Path, typer.Argument(metavar="A", help="A run or a folder of runs: how it was.")
    ],
    after: Annotated[
        Path, typer.Argument(metavar="B", help="A run or a folder of runs: how it is now.")
    ],
    *,
    only: Annotated[
        str | None, typer.Option(help="regressed: show nothing else.", show_default="all")
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Exit with 3 where this grew, as in 'state>0', 'peak>1%', 'step>5%'; can be given"
                " again."
            )
        ),
    ] = None,
    threshold: Annotated[
        str, typer.Option(help="How far from 1 the whole interval of a time's ratio must be.")
    ] = "5%",
    across_machines: Annotated[
        bool, typer.Option("--across-machines", help="Compare times of different machines too.")
    ] = False,
    html: Annotated[Path | None, typer.Option(help="Write the comparison as a page too.")] = None,
    anonymous: Anonymous = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Show what changed from one run to another: bytes exactly, times beyond their noise."""
    if only not in (None, "regressed"):
        raise ValueError(f"--only takes regressed, got {only!r}")
    if markdown and as_json:
        raise ValueError("--markdown and --json both write to stdout; ask for one of them")
    from optprof.profiler.records.privacy import disclosed_command
    from optprof.reports.comparison.comparing import Comparing

    expect_many_records()
    comparing = Comparing.of(
        run_folder(before),
        run_folder(after),
        fail_on or [],
        threshold=threshold,
        across_machines=across_machines,
        anonymous=anonymous,
    )
    if html:
        sides = {str(before): "A", str(after): "B"} if anonymous else {}
        words = ["optprof", *(sides.get(word, word) for word in sys.argv[1:])]
        comparing.write_page(
            html, disclosed_command(words, anonymous=anonymous), only_regressed=bool(only)
        )
        print(f"report: {html}", file=sys.stderr)
    if as_json:
        comparing.write_json(sys.stdout, only_regressed=bool(only))
    elif markdown:
        print(comparing.markdown(only_regressed=bool(only)))
    else:
        comparing.render(sys.stdout, only_regressed=bool(only))
    if comparing.stopped:
        print(f"stopped by a gate: {len(comparing.stopped)}", file=sys.stderr)
    if comparing.unjudged:
        # The newest record may be among what cannot be read.
        more = f", and {len(comparing.unjudged) - 1} more" if len(comparing.unjudged) > 1 else ""
        print(
            f"stopped by every gate, because it cannot be read: {comparing.unjudged[0]}{more}",
            file=sys.stderr,
        )
    if comparing.stopped or comparing.unjudged:
        raise typer.Exit(GATE_STOPPED)
