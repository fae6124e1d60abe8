"""Accumulation tables: the losses of each way to accumulate at equal tokens, and its speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.record import Record

from ..arithmetic.accumulations import Accumulated, Range, accumulations, common_loss
from ..arithmetic.labels import model_traits
from ..units import seconds_text, three_digits
from .table import Cell, Table, bytes_cell, filled, number_cell

EVERY = 4
QUARTERS = 4
LOSS = "{:.3f}".format

Columns = Sequence[tuple[str, Callable[[Accumulated], Cell]]]
WAY = ("accumulation", lambda way: Cell(text=way.spec))
STEPS = ("steps", lambda way: number_cell(way.steps.mean, "{:,.0f}".format))


@dataclass(frozen=True, kw_only=True)
class AccumulationPart:
    """The tables of one model and optimizer, and a note on them."""

    ways: Sequence[Accumulated]
    summary: Table
    learned: Table
    losses: Table
    pace: Table
    note: str


def accumulation_tables(records: Sequence[Record]) -> dict[str, AccumulationPart]:
    """The tables by model and optimizer; empty for a run without training runs."""
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
        name = f"{name} ({len(parts) + 1})" if name in parts else name
        parts[name] = _part(name, group)
    return parts


def _part(name: str, group: Sequence[Accumulated]) -> AccumulationPart:
    goal = common_loss(group)
    seeds = sorted({seed for way in group for seed in way.seeds})
    fewer = [way for way in group if set(way.seeds) < set(seeds)]
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
    if fewer:
        note += f" Fewer seeds have {', '.join(way.spec for way in fewer)}."
    dropped = sum(way.dropped for way in group)
    if dropped:
        note += f" {dropped} micro-batches were lost for not being finite."
    return AccumulationPart(
        ways=group,
        summary=_summary(group),
        learned=replace(_learned(group, goal), title=f"What was learned: {name}"),
        losses=replace(_losses(group), title=f"Held-out loss by tokens: {name}"),
        pace=replace(_pace(group), title=f"How fast it went: {name}"),
        note=note,
    )


def _summary(group: Sequence[Accumulated]) -> Table:
    """The columns that fit on a terminal."""
    columns: Columns = [
        WAY,
        STEPS,
        ("final loss", lambda way: _range(way.final_loss)),
        ("tokens/s", lambda way: _rate(way.tokens_per_second)),
    ]
    return filled(columns, group)


def _learned(group: Sequence[Accumulated], goal: float | None) -> Table:
    def quarter(number: int) -> Callable[[Accumulated], Cell]:
        return lambda way: _rate(way.draws(QUARTERS)[number])

    columns: Columns = [
        WAY,
        STEPS,
        *((f"draws, quarter {number + 1}", quarter(number)) for number in range(QUARTERS)),
        ("final loss", lambda way: _range(way.final_loss)),
        (
            f"less {group[0].spec}'s",
            lambda way: _difference(way.against(group[0]) if way is not group[0] else None),
        ),
        ("lowest loss", lambda way: _range(way.best_loss)),
        (
            "tokens to a common loss" if goal is None else f"tokens to {goal:.3f}",
            lambda way: number_cell(None if goal is None else way.tokens_to(goal), "{:,}".format),
        ),
    ]
    return filled(columns, group)


def _losses(group: Sequence[Accumulated]) -> Table:
    """The loss at every fourth reading and the last."""
    tokens = sorted({at for way in group for at in way.losses})

    def mean(at: int) -> Callable[[Accumulated], Cell]:
        return lambda way: number_cell(way.losses[at].mean if at in way.losses else None, LOSS)

    columns: Columns = [
        WAY,
        *((f"{at:,} tokens", mean(at)) for at in (*tokens[:-1:EVERY], *tokens[-1:])),
    ]
    return filled(columns, group)


def _pace(group: Sequence[Accumulated]) -> Table:
    columns: Columns = [
        WAY,
        ("tokens/s", lambda way: _rate(way.tokens_per_second)),
        ("micro-batches/s", lambda way: _rate(way.micro_batches_per_second)),
        ("steps/s", lambda way: _rate(way.steps_per_second)),
        ("own time a draw", lambda way: number_cell(way.draw_seconds, seconds_text)),
        ("bytes added", lambda way: bytes_cell(way.added_bytes)),
    ]
    return filled(columns, group)


def _rate(value: float | None) -> Cell:
    return number_cell(value, three_digits)


def _range(span: Range | None) -> Cell:
    if span is None:
        return number_cell(None, LOSS)
    text = f"{span.mean:.3f} ({span.low:.3f} to {span.high:.3f})"
    return Cell(text=text, number=True, value=span.mean)


def _difference(mean: Range | None) -> Cell:
    if mean is None:
        return number_cell(None, LOSS)
    text = f"{mean.mean:+.3f} ({mean.low:+.3f} to {mean.high:+.3f})"
    return Cell(text=text, number=True, value=mean.mean)
