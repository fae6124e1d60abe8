"""optprof profile: measure and simulate optimizers on models."""

from pathlib import Path
from typing import Annotated, Any

import typer

from optprof.library import OPTIMIZERS
from optprof.reports.progress import busy

from .names import model_names
from .options import Optimizers, RunOptions
from .running import run_all, session


def profile(
    models: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL",
            help="Names from `optprof list models`, or module:factory.",
            autocompletion=model_names,
        ),
    ],
    optimizers: Optimizers = OPTIMIZERS,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/MODEL")
    ] = None,
    options: RunOptions,
    **fields: Any,
) -> None:
    """Simulate and measure optimizers on models, and write a report."""
    from optprof.optimizers import parse_list
    from optprof.profiler.running.names import require_names

    # Before torch is loaded.
    require_names(models, parse_list(optimizers), fields)
    with session(",".join([*models, optimizers]), options, models) as (worker, stdout):
        from optprof.profiler.running.plan import comparison, plan

        with busy("checking the scenarios"):
            scenarios = plan(comparison(models, optimizers, **fields))
        run_all(scenarios, "+".join(dict.fromkeys(models)), out, options, worker, stdout)
