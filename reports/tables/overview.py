"""Overview tables: state by key, blocks at the peak, published figures and failures."""

from collections.abc import Sequence
from dataclasses import replace

from optprof.profiler.records.record import Record, StepEstimate
from optprof.profiler.records.timeline import PeakGroup

from ..arithmetic.courses import Course
from ..arithmetic.entries import Setting, failures
from ..arithmetic.findings import Findings
from ..arithmetic.peaks import SMALLER, in_stack_order
from ..arithmetic.reproduction import Published, Reproduced
from ..phrases import course_text
from ..units import NOTHING, Sized, difference_text, factor_text, gib_in, percent_text, seconds_text
from ..words import category_name, conditions, origin_text, phase_name
from .table import Cell, Table, bytes_cell, columns_of


def key_table(findings: Findings) -> Table:
    """The bytes of each state by key and dtype, largest first."""
    rows = []
    for entry in findings.entries:
        by_key = entry.memory.state_by_key_dtype if entry.memory else {}
        parts = sorted(
            (
                (key, dtype, count)
                for key, by_dtype in by_key.items()
                for dtype, count in by_dtype.items()
            ),
            key=lambda part: -part[2],
        )
        for key, dtype, count in parts:
            share = Cell(text=percent_text(count, entry.state_bytes or count), number=True)
            name = Cell(text=entry.label, mark=entry.label, origin=entry.origin)
            rows.append(
                (
                    name,
                    Cell(text=findings.names[entry.setting]),
                    Cell(text=key),
                    Cell(text=dtype),
                    bytes_cell(count),
                    share,
                )
            )
    head = ("optimizer", "model", "key", "dtype", "bytes", "share of the state")
    return without_lone_model(findings, Table(head=head, rows=tuple(rows)))


GROUP_HEAD = (
    *("holds", "module class", "module", "operation", "line", "allocated in", "blocks"),
    *("bytes", "of the peak"),
)


def group_rows(course: Course) -> list[tuple[Cell, ...]]:
    """The blocks at a peak in groups by category, the largest first; the last row is their sum."""
    groups, peak = course.timeline.groups, course.timeline.peak_allocated
    order = in_stack_order({group.source.category for group in groups})
    rows = [
        (
            Cell(text=category_name(group.source.category)),
            *(Cell(text=text or NOTHING) for text in _requester(group)),
            *_sum_cells(group.blocks, group.nbytes, peak),
        )
        for group in sorted(
            groups, key=lambda group: (order.index(group.source.category), -group.nbytes)
        )
    ]
    blocks = sum(group.blocks for group in groups)
    whole = (Cell(text="the peak"), *[Cell(text="")] * 5, *_sum_cells(blocks, peak, peak))
    return [*rows, whole]


def _requester(group: PeakGroup) -> tuple[str, ...]:
    source = group.source
    module = source.module if group.phase else SMALLER
    return source.module_class, module, source.op, source.line, phase_name(group.phase)


def _sum_cells(blocks: int, nbytes: int, peak: int) -> tuple[Cell, ...]:
    share = Cell(text=percent_text(nbytes, peak), number=True)
    return Cell(text=f"{blocks:,}", number=True, value=blocks), bytes_cell(nbytes), share


def group_table(courses: Sequence[Course]) -> Table:
    """The blocks at all peaks in groups, with the bytes of each optimizer in a column; the last
    row has the peaks.
    """
    sizes: dict[tuple[PeakGroup, int], dict[int, int]] = {}
    for place, course in enumerate(courses):
        for group in course.timeline.groups:
            sizes.setdefault((replace(group, nbytes=0), group.blocks), {})[place] = group.nbytes
    order = in_stack_order({group.source.category for group, _ in sizes})
    groups = sorted(
        sizes.items(),
        key=lambda item: (order.index(item[0][0].source.category), -max(item[1].values())),
    )
    peaks = [course.timeline.peak_allocated for course in courses]
    rows = [
        (
            Cell(text=category_name(group.source.category)),
            *(Cell(text=text or NOTHING) for text in _requester(group)),
            Cell(text=f"{blocks:,}", number=True, value=blocks),
            *(_share_cell(of_course.get(place), peak) for place, peak in enumerate(peaks)),
        )
        for (group, blocks), of_course in groups
    ]
    whole = (Cell(text="the peak"), *[Cell(text="")] * 6, *map(bytes_cell, peaks))
    return Table(
        head=(*GROUP_HEAD[:-2], *(course.label for course in courses)), rows=(*rows, whole)
    )


