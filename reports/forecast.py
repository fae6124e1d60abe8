"""Forecasts: the memory of each scenario of a sweep, and the time that all of them take."""

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING

from .arithmetic.labels import OptimizerKey, labels, optimizer_key, shortened
from .document import Document, Note, Section
from .tables.table import Cell, Table
from .units import NOTHING, bytes_text
from .words import DEVICES

if TYPE_CHECKING:
    from optprof.profiler.running.forecast import Forecast
    from optprof.scenarios import Scenario

NOTE = (
    "Memory is simulated for CUDA. Times are those of the simulations and the limits of measuring;"
    " loading, watched iterations, traces and work in progress at a limit add to them."
)
# These have columns of their own, or none.
_SHOWN = ("model", "optimizer", "options", "device")


def forecast_document(forecasts: "Sequence[Forecast]") -> Document:
    """A row for each scenario, the scenarios that failed, and the sum of all times."""
    varied = _varied([each.scenario for each in forecasts])
    names = labels([each.record for each in forecasts])
    head = ("model", "optimizer", "device", *varied, "reserved", "seconds")
    table = Table(head=head, rows=tuple(_row(each, varied, names) for each in forecasts))
    failed = (
        Note(
            f"{each.record.outcome}: {_optimizer(each)} on {each.scenario.model}:"
            f" {each.record.error}",
            "failed",
        )
        for each in forecasts
        if each.record.outcome != "ok"
    )
    seconds = [each.seconds for each in forecasts if each.seconds is not None]
    unknown = len(forecasts) - len(seconds)
    plural = "" if unknown == 1 else "s"
    runs = f", and {unknown} training run{plural} of unknown length" if unknown else ""
    total = f"{len(forecasts)} scenarios, about {sum(seconds):.0f} s{runs}"
    return Document(
        sections=[
            Section(blocks=[table, *failed]),
            Section(blocks=[Note(total), Note(NOTE)]),
        ]
    )


def _row(
    forecast: "Forecast", varied: Sequence[str], names: Mapping[OptimizerKey, str]
) -> tuple[Cell, ...]:
    scenario, seconds = forecast.scenario, forecast.seconds
    reserved = NOTHING
    if forecast.peak_bytes is not None:
        reserved = bytes_text(forecast.peak_bytes, upper=forecast.peak_upper)
    texts = (
        scenario.model,
        shortened(names[optimizer_key(forecast.record.scenario)], 32),
        DEVICES[scenario.device],
        *(_text(getattr(scenario, name)) for name in varied),
    )
    return (
        *(Cell(text=text) for text in texts),
        Cell(text=reserved, number=True),
        Cell(text="unknown" if seconds is None else f"{seconds:.1f}", number=True),
    )


def _text(value: object) -> str:
    return NOTHING if value is None else str(value)


def _varied(scenarios: "Sequence[Scenario]") -> list[str]:
    """The fields by which the scenarios differ, except those with a column of their own."""
    names = [field.name for field in fields(scenarios[0])] if scenarios else []
    return [
        name
        for name in names
        if name not in _SHOWN and len({str(getattr(each, name)) for each in scenarios}) > 1
    ]


def _optimizer(forecast: "Forecast") -> str:
    options = ",".join(f"{name}={value}" for name, value in forecast.scenario.options.items())
    return forecast.scenario.optimizer + (f":{options}" if options else "")
