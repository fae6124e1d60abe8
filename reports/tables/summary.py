"""Summary tables: a row an optimizer, for a pull request or a notebook, and for a terminal."""

from collections.abc import Callable, Sequence
from dataclasses import replace

from ..arithmetic.entries import Entry
from ..arithmetic.findings import Findings
from ..arithmetic.labels import shortened
from ..arithmetic.savings import BASELINE
from ..phrases import throughput_text
from ..units import (
    NOTHING,
    around_text,
    bytes_text,
    factor_text,
    gib_text,
    per_parameter_text,
    percent_text,
    seconds_text,
)
from ..words import phase_name
from .table import Cell, Table, filled, time_cell, unfit_cell

# Narrower terminals leave the per cent to the page.
WIDE = 96
# Narrower ones leave the confidence interval and the throughput there too.
ROOMY = 124

Column = tuple[str, Callable[[Entry], Cell]]


def summary_table(findings: Findings) -> Table:
    """State, factor against the baseline, peak with its phase, and the median step of every
    entry.
    """

    def state(entry: Entry) -> Cell:
        return _text(None if entry.state_bytes is None else bytes_text(entry.state_bytes))

    def peak(entry: Entry) -> Cell:
        if entry.ran_out:
            return unfit_cell(entry)
        size = entry.peak_bytes
        return _text(None if size is None else bytes_text(size, upper=entry.peak_upper))

    columns: list[Column] = [
        ("optimizer", lambda entry: Cell(text=entry.label)),
        ("model", lambda entry: Cell(text=findings.names[entry.setting])),
        ("state", state),
        ("bytes a parameter", _per_parameter),
        (f"smaller than {BASELINE}", _factors(findings)),
        ("peak", peak),
        ("in", lambda entry: Cell(text=_phase(entry) or NOTHING)),
        ("step", _step),
    ]
    return replace(filled(columns, findings.entries), title="Summary")


def terminal_table(findings: Findings, group: Sequence[Entry], width: int) -> Table:
    """The entries of one setting in columns that fit a terminal of this width, from 80 on."""
    wide, roomy = width >= WIDE, width >= ROOMY
    most_letters = 40 if wide else 24
    columns: list[Column] = [
        (
            "optimizer",
            lambda entry: Cell(
                text=shortened(entry.label, most_letters), mark=entry.label, origin=entry.origin
            ),
        ),
        ("state GiB", _state_gib),
        ("B/param", _per_parameter),
        (f"vs {BASELINE}", _factors(findings)),
    ]
    columns += [("saved", _shares(findings))] if wide else []
    columns += [
        ("peak GiB", _peak_gib),
        ("in", lambda entry: Cell(text=_phase(entry))),
        ("step", _step),
    ]
    if roomy and any(entry.step and entry.step.interval for entry in group):
        columns.append(("95 %", _interval))
    if roomy and any(_throughput(entry).text != NOTHING for entry in group):
        columns.append(("training", _throughput))
    gpu = next(
        (entry.estimate.gpu for entry in group if entry.estimate and not entry.ran_out), None
    )
    columns += [(f"on {gpu}", _estimate)] if gpu else []
    return filled(columns, group)


def _text(text: str | None) -> Cell:
    """A number as text."""
    return Cell(text=text or NOTHING, number=True)


def _state_gib(entry: Entry) -> Cell:
    return _text(None if entry.state_bytes is None else gib_text(entry.state_bytes))


def _per_parameter(entry: Entry) -> Cell:
    value = entry.bytes_per_parameter
    return _text(None if value is None else per_parameter_text(value))


def _factors(findings: Findings) -> Callable[[Entry], Cell]:
    savings = {id(saving.entry): saving for saving in findings.savings}

    def factor(entry: Entry) -> Cell:
        saving = savings.get(id(entry))
        return _text(saving and factor_text(1 if saving.is_baseline else saving.factor))

    return factor


def _shares(findings: Findings) -> Callable[[Entry], Cell]:
    savings = {id(saving.entry): saving for saving in findings.savings if not saving.is_baseline}

    def share(entry: Entry) -> Cell:
        saving = savings.get(id(entry))
        return _text(saving and percent_text(saving.saved_bytes, saving.baseline_bytes))

    return share


def _peak_gib(entry: Entry) -> Cell:
    if entry.ran_out:
        return unfit_cell(entry)
    if entry.memory is None or entry.peak_bytes is None:
        return _text(None)
    return _text(gib_text(entry.peak_bytes, upper=entry.peak_upper))


def _phase(entry: Entry) -> str:
    if entry.memory is None or entry.peak_bytes is None:
        return ""
    return phase_name(entry.memory.peak_phase)


def _step(entry: Entry) -> Cell:
    return time_cell(entry.times_from) if entry.times_from else _text(None)


def _interval(entry: Entry) -> Cell:
    """The reach of the 95 % confidence interval on both sides of the median."""
    if entry.step is None or entry.step.interval is None:
        return _text(None)
    interval = entry.step.interval
    return _text(around_text(interval.lower, entry.step.median, interval.upper))


def _throughput(entry: Entry) -> Cell:
    return _text(throughput_text(entry.times_from) if entry.times_from else None)


def _estimate(entry: Entry) -> Cell:
    # A step that does not fit takes no time.
    if entry.estimate is None or entry.ran_out:
        return _text(None)
    return _text(f"~{seconds_text(entry.estimate.seconds)}")
