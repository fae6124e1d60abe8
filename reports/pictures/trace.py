"""The pictures of torch's traces: iterations by phase, top operators and kernels, memory."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..arithmetic.trace import Busy, Iteration, MemoryCurve, Operator, Trace
from ..arithmetic.trace_events import OTHER
from ..style import Mark, block_colour
from ..tables.table import Table
from ..tables.trace import (
    iteration_table,
    kernel_name,
    kernel_table,
    memory_table,
    operator_table,
    phases_of,
    trace_phase_name,
)
from ..units import Sized, bytes_text, percent_text, seconds_text
from .picture import Axis, Bar, Bars, Key, Line, Part, Picture, Plot, Point
from .scales import multiples, second_ticks

COLOURS = {phase: block_colour(phase).light for phase in ("forward", "backward", "step")} | {
    "data": block_colour("input").light,
    "zero_grad": block_colour("temporary").light,
    OTHER: "@track",
}
STEP_KEYS = (
    Key("block", "in the optimizer's step", COLOURS["step"]),
    Key("block", "elsewhere", COLOURS["backward"]),
)
# The rows of a single trace; several traces share them.
MOST_ITERATIONS, MOST_TOP = 12, 10
FEWEST_ITERATIONS, FEWEST_TOP = 2, 4
# A curve has the highest and the lowest moment of so many parts.
COLUMNS = 150
LETTERS = 60


@dataclass(frozen=True, kw_only=True)
class _Top:
    """A row of a picture: an operator or kernel, its calls, its seconds, those in the step."""

    name: str
    calls: int
    seconds: float
    in_step: float = 0.0
    share: str


def describe(traces: Sequence[Trace], marks: Mapping[str, Mark], context: str) -> list[Picture]:
    """Return the pictures that the traces have data for; `marks` go by their labels."""
    kernels = {trace.label: _top_kernels(trace) for trace in traces}
    return [
        _iterations(traces, marks, context),
        *_operators(traces, marks, context),
        *_ranking(
            "trace-kernels",
            "The longest kernels and copies",
            "The time of each kernel and copy on the device, in the whole trace.",
            kernel_table(traces),
            kernels,
            marks,
            context,
        ),
        *_memory(traces, marks, context),
    ]


def _iterations(traces: Sequence[Trace], marks: Mapping[str, Mark], context: str) -> Picture:
    """Return a bar for each iteration of the host, and one for each device in it."""
    most = max(MOST_ITERATIONS // len(traces), FEWEST_ITERATIONS)
    longest = max(each.seconds for trace in traces for each in trace.iterations[:most])
    scale = multiples(longest or 1e-12)[-1]
    has_more = any(len(trace.iterations) > most for trace in traces)
    more = f"The picture shows the first {most} iterations of a trace; the table has all."
    return Picture(
        name="trace-iterations",
        title="The time of an iteration by phase",
        context=context,
        sentence=(
            "Each iteration of the trace, split into its phases. On a GPU a second bar shows when"
            " the device worked, by the phase that launched its work."
        ),
        table=iteration_table(traces),
        panels=[
            Bars(
                name=trace.label if len(traces) > 1 else "",
                bars=tuple(
                    bar for each in trace.iterations[:most] for bar in _bars(trace, each, scale)
                ),
                ticks=second_ticks(scale),
            )
            for trace in traces
        ],
        marks=marks,
        notes=(more,) if has_more else (),
        keys=tuple(
            Key("empty" if phase == OTHER else "block", trace_phase_name(phase), COLOURS[phase])
            for phase in phases_of(traces)
        ),
    )


def _bars(trace: Trace, iteration: Iteration, scale: float) -> list[Bar]:
    where = ", host" if iteration.busy else ""
    step = percent_text(iteration.phases.get("step", 0.0), iteration.seconds)
    value = f"{seconds_text(iteration.seconds)}, {step} in the step"
    host = _bar(trace, f"{iteration.name}{where}", value, iteration.phases, scale)
    return [host, *(_busy_bar(trace, iteration, busy, scale) for busy in iteration.busy)]


def _busy_bar(trace: Trace, iteration: Iteration, busy: Busy, scale: float) -> Bar:
    value = f"idle {percent_text(busy.idle, iteration.seconds)}"
    return _bar(trace, f"{iteration.name}, {busy.device}", value, busy.phases, scale)


def _bar(trace: Trace, label: str, value: str, phases: Mapping[str, float], scale: float) -> Bar:
    parts: list[Part] = []
    left = 0.0
    for phase in phases_of([trace]):
        width = 100 * phases.get(phase, 0.0) / scale
        text = _same(seconds_text(phases.get(phase, 0.0)))
        parts += [Part(left=left, width=width, colour=COLOURS[phase], text=text)] if width else []
        left += width
    return Bar(
        label=label, mark=trace.label, origin="measured", value=_same(value), parts=tuple(parts)
    )


def _operators(traces: Sequence[Trace], marks: Mapping[str, Mark], context: str) -> list[Picture]:
    """Return the longest operators of a trace; of several, those of the optimizers' steps."""
    of_step = len(traces) > 1 and any(each.in_step for trace in traces for each in trace.operators)
    where = "in the optimizer's step" if of_step else "in the whole trace"
    title = "The longest operators of the optimizer's step" if of_step else "The longest operators"
    return _ranking(
        "trace-operators",
        title,
        f"The time on the host {where}, without the operators that an operator calls.",
        operator_table(traces),
        {trace.label: _top_operators(trace, of_step=of_step) for trace in traces},
        marks,
        context,
    )


