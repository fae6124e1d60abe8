"""Lettering: where the text of an SVG stands, and which of it is cut or written over other text."""

import math
import re
from dataclasses import dataclass
from itertools import combinations
from xml.etree import ElementTree

TEXT = "{http://www.w3.org/2000/svg}text"
# What letters reach above and below their line, in their size.
ABOVE, BELOW = 0.74, 0.2
Point = tuple[float, float]


@dataclass(frozen=True)
class Written:
    """A text and its corners on the page."""

    words: str
    corners: tuple[Point, ...]


def faults(svg: str) -> list[str]:
    """Return each text that leaves its picture, ends in a cut, or overlaps another."""
    root = ElementTree.fromstring(svg)
    left, top, wide, tall = map(float, root.attrib["viewBox"].split())
    texts = [written for element in root.iter(TEXT) if (written := _written(element)).words]
    outside = [
        f"outside: {each.words}"
        for each in texts
        if not all(
            left - 0.5 <= x <= left + wide + 0.5 and top - 0.5 <= y <= top + tall + 0.5
            for x, y in each.corners
        )
    ]
    cut = [f"cut: {each.words}" for each in texts if "…" in each.words]
    over = [
        f"overlap: {one.words} | {other.words}"
        for one, other in combinations(texts, 2)
        if _overlap(one.corners, other.corners)
    ]
    return outside + cut + over


def _written(element: ElementTree.Element) -> Written:
    """Return a text with its corners; matplotlib turns each text about its own place."""
    style, words = element.attrib["style"], element.text or ""
    (size,) = map(float, re.findall(r"([\d.]+)px", style))
    length = float(element.attrib.get("textLength", 0))
    anchor = (re.search(r"text-anchor: (\w+)", style) or ["", "start"])[1]
    start = -length * {"start": 0, "middle": 0.5, "end": 1}[anchor]
    # A line of several is moved, a text alone has a place of its own.
    move = element.attrib.get("transform", "")
    place = re.search(r"translate\((\S+) (\S+?)\)", move)
    x, y = map(float, place.groups() if place else (element.attrib["x"], element.attrib["y"]))
    turn = re.search(r"rotate\(([-\d.]+)", move)
    angle = math.radians(float(turn[1])) if turn else 0.0
    box = [
        (start, -ABOVE * size),
        (start + length, -ABOVE * size),
        (start + length, BELOW * size),
        (start, BELOW * size),
    ]
    corners = tuple(
        (
            x + a * math.cos(angle) - b * math.sin(angle),
            y + a * math.sin(angle) + b * math.cos(angle),
        )
        for a, b in box
    )
    return Written(words, corners)


def _overlap(one: tuple[Point, ...], other: tuple[Point, ...]) -> bool:
    """Return whether no line separates two rectangles, which may be turned."""
    for shape in (one, other):
        for (ax, ay), (bx, by) in ((shape[0], shape[1]), (shape[1], shape[2])):
            across = (bx - ax, by - ay)
            spans = [[x * across[0] + y * across[1] for x, y in each] for each in (one, other)]
            if max(spans[0]) <= min(spans[1]) or max(spans[1]) <= min(spans[0]):
                return False
    return True
