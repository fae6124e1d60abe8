"""Trace: the page and the summary of torch.profiler traces, of a run or of a user's own files."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from optprof.profiler.records.privacy import disclosed
from optprof.profiler.records.store import RunStore, file_name
from optprof.profiler.records.traces import read_trace

from .arithmetic.entries import Setting
from .arithmetic.findings import Findings
from .arithmetic.labels import optimizer_key
from .arithmetic.provenance import shell
from .arithmetic.trace import Trace
from .document import Block, Document, Note, Section
from .pictures.charts import Chart
from .pictures.picture import Picture
from .pictures.trace import describe
from .style import Mark, marks
from .tables.trace import (
    advice_texts,
    kernel_table,
    memory_table,
    operator_rows,
    operator_table,
    rule_table,
    summary_table,
    trace_phase_name,
)
from .units import percent_text, seconds_text
from .words import listed

# A page of more traces would be hard to read.
MOST_TRACES = 16
SLOWED = (
    "The profiler itself takes time at every operator, most of all on the host: compare shares, and"
    " take times of steps from the run's report."
)
NO_ITERATIONS = (
    "has no iterations: call profiler.step() after each, and the page shows them one by one."
)
NO_PHASES = (
    "has no phases that can be told apart. A trace of training has them; others name them by"
    ' `record_function("forward")` and `record_function("backward")`.'
)
PHASES_NOTE = (
    "Phases are the ranges that optprof or torch names in the trace: forward, backward,"
    " Optimizer.step, zero_grad, DataLoader. Where no range is named backward, that phase is the"
    " time of autograd's functions, and forward the time before it in the iteration. The rest is"
    " other."
)
NO_KERNELS = "The traces have no kernels: they were recorded on a CPU alone."
NO_MEMORY = "The trace has no memory events; record it with profile(profile_memory=True)."
NUMBERS = "The numbers"
OPERATORS_SAY = (
    "One row an operator. Its self time is without the operators that it calls, its total with"
    " them; its time on the device is that of the kernels that it launched."
)


@dataclass(frozen=True, kw_only=True)
class TraceFindings:
    """Traces with their marks, the words above every picture, and the parts that are damaged."""

    traces: Sequence[Trace]
    marks: dict[str, Mark]
    subject: str
    context: str
    command: Sequence[str]
    damage: Sequence[str] = ()


def of_file(path: Path, *, anonymous: bool = False) -> TraceFindings:
    """Return the findings of a user's own trace; ValueError if it is none, OSError if missing."""
    # Links are followed to a file that the user names, unlike those in a run.
    trace = Trace.of(read_trace(path.resolve() if path.is_symlink() else path), stem(path))
    trace = replace(trace, gpus=()) if anonymous else trace
    return TraceFindings(
        traces=[trace],
        marks=marks([trace.label]),
        subject=trace.label,
        context=" · ".join([*trace.gpus, _scope(trace)]),
        command=("optprof", "report", path.name, "--trace"),
    )


def stem(path: Path) -> str:
    """Return the name of a file of torch.profiler without its ends."""
    name = path.name
    for end in (".gz", ".json", ".trace", ".pt"):
        name = name.removesuffix(end)
    return name or "trace"


def of_run(folder: Path, *, anonymous: bool = False) -> TraceFindings:
    """Return the findings of a run's traces, the last of each scenario.

    ValueError for a run without traces, or with damaged ones alone.
    """
    store = RunStore(folder)
    records = store.read_standing()
    store.warn()
    findings = Findings.of(
        [disclosed(each, anonymous=True) for each in records] if anonymous else records
    )
    traces: list[Trace] = []
    own: dict[str, Mark] = {}
    damage: list[str] = []
    for own_record, record in zip(records, findings.records, strict=True):
        below = folder / "tensorboard" / file_name(own_record.scenario)
        paths = sorted(below.glob("*.pt.trace.json.gz"), key=lambda path: path.name)
        if not paths:
            continue
        optimizer = findings.labels[optimizer_key(record.scenario)]
        setting = findings.name_of(Setting.of(record.scenario, record.memory))
        label = f"{optimizer} · {setting}" if len(findings.names) > 1 else optimizer
        label = f"{label} ({len(own) + 1})" if label in own else label
        try:
            trace = Trace.of(read_trace(paths[-1], below=folder), label)
        except (OSError, ValueError) as error:
            damage.append(str(error).replace(f"{folder}/", ""))
            continue
        traces.append(replace(trace, gpus=()) if anonymous else trace)
        own[label] = findings.marks[optimizer]
    if not traces:
        raise ValueError(
            damage[0]
            if damage
            else f"{folder} has no traces; record them with `optprof profile ... --trace`, which"
            " measures real steps (not --device sim)"
        )
    gpus = dict.fromkeys(gpu for trace in traces for gpu in trace.gpus)
    return TraceFindings(
        traces=traces,
        marks=own,
        subject=listed(findings.models),
        context=" · ".join([findings.context, *gpus, _scope(traces[0])]),
        command=("optprof", "report", folder.name, "--trace"),
        damage=damage,
    )


def trace_pictures(found: TraceFindings) -> list[Picture]:
    """Return the pictures of the traces, of the first where there are very many."""
    return describe(found.traces[:MOST_TRACES], found.marks, found.context)


