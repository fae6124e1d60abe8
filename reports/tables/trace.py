"""Trace tables: iterations by phase, operators, kernels, memory and the rules of torch's traces."""

from collections.abc import Sequence
from typing import Any

from ..arithmetic.labels import shortened
from ..arithmetic.trace import PHASES, Busy, Iteration, Kernel, Operator, Trace
from ..arithmetic.trace_events import OTHER
from ..arithmetic.trace_rules import Advice, idle_share, rules
from ..units import NOTHING, percent_text, seconds_text, three_digits
from ..words import phase_name
from .table import Cell, Table, bytes_cell, number_cell, text_table

# A kernel's name has its template arguments, and may have a thousand letters.
MOST_LETTERS = 90
# The rest of an operator's or kernel's rows have next to no time.
MOST_ROWS = 500
SHORT = {"zero_grad": "zero"}
NAMES = {"data": "data loading", OTHER: "other"}


def trace_phase_name(phase: str) -> str:
    """A phase of a trace: data loading, zero grad, other."""
    return NAMES.get(phase) or phase_name(phase)


def phases_of(traces: Sequence[Trace]) -> list[str]:
    """The phases that some trace has, in the order of an iteration."""
    return [phase for phase in (*PHASES, OTHER) if any(phase in each.phases for each in traces)]


def iteration_table(traces: Sequence[Trace]) -> Table:
    """A row for each iteration, and one for each device in it."""
    phases = phases_of(traces)
    is_on_device = any(trace.kernels for trace in traces)
    head = (
        *("trace", "iteration", "clock", "time"),
        *map(trace_phase_name, phases),
        *(("idle", "launches") if is_on_device else ()),
        "calls in the step",
    )
    rows = [
        row
        for trace in traces
        for iteration in trace.iterations
        for row in (
            _host_row(trace, iteration, phases, is_on_device=is_on_device),
            *(_busy_row(trace, iteration, busy, phases) for busy in iteration.busy),
        )
    ]
    return text_table(head, rows)


def _host_row(
    trace: Trace, iteration: Iteration, phases: Sequence[str], *, is_on_device: bool
) -> list[str | Cell]:
    device = [_none(), _count(sum(iteration.launches.values()))] if is_on_device else []
    return [
        _label(trace),
        iteration.name,
        "host",
        _seconds(iteration.seconds),
        *(_seconds(iteration.phases.get(phase)) for phase in phases),
        *device,
        _count(iteration.calls.get("step", 0)),
    ]


def _busy_row(
    trace: Trace, iteration: Iteration, busy: Busy, phases: Sequence[str]
) -> list[str | Cell]:
    return [
        _label(trace),
        iteration.name,
        busy.device,
        _seconds(iteration.seconds),
        *(_seconds(busy.phases.get(phase)) for phase in phases),
        _seconds(busy.idle),
        _none(),
        _none(),
    ]


def operator_table(traces: Sequence[Trace]) -> Table:
    """A row for each operator of each trace, sortable."""
    is_on_device = any(trace.kernels for trace in traces)
    has_shapes = any(each.shapes is not None for trace in traces for each in trace.operators)
    head = (
        *("operator", "trace", "calls", "self, host", "share", "self, in the step"),
        "total, host",
        *(("self, device", "total, device") if is_on_device else ()),
        *(("shapes of most calls",) if has_shapes else ()),
    )
    rows = [
        [
            Cell(text=shortened(each.name, MOST_LETTERS)),
            Cell(text=trace.label),
            _count(each.calls),
            _seconds(each.host_self),
            _share(each.host_self, host_self_seconds(trace)),
            _seconds(each.in_step or None),
            _seconds(each.host),
            *((_seconds(each.device_self), _seconds(each.device)) if is_on_device else ()),
            *((Cell(text=_shapes(each)),) if has_shapes else ()),
        ]
        for trace in traces
        for each in trace.operators[:MOST_ROWS]
    ]
    return _sortable("Operators", head, rows)


def kernel_table(traces: Sequence[Trace]) -> Table:
    """A row for each kernel and copy of each trace, sortable; empty for traces of a CPU alone."""
    head = (
        *("kernel or copy", "trace", "calls", "total", "share", "mean", "occupancy, %"),
        *("blocks a processor", "grid", "block", "launched by"),
    )
    rows = [
        [
            Cell(text=kernel_name(each, MOST_LETTERS), exact=each.name),
            Cell(text=trace.label),
            _count(each.calls),
            _seconds(each.seconds),
            _share(each.seconds, trace.device_seconds),
            _seconds(each.seconds / each.calls),
            number_cell(each.occupancy, three_digits),
            number_cell(each.blocks_per_sm, three_digits),
            Cell(text=each.grid or NOTHING),
            Cell(text=each.block or NOTHING),
            Cell(text=shortened(each.operator, MOST_LETTERS) or NOTHING),
        ]
        for trace in traces
        for each in trace.kernels[:MOST_ROWS]
    ]
    return _sortable("Kernels and copies", head, rows)


