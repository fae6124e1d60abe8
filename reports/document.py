"""Document: a report's titles, notes, tables and pictures, described once for every medium.

`html`, `terminal` and `markdown` render one; `page`, `summary`, `forecast`, `fit` and
`comparison.document` make one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from .style import Mark
from .tables.table import Card, Facts, Table
from .units import Words

if TYPE_CHECKING:
    from .pictures.charts import Chart

Medium = Literal["page", "terminal", "markdown"]
Style = Literal["plain", "muted", "says", "verdict", "heading", "code", "failed", "stopped"]


@dataclass(frozen=True)
class Note:
    """A paragraph; each medium has a look for its style."""

    text: Words
    style: Style = "muted"


Block: TypeAlias = "Note | Table | Facts | tuple[Card, ...] | Chart"


@dataclass(frozen=True)
class Section:
    """A part of a document; a page links to its `name`, and opens it with the sentence `says`.

    The blocks of `help` tell how to read it, on request. A section that is `part_of` an earlier one
    of that name has a smaller heading, and no place of its own in the contents.
    """

    title: str = ""
    blocks: "Sequence[Block]" = ()
    name: str = ""
    says: str = ""
    help: "Sequence[Block]" = ()
    part_of: str = ""

    @property
    def shown(self) -> "list[Block]":
        """The blocks that are not empty."""
        return [block for block in self.blocks if not _is_empty(block)]


@dataclass(frozen=True, kw_only=True)
class Document:
    """A report in all its parts.

    `context` and `notes` stand below the title of a page. A page with `rows`, a mapping for each
    row of its sortable tables, has scripts that sort, filter and copy them.
    """

    title: str = ""
    context: Sequence[Words] = ()
    notes: Sequence[str] = ()
    sections: Sequence[Section]
    marks: Mapping[str, Mark] = field(default_factory=dict)
    rows: Sequence[Mapping[str, Any]] | None = None

    @property
    def shown(self) -> list[Section]:
        """The sections that are not empty; a part stands alone if what it is part of is empty."""
        sections = [section for section in self.sections if section.shown]
        names = {section.name for section in sections}
        return [
            section if section.part_of in names else replace(section, part_of="")
            for section in sections
        ]


def _is_empty(block: "Block") -> bool:
    if isinstance(block, Table):
        return not block.rows
    if isinstance(block, Note):
        return not (block.text if isinstance(block.text, str) else block.text.binary)
    return block == ()
