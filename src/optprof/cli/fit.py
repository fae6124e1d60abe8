"""optprof fit: find the GPUs that a training step fits on."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from optprof.library import OPTIMIZERS
from optprof.reports.progress import busy, progress
from optprof.reports.streams import results_on_stdout, say

from .names import gpu_names, model_names
from .options import Anonymous, AsJson, Optimizers, Replace
from .running import RUNS, SOME_FAILED, run_name, see_own_code

if TYPE_CHECKING:
    from optprof.profiler.records.fits import RankSearch


def fit(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL",
            help="A name from `optprof list models`, or module:factory.",
            autocompletion=model_names,
        ),
    ],
    optimizers: Optimizers = OPTIMIZERS,
    gpu: Annotated[
        str | None,
        typer.Option(
            metavar="NAMES",
            help="Names from `optprof list gpus`, as in rtx3090,a100-80.",
            show_default="all",
            autocompletion=gpu_names,
        ),
    ] = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="NUMBERS",
            help=(
                "Numbers of ranks that share the work by --parallel, as in 1,2,4,8: find the fewest"
                " GPUs that are enough. One number asks about that one alone."
            ),
            show_default="1, and with --parallel 1,2,4,8,16,32,64",
        ),
    ] = None,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the page.", show_default="runs/MODEL-fit")
    ] = None,
    force: Replace = False,
    as_json: AsJson = False,
    anonymous: Anonymous = False,
    **fields: Any,
) -> None:
    """Show on which GPUs a training step fits, with which batch, and what would make it fit."""
    from optprof.optimizers import parse_list
    from optprof.profiler.records.fits import needs
    from optprof.profiler.running.names import require_names
    from optprof.scenarios import hardware

    gpus = list(dict.fromkeys(gpu.split(","))) if gpu else list(hardware.available())
    for name in gpus:
        hardware.describe(name)
    # Before torch is loaded.
    search = _search(ranks, fields)
    require_names([model], parse_list(optimizers), fields)
    with results_on_stdout() as stdout:
        see_own_code(f"{model},{optimizers}")
        with busy("loading torch"):
            from optprof.profiler.running.plan import plan
        from optprof.profiler.records.privacy import disclosed_command, disclosed_fit
        from optprof.profiler.safety.disk import require_own_folder
        from optprof.profiler.simulating.fitting import Fitting
        from optprof.profiler.simulating.fitting_ranks import fit_ranks, on_ranks
        from optprof.reports import FITS, print_fits, write_fit_page

        question = {**fields, "model": model, "device": "sim"}
        scenarios = plan({**question, "optimizer": spec} for spec in parse_list(optimizers))
        scenarios = [replace(scenario, gpu=name) for name in gpus for scenario in scenarios]
        folder = out.expanduser() if out else RUNS / f"{run_name(model)}-fit"
        require_own_folder(folder, FITS, force=force)
        if search is None:
            with progress(scenarios) as shown:
                fits = Fitting().fit_all(scenarios, shown.started)
        else:
            groups = {
                count: [on_ranks(scenario, count, search.parallel) for scenario in scenarios]
                for count in search.counts
            }
            with progress([each for group in groups.values() for each in group]) as shown:
                fits = fit_ranks(groups, shown.started)
        fits = [disclosed_fit(each, anonymous=anonymous) for each in fits]
        words = disclosed_command(["optprof", *sys.argv[1:]], anonymous=anonymous)
        page = write_fit_page(fits, folder, words, search=search, force=force)
        failed = sorted({each.scenario.optimizer for each in fits if each.error})
        failure = f"not simulated: {', '.join(failed)}"
        if as_json:
            content: dict[str, Any] = {
                "report": str(page),
                "fits": [each.to_dict() for each in fits],
            }
            if search is not None:
                content["needs"] = [each.to_dict() for each in needs(fits)]
            content |= {"error": failure, "status": SOME_FAILED} if failed else {}
            print(json.dumps(content, indent=1), file=stdout)
        else:
            print_fits(fits, stdout, search=search)
    say(f"report: {page}\nalso in {folder}: {FITS}{', figures' if search else ''}")
    if failed:
        print(f"{failure}; the report says why", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)


def _search(ranks: str | None, fields: dict[str, Any]) -> "RankSearch | None":
    """Return the search over several numbers of ranks; one number becomes a field of the step.

    ValueError for a text that is no list of numbers, and for ranks that the way does not take.
    """
    from optprof.profiler.records.fits import USUAL_RANKS, RankSearch
    from optprof.scenarios.parallel import WAYS, read_parallel, require_ranks
    from optprof.scenarios.spec import MOST_RANKS

    parallel = fields.get("parallel")
    if parallel is not None:
        read_parallel(parallel)
    if ranks is None and parallel is None:
        return None
    counts = sorted(_counts(ranks, MOST_RANKS)) if ranks is not None else list(USUAL_RANKS)
    if len(counts) == 1:
        fields["ranks"] = counts[0]
        return None
    if parallel is None:
        raise ValueError(f"several ranks need a way to share the work; add --parallel: {WAYS}")
    if fields.get("rank"):
        raise ValueError(
            "--rank goes with one number of --ranks; a search over several looks at the rank that"
            " holds the most"
        )
    left_out: dict[int, str] = {}
    for count in counts:
        try:
            require_ranks(parallel, count, 0)
        except ValueError as error:
            left_out[count] = str(error)
    possible = tuple(count for count in counts if count not in left_out)
    if not possible:
        raise ValueError(next(iter(left_out.values())))
    # The scenarios of each number are made of these.
    del fields["parallel"]
    return RankSearch(parallel=parallel, counts=possible, left_out=left_out)


def _counts(text: str, most: int) -> set[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= most for part in parts):
        raise ValueError(f"--ranks takes numbers from 1 to {most:,}, as in 1,2,4,8; got {text!r}")
    return {int(part) for part in parts}