def _top_operators(trace: Trace, *, of_step: bool) -> list[_Top]:
    def seconds(each: Operator) -> float:
        return each.in_step if of_step else each.host_self

    whole = sum(map(seconds, trace.operators))
    return [
        _Top(
            name=each.name,
            calls=each.calls_in_step if of_step else each.calls,
            seconds=seconds(each),
            in_step=each.in_step,
            share=percent_text(seconds(each), whole),
        )
        for each in sorted(trace.operators, key=seconds, reverse=True)[:MOST_TOP]
        if seconds(each) > 0
    ]


def _top_kernels(trace: Trace) -> list[_Top]:
    return [
        _Top(
            name=kernel_name(each, LETTERS),
            calls=each.calls,
            seconds=each.seconds,
            share=percent_text(each.seconds, trace.device_seconds),
        )
        for each in trace.kernels[:MOST_TOP]
    ]


def _ranking(
    name: str,
    title: str,
    sentence: str,
    table: Table,
    tops: Mapping[str, Sequence[_Top]],
    marks: Mapping[str, Mark],
    context: str,
) -> list[Picture]:
    """Return bars of the longest rows of each trace, on one scale."""
    tops = {label: rows for label, rows in tops.items() if rows}
    if not tops:
        return []
    most = max(MOST_TOP // len(tops), FEWEST_TOP)
    scale = multiples(max(rows[0].seconds for rows in tops.values()) or 1e-12)[-1]
    has_both = any(0 < row.in_step < row.seconds for rows in tops.values() for row in rows[:most])
    panels = [
        Bars(
            name=label if len(tops) > 1 else "",
            bars=tuple(_top_bar(label, row, scale) for row in rows[:most]),
            ticks=second_ticks(scale),
        )
        for label, rows in tops.items()
    ]
    return [
        Picture(
            name=name,
            title=title,
            context=context,
            sentence=sentence,
            table=table,
            panels=panels,
            marks=marks,
            keys=STEP_KEYS if has_both else (),
        )
    ]


def _top_bar(label: str, row: _Top, scale: float) -> Bar:
    calls = f"{row.calls:,} {'call' if row.calls == 1 else 'calls'}"
    inside, outside = (100 * part / scale for part in (row.in_step, row.seconds - row.in_step))
    parts = (
        Part(left=0, width=inside, colour=COLOURS["step"]),
        Part(left=inside, width=outside, colour=COLOURS["backward"]),
    )
    return Bar(
        label=row.name,
        mark=label,
        origin="measured",
        value=_same(f"{seconds_text(row.seconds)}, {row.share}, {calls}"),
        parts=tuple(part for part in parts if part.width > 0),
    )


def _memory(traces: Sequence[Trace], marks: Mapping[str, Mark], context: str) -> list[Picture]:
    """Return the memory of each GPU; of each trace's CPU if no trace has a GPU's."""
    curves = [(trace.label, each) for trace in traces for each in trace.memory]
    on_gpu = [each for each in curves if each[1].device != "CPU"]
    devices: dict[str, list[tuple[str, MemoryCurve]]] = {}
    for label, curve in on_gpu or curves:
        devices.setdefault(curve.device, []).append((label, curve))
    if not devices:
        return []
    return [
        Picture(
            name="trace-memory",
            title="Memory along the trace",
            context=context,
            sentence=(
                "The bytes that torch's allocator held at each allocation and free of the trace."
            ),
            table=memory_table(traces),
            panels=[_curves(device, members) for device, members in devices.items()],
            marks=marks,
            keys=(),
        )
    ]


def _curves(device: str, members: Sequence[tuple[str, MemoryCurve]]) -> Plot:
    peaks = "; ".join(
        f"{label} {bytes_text(curve.peak)} after {seconds_text(curve.peak_at)}"
        for label, curve in members
    )
    return Plot(
        name=f"Allocated on {device}",
        alt=f"Allocated bytes on {device} against time. Peaks: {peaks}.",
        x=Axis(
            title="time since the trace began",
            kind="seconds",
            values=[0.0, *(curve.seconds[-1] for _, curve in members)],
            log=False,
        ),
        y=Axis(
            title="allocated",
            kind="bytes",
            values=[0, *(curve.peak for _, curve in members)],
            log=False,
        ),
        lines=[Line(label=label, points=_points(curve), size=0) for label, curve in members],
        height=320,
    )


def _points(curve: MemoryCurve) -> tuple[Point, ...]:
    """Return the highest and the lowest moment of each part of the time, and the last one."""
    width = (curve.seconds[-1] - curve.seconds[0]) / COLUMNS or 1.0
    columns: dict[int, list[int]] = {}
    for number, seconds in enumerate(curve.seconds):
        columns.setdefault(int((seconds - curve.seconds[0]) / width), []).append(number)
    kept = {len(curve.seconds) - 1}
    for numbers in columns.values():
        kept.add(max(numbers, key=curve.allocated.__getitem__))
        kept.add(min(numbers, key=curve.allocated.__getitem__))
    return tuple(
        Point(
            x=curve.seconds[number],
            y=curve.allocated[number],
            origin="measured",
            words=Sized.of(
                lambda units, number=number: (
                    f"\n{bytes_text(curve.allocated[number], units)}"
                    f"\nafter {seconds_text(curve.seconds[number])}"
                )
            ),
        )
        for number in sorted(kept)
    )


def _same(text: str) -> Sized:
    return Sized(binary=text, decimal=text)
