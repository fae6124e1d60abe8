"""Accumulation tables: the losses of each way to accumulate at equal tokens, and its speed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from optprof.profiler.records.record import Record

from ..arithmetic.accumulations import (
    Accumulated,
    Range,
    accumulations,
    baseline,
    common_loss,
    lowest,
    soonest,
)
from ..arithmetic.labels import model_traits
from ..units import (
    NOTHING,
    bytes_text,
    difference_text,
    factor_text,
    seconds_text,
    three_digits,
)
from .table import Card, Cell, Table, bytes_cell, filled, number_cell

EVERY = 4
QUARTERS = 4
LOSS = "{:.3f}".format
ONE_SEED = " One seed proves little: add others with --seed 1, --seed 2 and --resume."

Columns = Sequence[tuple[str, Callable[[Accumulated], Cell]]]
WAY = ("accumulation", lambda way: Cell(text=way.spec))
STEPS = ("steps", lambda way: number_cell(way.steps.mean, "{:,.0f}".format))


@dataclass(frozen=True, kw_only=True)
class AccumulationPart:
    """The verdict on one model and optimizer, what else follows, a card for each way, and tables.

    `note` says how to read the tables.
    """

    ways: Sequence[Accumulated]
    verdict: str
    remarks: tuple[str, ...]
    cards: tuple[Card, ...]
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
        verdict=_verdict(group),
        remarks=_remarks(group, goal),
        cards=tuple(_card(way, group, goal) for way in group),
        summary=_summary(group),
        learned=replace(_learned(group, goal), title=f"What was learned: {name}"),
        losses=replace(_losses(group), title=f"Held-out loss by tokens: {name}"),
        pace=replace(_pace(group), title=f"How fast it went: {name}"),
        note=note,
    )


def _verdict(group: Sequence[Accumulated]) -> str:
    """The way with the lowest loss, its distance to the baseline, and whether it may be chance."""
    base, best = baseline(group), lowest(group)
    if best is None or best.final_loss is None:
        return "No way to step ends with a finite loss on held-out text."
    ends = "ends with the lowest loss" if len(group) > 1 else "ends with a loss"
    mean = "mean of " if len(best.seeds) > 1 else ""
    loss = f"{best.final_loss.mean:.3f} ({mean}{_seeds_text(best)})"
    return f"{best.spec} {ends} on held-out text of {loss}.{_against(best, base)}"


def _remarks(group: Sequence[Accumulated], goal: float | None) -> tuple[str, ...]:
    """The way that learns soonest, what the best costs, and a baseline that is missing."""
    base, best, first = baseline(group), lowest(group), soonest(group, goal)
    remarks: list[str] = []
    if first is not None and goal is not None and len(group) > 1:
        others = "" if first is base else f"; {base.spec} needs {_needs(base, goal)}"
        remarks.append(
            f"{first.spec} needs the fewest micro-batches to {goal:.3f}, the lowest loss that all"
            f" have reached: {_needs(first, goal)}{others}."
        )
    if best is not None:
        remarks.append(_cost(best, base))
    if base.micro_batches_a_step != 1:
        batch = base.records[0].scenario.batch_size
        remarks.append(
            f"No way steps after each micro-batch; --accumulate sbc:batch_size={batch} --resume"
            " adds that baseline."
        )
    return tuple(remarks)


def _against(best: Accumulated, base: Accumulated) -> str:
    """The difference to the baseline, and whether seeds alone could explain it."""
    if best is base or best.final_loss is None or base.final_loss is None:
        return ONE_SEED if len(best.seeds) == 1 else ""
    below = base.final_loss.mean - best.final_loss.mean
    text = f" That is {below:.3f} below {base.spec}, {_steps_text(base)}."
    interval = best.against(base)
    if interval is None:
        return text + ONE_SEED
    mean, low, high = (
        difference_text(each, 3) for each in (interval.mean, interval.low, interval.high)
    )
    by_seed = f"{mean} ({low} to {high})"
    if interval.low <= 0 <= interval.high:
        return f"{text} It may be chance: the difference by seed, {by_seed}, reaches 0."
    return f"{text} Seeds alone do not explain it: the difference by seed is {by_seed}."


def _steps_text(base: Accumulated) -> str:
    """The clause that says after how many micro-batches the baseline steps."""
    number = base.micro_batches_a_step
    if number is None:
        return "the first way that was named"
    after = "each micro-batch" if number == 1 else f"every {number} micro-batches"
    return f"which steps after {after}"


def _needs(way: Accumulated, goal: float) -> str:
    number, seconds = way.micro_batches_to(goal), way.seconds_to(goal)
    return f"{number or 0:,} ({seconds_text(seconds or 0)})"


def _cost(way: Accumulated, base: Accumulated) -> str:
    """The costs of a way in bytes and in time."""
    draw = (
        f"; a decision not to step takes {seconds_text(way.draw_seconds)}"
        if way.draw_seconds
        else ""
    )
    pace = ""
    if way is not base and base.tokens_per_second and way.tokens_per_second:
        share = way.tokens_per_second / base.tokens_per_second
        pace = f"; its tokens/s are {factor_text(share)} those of {base.spec}"
    return f"{way.spec} adds {bytes_text(way.added_bytes)} between micro-batches{draw}{pace}."


def _card(way: Accumulated, group: Sequence[Accumulated], goal: float | None) -> Card:
    base = baseline(group)
    final = way.final_loss
    headline = Cell(text="not finite" if final is None else f"{final.mean:.3f}")
    lines = [
        ("loss", Cell(text="on held-out text", remark=_seeds_text(way))),
        (
            f"against {base.spec}",
            Cell(text="the baseline") if way is base else _plain_difference(way, base),
        ),
        ("steps", Cell(text=f"{way.steps.mean:,.0f}")),
        ("bytes added", bytes_cell(way.added_bytes)),
        ("tokens/s", Cell(text=three_digits(way.tokens_per_second))),
    ]
    if goal is not None:
        number = way.micro_batches_to(goal)
        reached = "never" if number is None else f"{number:,} micro-batches"
        lines.insert(2, (f"to {goal:.3f}", Cell(text=reached)))
    return Card(label=way.spec, origin="measured", headline=headline, lines=tuple(lines))


def _plain_difference(way: Accumulated, base: Accumulated) -> Cell:
    if way.final_loss is None or base.final_loss is None:
        return Cell(text=NOTHING)
    return Cell(text=difference_text(way.final_loss.mean - base.final_loss.mean, 3))


def _seeds_text(way: Accumulated) -> str:
    if len(way.seeds) == 1:
        return "one seed"
    return f"{len(way.seeds)} seeds" + (f", {_span(way.final_loss)}" if way.final_loss else "")


def _span(span: Range) -> str:
    return f"{span.low:.3f} to {span.high:.3f}"


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
    base = baseline(group)

    def quarter(number: int) -> Callable[[Accumulated], Cell]:
        return lambda way: _rate(way.draws(QUARTERS)[number])

    columns: Columns = [
        WAY,
        STEPS,
        *((f"draws, quarter {number + 1}", quarter(number)) for number in range(QUARTERS)),
        ("final loss", lambda way: _range(way.final_loss)),
        (
            f"less {base.spec}'s",
            lambda way: _difference(way.against(base) if way is not base else None),
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
