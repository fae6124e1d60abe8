"""Help: how to read each section of a page, opened on request."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .document import Block, Note, Section
from .explain import FIGURES, METRICS
from .tables.table import Facts


@dataclass(frozen=True)
class Help:
    """What a section shows and how to read it, and the figures whose meanings stand below."""

    text: str
    figures: Sequence[str] = ()


HELP: Mapping[str, Help] = {
    "verdict": Help(
        "A card has the costs of one optimizer. The large number is its state; the lines below"
        " compare it with the baseline of the same model. Filled marks are measured, hollow marks"
        " simulated or estimated.",
        ("state", "bytes-a-parameter", "peak", "step"),
    ),
    "savings": Help(
        "A full row is the state of the baseline, the coloured bar that of the optimizer: the"
        " shorter the bar, the more it saves. A state that is two times smaller fills half the"
        " row.",
        ("state",),
    ),
    "heat": Help(
        "A row is a model, a column an optimizer. The factor says how many times smaller the state"
        " is than the baseline's. Blue cells save memory, orange cells need more; deeper colours"
        " are further from the baseline. Hover over a cell for exact bytes.",
        ("state",),
    ),
    "state-by-size": Help(
        "Each point is a model. On logarithmic axes an optimizer that keeps a fixed number of bytes"
        " a parameter is a straight line, and a lower line is a smaller state. Dotted lines are the"
        " memory of GPUs. Drag over a part to zoom in, and click an optimizer's name to hide it.",
        ("state", "bytes-a-parameter"),
    ),
    "peak": Help(
        "A bar is the memory at the highest moment of a training step, split by what holds it. The"
        " frame behind it is what the allocator has reserved. A smaller state shortens the bar only"
        " if the state is in memory at that moment: read the phase on the right.",
        ("peak", "reserved"),
    ),
    "timeline": Help(
        "From left to right are the phases of training steps, from bottom to top the memory in use"
        " after each allocation and free, stacked by what holds it. The line above is the reserved"
        " memory, the triangle marks the peak. Move the pointer over a graph for its values.",
        ("peak", "reserved", "fragmentation"),
    ),
    "step-time": Help(
        "A mark is one timed step, the band holds the middle half of them, the line is the median"
        " and the bracket its 95 % interval. Two optimizers differ when their brackets are apart.",
        ("step",),
    ),
    "iteration": Help(
        "A bar is one training iteration, split into forward, backward and the optimizer's step. A"
        " faster optimizer can shorten only its own part.",
        ("iteration", "step"),
    ),
    "step-by-size": Help(
        "Each point is a model; a line that rises as steeply as another takes the same factor"
        " longer at every size. Vertical strokes are 95 % intervals.",
        ("step",),
    ),
    "pareto": Help(
        "A point near the lower left corner is both fast and small. The broken line joins the"
        " optimizers that no other beats in time and in memory at once; an optimizer above it is"
        " beaten in both.",
        ("step", "peak"),
    ),
    "accumulation": Help(
        "A line is one way to decide when to step, at equal tokens. In the upper graph a lower line"
        " has learned more; the strokes reach from the best to the worst seed. The lower graph"
        " shows how many micro-batches each step waited for.",
        ("held-out-loss", "draws"),
    ),
    "rooms": Help(
        "A tick means that the training step fits, and the number is the memory that it leaves; a"
        " cross is followed by the memory that is missing.",
        ("reserved",),
    ),
    "sights": Help(
        "The columns are the same memory as five counters show it: the further right, the more else"
        " is counted. The reason for a smaller saving stands in the row's last column.",
        ("state", "state-allocated", "peak", "reserved", "driver"),
    ),
    "watched": Help(
        "A real run reported these numbers itself; nothing here is simulated.", ("peak", "reserved")
    ),
    "agreement": Help(
        "A residual of 0 means that the simulation and the real run agree to the byte. A positive"
        " residual is a simulation that is too large."
    ),
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
        "Each row is one entry of the optimizer's state, such as Adam's exp_avg, summed over all"
        " parameters.",
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
    """Return the help of a section of a run's page: how to read it, and what its figures mean."""
    found = HELP.get(re.sub(r"-\d+$", "", section.name))
    if found is None:
        return ()
    known = {**METRICS, **FIGURES}
    meanings = tuple((known[name].title, known[name].meaning) for name in found.figures)
    more = "The command optprof explain says how a figure is obtained and what it leaves out."
    return (Note(found.text), *((Facts(meanings), Note(more)) if meanings else ()))
