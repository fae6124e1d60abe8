"""Help: how to read each section of a page, opened on request."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from .document import Block, Note, Section
from .explain import FIGURES, METRICS


@dataclass(frozen=True)
class Help:
    """A section's subject, how to read it, and the figures that the page explains."""

    text: str
    figures: Sequence[str] = ()


HELP: Mapping[str, Help] = {
    "verdict": Help(
        "The large number is the state; the lines below compare it with the baseline of the same"
        " model.",
        ("state", "bytes-a-parameter", "peak", "step"),
    ),
    "savings": Help(
        "A full row is the state of the baseline: the shorter the bar, the more it saves.",
        ("state",),
    ),
    "heat": Help(
        "A row is a model, a column an optimizer. Hover over a cell for exact bytes.",
        ("state",),
    ),
    "state-by-size": Help(
        "On logarithmic axes an optimizer that keeps a fixed number of bytes a parameter is a"
        " straight line. Drag over a part to zoom in, and click an optimizer's name to hide it.",
        ("state", "bytes-a-parameter"),
    ),
    "peak": Help(
        "The frame behind a bar is what the allocator has reserved. A smaller state shortens the"
        " bar only if the state is in memory at that moment: read the phase on the right.",
        ("peak", "reserved"),
    ),
    "icicle": Help(
        "From top to bottom: what the blocks hold, the class of the module, the module, and the"
        " operation and line that requested them. Click a part to enlarge it, and the bar above it"
        " to go back.",
        ("peak",),
    ),
    "timeline": Help(
        "Move the pointer over a graph for the event at that point and the memory after it.",
        ("peak", "reserved", "fragmentation"),
    ),
    "step-time": Help(
        "Two optimizers differ when the brackets around their medians are apart.",
        ("step",),
    ),
    "iteration": Help(
        "A faster optimizer can shorten only its own part of the bar.",
        ("iteration", "step"),
    ),
    "step-by-size": Help(
        "A line that rises as steeply as another takes the same factor longer at every size.",
        ("step",),
    ),
    "pareto": Help(
        "An optimizer above the broken line is beaten in time and in memory by another.",
        ("step", "peak"),
    ),
    "accumulation": Help(
        "A line is one way to decide when to step, at equal tokens. In the upper graph a lower line"
        " has learned more; the strokes reach from the best to the worst seed. The lower graph"
        " shows how many micro-batches each step waited for.",
        ("held-out-loss", "draws"),
    ),
    "ranks": Help(
        "The state falls with the number of ranks only if the way to share the work splits it: ddp"
        " does not. A step sends what its tables add up to, whatever the optimizer, except those"
        " that reduce numbers over ranks.",
        ("all-ranks", "sent", "nccl"),
    ),
    "rooms": Help(
        "The command optprof fit simulates the step on the GPU's own memory, and finds the changes"
        " that make it fit.",
        ("reserved",),
    ),
    "sights": Help(
        "The first columns are the memory as five counters show it: each counts more than the one"
        " before. The next columns are what is saved of it, the last ones what else differs in the"
        " peak.",
        ("state", "state-allocated", "peak", "reserved", "driver"),
    ),
    "watched": Help(
        "A real run reported these numbers itself; nothing here is simulated.", ("peak", "reserved")
    ),
    "agreement": Help("A positive residual is a simulation that is too large."),
    "reproduction": Help(
        "Compare the published column with ours. The paper gives two decimals, so a difference of"
        " 0.01 can be rounding.",
        ("state-allocated",),
    ),
    "failures": Help(
        "The outcome says how a scenario ended, the error is the last that it reported. The log of"
        " each scenario is in the folder logs of the run."
    ),
    "table": Help(
        "Click a column's head to sort by it. The words in the filter must all occur in a row."
        " Saved files have exact bytes, unrounded seconds and every field.",
        ("state", "state-allocated", "peak", "reserved", "step"),
    ),
    "keys": Help(
        "A key, such as Adam's exp_avg, is summed over all parameters.",
        ("state",),
    ),
    "blocks": Help(
        "A block is what the allocator handed out for one tensor. The largest ones are the first to"
        " look at when a step does not fit.",
        ("peak",),
    ),
    "repeat": Help(
        "Run the command again to repeat the measurement. Simulated bytes are the same on every"
        " machine; times depend on the machine that is named here."
    ),
}


def explained(section: Section) -> Sequence[Block]:
    """Return the help of a section of a run's page: how to read it."""
    found = _help(section)
    return (Note(found.text),) if found else ()


def meanings(sections: Iterable[Section]) -> list[tuple[str, str]]:
    """Return the titles and meanings of the figures in the sections, each once."""
    known = {**METRICS, **FIGURES}
    helps = filter(None, map(_help, sections))
    names = dict.fromkeys(name for found in helps for name in found.figures)
    return [(known[name].title, known[name].meaning) for name in names]


def _help(section: Section) -> Help | None:
    return HELP.get(re.sub(r"-\d+$", "", section.name))
