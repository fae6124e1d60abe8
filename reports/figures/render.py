"""Render: figures as SVG text and PNG bytes, with this package's matplotlib settings and no
others.
"""

import io
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import matplotlib
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

SETTINGS: dict[Any, Any] = {
    "font.family": "sans-serif",
    # The first three have the same widths; matplotlib brings the last.
    "font.sans-serif": ["Helvetica", "Arial", "Liberation Sans", "DejaVu Sans"],
    # Text stays text: a smaller file, and sharp in any size.
    "svg.fonttype": "none",
    "svg.hashsalt": "optprof",
    # A `$` in somebody's class name begins no formula.
    "text.parse_math": False,
}
# Two decimals of a point are finer than any screen; the six that matplotlib writes make a curve
# twice as long.
PATH = re.compile(r'(?<= d=")[^"]+')
DECIMALS = re.compile(r"(\.\d\d)\d+")
# The usual effort takes three times as long for a file a tenth smaller.
QUICK = {"compress_level": 3}
# Inches of white around a picture that stands alone.
MARGIN = 0.08


@contextmanager
def drawing() -> Iterator[None]:
    """matplotlib with its defaults and this package's settings, whatever the user's own are."""
    with matplotlib.rc_context(), warnings.catch_warnings():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(SETTINGS)
        # A name in a script that the font lacks is drawn as boxes; the tables have it right.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        yield


def svg(figure: Figure) -> str:
    """The figure as SVG text, the same for the same records."""
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None, "Creator": None})
    return PATH.sub(lambda path: DECIMALS.sub(r"\1", path[0]), stream.getvalue())


def png(figure: Figure, pixels_per_inch: int) -> bytes:
    """The figure as PNG bytes, with a margin around it."""
    stream = io.BytesIO()
    margins = Bbox.from_extents(0, 0, *figure.get_size_inches()).padded(MARGIN)
    figure.savefig(
        stream,
        format="png",
        dpi=pixels_per_inch,
        bbox_inches=margins,
        metadata={"Software": None},
        pil_kwargs=QUICK,
    )
    return stream.getvalue()
