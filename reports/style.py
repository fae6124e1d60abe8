"""Style: colours and marks; an optimizer has the same mark in all pictures and pages.

Colours follow Okabe and Ito (colour-blind safe), darkened on white and lightened on black until
they stand out; shapes say the same again. Filled marks are measured, hollow ones simulated or
estimated.
"""

import zlib
from collections.abc import Collection, Iterable, Mapping, Sequence
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

    @property
    def hatch(self) -> str:
        """Return the letter of the hatch of a bar in this colour; empty for a plain one."""
        return SHAPE_HATCHES[self.shape]

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
# Neighbours in a stack differ in lightness too, for print in grey and for the colour-blind.
ON_BLOCK = "#14171c"
CATEGORY_COLOURS = {
    "parameter": "#8792a0",
    "buffer": "#cdb592",
    "gradient": "#ced6df",
    "optimizer_state": "#c76f9f",
    "activation": "#86c8ef",
    "temporary": "#f6e27f",
    "workspace": "#9f89df",
    "input": "#55cfa8",
    "gathered": "#84a93f",
    "communication": "#ffab99",
}
PHASE_COLOURS = {"forward": "#ced6df", "backward": "#8792a0", "step": "#c76f9f"}
OTHER_BLOCK = "#e69f00"
# Blocks of equal lightness have unlike hatches, by the letters of matplotlib and plotly. These have
# seven that can be told apart, so the two kinds of blocks that ranks add share one each.
HATCHES = {
    CATEGORY_COLOURS["buffer"]: "|",
    CATEGORY_COLOURS["optimizer_state"]: "/",
    CATEGORY_COLOURS["activation"]: ".",
    CATEGORY_COLOURS["temporary"]: "\\",
    CATEGORY_COLOURS["workspace"]: "x",
    CATEGORY_COLOURS["input"]: "-",
    CATEGORY_COLOURS["gathered"]: "\\",
    CATEGORY_COLOURS["communication"]: "x",
    OTHER_BLOCK: "+",
}
HATCH_NAMES = {
    "|": "upright",
    "/": "rising",
    ".": "dots",
    "\\": "falling",
    "x": "crossed",
    "-": "level",
    "+": "grid",
}
# Bars of optimizers have a hatch that goes with the shape of their mark.
SHAPE_HATCHES = {"o": "", "s": "/", "^": "\\", "D": "x", "v": ".", "p": "|", "h": "-", "<": "+"}
SHAPE_HATCHES |= {">": "|", "*": "-"}
# How much of ON_BLOCK is in the lines of a hatch on a block, and of paper in those on a bar.
HATCH_DEPTH, BAR_HATCH_DEPTH = 0.38, 0.6


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


def css_fill(name: str, marks: Mapping[str, Mark]) -> str:
    """Return a colour of a picture, and its hatch, as the value of a style sheet's `background`.

    A colour of the page is var(--mark-3) for @mark-3, the colour of the fourth of the marks.
    """
    colour, hatch = name, HATCHES.get(name, "")
    if name.startswith("@"):
        colour, hatch = f"var(--{name[1:]})", mark_hatch(name, marks)
    return f"var(--hatch-{HATCH_NAMES[hatch]}) {colour}" if hatch else colour


def mark_hatch(name: str, marks: Mapping[str, Mark]) -> str:
    """Return the letter of the hatch of @mark-3, the fourth of the marks; empty for other names."""
    number = name.removeprefix("@mark-")
    return list(marks.values())[int(number)].hatch if number != name else ""


def hatch_colour(colour: str, lines: str = ON_BLOCK, depth: float = HATCH_DEPTH) -> str:
    """Return the colour of the lines of a hatch on a block of that colour."""
    pairs = zip(bytes.fromhex(colour[1:]), bytes.fromhex(lines[1:]), strict=True)
    mixed = (round((1 - depth) * one + depth * other) for one, other in pairs)
    return f"#{bytes(mixed).hex()}"


def block_colour(name: str) -> Colour:
    """Return the colour of a category of bytes or a phase of time."""
    shade = CATEGORY_COLOURS.get(name) or PHASE_COLOURS.get(name, OTHER_BLOCK)
    return Colour(shade, shade)
