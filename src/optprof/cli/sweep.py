"""optprof sweep: run the scenarios of a suite."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from optprof.reports.progress import progress

from .names import suite_names
from .options import RunOptions
from .running import run_all, session

if TYPE_CHECKING:
    from optprof.profiler.running.worker import Worker
    from optprof.scenarios import Scenario


def sweep(
    suite: Annotated[
        str,
        typer.Argument(
            metavar="SUITE",
            help="A name from `optprof list suites`, or a file that ends in .toml.",
            autocompletion=suite_names,
        ),
    ],
    *,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the scenarios, their memory and the time they take; run nothing.",
        ),
    ] = False,
    allow: Annotated[
        list[str] | None,
        typer.Option(
            metavar="MODULE:NAME", help="Code of your own that the suite may run; may be repeated."
        ),
    ] = None,
    on: Annotated[
        str | None,
        typer.Option(
            metavar="CLUSTER",
            help="Run on a Ray cluster: ray (this machine), ray://HOST:PORT or HOST:PORT.",
            show_default="no cluster",
        ),
    ] = None,
    retries: Annotated[
        int | None,
        typer.Option(
            help="With --on: runs again whose worker or node has died, at most N times each.",
            show_default="0",
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the run.", show_default="runs/SUITE")
    ] = None,
    options: RunOptions,
) -> None:
    """Run a suite: models x optimizers x options, as a file lists them."""
    from optprof.scenarios import suites

    # Before torch is loaded.
    loaded = suites.load(suite)
    models = sorted({question["model"] for question in loaded.questions})
    if retries is not None and on is None:
        raise ValueError("--retries is for a cluster; name one with --on")
    from optprof.profiler.running.cluster import connected, has_cuda, require_retries

    tries = require_retries(retries or 0)
    connection = nullcontext() if on is None or dry_run else connected(on)
    with (
        connection as ray,
        session(",".join(allow or ()), options, models, is_here=ray is None) as (worker, stdout),
    ):
        from optprof.profiler.running.plan import plan_suite

        scenarios = plan_suite(loaded, allow or (), has_cuda=ray and has_cuda(ray))
        if dry_run and worker:
            _forecast(scenarios, worker, stdout, options.timeout)
        else:
            run_all(scenarios, loaded.name, out, options, worker, stdout, ray=ray, retries=tries)


def _forecast(
    scenarios: "Sequence[Scenario]", worker: "Worker", stdout: TextIO, timeout: float | None
) -> None:
    from optprof.profiler.measuring.measurement import to_simulate
    from optprof.profiler.records.store import RunStore
    from optprof.profiler.running.forecast import forecast
    from optprof.profiler.running.runner import Runner
    from optprof.reports import print_forecasts

    with TemporaryDirectory() as folder, progress(scenarios) as shown:
        runner = Runner(worker=worker, store=RunStore(Path(folder)), timeout=timeout)
        forecasts = forecast(
            scenarios,
            lambda scenario: runner.find(
                scenario if scenario.device == "sim" else to_simulate(scenario)
            ),
            shown.started,
        )
    print_forecasts(forecasts, stdout)
