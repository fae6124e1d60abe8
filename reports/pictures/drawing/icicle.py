"""Icicle: the parts of a peak as rows of tiles, each below the part that it belongs to."""

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.collections import PolyCollection
from matplotlib.patches import Rectangle

from ...style import ON_BLOCK, PAPER
from ..picture import Icicle, Tile
from .lettering import fitted, one_line, width
from .pen import Pen, hatched

# Inches of a row of tiles, and the share of the width below which a tile has no edge.
ROW, THIN = 0.17, 0.004
# A name that is cut in its middle still says something if it has room for these letters.
ENOUGH = "n" * 12


def icicle_height(icicle: Icicle, pen: Pen) -> float:
    """Return the inches of the tiles with their heading."""
    return _rows(icicle.tiles) * ROW + (0.5 + 0.9 * pen.heading_lines) * pen.line


def draw_icicle(axes: Axes, icicle: Icicle, pen: Pen) -> None:
    """Draw the tiles, x in bytes and y in rows from the top down; the whole is the heading's."""
    whole = icicle.tiles[0].nbytes
    tiles = icicle.tiles[1:]
    axes.set(xlim=(0, whole), ylim=(_rows(icicle.tiles), 0), xticks=[], yticks=[])
    pen.heading(axes, 1, axes.transAxes, icicle)
    # Wide tiles come last: their edges cover thin ones.
    drawn = sorted(tiles, key=lambda tile: tile.nbytes >= THIN * whole)
    blocks = PolyCollection(
        list(map(_corners, drawn)),
        facecolors=[pen.colour(tile.colour) for tile in drawn],
        edgecolors=PAPER.light,
        linewidths=[0.5 if tile.nbytes >= THIN * whole else 0 for tile in drawn],
    )
    axes.add_collection(blocks, autolim=False)
    for tile in drawn:
        # The first row only: lines would cross the names of all modules.
        if tile.depth == 1 and tile.nbytes >= THIN * whole:
            look = {"facecolor": pen.colour(tile.colour), **hatched(pen.colour(tile.colour))}
            axes.add_artist(Rectangle((tile.start, 0), tile.nbytes, 1, **look))
    for tile in tiles:
        _name(axes, tile, tile.nbytes / whole * (pen.width - 0.1), pen)


def _corners(tile: Tile) -> list[tuple[int, int]]:
    left, right = tile.start, tile.start + tile.nbytes
    top, bottom = tile.depth - 1, tile.depth
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def _name(axes: Axes, tile: Tile, inches: float, pen: Pen) -> None:
    """Write the name of a tile, its short name, that name cut in its middle, or nothing."""
    size, room = 0.83 * pen.size, inches - 0.05
    whole = (one_line(name) for name in (tile.name, tile.short))
    name = next((name for name in whole if width(name, size) <= room), "")
    if not name and width(ENOUGH, size) <= room:
        name = fitted(tile.short, size, room)
    if name:
        look = {"size": size, "color": ON_BLOCK, "ha": "center", "va": "center_baseline"}
        if tile.depth == 1:
            box = {"facecolor": pen.colour(tile.colour), "edgecolor": "none", "pad": 0.6}
            look |= {"bbox": box}
        axes.text(tile.start + tile.nbytes / 2, tile.depth - 0.5, name, **look)


def _rows(tiles: Sequence[Tile]) -> int:
    return max(tile.depth for tile in tiles)
