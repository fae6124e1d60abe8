"""A comparison as Markdown, for a pull request."""

from collections.abc import Sequence

from ..markdown import escaped, markdown_table
from .compare import Compared
from .gate import Offence
from .tables import (
    Names,
    comparison_table,
    offence_table,
    one_side_table,
    remarks,
    summary,
    unfinished_table,
)


def comparison_markdown(
    compared: Compared, stopped: Sequence[Offence], *, only_regressed: bool = False
) -> str:
    """A comparison: what the gates stop first, then the figures, then the scenarios of one side."""
    names = Names.of(compared.records)
    table = comparison_table(compared, names, only_regressed=only_regressed)
    stop = offence_table(stopped, names)
    parts = [f"**{escaped(summary(compared))}**", escaped(names.common)]
    parts += ["Stopped by a gate:", markdown_table(stop)] if stop.rows else []
    parts += [markdown_table(table)] if table.rows else []
    if not only_regressed:
        for title, found in (
            ("one side only", one_side_table(compared, names)),
            ("no result", unfinished_table(compared, names)),
        ):
            parts += [f"{title}:".capitalize(), markdown_table(found)] if found.rows else []
    return "\n\n".join(part for part in (*parts, *map(escaped, remarks(compared))) if part) + "\n"
