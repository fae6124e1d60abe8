"""optprof fit: find the GPUs that a training step fits on."""

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from optprof.library import OPTIMIZERS
from optprof.reports.progress import busy, progress
from optprof.reports.streams import results_on_stdout, say

from .names import gpu_names, model_names
from .options import Anonymous, AsJson, Optimizers, Replace
from .running import RUNS, SOME_FAILED, run_name, see_own_code


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
    from optprof.profiler.running.names import require_names
    from optprof.scenarios import hardware

    gpus = list(dict.fromkeys(gpu.split(","))) if gpu else list(hardware.available())
    for name in gpus:
        hardware.describe(name)
    # Before torch is loaded.
    require_names([model], parse_list(optimizers), fields)
    with results_on_stdout() as stdout:
        see_own_code(f"{model},{optimizers}")
        with busy("loading torch"):
            from optprof.profiler.running.plan import plan
        from optprof.profiler.records.privacy import disclosed_command, disclosed_fit
        from optprof.profiler.safety.disk import require_own_folder
        from optprof.profiler.simulating.fitting import Fitting
        from optprof.reports import FITS, print_fits, write_fit_page

        question = {**fields, "model": model, "device": "sim"}
        scenarios = plan({**question, "optimizer": spec} for spec in parse_list(optimizers))
        scenarios = [replace(scenario, gpu=name) for name in gpus for scenario in scenarios]
        folder = out.expanduser() if out else RUNS / f"{run_name(model)}-fit"
        require_own_folder(folder, FITS, force=force)
        with progress(scenarios) as shown:
            fits = Fitting().fit_all(scenarios, shown.started)
        fits = [disclosed_fit(each, anonymous=anonymous) for each in fits]
        words = disclosed_command(["optprof", *sys.argv[1:]], anonymous=anonymous)
        page = write_fit_page(fits, folder, words, force=force)
        failed = sorted({each.scenario.optimizer for each in fits if each.error})
        failure = f"not simulated: {', '.join(failed)}"
        if as_json:
            content: dict[str, Any] = {
                "report": str(page),
                "fits": [each.to_dict() for each in fits],
            }
            content |= {"error": failure, "status": SOME_FAILED} if failed else {}
            print(json.dumps(content, indent=1), file=stdout)
        else:
            print_fits(fits, stdout)
    say(f"report: {page}\nalso in {folder}: {FITS}")
    if failed:
        print(f"{failure}; the report says why", file=sys.stderr)
        raise typer.Exit(SOME_FAILED)
