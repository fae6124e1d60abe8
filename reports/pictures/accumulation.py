"""The pictures of accumulation: the loss by tokens, and the micro-batches of each step."""

from collections.abc import Sequence

from ..arithmetic.accumulations import Accumulated
from ..arithmetic.findings import Findings
from ..tables.accumulation import AccumulationPart, accumulation_tables
from ..units import three_digits
from .picture import Axis, Line, Picture, Plot, Point

# The steps of each part of a training run are averaged, to show their trend.
PARTS = 24


def describe(findings: Findings) -> list[Picture]:
    """Return a picture for each model and optimizer that trained under accumulations."""
    parts = accumulation_tables(findings.records)
    if len(parts) == 1:
        return [_picture(findings, "accumulation", "", part) for part in parts.values()]
    return [
        _picture(findings, f"accumulation-{number}", about, part)
        for number, (about, part) in enumerate(parts.items(), 1)
    ]


def _picture(findings: Findings, name: str, about: str, part: AccumulationPart) -> Picture:
    return Picture(
        name=name,
        title=f"When to step: {about}" if about else "When to step",
        context=findings.context,
        sentence=(
            "Training on text at equal tokens: how many micro-batches each step waited for, what it"
            " learned and how fast it went."
        ),
        table=part.learned,
        panels=(_losses(part.ways), _draws(part.ways)),
        marks=findings.marks,
        notes=(part.note,),
        # Training runs are always measured.
        keys=(),
    )


def _losses(ways: Sequence[Accumulated]) -> Plot:
    ends = "; ".join(
        f"{way.spec}: {way.final_loss.mean:.3f}" if way.final_loss else f"{way.spec}: not finite"
        for way in ways
    )
    lines = [_loss_line(way) for way in ways]
    return Plot(
        name="What was learned: the mean of the seeds, from the lowest to the highest",
        alt=f"Loss on held-out text against tokens, mean of the seeds, at the end {ends}.",
        x=_tokens(ways),
        y=_axis("loss on held-out text", lines, log=False),
        lines=lines,
        height=420,
    )


def _loss_line(way: Accumulated) -> Line:
    points = (
        Point(
            x=tokens,
            y=loss.mean,
            origin="measured",
            words=(f"\n{tokens:,} tokens\n{loss.mean:.3f} ({loss.low:.3f} to {loss.high:.3f})"),
            interval=(loss.low, loss.high),
        )
        for tokens, loss in way.losses.items()
    )
    return Line(label=way.spec, points=tuple(points), size=7)


def _draws(ways: Sequence[Accumulated]) -> Plot:
    ends = "; ".join(
        f"{way.spec}: {way.tokens / way.steps.mean:,.0f}" if way.steps.mean else f"{way.spec}: none"
        for way in ways
    )
    lines = [_draws_line(way) for way in ways]
    return Plot(
        name=f"Draws per step: the mean of the steps that ended in each {PARTS}th of the run",
        alt=f"Micro-batches a step against tokens. Tokens a step over the whole run: {ends}.",
        x=_tokens(ways),
        y=_axis("micro-batches a step", lines, log=True),
        lines=lines,
        height=360,
    )


def _draws_line(way: Accumulated) -> Line:
    length = way.tokens / PARTS
    means = [
        ((part + 0.5) * length, draws)
        for part, draws in enumerate(way.draws(PARTS))
        if draws is not None
    ]
    points = (
        Point(
            x=tokens,
            y=draws,
            origin="measured",
            words=f"\n{three_digits(draws)} micro-batches a step, around {tokens:,.0f} tokens",
        )
        for tokens, draws in means
    )
    return Line(label=way.spec, points=tuple(points), size=7)


def _tokens(ways: Sequence[Accumulated]) -> Axis:
    return Axis(title="tokens", kind="tokens", values=[0, *(way.tokens for way in ways)], log=False)


def _axis(title: str, lines: Sequence[Line], *, log: bool) -> Axis:
    values = [
        value
        for line in lines
        for point in line.points
        for value in (point.y, *(point.interval or ()))
    ]
    return Axis(title=title, kind="number", values=values, log=log)
