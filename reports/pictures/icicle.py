"""The pictures of peaks block by block: category, class of the module, module and operation."""

from collections.abc import Sequence

from ..arithmetic.courses import Course
from ..arithmetic.findings import Findings
from ..arithmetic.peaks import in_stack_order, peak_parts
from ..phrases import course_text
from ..style import block_colour
from ..tables.overview import GROUP_HEAD, group_rows
from ..tables.table import Cell, Table
from ..units import Sized, percent_text
from ..words import category_name
from .bars import VISIBLE
from .peaks import category_keys
from .picture import ORIGINS, Icicle, Picture, Tile
from .timelines import MOST_ROWS, Names, by_setting, few_note

TITLE = "The peak by module and operation"
LAYERS = (
    "In the path of a module, * stands for the number of a layer: the blocks of all layers are one"
    " part."
)


def describe(findings: Findings) -> list[Picture]:
    """Return a picture for each setting whose peaks are known block by block."""
    return [_picture(findings, courses, names) for courses, names in explained(findings)]


def explained(findings: Findings) -> list[tuple[list[Course], Names]]:
    """Return the courses of each picture, with its name, title and context."""
    known = [course for course in findings.courses if course.timeline.groups]
    return by_setting(findings, known, "icicle", TITLE)


def _picture(findings: Findings, courses: Sequence[Course], names: Names) -> Picture:
    shown = courses[:MOST_ROWS]
    panels = tuple(_icicle(course) for course in shown)
    visible = {
        group.source.category
        for course in shown
        for group in course.timeline.groups
        if group.nbytes >= VISIBLE * course.timeline.peak_allocated
    }
    layers = any("*" in group.source.module for each in shown for group in each.timeline.groups)
    return Picture(
        **names,
        sentence=(
            "Every block that is allocated at the peak, as wide as its bytes, by what it holds and"
            " what requested it."
        ),
        table=Table(
            head=("optimizer", *GROUP_HEAD),
            rows=tuple(
                (Cell(text=course.label, mark=course.label, origin=course.record.origin), *row)
                for course in courses
                for row in group_rows(course)
            ),
        ),
        panels=panels,
        marks=findings.marks,
        notes=(*((LAYERS,) if layers else ()), *few_note(shown, courses)),
        keys=(*category_keys(in_stack_order(visible)), *ORIGINS),
    )


def _icicle(course: Course) -> Icicle:
    parts = peak_parts(course.timeline.groups)
    numbers = {part.path: number for number, part in enumerate(parts)}
    tiles = [
        Tile(
            name=_name(part.path),
            short=_short(_name(part.path)),
            parent=numbers[part.path[:-1]] if part.path else None,
            depth=len(part.path),
            colour=block_colour(part.path[0]).light if part.path else "@track",
            start=part.start,
            nbytes=part.nbytes,
            blocks=part.blocks,
        )
        for part in parts
    ]
    shares = ", ".join(
        f"{tile.name} {percent_text(tile.nbytes, tiles[0].nbytes)}"
        for tile in tiles
        if tile.depth == 1
    )
    return Icicle(
        label=course.label,
        origin=course.record.origin,
        value=Sized.of(lambda units: course_text(course, units)),
        alt=f"{course.label}: {course_text(course)}; {shares}",
        tiles=tiles,
    )


def _short(name: str) -> str:
    """Return an operation without namespace and line, or a path from its last layer on."""
    operation = name.partition(" · ")[0]
    key, of, path = operation.rpartition(" of ")
    return f"{key}{of}{path.rpartition('*.')[2].rpartition('::')[2]}"


def _name(path: tuple[str, ...]) -> str:
    if not path:
        return "the peak"
    return category_name(path[0]) if len(path) == 1 else path[-1]
