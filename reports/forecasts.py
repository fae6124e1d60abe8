"""Forecasts: what a sweep would run, what each scenario would hold and how long all of it takes."""

from collections.abc import Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, TextIO

from rich.table import Table
from rich.text import Text

from .arithmetic.labels import shortened
from .streams import console_on
from .units import NOTHING, gib_text
from .words import DEVICES

if TYPE_CHECKING:
    from optprof.profiler.running.forecast import Forecast
    from optprof.scenarios import Scenario


def render_forecasts(
    forecasts: "Sequence[Forecast]", output: TextIO, *, width: int | None = None
) -> None:
    """Print a row for each scenario, and the sum of their times."""
    console = console_on(output, width=width)
    table = Table(box=None, pad_edge=False, header_style="dim")
    varied = _varied([each.scenario for each in forecasts])
    for name in ("model", "optimizer", "device", *varied):
        table.add_column(name, overflow="fold")
    for name in ("reserved GiB", "seconds"):
        table.add_column(name, justify="right", no_wrap=True)
    for each in forecasts:
        scenario = each.scenario
        reserved = NOTHING
        if each.peak_bytes is not None:
            reserved = gib_text(each.peak_bytes, upper=each.peak_upper)
        values = (str(getattr(scenario, name)) for name in varied)
        texts = (scenario.model, shortened(_optimizer(each), 32), DEVICES[scenario.device], *values)
        table.add_row(
            *map(Text, texts),
            reserved,
            "unknown" if each.seconds is None else f"{each.seconds:.1f}",
        )
    console.print(table)
    for each in forecasts:
        if each.record.outcome != "ok":
            console.print(
                Text(
                    f"{each.record.outcome}: {_optimizer(each)} on {each.scenario.model}:"
                    f" {each.record.error}",
                    style="red",
                )
            )
    console.print()
    known = [each.seconds for each in forecasts if each.seconds is not None]
    courses = f", and courses: {len(forecasts) - len(known)}" if len(known) < len(forecasts) else ""
    console.print(Text(f"{len(forecasts)} scenarios, {sum(known):.0f} s{courses}", style="dim"))
    console.print(
        Text(
            "memory simulated for CUDA; times are those of these simulations and the harness's"
            " limits;",
            style="dim",
        )
    )
    console.print(
        Text(
            "loading, watched iterations, traces and what is under way at a limit come on top",
            style="dim",
        )
    )


def _varied(scenarios: "Sequence[Scenario]") -> list[str]:
    """The fields that tell the scenarios apart, beside those that have a column of their own."""
    names = [field.name for field in fields(scenarios[0])] if scenarios else []
    shown = ("model", "optimizer", "options", "device")
    return [
        name
        for name in names
        if name not in shown and len({str(getattr(each, name)) for each in scenarios}) > 1
    ]


def _optimizer(forecast: "Forecast") -> str:
    options = ",".join(f"{name}={value}" for name, value in forecast.scenario.options.items())
    return forecast.scenario.optimizer + (f":{options}" if options else "")
