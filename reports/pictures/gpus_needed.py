"""The picture of GPUs needed: the fewest of each kind on which ranks run a training step."""

import math
from collections.abc import Sequence

from optprof.profiler.records.fits import Need
from optprof.scenarios import hardware

from ..arithmetic.labels import shortened
from ..style import Mark
from ..tables.gpus_needed import (
    below_text,
    count_text,
    left_text,
    needed_table,
)
from ..units import Sized
from .picture import Axis, Key, Line, Picture, Plot, Point

# Pixels of the page for the mark of one optimizer, between the rows of two GPUs, and for the axis.
LANE, GAP, AXIS = 15, 14, 60
# The share of a row that its marks take.
SPREAD = 0.76


def describe(
    needs: Sequence[Need],
    labels: Sequence[str],
    marks: dict[str, Mark],
    counts: Sequence[int],
    context: str,
) -> list[Picture]:
    """Return the picture if a kind of GPU has an answer.

    `labels` has the optimizer of each need, `counts` the numbers of GPUs that were tried.
    """
    named = [
        (label, need)
        for label, need in zip(labels, needs, strict=True)
        if not (need.last.error or need.last.reason)
    ]
    gpus = _by_memory({need.last.scenario.gpu or "" for _, need in named})
    if not gpus:
        return []
    lanes = list(dict.fromkeys(label for label, _ in named))
    is_open = any(need.sure is None for _, need in named)
    if not is_open:
        # Numbers that nothing needs would press the others together.
        most = max(need.sure.scenario.ranks for _, need in named if need.sure)
        counts = [count for count in counts if count <= most]
    width = math.log2(counts[-1]) + 1
    ticks = {math.log2(count): f"{count:,}" for count in counts}
    lines = [
        Line(
            label=label,
            points=tuple(
                _point(need, _height(gpus, lanes, label, need), counts)
                for other, need in named
                if other == label
            ),
            dash="none",
            size=9,
        )
        for label in lanes
    ]
    plot = Plot(
        name="",
        alt=f"GPUs needed. {'; '.join(f'{label} {_spoken(need)}' for label, need in named)}.",
        x=Axis(
            title="GPUs needed, log scale",
            kind="number",
            values=[math.log2(counts[0]) - 0.5, width + 0.5 if is_open else width - 0.5],
            ticks=ticks | ({width: "more"} if is_open else {}),
        ),
        y=Axis(
            title="",
            kind="number",
            values=[-len(gpus) + 0.5, 0.5],
            ticks={-float(row): _gpu_name(gpu) for row, gpu in enumerate(gpus)},
        ),
        lines=lines,
        height=len(gpus) * (LANE * len(lanes) + GAP) + AXIS,
        intervals="x",
    )
    return [
        Picture(
            name="gpus-needed",
            title=f"GPUs needed to train {shortened(named[0][1].last.scenario.model)}",
            context=context,
            sentence=(
                "The fewest GPUs of each kind on which a training step fits. A line behind a mark"
                " ends at the number that also leaves room for the most that NCCL may take."
            ),
            table=needed_table(named),
            panels=(plot,),
            marks=marks,
            keys=(
                Key("stroke", "until NCCL surely has room", "@ink"),
                Key("sample", "simulated; NCCL is estimated"),
            ),
        )
    ]


def _by_memory(gpus: set[str]) -> list[str]:
    """Return the GPUs from the smallest memory to the largest, those of one size by name."""
    return sorted(gpus, key=lambda gpu: (hardware.describe(gpu).label_gb, gpu))


def _gpu_name(gpu: str) -> str:
    label = hardware.describe(gpu).label_gb
    return gpu if gpu.endswith(f"-{label}") else f"{gpu} {label} GB"


def _height(gpus: Sequence[str], lanes: Sequence[str], label: str, need: Need) -> float:
    """Return the place of a mark: rows go down, and each optimizer has a lane of its row."""
    row = gpus.index(need.last.scenario.gpu or "")
    lane = (lanes.index(label) + 0.5) / len(lanes) - 0.5
    return -row - SPREAD * lane


def _point(need: Need, height: float, counts: Sequence[int]) -> Point:
    more = math.log2(counts[-1]) + 1
    first, sure = (
        more if fit is None else math.log2(fit.scenario.ranks) for fit in (need.fit, need.sure)
    )
    return Point(
        x=first,
        y=height,
        origin="simulated",
        words=Sized.of(
            lambda units: "\n".join(
                filter(
                    None,
                    (
                        f" on {need.last.scenario.gpu}: {count_text(need)}",
                        left_text(need, units),
                        below_text(need, units),
                    ),
                )
            )
        ),
        interval=(first, sure) if sure > first else None,
    )


def _spoken(need: Need) -> str:
    return f"on {shortened(need.last.scenario.gpu or '')} {count_text(need)}"