def trace_page(found: TraceFindings) -> Document:
    """The page of the traces."""
    traces = found.traces[:MOST_TRACES]
    charts = {chart.name: chart for chart in map(Chart.of, trace_pictures(found))}
    notes = [f"Left out: {each}." for each in found.damage]
    if len(found.traces) > MOST_TRACES:
        notes.append(f"This page shows the first {MOST_TRACES} of {len(found.traces)} traces.")
    return Document(
        title=f"Where the time of an iteration goes: {found.subject}",
        context=(found.context, "times: measured under torch.profiler"),
        notes=notes,
        sections=[
            Section(
                "Verdict",
                [
                    Note(_verdict(traces), "verdict"),
                    *(Note(text, "plain") for text in _recommended(traces)),
                    *map(Note, (*_remarks(traces), SLOWED)),
                ],
                "verdict",
                "The phases of an iteration, and what the rules below recommend.",
            ),
            _drawn(charts["trace-iterations"], Note(PHASES_NOTE)),
            _drawn(charts.get("trace-operators")),
            _drawn(charts.get("trace-kernels")),
            _memory(traces, charts.get("trace-memory")),
            Section(
                "Operators and kernels",
                [
                    Note("Operators", "heading"),
                    operator_table(traces),
                    Note("Kernels and copies", "heading"),
                    kernel_table(traces),
                    Note("" if any(trace.kernels for trace in traces) else NO_KERNELS),
                ],
                "table",
                OPERATORS_SAY,
            ),
            Section(
                "Rules",
                [rule_table(traces)],
                "rules",
                "Each recommendation above follows from one of these numbers and its limit. Shares"
                " are of an iteration unless the row says otherwise.",
            ),
            Section(
                "How to repeat it",
                [Note(shell(found.command), "code")],
                "repeat",
                "The command that drew this page; docs/report.md says how to record a trace.",
            ),
        ],
        marks=found.marks,
        rows=operator_rows(traces),
    )


def trace_summary(found: TraceFindings) -> Document:
    """The iterations and the recommendations, for a terminal."""
    traces = found.traces[:MOST_TRACES]
    return Document(
        sections=[
            Section(found.context, [summary_table(traces)]),
            Section(
                blocks=[
                    *(Note(text, "plain") for text in _recommended(traces)),
                    *map(Note, (*_remarks(traces), SLOWED)),
                ]
            ),
        ],
        marks=found.marks,
    )


def _scope(trace: Trace) -> str:
    number = len(trace.iterations)
    return f"{number} {'iteration' if number == 1 else 'iterations'}" + (
        "" if trace.has_iterations else ", the whole trace"
    )


def _drawn(chart: Chart | None, *blocks: Block) -> Section:
    if chart is None:
        return Section()
    # The table of the operators and kernels stands below, where it can be sorted.
    own = [] if chart.table.sortable else [replace(chart.table, title=chart.title, fold=NUMBERS)]
    return Section(chart.title, [chart, *own, *blocks], chart.name, chart.sentence)


def _memory(traces: Sequence[Trace], chart: Chart | None) -> Section:
    if chart is None:
        return Section("Memory along the trace", [Note(NO_MEMORY)], "trace-memory")
    section = _drawn(chart)
    return replace(section, blocks=[chart, memory_table(traces)])


def _verdict(traces: Sequence[Trace]) -> str:
    """The share of the step in an iteration, and of the other phases for a single trace."""
    if len(traces) == 1:
        (trace,) = traces
        phases = [
            f"{percent_text(seconds, trace.seconds)} {trace_phase_name(phase)}"
            for phase, seconds in trace.phases.items()
        ]
        where = " on the host" if trace.kernels else ""
        return f"An iteration takes {_mean(trace)}{where}: {listed(phases, 9)}.{_most_saved(trace)}"
    first, *others = traces
    parts = [
        f"{percent_text(first.share('step'), 1)} of an iteration with {first.label}",
        *(f"{percent_text(each.share('step'), 1)} with {each.label}" for each in others),
    ]
    return f"The optimizer's step takes {listed(parts, 9)}."


def _most_saved(trace: Trace) -> str:
    """The least that an iteration could take with another step; on a GPU the step's kernels."""
    if "step" not in trace.phases:
        return ""
    if trace.step_on_device is not None:
        share = percent_text(trace.step_on_device, 1)
        return f" The step's kernels take {share} of the time in which the device works."
    rest = (trace.seconds - trace.phases["step"]) / len(trace.iterations)
    return f" Without the step it would take {seconds_text(rest)}; no optimizer can save more."


def _mean(trace: Trace) -> str:
    return seconds_text(trace.seconds / len(trace.iterations))


def _recommended(traces: Sequence[Trace]) -> list[str]:
    none = "No rule recommends anything: every number is on the good side of its limit."
    return advice_texts(traces) or [none]


def _remarks(traces: Sequence[Trace]) -> list[str]:
    """Sentences on traces without iterations or phases."""
    without = [each.label for each in traces if not each.has_iterations]
    unnamed = [each.label for each in traces if not each.has_phases]
    return [
        *([f"{listed(without)} {NO_ITERATIONS}"] if without else []),
        *([f"{listed(unnamed)} {NO_PHASES}"] if unnamed else []),
    ]
