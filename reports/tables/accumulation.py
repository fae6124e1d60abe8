"""Accumulation tables: what each way to accumulate learned at equal tokens, and how fast it
went.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from ..arithmetic.accumulations import Accumulated, Range, accumulations, common_loss
from ..arithmetic.labels import model_traits
from ..units import NOTHING, seconds_text, three_digits
from .table import Cell, Table, bytes_cell

EVERY = 4
QUARTERS = 4


@dataclass(frozen=True, kw_only=True)
class AccumulationPart:
    """The tables of one model and optimizer, and what must be known beside them."""

    ways: Sequence[Accumulated]
    summary: Table
    learned: Table
    losses: Table
    pace: Table
    note: str


def accumulation_tables(records: Sequence[Record]) -> dict[str, AccumulationPart]:
    """The tables by model and optimizer; empty for a run without courses."""
    parts: dict[str, AccumulationPart] = {}
    for group in accumulations(records):
        scenario = group[0].records[0].scenario
        traits = [
            scenario.model,
            *model_traits(scenario),
            scenario.optimizer,
            f"{group[0].tokens:,} tokens",
            f"on {scenario.device}",
        ]
        name = " · ".join(traits)
        parts[f"{name} ({len(parts) + 1})" if name in parts else name] = _part(group)
    return parts


def _part(group: Sequence[Accumulated]) -> AccumulationPart:
    goal = common_loss(group)
    seeds = sorted({seed for way in group for seed in way.seeds})
    lacking = [way for way in group if set(way.seeds) < set(seeds)]
    diverged = [way for way in group if not way.is_finite]
    note = (
        f"Losses are the mean of the seeds {', '.join(map(str, seeds))} with the lowest and the"
        " highest, on text that is not trained on; differences are by seed, with a 95 % t"
        " interval. The own time is the median of a decision not to step, without the norms that"
        " gns takes in the backward pass. The bytes added are those of the accumulation's own"
        " tensors between micro-batches."
    )
    if goal is not None:
        note += f" {goal:.3f} is the lowest loss that all have reached."
    if diverged:
        note += (
            " Losses that are not finite are left out, and with them the mean:"
            f" {', '.join(way.spec for way in diverged)}."
        )
    if lacking:
        note += f" Fewer seeds have {', '.join(way.spec for way in lacking)}."
    dropped = sum(way.dropped for way in group)
    if dropped:
        note += f" {dropped} micro-batches were lost for not being finite."
    return AccumulationPart(
        ways=group,
        summary=_summary(group),
        learned=_learned(group, goal),
        losses=_losses(group),
        pace=_pace(group),
        note=note,
    )


def _summary(group: Sequence[Accumulated]) -> Table:
    """What fits on a terminal."""
    return Table(
        head=("accumulation", "steps", "final loss", "tokens/s"),
        rows=tuple(
            (
                Cell(text=way.spec),
                _number(way.steps.mean, f"{way.steps.mean:,.0f}"),
                _range(way.final_loss),
                _number(way.tokens_per_second, three_digits(way.tokens_per_second)),
            )
            for way in group
        ),
    )


def _learned(group: Sequence[Accumulated], goal: float | None) -> Table:
    head = (
        "accumulation",
        "steps",
        *(f"draws, quarter {number}" for number in range(1, QUARTERS + 1)),
        "final loss",
        f"less {group[0].spec}'s",
        "lowest loss",
        "tokens to a common loss" if goal is None else f"tokens to {goal:.3f}",
    )
    return Table(
        head=head,
        rows=tuple(
            (
                Cell(text=way.spec),
                _number(way.steps.mean, f"{way.steps.mean:,.0f}"),
                *(
                    _number(draws, NOTHING if draws is None else three_digits(draws))
                    for draws in way.draws(QUARTERS)
                ),
                _range(way.final_loss),
                _difference(way.against(group[0]) if way is not group[0] else None),
                _range(way.best_loss),
                _count(None if goal is None else way.tokens_to(goal)),
            )
            for way in group
        ),
    )


def _losses(group: Sequence[Accumulated]) -> Table:
    """The course of the loss, at every fourth reading and the last."""
    tokens = sorted({at for way in group for at in way.losses})
    shown = [*tokens[:-1:EVERY], *tokens[-1:]]
    rows = ((Cell(text=way.spec), *(_mean(way.losses.get(at)) for at in shown)) for way in group)
    return Table(head=("accumulation", *(f"{at:,} tokens" for at in shown)), rows=tuple(rows))


def _pace(group: Sequence[Accumulated]) -> Table:
    head = (
        "accumulation",
        "tokens/s",
        "micro-batches/s",
        "steps/s",
        "own time a draw",
        "bytes added",
    )
    return Table(
        head=head,
        rows=tuple(
            (
                Cell(text=way.spec),
                *(
                    _number(rate, three_digits(rate))
                    for rate in (
                        way.tokens_per_second,
                        way.micro_batches_per_second,
                        way.steps_per_second,
                    )
                ),
                _number(
                    way.draw_seconds,
                    NOTHING if way.draw_seconds is None else seconds_text(way.draw_seconds),
                ),
                bytes_cell(way.added_bytes),
            )
            for way in group
        ),
    )


def _number(value: float | None, text: str) -> Cell:
    return Cell(text=text, number=True, value=value)


def _mean(found: Range | None) -> Cell:
    return _number(None, NOTHING) if found is None else _number(found.mean, f"{found.mean:.3f}")


def _range(found: Range | None) -> Cell:
    if found is None:
        return _number(None, NOTHING)
    return _number(found.mean, f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})")


def _difference(found: Range | None) -> Cell:
    if found is None:
        return _number(None, NOTHING)
    return _number(found.mean, f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f})")


def _count(count: int | None) -> Cell:
    return _number(count, NOTHING if count is None else f"{count:,}")
