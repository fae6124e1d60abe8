"""Style: colours and marks; an optimizer has the same mark in all pictures and pages.

Colours follow Okabe and Ito (colour-blind safe), darkened on white and lightened on black until
they stand out; shapes say the same again. Filled marks are measured, hollow ones simulated or
estimated.
"""

import zlib
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

Scheme = Literal["light", "dark"]


@dataclass(frozen=True)
class Colour:
    """A colour on light and on dark paper."""

    light: str
    dark: str

    def on(self, scheme: Scheme) -> str:
        """Return the colour for that paper."""
        return self.light if scheme == "light" else self.dark


@dataclass(frozen=True)
class Mark:
    """The colour and the shape of an optimizer: matplotlib's name, filled and hollow text."""

    colour: Colour
    shape: str
    filled: str
    hollow: str

    def glyph(self, origin: str) -> str:
        """Return the shape as text, filled if it was measured."""
        return self.filled if origin == "measured" else self.hollow


PAPER = Colour("#ffffff", "#14171c")
INK = Colour("#1d2229", "#e7eaee")
MUTED = Colour("#5d6673", "#a2abb8")
LINE = Colour("#d9dee5", "#333a45")
TRACK = Colour("#edf0f4", "#242a33")
# What a heat map fades to, for less and for more than the baseline.
SAVES = Colour("#0072b2", "#56b4e9")
COSTS = Colour("#d55e00", "#ff8b3d")

MARKS = {
    "adamw": Mark(Colour("#59636f", "#b6bfca"), "o", "●", "○"),
    "sgd-sai": Mark(Colour("#0072b2", "#56b4e9"), "s", "■", "□"),
    "sm3": Mark(Colour("#d55e00", "#ff8b3d"), "^", "▲", "△"),
    "lamb16": Mark(Colour("#009e73", "#2ec79b"), "D", "◆", "◇"),
    "lamb": Mark(Colour("#b3588d", "#e29ac5"), "v", "▼", "▽"),
    "sgd": Mark(Colour("#b98300", "#f0c04a"), "p", "⬟", "⬠"),
    "adam": Mark(Colour("#7d3c98", "#c39bd9"), "h", "⬢", "⬡"),
    "adam-mini": Mark(Colour("#8a5a2b", "#cfa074"), "<", "◀", "◁"),
    "prodigy": Mark(Colour("#a61e4d", "#f783ac"), ">", "▶", "▷"),
}
SPARE = (
    Mark(Colour("#2b8a9e", "#66d0e3"), "*", "★", "☆"),
    Mark(Colour("#6b7a00", "#c3d14f"), ">", "▶", "▷"),
    Mark(Colour("#5c4fc4", "#a99ff5"), "<", "◀", "◁"),
    Mark(Colour("#b3588d", "#e29ac5"), "h", "⬢", "⬡"),
    Mark(Colour("#009e73", "#2ec79b"), "p", "⬟", "⬠"),
    Mark(Colour("#0072b2", "#56b4e9"), "v", "▼", "▽"),
    Mark(Colour("#8a5a2b", "#cfa074"), "s", "■", "□"),
    Mark(Colour("#a61e4d", "#f783ac"), "D", "◆", "◇"),
)

# Greys for what every optimizer pays, a strong colour for its state; dark type reads well on all.
ON_BLOCK = "#14171c"
CATEGORY_COLOURS = {
    "parameter": "#98a3af",
    "buffer": "#e3e7ec",
    "gradient": "#c3cbd4",
    "optimizer_state": "#cc79a7",
    "activation": "#8ccdf2",
    "temporary": "#f2d95c",
    "workspace": "#a893e3",
    "input": "#4fc9a4",
}
PHASE_COLOURS = {"forward": "#c3cbd4", "backward": "#98a3af", "step": "#cc79a7"}
OTHER_BLOCK = "#e69f00"


def marks(labels: Iterable[str]) -> dict[str, Mark]:
    """Return a mark for each label: the optimizer's own, or a spare one that its name decides.

    The same label has the same mark in every run, unless another label has taken it.
    """
    chosen: dict[str, Mark] = {}
    owned = {label: MARKS.get(label.split(" (")[0].split(",")[0]) for label in labels}
    taken: set[Mark] = set()
    # The shortest label of a name is its plain form, which takes the name's own mark. Labels
    # without a mark of their own come last.
    for label in sorted(owned, key=lambda label: (owned[label] is None, len(label), label)):
        own = owned[label]
        start = zlib.crc32(label.encode())
        spare = [SPARE[(start + turn) % len(SPARE)] for turn in range(len(SPARE))]
        chosen[label] = _free([*([own] if own else []), *spare], taken)
        taken.add(chosen[label])
    return {label: chosen[label] for label in owned}


def _free(candidates: Sequence[Mark], taken: Collection[Mark]) -> Mark:
    """Return the first mark with a free shape and colour, else the first unused mark."""
    shapes, colours = {mark.shape for mark in taken}, {mark.colour for mark in taken}
    unlike = [
        mark for mark in candidates if mark.shape not in shapes and mark.colour not in colours
    ]
    return next(iter([*unlike, *(mark for mark in candidates if mark not in taken), *candidates]))


def css_colour(name: str) -> str:
    """Return the colour of a picture as a style sheet names it: var(--mark-3) for @mark-3."""
    return f"var(--{name[1:]})" if name.startswith("@") else name


def block_colour(name: str) -> Colour:
    """Return the colour of a category of bytes or a phase of time."""
    shade = CATEGORY_COLOURS.get(name) or PHASE_COLOURS.get(name, OTHER_BLOCK)
    return Colour(shade, shade)