def _share_cell(nbytes: int | None, peak: int) -> Cell:
    """Bytes, with their share of the peak next to the exact ones (hover)."""
    cell = bytes_cell(nbytes)
    if nbytes is None:
        return cell
    return replace(cell, exact=f"{cell.exact}, {percent_text(nbytes, peak)} of the peak")


def block_tables(findings: Findings) -> list[Table]:
    """The largest blocks at each peak whose timeline has no groups, as older ones do not."""
    head = ("holds", "block", "requested by", "operation", "line", "allocated in")
    several = len({course.setting for course in findings.courses}) > 1
    tables = []
    for course in findings.courses:
        if course.timeline.groups:
            continue
        where = f" on {findings.name_of(course.setting)}" if several else ""
        rows = [
            (
                Cell(text=category_name(block.category)),
                bytes_cell(block.block_bytes),
                *(Cell(text=text or NOTHING) for text in (block.module, block.op, block.line)),
                Cell(
                    text=f"{phase_name(block.phase)}, training step {block.step}"
                    if block.step
                    else phase_name(block.phase)
                ),
            )
            for block in course.timeline.largest
        ]
        fold = Sized.of(
            lambda units, course=course, where=where: (
                f"{course.label}{where}: {course_text(course, units)}"
            )
        )
        tables.append(Table(head=head, rows=tuple(rows), title=fold.binary, fold=fold))
    return tables


def reproduction_table(rows: Sequence[Reproduced]) -> Table:
    """The published figures and ours."""
    head = (
        "model",
        "optimizer",
        "published",
        "ours",
        "difference",
        "in per cent",
        "origin",
    )
    title = "Published figures and ours"
    return Table(head=head, rows=tuple(_reproduced(row) for row in rows), title=title)


def time_table(rows: Sequence[tuple[Published, Record]]) -> Table:
    """The published step times and our estimates."""
    head = (
        "model",
        "optimizer",
        "implementation",
        "published",
        "estimated",
        "estimated / published",
        "floor",
    )
    return Table(
        head=head,
        rows=tuple(_timed(row, record.estimate, record) for row, record in rows if record.estimate),
        title="Published step times and estimated ones",
    )


def failure_table(findings: Findings) -> Table:
    """The scenarios without a result, and their errors."""
    rows = []
    for record in failures(findings.records):
        scenario = record.scenario
        where = ", ".join(
            (conditions(record), scenario.workload, *Setting.of(scenario, record.memory).traits)
        )
        cells = (scenario.optimizer, scenario.model, where, record.outcome, record.error or NOTHING)
        rows.append(tuple(Cell(text=text) for text in cells))
    return Table(head=("optimizer", "model", "scenario", "outcome", "error"), rows=tuple(rows))


def without_lone_model(findings: Findings, table: Table) -> Table:
    """The table without the column "model" if the run has only one."""
    if len(findings.names) > 1:
        return table
    return columns_of(table, [place for place, name in enumerate(table.head) if name != "model"])


def _reproduced(row: Reproduced) -> tuple[Cell, ...]:
    extrapolated = ", extrapolated" if row.published.extrapolated else ""
    published = Sized.of(
        lambda units: f"{gib_in(row.published.state_gib, units):.2f} {units.giga}{extrapolated}"
    )
    difference = Sized.of(
        lambda units: f"{difference_text(gib_in(row.difference_gib, units))} {units.giga}"
    )
    return (
        Cell(text=row.published.model),
        Cell(text=row.published.optimizer),
        Cell(text=published.binary, decimal=published.decimal, number=True),
        bytes_cell(row.allocated_bytes),
        Cell(text=difference.binary, decimal=difference.decimal, number=True),
        Cell(text=f"{difference_text(row.difference_percent, 1)} %", number=True),
        Cell(text=origin_text(row.record)),
    )


def _timed(row: Published, estimate: StepEstimate, record: Record) -> tuple[Cell, ...]:
    published = seconds_text(row.step_seconds)
    return (
        Cell(text=row.model),
        Cell(text=row.optimizer),
        Cell(text=record.scenario.implementation),
        Cell(text=f"{published}, extrapolated" if row.extrapolated else published, number=True),
        Cell(text=seconds_text(estimate.seconds), number=True),
        Cell(text=factor_text(estimate.seconds / row.step_seconds), number=True),
        Cell(text=seconds_text(estimate.floor_seconds), number=True),
    )
