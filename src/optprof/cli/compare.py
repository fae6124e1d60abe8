"""optprof compare: compare runs with the first of them, and stop at gates."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from .options import AcrossMachines, Anonymous, AsJson, Markdown, Threshold
from .running import expect_many_records, run_folder

if TYPE_CHECKING:
    from optprof.reports.comparison.comparing import Comparing

REFUSED = 2
GATE_STOPPED = 3
# Neither a failure of the change nor a mistake in the request: measuring again may answer.
NOT_JUDGED = 5


def compare(
    runs: Annotated[
        list[Path],
        typer.Argument(
            metavar="A B",
            help="Runs or folders of runs; each is compared with the first.",
        ),
    ],
    *,
    only: Annotated[
        str | None,
        typer.Option(metavar="regressed", help="Show only what got worse.", show_default="all"),
    ] = None,
    fail_on: Annotated[
        list[str] | None,
        typer.Option(
            help=(
                "Exit with 3 if this grew, as in 'state>0', 'peak>1%', 'step>5%', and with 5 if"
                " that cannot be judged, as of a noisy time; may be repeated."
            ),
            metavar="GATE",
        ),
    ] = None,
    threshold: Threshold = "5%",
    across_machines: AcrossMachines = False,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the comparison as a page too.")
    ] = None,
    anonymous: Anonymous = False,
    markdown: Markdown = False,
    as_json: AsJson = False,
) -> None:
    """Show what changed between runs: bytes exactly, times beyond their noise."""
    if len(runs) < 2:
        raise ValueError(f"a comparison needs two runs or more, got only {runs[0]}")
    if only not in (None, "regressed"):
        raise ValueError(f"--only takes regressed, got {only!r}")
    if markdown and as_json:
        raise ValueError("--markdown and --json both write to stdout; give one of them")
    from optprof.reports.comparison.comparing import Comparing

    expect_many_records()
    before, after, *more = map(run_folder, runs)
    comparing = Comparing.of(
        before,
        after,
        fail_on or [],
        more=more,
        threshold=threshold,
        across_machines=across_machines,
        anonymous=anonymous,
    )
    if html:
        comparing.write_page(
            html, command_line(runs, anonymous=anonymous), only_regressed=bool(only)
        )
        print(f"report: {html}", file=sys.stderr)
    if as_json:
        comparing.write_json(sys.stdout, only_regressed=bool(only))
    elif markdown:
        print(comparing.markdown(only_regressed=bool(only)))
    else:
        comparing.render(sys.stdout, only_regressed=bool(only))
    _end(comparing, shows_reason=not (as_json or markdown))


def command_line(runs: Sequence[Path], *, anonymous: bool) -> list[str]:
    """Return the words of this command for its page; letters stand for runs of an anonymous one."""
    from optprof.profiler.records.privacy import disclosed_command

    letters = {str(run): chr(ord("A") + number % 26) for number, run in enumerate(runs)}
    words = [letters.get(word, word) if anonymous else word for word in sys.argv[1:]]
    return disclosed_command(["optprof", *words], anonymous=anonymous)


def _end(comparing: "Comparing", *, shows_reason: bool) -> None:
    """Say on stderr what the gates found, and exit with a status unless all passed."""
    if comparing.disjoint:
        if not shows_reason:
            print(f"optprof: {comparing.disjoint}", file=sys.stderr)
        raise typer.Exit(REFUSED)
    if comparing.stopped:
        print(f"stopped by a gate: {len(comparing.stopped)}", file=sys.stderr)
    if comparing.left_open:
        print(f"not judged by a gate: {len(comparing.left_open)}", file=sys.stderr)
    if comparing.unjudged:
        # The newest record may be among what cannot be read.
        more = f", and {len(comparing.unjudged) - 1} more" if len(comparing.unjudged) > 1 else ""
        print(
            f"stopped by every gate, because it cannot be read: {comparing.unjudged[0]}{more}",
            file=sys.stderr,
        )
    if comparing.stopped or comparing.unjudged:
        raise typer.Exit(GATE_STOPPED)
    if comparing.left_open:
        raise typer.Exit(NOT_JUDGED)
