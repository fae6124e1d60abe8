"""Page: all that a run's records say, as the document of its page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from optprof.profiler.records.record import Record
from optprof.profiler.records.timeline import Timeline

from . import html
from .arithmetic.accumulations import is_about_accumulation
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
from .document import Block, Document, Note, Section
from .phrases import missing_text, unlike_text
from .pictures import pictures
from .pictures.charts import Chart
from .tables.accumulation import accumulation_tables
from .tables.agreement import agreement_table
from .tables.capacity import LEGEND as CAPACITY_LEGEND
from .tables.capacity import capacity_tables
from .tables.data import data_rows, estimate_table, memory_table, step_table
from .tables.heat_map import heat_map
from .tables.overview import block_tables, failure_table, key_table, reproduction_table, time_table
from .tables.sight import sight_tables
from .tables.table import Facts
from .tables.verdict import cards, sources, verdict
from .tables.watched import watched_tables
from .units import DECIMAL, Sized
from .words import listed

SM3_NOTE = (
    "SM3 saves this much only without momentum, when it keeps one number for each row and each"
    " column of a weight. With momentum 0.9 it also keeps a buffer as large as the parameters, 4"
    " more bytes a parameter in fp32 and 2 in bf16, and most of the saving is gone."
)
TIMES_NOTE = (
    "The time of a step in the same figure, which its authors took with a host clock that did not"
    " wait for the device, next to the estimate for that GPU."
)
NO_AGREEMENT = (
    "This run has no figure both ways. A run with --device auto measures on this machine what it"
    " simulates; peaks are compared on CUDA."
)
# Longer tables are shown on request.
MOST_ROWS = 24
MOST_DAMAGE = 10


def render_page(
    records: Sequence[Record],
    timelines: Mapping[str, Timeline] | None = None,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
) -> str:
    """Return the page of a run as HTML text."""
    findings = Findings.of(records, timelines)
    return html.render(run_page(findings, damage, total=total))


def run_page(
    findings: Findings,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
) -> Document:
    """The page of a run.

    `damage` names the parts of the run that cannot be read; `total` is the number of all its
    records where these are the first of more.
    """
    records, context = findings.records, [findings.context, *sources(findings)]
    if total is not None and total > len(records):
        context.append(
            f"this page shows the first {len(records):,} of {total:,} records; records.csv and"
            " records.json have all"
        )
    charts = [Chart.of(picture) for picture in pictures(findings)]
    if is_about_accumulation(records):
        return _accumulation_page(findings, charts, context, damage)
    sections = [
        _verdict(findings),
        *_pictures(findings, charts),
        *_damaged_timelines(damage),
        *_accumulations(findings, charts),
        _capacity(findings),
        _sights(findings),
        _watched(findings),
        _agreement(records),
        _reproduction(records),
        _failures(findings),
        _numbers(findings),
        _keys(findings),
        _largest_blocks(findings),
        _repeat(records),
    ]
    return Document(
        title=f"What an optimizer costs on {listed(findings.models)}",
        context=context,
        notes=[f"Left out, because it cannot be read: {_damage(damage)}."] if damage else [],
        sections=sections,
        marks=findings.marks,
        rows=data_rows(findings),
    )


def _headed(groups: Mapping[str, Iterable[Block]], *, always: bool = False) -> list[Block]:
    """The blocks of each group, under its name where there are several groups."""
    blocks: list[Block] = []
    for name, group in groups.items():
        blocks += [Note(name, "heading")] if always or len(groups) > 1 else []
        blocks += group
    return blocks


def _verdict(findings: Findings) -> Section:
    text = Sized.of(lambda units: verdict(findings, units))
    notes = [missing_text(findings), unlike_text(findings.savings)]
    groups = {name: [tuple(group)] for name, group in cards(findings).items()}
    blocks = [
        Note(text, "verdict"),
        *map(Note, notes),
        *_headed(groups, always=len(findings.names) > 1),
    ]
    if not groups:
        nothing = "No scenario of this run ended with a result; the failures are listed below."
        blocks.append(Note(nothing, "plain"))
    if any(entry.scenario.optimizer == "sm3" for entry in findings.entries):
        blocks.append(Note(SM3_NOTE))
    return Section("Verdict", blocks, "verdict", "The costs of each optimizer, in one card.")


def _pictures(findings: Findings, charts: Sequence[Chart]) -> list[Section]:
    """A section for each picture; the heat map stands after the savings."""
    sections = [
        Section(
            "Savings heat map",
            [heat_map(findings)],
            "heat",
            "How many times smaller each state is than the baseline's, and the per cent saved; the"
            " larger the saving the deeper the blue, orange is a larger state.",
        )
    ]
    for chart in charts:
        if chart.kind == "accumulation":
            continue
        numbers = replace(chart.table, title=chart.title, fold="The numbers")
        place = 0 if chart.kind == "savings" else len(sections)
        sections.insert(place, _picture(chart, numbers))
    return sections


def _picture(chart: Chart, *blocks: Block) -> Section:
    return Section(chart.title, [chart, *blocks], chart.name, chart.sentence)


def _accumulations(findings: Findings, charts: Sequence[Chart]) -> list[Section]:
    """A section for each model and optimizer that trained under several ways to accumulate."""
    parts = accumulation_tables(findings.records).values()
    own = [chart for chart in charts if chart.kind == "accumulation"]
    return [
        _picture(chart, part.learned, part.losses, part.pace)
        for part, chart in zip(parts, own, strict=True)
    ]


def _accumulation_page(
    findings: Findings, charts: Sequence[Chart], context: Sequence[str], damage: Sequence[str]
) -> Document:
    """The page of a run in which every scenario accumulates: when to step, not which optimizer."""
    parts = accumulation_tables(findings.records)
    verdict = Section(
        "Verdict",
        _headed(
            {name: [Note(part.verdict, "verdict"), part.cards] for name, part in parts.items()}
        ),
        "verdict",
        "The loss on held-out text that each way to step reached with the same micro-batches, and"
        " what it costs.",
    )
    return Document(
        title=f"When to step: accumulation on {listed(findings.models)}",
        context=context,
        notes=[f"Left out, because it cannot be read: {_damage(damage)}."] if damage else [],
        sections=[
            verdict,
            *_accumulations(findings, charts),
            *_pictures(findings, charts)[1:],
            *_damaged_timelines(damage),
            _watched(findings),
            _failures(findings),
            _numbers(findings),
            _repeat(findings.records),
        ],
        marks=findings.marks,
        rows=data_rows(findings),
    )


def _damaged_timelines(damage: Sequence[str]) -> list[Section]:
    damaged = [each for each in damage if each.startswith("timelines")]
    text = f"No memory over a training step is drawn for what cannot be read: {_damage(damaged)}."
    return [Section(blocks=[Note(text)])] if damaged else []


def _damage(damage: Sequence[str]) -> str:
    more = len(damage) - MOST_DAMAGE
    return "; ".join([*damage[:MOST_DAMAGE], *([f"and {more} more"] if more > 0 else [])])


def _capacity(findings: Findings) -> Section:
    tables = capacity_tables(findings)
    return Section(
        "What fits on which GPU",
        [
            *_headed(
                {
                    name: [replace(table, title=f"What fits: {name}")]
                    for name, table in tables.items()
                }
            ),
            *([Note(CAPACITY_LEGEND)] if tables else []),
        ],
        "rooms",
        "The reserved peak of a training step set against the memory that each GPU leaves to torch;"
        " `optprof fit` simulates it on the GPU's own memory and finds what would make it fit.",
    )


def _sights(findings: Findings) -> Section:
    return Section(
        "Why you may not see the saving",
        _headed(sight_tables(findings), always=len(findings.names) > 1),
        "sights",
        "The same memory as each counter shows it, and what stands between a smaller state and a"
        " smaller figure.",
    )


def _watched(findings: Findings) -> Section:
    blocks: list[Block] = []
    for name, table in watched_tables(findings).items():
        if len(table.rows) > MOST_ROWS:
            fold = f"{name}, {len(table.rows)} rows"
            blocks.append(replace(table, title=name, fold=fold))
        else:
            blocks += [Note(name, "heading"), replace(table, title=name)]
    return Section(
        "What the real runs showed",
        blocks,
        "watched",
        "Seen in iterations that were not timed: the memory in each phase, how the state's tensors"
        " become what the allocator counts, and the longest operations of a traced step.",
    )


def _agreement(records: Sequence[Record]) -> Section:
    rows = agreements(records)
    return Section(
        "Simulated against measured",
        [Note(agreement_summary(rows), "plain"), agreement_table(rows)]
        if rows
        else [Note(NO_AGREEMENT)],
        "agreement",
        "Every figure that this run has both ways, with the residual: the simulated figure less the"
        " measured one.",
    )


def _reproduction(records: Sequence[Record]) -> Section:
    rows = reproduction(records)
    missing = not_reproduced(rows)
    table, times = reproduction_table(rows), time_table(reproduced_times(records))
    ours = "; ".join(
        f"{name} for {', '.join(missing[name])}" for name in COMMAND_GIVES if name in missing
    )
    others = ", ".join(name for name in missing if name not in COMMAND_GIVES)
    blocks = [table, Note(TIMES_NOTE if times.rows else "", "says"), times]
    if ours:
        add = f"Published and not in this run: {ours}. This command adds them:"
        blocks += [Note(add), Note(COMMAND, "code")]
    if others:
        blocks.append(Note(f"Published for optimizers that this run does not have: {others}."))
    return Section(
        "Against the published figures",
        blocks,
        "reproduction",
        "State as the SGD-SaI paper draws it (“No More Adam”, arXiv 2412.11768, memory figure;"
        " A100, fp32) next to ours: the allocator's blocks after one step on a fresh device. The"
        " figure's “GB” are GiB; extrapolated values were not measured by its authors.",
    )


def _failures(findings: Findings) -> Section:
    return Section(
        "Without a result",
        [failure_table(findings)],
        "failures",
        "Scenarios that ran out of memory, failed or were ended. They have no state, peak or"
        " measured time above; of a simulated GPU that ran out of memory the page shows the memory"
        " until then, the answer to what fits and the estimate of the step.",
    )


def _numbers(findings: Findings) -> Section:
    memory = memory_table(findings)
    times = [each for each in (step_table(findings), estimate_table(findings)) if each.rows]
    return Section(
        "All numbers",
        _headed({table.title: [table] for table in (memory, *times)}, always=True),
        "table",
        "One row an optimizer; a rounded number has its exact bytes behind it (hover). State as"
        " allocated counts the allocator's blocks that hold the state, the peak the whole training"
        " step.",
    )


def _keys(findings: Findings) -> Section:
    table = key_table(findings)
    fold = f"{len(table.rows)} rows" if len(table.rows) > MOST_ROWS else ""
    return Section(
        "What the state is made of",
        [replace(table, title="State by key", fold=fold)],
        "keys",
        "The bytes of each optimizer's state by the key that it keeps them under, and their dtype.",
    )


def _largest_blocks(findings: Findings) -> Section:
    tables = block_tables(findings)
    if len(tables) == 1:
        tables = [Note(tables[0].fold, "heading"), replace(tables[0], fold="")]
    return Section(
        "The largest blocks at the peak",
        tables,
        "blocks",
        "The largest blocks at the highest moment of the training steps, and their origin: the"
        " module or tensor of the model, the operation, the line of Python.",
    )


def _repeat(records: Sequence[Record]) -> Section:
    pairs = zip(provenance(records), provenance(records, DECIMAL), strict=True)
    facts = [(name, Sized(binary=text, decimal=decimal)) for (name, text), (_, decimal) in pairs]
    origins = [
        (f"{name} ({'filled' if name == 'measured' else 'hollow'} marks)", meaning)
        for name, meaning in ORIGINS.items()
    ]
    return Section(
        "How to repeat it",
        [*(Note(command, "code") for command in commands(records)), Facts((*facts, *origins))],
        "repeat",
        "The command, the machine and versions that it ran on, and the meaning of the words for the"
        " origin of a number.",
    )
