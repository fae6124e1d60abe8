"""Bars: helpers of the pictures whose rows are stacked bars."""

from collections.abc import Hashable, Iterable, Sequence
from itertools import accumulate, groupby

from ..arithmetic.findings import Findings
from ..style import block_colour
from ..units import Sized, Words
from ..words import category_name
from .picture import Bar, Bars, Part
from .scales import multiples

# A part below this share of every peak is thinner than a line, and no key explains it.
VISIBLE = 0.002
Ticks = tuple[tuple[float, Words], ...]


def grouped(findings: Findings, rows: Iterable[tuple[str, Bar, Ticks]]) -> tuple[Bars, ...]:
    """Return bars and their ticks by the name of their group; a run of one setting has no name."""
    groups = [(name, tuple(members)) for name, members in groupby(rows, key=lambda row: row[0])]
    return tuple(
        Bars(
            name=name if len(findings.names) > 1 else "",
            bars=tuple(bar for _, bar, _ in members),
            ticks=members[0][2],
        )
        for name, members in groups
    )


def stacked(
    parts: Sequence[tuple[str, float]],
    texts: Sequence[Sized],
    scale: float,
    exact: Sequence[str],
) -> tuple[Part, ...]:
    """Return the parts side by side; `scale` is the size that fills the row.

    `exact` has the words under the pointer, after the names of the parts.
    """
    lefts = accumulate((size for _, size in parts), initial=0.0)
    return tuple(
        Part(
            left=100 * left / scale,
            width=100 * size / scale,
            colour=block_colour(name).light,
            text=text,
            words=f"{category_name(name)}: {words}",
        )
        for (name, size), left, text, words in zip(parts, lefts, texts, exact, strict=False)
    )


def row_scales(sizes: Iterable[tuple[Hashable, float]], unit: float = 1) -> dict[Hashable, float]:
    """Return the length of each key's rows: the round number of units that its sizes end below."""
    most: dict[Hashable, float] = {}
    for key, size in sizes:
        most[key] = max(most.get(key, 1e-12), size)
    return {key: multiples(size / unit)[-1] * unit for key, size in most.items()}
