"""Figure: a picture as PNG bytes and SVG text, by matplotlib with this package's settings only."""

import io
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import unescape
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

from optprof.profiler.safety.plain import plain

from ...style import INK, MUTED, PAPER
from ...tables.table import Table
from ..picture import Areas, Bars, Drawing, Icicle, Panel, Picture, Plot
from .areas import areas_height, draw_areas
from .arranging import arrange
from .bars import bars_height, draw_bars
from .icicle import draw_icicle, icicle_height
from .lettering import FONT, width, wrapped
from .pen import Pen
from .plots import draw_plot, name_lines, plot_height

SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": [FONT],
    "hatch.linewidth": 0.5,
    # At 300 pixels an inch hinting is not seen; without it letters are as wide as `lettering` says.
    "text.hinting": "none",
    # Text stays text: a smaller file, and sharp in any size.
    "svg.fonttype": "none",
    "svg.hashsalt": "optprof",
    # A `$` in the name of a class begins no formula.
    "text.parse_math": False,
}
# Two decimals of a point are finer than any screen; matplotlib's six double the size of a curve.
PATH = re.compile(r'(?<= d=")[^"]+')
DECIMALS = re.compile(r"(\.\d\d)\d+")
# A hatch of dots, which matplotlib writes as 1,200 circles in 180 kB. A small tile looks the same:
# five lines without length, whose round ends are as large as those circles.
DOTTED = re.compile(
    r'(<pattern [^>]*?) width="72" height="72">(\s*<rect [^>]*/>\s*)'
    r'<path d="M 0 72\.3 \nC [^"]*"\s*style="fill: (#\w+)[^>]*>'
)
TILE = (
    r'\1 width="3" height="6">\2<path d="M0 0h0M3 0h0M1.5 3h0M0 6h0M3 6h0"'
    r' style="stroke: \3; stroke-width: 1.1; stroke-linecap: round"/>'
)
TEXT = re.compile(r'<text style="(?P<style>[^"]*)"[^>]*>(?P<words>[^<]*)</text>')
# Verdana has almost the letters of our font.
FAMILY = f"'{FONT}', Verdana, sans-serif"
# The usual effort takes three times as long for a file a tenth smaller.
QUICK = {"compress_level": 3}
# Inches of white around a PNG, and between panels.
MARGIN, GAP = 0.08, 0.07


@dataclass(frozen=True, kw_only=True)
class Style:
    """The width of a picture in inches, and the size of its type in points."""

    width: float
    size: float
    pixels_per_inch: int = 300


def draw(picture: Picture, style: Style) -> Drawing:
    """Draw a picture in both forms; the same records give the same bytes."""
    with _laid_out(picture, style) as (figure, bounds):
        return Drawing(name=picture.name, png=_png(figure, bounds), svg=_svg(figure, bounds))


def draw_svg(picture: Picture, style: Style) -> str:
    """Draw a picture as SVG alone, in half the time."""
    with _laid_out(picture, style) as (figure, bounds):
        return _svg(figure, bounds)


@contextmanager
def _laid_out(picture: Picture, style: Style) -> Iterator[tuple[Figure, Bbox]]:
    """Yield the figure with everything in its place, and its bounds."""
    with settings():
        pen = Pen(picture, style.width, style.size)
        figure = _figure(picture, style, pen)
        # Names at the ends of a plot stick out further if it is narrower.
        for _ in range(2 if any(isinstance(panel, Plot) for panel in picture.panels) else 1):
            arrange(figure, gap=GAP)
        for axes, panel in zip(figure.axes, picture.panels, strict=False):
            if isinstance(panel, Plot):
                name_lines(axes, panel, pen)
        # Words stand above the panels, the legend below them.
        top = figure.texts[-1].get_window_extent().y1 / figure.dpi
        low = [legend.get_window_extent().y0 / figure.dpi for legend in figure.legends]
        yield figure, Bbox.from_extents(0, min([GAP, *low]), style.width, top)


