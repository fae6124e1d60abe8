"""Drawing: pictures as PNG and SVG files in a folder."""

from collections.abc import Iterable, Sequence
from pathlib import Path

from optprof.profiler.records.record import Record
from optprof.profiler.safety.disk import write_bytes, write_text

from ..picture import Drawing, Picture
from ..published import published_picture
from .figure import Style, draw, draw_svg

__all__ = [
    "FOR_PAPER",
    "STYLES",
    "Style",
    "draw",
    "draw_all",
    "draw_published",
    "draw_svg",
    "style_named",
    "write_drawing",
]

# A paper's column is 3.35 inches wide. A slide is twice as wide as a picture for it.
STYLES = {"paper": Style(width=3.35, size=7.5), "slides": Style(width=6.4, size=9.5)}
FOR_PAPER = STYLES["paper"]


def style_named(name: str) -> Style:
    """Return the style of that name; ValueError for an unknown name."""
    if name not in STYLES:
        raise ValueError(f"no style is named {name!r}; there are {' and '.join(STYLES)}")
    return STYLES[name]


def draw_all(
    shown: Iterable[Picture],
    folder: Path,
    style: Style = FOR_PAPER,
    drawn: Iterable[tuple[Picture, Drawing]] = (),
) -> list[Drawing]:
    """Draw pictures, and write each file into the folder; return the drawings of the files.

    `drawn` has pictures and their drawings for a paper; the same pictures are not drawn again.
    """
    known = {picture.name: (picture, drawing) for picture, drawing in drawn}

    def drawing_of(picture: Picture) -> Drawing:
        same = known.get(picture.name)
        if same and same[0] == picture and style == FOR_PAPER:
            return same[1]
        return draw(picture, style)

    drawings = [drawing_of(part) for picture in shown for part in picture.files.values()]
    for drawing in drawings:
        write_drawing(drawing, folder)
    return drawings


def draw_published(records: Sequence[Record], style: Style = FOR_PAPER) -> Drawing | None:
    """Draw the SGD-SaI paper's figure; None if the run has no state that was published too."""
    picture = published_picture(records)
    return draw(picture, style) if picture else None


def write_drawing(drawing: Drawing, folder: Path) -> list[Path]:
    """Write a picture into the folder as PNG and SVG, over an older one; return the paths.

    ValueError if the folder, or a picture in it, is a symbolic link.
    """
    paths = [folder / f"{drawing.name}.png", folder / f"{drawing.name}.svg"]
    write_bytes(paths[0], drawing.png, below=folder.parent)
    write_text(paths[1], drawing.svg, below=folder.parent)
    return paths