def operator_rows(traces: Sequence[Trace]) -> list[dict[str, Any]]:
    """The rows of `operator_table` as data: seconds that are not rounded, whole names."""
    return [
        {
            "operator": each.name,
            "trace": trace.label,
            "calls": each.calls,
            "host_self_seconds": each.host_self,
            "host_self_seconds_in_step": each.in_step,
            "host_seconds": each.host,
            "device_self_seconds": each.device_self,
            "device_seconds": each.device,
            "shapes": each.shapes,
        }
        for trace in traces
        for each in trace.operators[:MOST_ROWS]
    ]


def memory_table(traces: Sequence[Trace]) -> Table:
    """A row for each device whose memory a trace has."""
    head = ("trace", "device", "peak allocated", "after", "most reserved", "least allocated")
    rows = [
        [
            _label(trace),
            each.device,
            bytes_cell(each.peak),
            _seconds(each.peak_at),
            bytes_cell(max(each.reserved) or None),
            bytes_cell(min(each.allocated)),
        ]
        for trace in traces
        for each in trace.memory
    ]
    return text_table(head, rows)


def rule_table(traces: Sequence[Trace]) -> Table:
    """A row for each rule that some trace has the number of, a column for each trace."""
    found = list(zip(*map(rules, traces), strict=True))
    rows = [
        [
            Cell(text=advice[0].rule),
            *(_found(each) for each in advice),
            Cell(text=advice[0].show(advice[0].limit), number=True),
            Cell(text=advice[0].advice),
        ]
        for advice in found
        if any(each.found is not None for each in advice)
    ]
    labels = [trace.label for trace in traces]
    return text_table(("number", *labels, "limit", "recommended at the limit or above"), rows)


def _found(advice: Advice) -> Cell:
    tone = "bad" if advice.applies else ""
    return Cell(
        text=f"{advice.found_text}{', applies' if advice.applies else ''}", number=True, tone=tone
    )


def advice_texts(traces: Sequence[Trace]) -> list[str]:
    """The recommendations in sentences, the traces with one advice together."""
    findings: dict[str, list[str]] = {}
    for trace in traces:
        for advice in rules(trace):
            if advice.applies:
                subject = f"{trace.label}: " if len(traces) > 1 else ""
                findings.setdefault(advice.advice, []).append(f"{subject}{advice.finding}")
    return [f"{_sentence('; '.join(each))} {advice}" for advice, each in findings.items()]


def _sentence(text: str) -> str:
    return f"{text[0].upper() if text.startswith('the ') else text[0]}{text[1:]}."


def host_self_seconds(trace: Trace) -> float:
    """The self time of all operators of a trace on the host."""
    return sum(each.host_self for each in trace.operators)


def kernel_name(kernel: Kernel, letters: int) -> str:
    """The first letters of a kernel's name, without its arguments and what most names have."""
    name = kernel.name.removeprefix("void ")
    for common in ("(anonymous namespace)::", "at::native::", "at::cuda::"):
        name = name.replace(common, "")
    name = name if kernel.kind == "copy" else name.partition("(")[0]
    return name if len(name) <= letters else f"{name[: letters - 1]}…"


def _sortable(title: str, head: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
    cells = tuple(tuple(row) for row in rows)
    return Table(head=tuple(head), rows=cells, title=title, sortable=True)


def _label(trace: Trace) -> Cell:
    return Cell(text=trace.label, mark=trace.label, origin="measured")


def _shapes(operator: Operator) -> str:
    if operator.shapes is None:
        return NOTHING
    more = f" and {operator.more_shapes:,} more" if operator.more_shapes else ""
    return f"{shortened(operator.shapes, MOST_LETTERS)}{more}"


def _seconds(value: float | None) -> Cell:
    return number_cell(value, seconds_text)


def _count(value: int) -> Cell:
    return number_cell(value, "{:,}".format)


def _share(part: float, whole: float) -> Cell:
    return number_cell(part / whole if whole else None, lambda share: percent_text(share, 1))


def _none() -> Cell:
    return Cell(text=NOTHING, number=True)


def summary_table(traces: Sequence[Trace]) -> Table:
    """A row for each trace: the mean iteration, and the share of each phase."""
    phases = phases_of(traces)
    is_on_device = any(trace.kernels for trace in traces)
    head = (
        "trace",
        "time",
        *(SHORT.get(each, each) for each in phases),
        *(["idle"] * is_on_device),
    )
    rows = [
        [
            _label(trace),
            _seconds(trace.seconds / len(trace.iterations)),
            *(_share(trace.phases.get(phase, 0.0), trace.seconds) for phase in phases),
            *([number_cell(idle_share(trace), _percent)] if is_on_device else []),
        ]
        for trace in traces
    ]
    return text_table(head, rows)


def _percent(value: float) -> str:
    return percent_text(value, 1)