@contextmanager
def settings() -> Iterator[None]:
    """Use matplotlib's defaults and this package's settings, not the user's own."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        # A letter that the font lacks is drawn as a box; the tables have it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def _figure(picture: Picture, style: Style, pen: Pen) -> Figure:
    """Return the figure of the panels; words and legend lie above and below it."""
    panels, across = picture.panels, picture.across
    rows = [panels[first : first + across] for first in range(0, len(panels), across)]
    heights = [_height(row[0], pen) for row in rows]
    if picture.draws_table:
        heights.append((len(picture.table.rows) + 1) * 1.15 * pen.line)
    figure = Figure(
        figsize=(style.width, sum(heights)),
        # Letters have other widths at other resolutions.
        dpi=style.pixels_per_inch,
        facecolor=PAPER.light,
    )
    FigureCanvasAgg(figure)
    # The first guess of `arrange`: words at the sides take little of the panels.
    sides = {"left": 0.05, "right": 0.95, "bottom": 0.05, "top": 0.95}
    grid = figure.add_gridspec(len(heights), across, height_ratios=heights, **sides)
    for place, row in enumerate(rows):
        for side, panel in enumerate(row):
            axes = figure.add_subplot(grid[place, side])
            _draw(axes, panel, pen, is_last=row is rows[-1])
            if side:
                axes.set_ylabel("")
                axes.set_yticklabels([])
    if picture.draws_table:
        _draw_table(figure.add_subplot(grid[-1, :]), picture.table, pen)
    _write_head(figure, picture, pen)
    pen.legend(figure)
    for words in figure.findobj(Text):
        assert isinstance(words, Text)
        # An SVG with a control character in it is no XML.
        words.set_text(plain(words.get_text()))
    return figure


def _height(panel: Panel, pen: Pen) -> float:
    """Return the inches of a panel with all that belongs to it."""
    if isinstance(panel, Bars):
        return bars_height(panel, pen)
    if isinstance(panel, Icicle):
        return icicle_height(panel, pen)
    return plot_height(panel, pen) if isinstance(panel, Plot) else areas_height(pen)


def _draw(axes: Axes, panel: Panel, pen: Pen, *, is_last: bool) -> None:
    axes.set_facecolor("none")
    axes.set_axisbelow(True)
    axes.tick_params(which="both", length=0, labelsize=pen.small, labelcolor=MUTED.light, pad=4)
    for spine in axes.spines.values():
        spine.set_visible(False)
    if isinstance(panel, Bars):
        draw_bars(axes, panel, pen)
    elif isinstance(panel, Plot):
        draw_plot(axes, panel, pen)
    elif isinstance(panel, Icicle):
        draw_icicle(axes, panel, pen)
    else:
        draw_areas(axes, panel, pen, named=is_last or not _is_alike(pen.picture.panels))


def _is_alike(panels: Sequence[Panel]) -> bool:
    """Return whether all areas have the same phases; a run that ended early has others."""
    shapes = {
        tuple((band.stretch.step, band.stretch.phase) for band in panel.bands)
        for panel in panels
        if isinstance(panel, Areas)
    }
    return len(shapes) == 1


def _draw_table(axes: Axes, table: Table, pen: Pen) -> None:
    axes.set_axis_off()
    rows = [[cell.text for cell in row] for row in table.rows]
    drawn = axes.table(rows, colLabels=table.head, loc="center", edges="open")
    drawn.auto_set_font_size(False)
    drawn.set_fontsize(0.85 * pen.size)
    drawn.auto_set_column_width(range(len(table.head)))
    for (row, column), cell in drawn.get_celld().items():
        cell.PAD = 0.05
        cell.get_text().set_color((INK if row else MUTED).light)
        cell.get_text().set_horizontalalignment("right" if column else "left")


def _write_head(figure: Figure, picture: Picture, pen: Pen) -> None:
    """Write the title and the context above the panels."""
    line = pen.line / figure.get_figheight()
    large = 1.25 * pen.size
    title = wrapped(picture.title, large, pen.width, bold=True)
    context = wrapped(picture.context, pen.size, pen.width)
    below = figure.text(
        0, 1 + 0.4 * line, "\n".join(context), size=pen.size, color=MUTED.light, va="bottom"
    )
    top = below.get_window_extent().y1 / figure.dpi / figure.get_figheight()
    bold = {"size": large, "weight": "bold", "color": INK.light, "va": "bottom"}
    figure.text(0, top + 0.3 * line, "\n".join(title), **bold)


def _svg(figure: Figure, bounds: Bbox) -> str:
    stream = io.StringIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(stream, format="svg", bbox_inches=bounds, metadata=metadata)
    svg = PATH.sub(lambda path: DECIMALS.sub(r"\1", path[0]), stream.getvalue())
    svg = DOTTED.sub(TILE, svg)
    return TEXT.sub(_of_known_width, svg.replace(f"'{FONT}', sans-serif", FAMILY))


def _of_known_width(text: re.Match[str]) -> str:
    """Return an SVG's text with its width in our font, which another font then has too."""
    size = re.search(r"([\d.]+)px", text["style"])
    assert size is not None
    bold = "700" in text["style"] or "bold" in text["style"]
    wide = 72 * width(unescape(text["words"]), float(size[1]), bold=bold)
    length = f' textLength="{wide:.2f}" lengthAdjust="spacingAndGlyphs"' if wide else ""
    return f"<text{length}{text[0][len('<text') :]}"


def _png(figure: Figure, bounds: Bbox) -> bytes:
    stream = io.BytesIO()
    figure.savefig(
        stream,
        format="png",
        bbox_inches=bounds.padded(MARGIN),
        metadata={"Software": None},
        pil_kwargs=QUICK,
    )
    return stream.getvalue()
