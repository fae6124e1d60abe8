"""Colours of blocks: told apart in grey, by the colour-blind, on light and on dark paper.

Deuteranopia is simulated by the matrix for severity 1.0 of Machado, Oliveira and Fernandes, "A
Physiologically-based Model for Simulation of Color Vision Deficiency", IEEE TVCG 15(6), 2009, on
linear RGB. Contrast and luminance are those of WCAG 2.
"""

from collections.abc import Callable
from itertools import combinations, pairwise

import pytest

from optprof.reports.arithmetic.peaks import CATEGORIES
from optprof.reports.style import (
    CATEGORY_COLOURS,
    HATCH_NAMES,
    HATCHES,
    ON_BLOCK,
    OTHER_BLOCK,
    PAPER,
    PHASE_COLOURS,
    hatch_colour,
)

DEUTERANOPIA = (
    (0.367322, 0.860646, -0.227968),
    (0.280085, 0.672501, 0.047413),
    (-0.011820, 0.042940, 0.968881),
)
Rgb = tuple[float, float, float]
# Contrasts of neighbours, of blocks with the same hatch, of the lines of a hatch on its block, of a
# block on paper, and of text.
NEIGHBOURS, ALIKE, LINES, SEEN, TEXT = 1.25, 1.6, 1.5, 1.25, 4.5


def linear(colour: str) -> Rgb:
    red, green, blue = (
        value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4
        for value in (byte / 255 for byte in bytes.fromhex(colour[1:]))
    )
    return red, green, blue


def usual(colour: str) -> float:
    """The luminance of a colour, which is its grey on paper."""
    return sum(
        share * part for share, part in zip((0.2126, 0.7152, 0.0722), linear(colour), strict=True)
    )


def deuteranope(colour: str) -> float:
    """The luminance of a colour as a deuteranope sees it."""
    seen = [sum(a * b for a, b in zip(row, linear(colour), strict=True)) for row in DEUTERANOPIA]
    return sum(
        share * min(1, max(0, part))
        for share, part in zip((0.2126, 0.7152, 0.0722), seen, strict=True)
    )


EYES = pytest.mark.parametrize("eye", [usual, deuteranope])
Eye = Callable[[str], float]


def contrast(one: str, other: str, eye: Eye) -> float:
    low, high = sorted((eye(one), eye(other)))
    return (high + 0.05) / (low + 0.05)


def test_the_matrix_keeps_grey_and_confuses_red_with_green():
    assert deuteranope("#808080") == pytest.approx(usual("#808080"), abs=1e-5)
    assert contrast("#d00000", "#006000", usual) > 1.3
    assert all(sum(row) == pytest.approx(1, abs=1e-5) for row in DEUTERANOPIA)


@EYES
def test_neighbours_in_a_stack_differ_in_lightness(eye):
    assert set(CATEGORIES) == set(CATEGORY_COLOURS)
    for one, other in pairwise(CATEGORIES):
        pair = CATEGORY_COLOURS[one], CATEGORY_COLOURS[other]
        assert contrast(*pair, eye) >= NEIGHBOURS, (one, other)
    for pair in combinations(PHASE_COLOURS.values(), 2):
        assert HATCHES.get(pair[0]) != HATCHES.get(pair[1]) or contrast(*pair, eye) >= ALIKE


@EYES
def test_blocks_of_one_hatch_differ_in_lightness(eye):
    for one, other in combinations([*CATEGORY_COLOURS.values(), OTHER_BLOCK], 2):
        if HATCHES.get(one) == HATCHES.get(other):
            assert contrast(one, other, eye) >= ALIKE, (one, other)


@EYES
def test_hatches_and_numbers_can_be_seen_on_every_block(eye):
    for colour in (*CATEGORY_COLOURS.values(), *PHASE_COLOURS.values(), OTHER_BLOCK):
        assert contrast(ON_BLOCK, colour, eye) >= TEXT, colour
        assert contrast(hatch_colour(colour), colour, eye) >= LINES, colour


@EYES
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_blocks_stand_out_from_the_paper(eye, scheme):
    for colour in (*CATEGORY_COLOURS.values(), *PHASE_COLOURS.values(), OTHER_BLOCK):
        assert contrast(PAPER.on(scheme), colour, eye) >= SEEN, colour


def test_every_hatch_has_a_name_and_two_blocks_share_one_only_because_of_ranks():
    assert set(HATCHES.values()) == set(HATCH_NAMES)
    of_ranks = {CATEGORY_COLOURS["gathered"], CATEGORY_COLOURS["communication"]}
    alone = {colour: hatch for colour, hatch in HATCHES.items() if colour not in of_ranks}
    assert len({*alone.values()}) == len(alone)
    assert len({HATCHES[colour] for colour in of_ranks}) == len(of_ranks)
