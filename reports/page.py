"""Page: all that a run's records say, as the document of its page."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline

from . import html
from .arithmetic.agreement import agreements
from .arithmetic.agreement import summary as agreement_summary
from .arithmetic.findings import Findings
from .arithmetic.provenance import ORIGINS, commands, provenance
from .arithmetic.reproduction import (
    COMMAND,
    COMMAND_GIVES,
    not_reproduced,
    reproduced_times,
    reproduction,
)
from .charts import Chart, charts
from .charts.accumulation import accumulation_chart
from .document import Block, Document, Note, Section
from .figures.drawing import Drawing
from .phrases import missing_text, unlike_text
from .tables.accumulation import accumulation_tables
from .tables.agreement import agreement_table
from .tables.data import data_rows, estimate_table, memory_table, step_table
from .tables.heat_map import heat_map
from .tables.overview import block_tables, failure_table, key_table, reproduction_table, time_table
from .tables.room import LEGEND as ROOMS_LEGEND
from .tables.room import room_tables
from .tables.sight import sight_tables
from .tables.table import Facts
from .tables.verdict import cards, sources, verdict
from .tables.watched import watched_tables
from .units import DECIMAL, Sized, Words
from .words import listed

SM3_NOTE = (
    "SM3 saves this much only without momentum, when it keeps one number for each row and each"
    " column of a weight. With momentum 0.9 it also keeps a buffer as large as the parameters, 4"
    " more bytes a parameter in fp32 and 2 in bf16, and most of the saving is gone."
)
# Longer tables are shown on request.
MOST_ROWS = 24
MOST_DAMAGE = 10


def render_page(
    records: Sequence[Record],
    drawings: Sequence[Drawing],
    timelines: Mapping[str, Timeline] | None = None,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
) -> str:
    """Return the page of a run as HTML text."""
    findings = Findings.of(records, timelines)
    return html.render(run_page(findings, drawings, damage, total=total))


def run_page(
    findings: Findings,
    drawings: Sequence[Drawing],
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
) -> Document:
    """The page of a run.

    `damage` names the parts of the run that cannot be read; `total` is the number of all its
    records where these are the first of more.
    """
    shown, context = len(findings.records), [findings.context, *sources(findings)]
    if total is not None and total > shown:
        context.append(
            f"this page shows the first {shown:,} of {total:,} records; records.csv and"
            " records.json have all"
        )
    sections = [
        _verdict(findings),
        *_pictures(findings, drawings),
        *_damaged_timelines(damage),
        *_accumulations(findings),
        _rooms(findings),
        _sights(findings),
        _watched(findings),
        _agreement(findings.records),
        _reproduction(findings.records),
        _failures(findings),
        _numbers(findings),
        _keys(findings),
        _largest_blocks(findings),
        _repeat(findings.records),
    ]
    return Document(
        title=f"What an optimizer costs on {listed(findings.models)}",
        context=context,
        notes=[f"Left out, because it cannot be read: {_damage(damage)}."] if damage else [],
        sections=[section for section in sections if section.blocks],
        marks=findings.marks,
        rows=data_rows(findings),
    )


def _verdict(findings: Findings) -> Section:
    text = Sized.of(lambda units: verdict(findings, units))
    notes = filter(None, (missing_text(findings), unlike_text(findings.savings)))
    groups = cards(findings)
    blocks: list[Block] = [*([Note(text, "verdict")] if text.binary else []), *map(Note, notes)]
    for setting, group in groups.items():
        blocks += [*_headings(findings, setting), tuple(group)]
    if not groups:
        blocks.append(
            Note(
                "No scenario of this run ended with a result; the failures are listed below.",
                "plain",
            )
        )
    if any(entry.scenario.optimizer == "sm3" for entry in findings.entries):
        blocks.append(Note(SM3_NOTE))
    return Section(
        name="verdict",
        title="Verdict",
        says="The costs of each optimizer, in one card.",
        blocks=tuple(blocks),
    )


def _headings(findings: Findings, setting: str) -> list[Note]:
    """The name of a setting, for a run that has several."""
    return [Note(setting, "heading")] if len(findings.names) > 1 else []


def _pictures(findings: Findings, drawings: Sequence[Drawing]) -> Iterator[Section]:
    """A section for each picture; the heat map stands after the savings."""
    heat = heat_map(findings)
    sections = [
        Section(
            name="heat",
            title="Savings heat map",
            says=(
                "How many times smaller each state is than the baseline's, and the per cent saved;"
                " the larger the saving the deeper the blue, orange is a larger state."
            ),
            blocks=(heat,) if heat.rows else (),
        )
    ]
    for chart in charts(findings, drawings):
        section = _picture(chart, replace(chart.table, title=chart.title, fold="The numbers"))
        sections.insert(0, section) if chart.kind == "savings" else sections.append(section)
    yield from sections


def _picture(chart: Chart, *blocks: Block) -> Section:
    return Section(name=chart.name, title=chart.title, says=chart.sentence, blocks=(chart, *blocks))


def _accumulations(findings: Findings) -> Iterator[Section]:
    """A section for each model and optimizer that trained under several ways to accumulate."""
    parts = accumulation_tables(findings.records)
    for number, (name, part) in enumerate(parts.items(), 1):
        chart = accumulation_chart(
            findings, f"accumulation-{number}", name if len(parts) > 1 else "", part
        )
        yield _picture(
            chart,
            replace(part.learned, title=f"What was learned: {name}"),
            replace(part.losses, title=f"Held-out loss by tokens: {name}"),
            replace(part.pace, title=f"How fast it went: {name}"),
        )


def _damaged_timelines(damage: Sequence[str]) -> list[Section]:
    damaged = [each for each in damage if each.startswith("timelines")]
    text = f"No memory over a training step is drawn for what cannot be read: {_damage(damaged)}."
    return [Section(blocks=(Note(text),))] if damaged else []


def _damage(damage: Sequence[str]) -> str:
    more = len(damage) - MOST_DAMAGE
    return "; ".join([*damage[:MOST_DAMAGE], *([f"and {more} more"] if more > 0 else [])])


def _rooms(findings: Findings) -> Section:
    tables = room_tables(findings)
    blocks: list[Block] = []
    for name, table in tables.items():
        blocks += [
            *([Note(name, "heading")] if len(tables) > 1 else []),
            replace(table, title=f"What fits: {name}"),
        ]
    return Section(
        name="rooms",
        title="What fits on which GPU",
        says=(
            "The reserved peak of a training step set against the memory that each GPU leaves to"
            " torch; `optprof fit` simulates it on the GPU's own memory and finds what would make"
            " it fit."
        ),
        blocks=(*blocks, Note(ROOMS_LEGEND)) if blocks else (),
    )


def _sights(findings: Findings) -> Section:
    blocks: list[Block] = []
    for name, (table, sentences) in sight_tables(findings).items():
        blocks += [
            *_headings(findings, name),
            replace(table, title=f"Counters side by side: {name}"),
            sentences,
        ]
    return Section(
        name="sights",
        title="Why you may not see the saving",
        says=(
            "The same memory as each counter shows it, and what stands between a smaller state and"
            " a smaller figure."
        ),
        blocks=tuple(blocks),
    )


def _watched(findings: Findings) -> Section:
    blocks: list[Block] = []
    for name, table in watched_tables(findings).items():
        if len(table.rows) > MOST_ROWS:
            blocks.append(replace(table, title=name, fold=f"{name}, {len(table.rows)} rows"))
        else:
            blocks += [Note(name, "heading"), replace(table, title=name)]
    return Section(
        name="watched",
        title="What the real runs showed",
        says=(
            "Seen in iterations that were not timed: the memory in each phase, how the state's"
            " tensors become what the allocator counts, and the longest operations of a traced"
            " step."
        ),
        blocks=tuple(blocks),
    )


def _agreement(records: Sequence[Record]) -> Section:
    rows = agreements(records)
    nothing = (
        "This run has no figure both ways. A run with --device auto measures on this machine what"
        " it simulates; peaks are compared on CUDA."
    )
    return Section(
        name="agreement",
        title="Simulated against measured",
        says=(
            "Every figure that this run has both ways, with the residual: the simulated figure less"
            " the measured one."
        ),
        blocks=(
            (Note(agreement_summary(rows), "plain"), agreement_table(rows))
            if rows
            else (Note(nothing),)
        ),
    )


def _reproduction(records: Sequence[Record]) -> Section:
    rows = reproduction(records)
    missing = not_reproduced(rows)
    table, times = reproduction_table(rows), time_table(reproduced_times(records))
    blocks: list[Block] = []
    if table.rows:
        blocks.append(replace(table, title="Published figures and ours"))
    if times.rows:
        blocks += [
            Note(
                "The time of a step in the same figure, which its authors took with a host clock"
                " that did not wait for the device, beside the estimate for that GPU.",
                "says",
            ),
            replace(times, title="Published step times and estimated ones"),
        ]
    ours = "; ".join(
        f"{name} for {', '.join(missing[name])}" for name in COMMAND_GIVES if name in missing
    )
    if ours:
        blocks += [
            Note(f"Published and not in this run: {ours}. This command adds them:"),
            Note(COMMAND, "code"),
        ]
    if others := ", ".join(name for name in missing if name not in COMMAND_GIVES):
        blocks.append(Note(f"Published for optimizers that this run does not have: {others}."))
    return Section(
        name="reproduction",
        title="Against the published figures",
        says=(
            "State as the SGD-SaI paper draws it (“No More Adam”, arXiv 2412.11768, memory figure;"
            " A100, fp32) beside ours: the allocator's blocks after one step on a fresh device. The"
            " figure's “GB” are GiB; extrapolated values were not measured by its authors."
        ),
        blocks=tuple(blocks),
    )


def _failures(findings: Findings) -> Section:
    table = failure_table(findings)
    return Section(
        name="failures",
        title="Without a result",
        says=(
            "Scenarios that ran out of memory, failed or were ended. They have no state, peak or"
            " measured time above; of a simulated GPU that ran out of memory the page shows the"
            " memory until then, the answer to what fits and the estimate of the step."
        ),
        blocks=(table,) if table.rows else (),
    )


def _numbers(findings: Findings) -> Section:
    tables = {
        "Memory": memory_table(findings),
        "Time of the step": step_table(findings),
        "Time of the step on a GPU, estimated": estimate_table(findings),
    }
    blocks: list[Block] = []
    for name, table in tables.items():
        if table.rows or name == "Memory":
            blocks += [Note(name, "heading"), replace(table, title=name, sortable=True)]
    return Section(
        name="table",
        title="All numbers",
        says=(
            "One row an optimizer; a rounded number has its exact bytes behind it (hover). State as"
            " allocated counts the allocator's blocks that hold the state, the peak the whole"
            " training step."
        ),
        blocks=tuple(blocks),
    )


def _keys(findings: Findings) -> Section:
    table, title = key_table(findings), "State by key"
    count = len(table.rows)
    return Section(
        name="keys",
        title="What the state is made of",
        says=(
            "The bytes of each optimizer's state by the key that it keeps them under, and their"
            " dtype."
        ),
        blocks=(
            (replace(table, title=title, fold=f"{count} rows" if count > MOST_ROWS else ""),)
            if count
            else ()
        ),
    )


def _largest_blocks(findings: Findings) -> Section:
    blocks: list[Block] = []
    tables = block_tables(findings)
    for peak, table in tables:
        if len(tables) > 1:
            blocks.append(replace(table, title=peak.binary, fold=peak))
        else:
            blocks += [Note(peak, "heading"), replace(table, title=peak.binary)]
    return Section(
        name="blocks",
        title="The largest blocks at the peak",
        says=(
            "The largest blocks at the highest moment of the training steps, and their origin: the"
            " module or tensor of the model, the operation, the line of Python."
        ),
        blocks=tuple(blocks),
    )


def _repeat(records: Sequence[Record]) -> Section:
    pairs = zip(provenance(records), provenance(records, DECIMAL), strict=True)
    facts: list[tuple[str, Words]] = [
        (name, Sized(binary=text, decimal=decimal)) for (name, text), (_, decimal) in pairs
    ]
    facts += [
        (f"{name} ({'filled' if name == 'measured' else 'hollow'} marks)", meaning)
        for name, meaning in ORIGINS.items()
    ]
    return Section(
        name="repeat",
        title="How to repeat it",
        says=(
            "The command, the machine and versions that it ran on, and the meaning of the words for"
            " the origin of a number."
        ),
        blocks=(*(Note(command, "code") for command in commands(records)), Facts(tuple(facts))),
    )
