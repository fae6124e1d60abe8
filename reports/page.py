"""Page: all that a run's records say, as the document of its page."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from optprof.profiler.records.planned import Unfinished
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
from .failing import remedies, sentences, title, unfinished_text
from .help import explained, meanings
from .phrases import missing_text, noise_note, ranks_notes, unlike_text, unpaced_text
from .pictures import icicle, pictures
from .pictures.charts import Chart
from .pictures.picture import Drawing, Picture
from .tables.accumulation import accumulation_tables
from .tables.agreement import agreement_table
from .tables.capacity import NCCL_LEGEND, capacity_legend, capacity_tables
from .tables.data import data_rows, memory_table, time_tables
from .tables.heat_map import heat_map
from .tables.overview import (
    block_tables,
    failure_table,
    group_table,
    key_table,
    reproduction_table,
    time_table,
)
from .tables.ranks import each_tables, exchange_tables, rank_table
from .tables.sight import sight_tables
from .tables.table import Facts, Table, varied
from .tables.verdict import cards, sources, verdict
from .tables.watched import watched_tables
from .units import DECIMAL, Sized
from .words import listed

SM3_NOTE = (
    "SM3 saves this much only without momentum, with one number for each row and column of a"
    " weight. Momentum adds a buffer as large as the parameters: 4 bytes each in fp32, 2 in bf16."
)
TIMES_NOTE = (
    "The time of a step in the same figure, next to the estimate for that GPU. Its authors used a"
    " host clock that did not wait for the device."
)
FIT_HELPS = "This command finds the cheapest change that makes it fit:"
NUMBERS = "The numbers"
# The section that a picture is a part of.
SUBJECTS = {
    "icicle": "peak",
    "iteration": "step-time",
    "step-by-size": "step-time",
    "ways": "timeline",
}
# Longer tables are shown on request.
MOST_ROWS = 24
MOST_DAMAGE = 10


def render_page(
    records: Sequence[Record],
    timelines: Mapping[str, Timeline] | None = None,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
    baseline: str | None = None,
    unfinished: Unfinished | None = None,
    drawings: Iterable[Drawing] = (),
) -> str:
    """Return the page of a run as HTML text.

    `baseline` is the optimizer that others are compared with, `unfinished` what is still missing;
    readers can save the drawings from the page.
    """
    findings = Findings.of(records, timelines, baseline=baseline, unfinished=unfinished)
    return html.render(run_page(findings, damage, total=total), drawings)


def run_page(
    findings: Findings,
    damage: Sequence[str] = (),
    *,
    total: int | None = None,
    shown: Sequence[Picture] | None = None,
) -> Document:
    """The page of a run.

    `damage` names the parts of the run that cannot be read; `total` is the number of all its
    records where these are the first of more. `shown` are its pictures, if they are known.
    """
    records, context = findings.records, [findings.context, *sources(findings)]
    if total is not None and total > len(records):
        context.append(
            f"this page shows the first {len(records):,} of {total:,} records; records.csv and"
            " records.json have all"
        )
    charts = [Chart.of(picture) for picture in (pictures(findings) if shown is None else shown)]
    if is_about_accumulation(records):
        return _accumulation_page(findings, charts, context, damage)
    sections = [
        _verdict(findings),
        *_pictures(findings, charts),
        *_damaged_timelines(damage),
        *_accumulations(findings, charts),
        _ranks(findings),
        _capacity(findings),
        _sights(findings),
        _agreement(records),
        _watched(findings),
        _reproduction(records),
        _failures(findings),
        _numbers(findings),
        _keys(findings),
        _repeat(records),
    ]
    sections.append(_words([section for section in sections if section.shown]))
    return Document(
        title=title(findings),
        context=context,
        notes=[f"Left out, because it cannot be read: {_damage(damage)}."] if damage else [],
        sections=[replace(section, help=explained(section)) for section in sections],
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
    text = Sized.of(
        lambda units: " ".join([*sentences(findings, units), verdict(findings, units)]).strip()
    )
    commands = remedies(findings)
    notes = [missing_text(findings), unlike_text(findings.savings), unpaced_text(findings)]
    groups = {name: [tuple(group)] for name, group in cards(findings).items()}
    blocks = [
        Note(unfinished_text(findings.unfinished), "failed"),
        Note(text, "verdict"),
        *([Note(FIT_HELPS)] if commands else []),
        *(Note(command, "code") for command in commands),
        *map(Note, notes),
        *_headed(groups, always=len(findings.names) > 1),
    ]
    blocks.append(Note(noise_note(findings)))
    if any(
        entry.scenario.optimizer == "sm3" and not entry.scenario.options.get("momentum")
        for entry in findings.entries
    ):
        blocks.append(Note(SM3_NOTE))
    says = "The costs of each optimizer in a card." if groups else ""
    return Section("Verdict", blocks, "verdict", says)


def _pictures(findings: Findings, charts: Sequence[Chart]) -> list[Section]:
    """A section for each picture; those of one subject are parts of one section."""
    explained_courses = {names["name"]: courses for courses, names in icicle.explained(findings)}
    timelines = [chart.name for chart in charts if chart.kind == "timeline"]
    sections: list[Section] = []
    shown: set[Table] = set()
    for chart in charts:
        if chart.kind == "accumulation":
            continue
        numbers = varied(
            group_table(explained_courses[chart.name]) if chart.kind == "icicle" else chart.table
        )
        # Two pictures of the same numbers have one table.
        tables = () if numbers in shown else (replace(numbers, title=chart.title, fold=NUMBERS),)
        shown.add(numbers)
        sections.append(_picture(chart, *tables))
        if chart.kind == "savings":
            sections.append(_heat_map(findings))
        if chart.kind == "timeline" and chart.name == timelines[-1]:
            sections.append(_largest_blocks(findings))
    return sections


def _heat_map(findings: Findings) -> Section:
    """The savings of all settings at a glance; one setting has no more than its bars."""
    table = heat_map(findings)
    return Section(
        "Savings heat map",
        [table] if len(table.rows) > 1 else [],
        "heat",
        f"How many times smaller each state is than {findings.baseline}'s, and the share saved."
        " Blue is a smaller state, orange a larger one; a deeper colour is a larger difference.",
        part_of="savings",
    )


def _picture(chart: Chart, *blocks: Block) -> Section:
    subject = SUBJECTS.get(chart.kind, chart.kind)
    part_of = "" if subject == chart.name else subject
    return Section(chart.title, [chart, *blocks], chart.name, chart.sentence, part_of=part_of)


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
            *_pictures(findings, charts),
            *_damaged_timelines(damage),
            _watched(findings),
            _failures(findings),
            _numbers(findings),
            _repeat(findings.records),
            _words([]),
        ],
        marks=findings.marks,
        rows=data_rows(findings),
    )


def _damaged_timelines(damage: Sequence[str]) -> list[Section]:
    damaged = [each for each in damage if each.startswith("timelines")]
    text = f"Not drawn, because the timeline cannot be read: {_damage(damaged)}."
    return [Section(blocks=[Note(text)])] if damaged else []


def _damage(damage: Sequence[str]) -> str:
    more = len(damage) - MOST_DAMAGE
    return "; ".join([*damage[:MOST_DAMAGE], *([f"and {more} more"] if more > 0 else [])])


def _ranks(findings: Findings) -> Section:
    """Return the section on ranks: the bytes that they hold and exchange."""
    if not findings.ranks:
        return Section()
    exchanges = {
        f"Exchanged in a step: {name}": replace(table, title=f"Exchanged: {name}")
        for name, table in exchange_tables(findings).items()
    }
    sides = {
        f"Each rank: {name}": replace(
            table,
            title=f"Each rank: {name}",
            fold=f"{len(table.rows)} rows" if len(table.rows) > MOST_ROWS else "",
        )
        for name, table in each_tables(findings).items()
    }
    notes = [
        Sized.of(lambda units, place=place: ranks_notes(findings, units)[place])
        for place in range(len(ranks_notes(findings)))
    ]
    return Section(
        "Ranks",
        [
            varied(rank_table(findings)),
            *map(Note, notes),
            *_headed(
                {name: [table] for name, table in {**sides, **exchanges}.items()}, always=True
            ),
        ],
        "ranks",
        "The state of a rank and of all ranks, and what they send each other in a training step.",
    )


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
            Note(capacity_legend(tables.values())),
            Note(NCCL_LEGEND if tables and findings.ranks else ""),
        ],
        "rooms",
        "The reserved peak of a training step, compared with the memory that torch can use on each"
        " GPU.",
    )


def _sights(findings: Findings) -> Section:
    return Section(
        "Why you may not see the saving",
        _headed(
            {
                name: [Note(sentence, "plain"), table]
                for name, (sentence, table) in sight_tables(findings).items()
            },
            always=len(findings.names) > 1,
        ),
        "sights",
        "A smaller state lowers the peak only if the peak's phase holds that state. The reserved"
        " peak adds memory that the allocator holds and does not use. The driver's figure, which"
        " nvidia-smi shows, adds the CUDA context.",
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
        "Iterations that were watched and not timed: the memory in each phase, the blocks that hold"
        " the state's tensors, and the longest operations of a traced step.",
        part_of="agreement",
    )


def _agreement(records: Sequence[Record]) -> Section:
    rows = agreements(records)
    return Section(
        "Simulated against measured",
        [Note(agreement_summary(rows), "plain"), varied(agreement_table(rows))] if rows else [],
        "agreement",
        "Every figure that this run both simulated and measured. The residual is the simulated"
        " figure less the measured one.",
    )


def _reproduction(records: Sequence[Record]) -> Section:
    rows, timed = reproduction(records), reproduced_times(records)
    missing = not_reproduced(rows)
    others = ", ".join(name for name in missing if name not in COMMAND_GIVES)
    blocks: list[Block] = [
        _folded(reproduction_table(rows), "published state"),
        Note(TIMES_NOTE if timed else "", "says"),
        _folded(time_table(timed), "published step time"),
    ]
    if rows and any(name in missing for name in COMMAND_GIVES):
        blocks += [Note("This command adds the missing ones:"), Note(COMMAND, "code")]
    if rows and others:
        blocks.append(Note(f"Published for optimizers that this run does not have: {others}."))
    return Section(
        "Against the published figures",
        blocks,
        "reproduction",
        "State as the SGD-SaI paper draws it (“No More Adam”, arXiv 2412.11768, memory figure;"
        " A100, fp32) next to ours: the allocator's blocks after one step on a fresh device. The"
        " figure's “GB” are GiB; extrapolated values were not measured by its authors.",
        part_of="agreement",
    )


def _folded(table: Table, noun: str) -> Table:
    count = len(table.rows)
    return replace(table, fold=f"{count} {noun}{'' if count == 1 else 's'} and ours")


def _failures(findings: Findings) -> Section:
    return Section(
        "Without a result",
        [failure_table(findings)],
        "failures",
        "Scenarios that ran out of memory, failed or were ended. After a simulated GPU ran out of"
        " memory, the page still shows the exact state, the memory until then and what is missing.",
    )


def _numbers(findings: Findings) -> Section:
    tables = map(varied, (memory_table(findings), *time_tables(findings)))
    return Section(
        "All numbers",
        _headed({table.title: [table] for table in tables}, always=True),
        "table",
        "One row an optimizer; a rounded number has its exact bytes behind it (hover).",
    )


def _keys(findings: Findings) -> Section:
    table = key_table(findings)
    fold = f"{len(table.rows)} rows" if len(table.rows) > MOST_ROWS else ""
    return Section(
        "What the state is made of",
        [replace(table, title="State by key", fold=fold)],
        "keys",
        "The bytes of each optimizer's state by the key that it keeps them under, and their dtype.",
        part_of="table",
    )


def _largest_blocks(findings: Findings) -> Section:
    tables = block_tables(findings)
    if len(tables) == 1:
        tables = [Note(tables[0].fold, "heading"), replace(tables[0], fold="")]
    return Section(
        "The largest blocks at the peak",
        tables,
        "blocks",
        "The largest blocks at the peak of the training steps, and what requested each: the module"
        " or tensor of the model, the operation, and the line of Python.",
        part_of="timeline",
    )


def _repeat(records: Sequence[Record]) -> Section:
    pairs = zip(provenance(records), provenance(records, DECIMAL), strict=True)
    facts = [(name, Sized(binary=text, decimal=decimal)) for (name, text), (_, decimal) in pairs]
    return Section(
        "How to repeat it",
        [*(Note(command, "code") for command in commands(records)), Facts(tuple(facts))],
        "repeat",
        "The command, and the machine and versions that it ran on.",
    )


def _words(sections: Sequence[Section]) -> Section:
    """The meaning of each origin, and of each figure in the sections."""
    origins = [
        (f"{name} ({'filled' if name == 'measured' else 'hollow'} marks)", meaning)
        for name, meaning in ORIGINS.items()
    ]
    return Section(
        "What the words mean",
        [Facts((*origins, *meanings(sections)))],
        "words",
        "The command `optprof explain` says how a figure is obtained and what it leaves out.",
        part_of="repeat",
    )
