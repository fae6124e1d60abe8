"""Accumulation charts: what was learned by tokens, and how many micro-batches a step waited for as
training went on.
"""

from collections.abc import Sequence
from typing import Any

from optprof.profiler.safety.plain import plain

from ..arithmetic.accumulations import Accumulated
from ..arithmetic.findings import Findings
from ..tables.accumulation import AccumulationPart
from ..units import three_digits
from .chart import Chart, Graph, Heading, error_bars, marker, text

# The steps of so many stretches of a course are averaged, that single ones do not hide where they
# tend.
PARTS = 24


def accumulation_chart(findings: Findings, name: str, about: str, part: AccumulationPart) -> Chart:
    """The graphs of one model and optimizer, which the title names where `about` does."""
    return Chart(
        name=name,
        title=f"When to step: {about}" if about else "When to step",
        sentence=(
            "Training on text at equal tokens: how many micro-batches each step waited for, what it"
            " learned and how fast it went."
        ),
        alt="",
        table=part.learned,
        notes=(part.note,),
        graphs=(_losses(findings, part.ways), _draws(findings, part.ways)),
        labels={way.spec: "measured" for way in part.ways},
    )


def _losses(findings: Findings, ways: Sequence[Accumulated]) -> Graph:
    ends = "; ".join(
        f"{way.spec}: {way.final_loss.mean:.3f}" if way.final_loss else f"{way.spec}: not finite"
        for way in ways
    )
    return Graph(
        alt=f"Loss on held-out text against tokens, mean of the seeds, at the end {ends}.",
        traces=[_loss_trace(findings, way) for way in ways],
        layout={"xaxis": _tokens_axis(), "yaxis": {"title": {"text": "loss on held-out text"}}},
        height=420,
        heading=Heading(
            text="What was learned: the mean of the seeds, from the lowest to the highest"
        ),
    )


def _loss_trace(findings: Findings, way: Accumulated) -> dict[str, Any]:
    readings = way.losses
    hover = [
        f"<b>{text(way.spec)}</b><br>{tokens:,} tokens<br>{loss.mean:.3f} ({loss.low:.3f} to"
        f" {loss.high:.3f})"
        for tokens, loss in readings.items()
    ]
    bars = error_bars(
        [(loss.low, loss.mean, loss.high) for loss in readings.values()],
        f"@{findings.colour_name(way.spec)}",
    )
    return _trace(
        findings, way, list(readings), [loss.mean for loss in readings.values()], hover
    ) | {"error_y": bars | {"width": 0}}


def _draws(findings: Findings, ways: Sequence[Accumulated]) -> Graph:
    ends = "; ".join(
        f"{way.spec}: {way.tokens / way.steps.mean:,.0f}" if way.steps.mean else f"{way.spec}: none"
        for way in ways
    )
    return Graph(
        alt=f"Micro-batches a step against tokens. Tokens a step over the whole course: {ends}.",
        traces=[_draws_trace(findings, way) for way in ways],
        layout={
            "xaxis": _tokens_axis(),
            "yaxis": {
                "type": "log",
                "title": {"text": "micro-batches a step"},
                "dtick": "D2",
                "tickformat": ",~r",
            },
        },
        height=360,
        heading=Heading(
            text=f"Draws per step: the mean of the steps that ended in each {PARTS}th of the course"
        ),
    )


def _draws_trace(findings: Findings, way: Accumulated) -> dict[str, Any]:
    length = way.tokens / PARTS
    found = [
        ((part + 0.5) * length, draws)
        for part, draws in enumerate(way.draws(PARTS))
        if draws is not None
    ]
    hover = [
        f"<b>{text(way.spec)}</b><br>{three_digits(draws)} micro-batches a step, around"
        f" {tokens:,.0f} tokens"
        for tokens, draws in found
    ]
    return _trace(
        findings, way, [tokens for tokens, _ in found], [draws for _, draws in found], hover
    )


def _trace(
    findings: Findings,
    way: Accumulated,
    x: Sequence[float],
    y: Sequence[float],
    hover: Sequence[str],
) -> dict[str, Any]:
    colour = f"@{findings.colour_name(way.spec)}"
    return {
        "label": plain(way.spec),
        "mode": "lines+markers",
        "x": x,
        "y": y,
        "line": {"color": colour, "width": 1.6},
        "marker": marker(findings.marks[way.spec], colour, "measured", 7),
        "hoverinfo": "text",
        "hovertext": hover,
    }


def _tokens_axis() -> dict[str, Any]:
    return {"title": {"text": "tokens"}, "rangemode": "tozero", "tickformat": "~s"}
