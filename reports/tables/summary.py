"""Summary tables: a row an optimizer, for a pull request or a notebook, and for a terminal.

Times on a GPU and times on a CPU never share a column.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial

from ..arithmetic.entries import Entry
from ..arithmetic.findings import Findings
from ..arithmetic.labels import shortened
from ..arithmetic.ratios import Ratio
from ..phrases import short_pace_text, throughput_text
from ..units import (
    NOTHING,
    around_text,
    bytes_text,
    factor_text,
    per_parameter_text,
    percent_text,
    seconds_text,
)
from ..words import PLACES, phase_name
from .table import Cell, Table, filled, time_cell, unfit_cell

# Narrower terminals leave the per cent to the page.
WIDE = 96
# Narrower ones leave the confidence interval and the throughput there too.
ROOMY = 124

Column = tuple[str, Callable[[Entry], Cell]]


def summary_table(findings: Findings) -> Table:
    """State, factor against the baseline, peak with its phase, and the step of every entry, in a
    column for each clock.
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
    ]
    if findings.has_savings:
        columns.append((f"smaller than {shortened(findings.baseline)}", _factors(findings)))
    columns += [("peak", peak), ("in", lambda entry: Cell(text=_phase(entry) or NOTHING))]
    columns += [
        (f"step on {gpu}, estimated", partial(_estimate, gpu=gpu))
        for gpu in findings.estimated_gpus
    ]
    columns += [
        (f"step {PLACES[device]}", partial(_step, device=device))
        for device in ("cuda", "cpu")
        if any(map(_on(device), findings.entries))
    ]
    return replace(filled(columns, findings.entries), title="Summary")


def terminal_table(findings: Findings, group: Sequence[Entry], width: int) -> Table:
    """The bytes and the GPU's step of the entries of one setting, in columns that fit a terminal
    of this width, from 80 on.
    """
    wide, roomy = width >= WIDE, width >= ROOMY
    columns = [
        _optimizer(wide, lambda entry: entry.origin),
        ("state", _state),
        ("B/param", _per_parameter),
    ]
    if findings.has_savings:
        columns.append((f"vs {shortened(findings.baseline, 16)}", _factors(findings)))
        columns += [("saved", _shares(findings))] if wide else []
    if any(entry.ran_out or entry.peak_bytes is not None for entry in group):
        columns += [("peak", _peak), ("in", lambda entry: Cell(text=_phase(entry)))]
    gpu = next(
        (entry.estimate.gpu for entry in group if entry.estimate and not entry.ran_out), None
    )
    columns += [(f"step on {gpu}" if wide else f"on {gpu}", _estimate)] if gpu else []
    on_gpu = [entry for entry in group if _on("cuda")(entry)]
    if on_gpu:
        columns.append(("step", partial(_step, device="cuda")))
        columns += _precise(on_gpu) if roomy else []
    return filled(columns, [entry for entry in group if entry.bytes_from or entry in on_gpu])


def cpu_table(findings: Findings, group: Sequence[Entry], width: int) -> Table:
    """The steps of one setting that a CPU took; empty without any.

    A column names the implementations if they differ.
    """
    timed = [entry for entry in group if _on("cpu")(entry)]
    against = {id(entry): ratio for entry, ratio in findings.paces}
    name = _optimizer(
        width >= WIDE, lambda entry: entry.times_from.origin if entry.times_from else entry.origin
    )
    columns = [name, ("step", partial(_step, device="cpu"))]
    if len({_way(entry) for entry in timed}) > 1:
        columns.insert(1, ("run as", lambda entry: Cell(text=_way(entry))))
    if any(id(entry) in against for entry in timed):
        columns.append(
            (f"time vs {shortened(findings.baseline, 16)}", partial(_pace, findings, against))
        )
    return filled([*columns, *_precise(timed)], timed)


def _way(entry: Entry) -> str:
    return entry.times_from.scenario.implementation if entry.times_from else ""


def _optimizer(wide: bool, origin: Callable[[Entry], str]) -> Column:
    most = 40 if wide else 24
    return (
        "optimizer",
        lambda entry: Cell(
            text=shortened(entry.label, most), mark=entry.label, origin=origin(entry)
        ),
    )


def _precise(timed: Sequence[Entry]) -> list[Column]:
    """The column of the throughput, if an entry has one."""
    columns: list[Column] = [("training", _throughput)]
    return [
        (head, cell)
        for head, cell in columns
        if any(cell(entry).text != NOTHING for entry in timed)
    ]


def _on(device: str) -> Callable[[Entry], bool]:
    """Return whether an entry's step was timed on the device."""
    return lambda entry: (
        entry.step is not None
        and entry.times_from is not None
        and entry.times_from.scenario.device == device
    )


def _pace(findings: Findings, against: Mapping[int, Ratio], entry: Entry) -> Cell:
    ratio = against.get(id(entry))
    if ratio is None and entry.scenario.optimizer == findings.baseline:
        return _text(factor_text(1))
    return _text(short_pace_text(ratio) if ratio else None)


def _text(text: str | None) -> Cell:
    """A number as text."""
    return Cell(text=text or NOTHING, number=True)


def _state(entry: Entry) -> Cell:
    return _text(None if entry.state_bytes is None else bytes_text(entry.state_bytes))


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


def _peak(entry: Entry) -> Cell:
    if entry.ran_out:
        return unfit_cell(entry)
    if entry.memory is None or entry.peak_bytes is None:
        return _text(None)
    return _text(bytes_text(entry.peak_bytes, upper=entry.peak_upper))


def _phase(entry: Entry) -> str:
    if entry.memory is None or entry.peak_bytes is None:
        return ""
    return phase_name(entry.memory.peak_phase)


def _step(entry: Entry, device: str) -> Cell:
    return time_cell(entry.times_from) if entry.times_from and _on(device)(entry) else _text(None)


def _interval(entry: Entry) -> Cell:
    """The reach of the 95 % confidence interval on both sides of the median."""
    if entry.step is None or entry.step.interval is None:
        return _text(None)
    interval = entry.step.interval
    return _text(around_text(interval.lower, entry.step.median, interval.upper))


def _throughput(entry: Entry) -> Cell:
    return _text(throughput_text(entry.times_from) if entry.times_from else None)


def _estimate(entry: Entry, gpu: str | None = None) -> Cell:
    estimate = entry.estimate
    # A step that does not fit takes no time.
    shown = not entry.ran_out and estimate is not None and gpu in (None, estimate.gpu)
    return _text(f"~{seconds_text(estimate.seconds)}" if estimate and shown else None)
