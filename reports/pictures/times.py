"""The pictures of times: the samples of each step, and its share of an iteration."""

from collections.abc import Sequence

from ..arithmetic.findings import Findings, pictured
from ..arithmetic.labels import optimizer_key
from ..arithmetic.times import PHASES, Timing, at_even_ranks, thinning_notes
from ..phrases import NOISE, noise_mark, share_text, spread_text, step_text
from ..style import block_colour
from ..tables.table import Table, text_table
from ..units import Sized, range_text, seconds_text
from ..words import PLACES, conditions, origin_text, shared
from .bars import grouped, row_scales, stacked
from .picture import ORIGINS, Bar, Key, Picture
from .scales import Scale, second_ticks

SAMPLE_KEYS = (
    Key("sample", "one sample"),
    Key("quartiles", "quartiles"),
    Key("tick", "median"),
    Key("bracket", "95 % interval of the median"),
)


def describe(findings: Findings) -> list[Picture]:
    """Return both pictures, as far as their times were taken."""
    return [*_steps(findings), *_iterations(findings)]


def _steps(findings: Findings) -> list[Picture]:
    """Return the samples of each step on one scale, if a step was timed."""
    rows, notes = pictured(findings.timings, findings.setting_of)
    if not rows:
        return []
    scale = Scale.of(min(row.step.smallest for row in rows), max(row.step.largest for row in rows))
    picture = Picture(
        name="step-time",
        title=f"Time of the optimizer's step{_where(rows)}",
        context=_context(findings, rows),
        sentence=(
            "How long one optimizer step takes: every sample as a mark, the quartiles as a band,"
            " the median as a line."
        ),
        table=_table(findings, findings.timings),
        panels=grouped(
            findings,
            ((findings.setting_of(row), _strip(findings, row, scale), scale.ticks) for row in rows),
        ),
        marks=findings.marks,
        notes=(*notes, *thinning_notes([row.step.samples for row in rows]), *_noise(rows, "step")),
        keys=(*SAMPLE_KEYS, *ORIGINS),
    )
    return [picture]


def _iterations(findings: Findings) -> list[Picture]:
    """Return forward, backward and step side by side, if all three were timed."""
    whole = [timing for timing in findings.timings if timing.iteration]
    rows, notes = pictured(whole, findings.setting_of)
    if not rows:
        return []
    scale = row_scales((findings.setting_of(row), _seconds(row)) for row in rows)
    bars = (
        (
            findings.setting_of(row),
            _stack(findings, row, scale[findings.setting_of(row)]),
            second_ticks(scale[findings.setting_of(row)]),
        )
        for row in rows
    )
    picture = Picture(
        name="iteration",
        title=f"The step's share of an iteration{_where(rows)}",
        context=_context(findings, rows),
        sentence=(
            "Forward, backward and the optimizer's step of one training iteration, by their"
            " medians."
        ),
        table=_table(findings, whole),
        panels=grouped(findings, bars),
        marks=findings.marks,
        notes=(*notes, *_noise(rows, *PHASES)),
        keys=(*(Key("block", phase, block_colour(phase).light) for phase in PHASES), *ORIGINS),
    )
    return [picture]


def _noise(rows: Sequence[Timing], *phases: str) -> tuple[str, ...]:
    """Return the note on noisy times if there are any."""
    return (NOISE,) if any(row.noise(phase) for row in rows for phase in phases) else ()


def _context(findings: Findings, rows: Sequence[Timing]) -> str:
    """Return the context with the device and the implementation that all rows share."""
    common = shared(conditions(row.record) for row in rows)
    return f"{findings.context} · {common}" if common else findings.context


def _where(rows: Sequence[Timing]) -> str:
    """Return the device that all rows share: on CPU."""
    place = shared(PLACES[row.record.scenario.device] for row in rows)
    return f" {place}" if place else ""


def _strip(findings: Findings, row: Timing, scale: Scale) -> Bar:
    step, interval = row.step, row.step.interval
    return Bar(
        label=findings.timing_label(row),
        mark=findings.labels[optimizer_key(row.record.scenario)],
        origin=row.record.origin,
        value=Sized.of(lambda _: step_text(row)),
        samples=tuple(map(scale.place, at_even_ranks(step.samples))),
        band=(scale.place(step.lower), scale.place(step.upper)),
        whisker=(scale.place(interval.lower), scale.place(interval.upper)) if interval else None,
        median=scale.place(step.median),
    )


def _stack(findings: Findings, row: Timing, scale: float) -> Bar:
    parts = [(phase, row.phases[phase].median) for phase in PHASES]
    texts = [Sized.of(lambda _, seconds=seconds: seconds_text(seconds)) for _, seconds in parts]
    return Bar(
        label=findings.timing_label(row),
        mark=findings.labels[optimizer_key(row.record.scenario)],
        origin=row.record.origin,
        value=Sized.of(lambda _: share_text(row)),
        parts=stacked(parts, texts, scale, [text.binary for text in texts]),
    )


def _seconds(row: Timing) -> float:
    return sum(row.phases[phase].median for phase in PHASES)


def _table(findings: Findings, timings: Sequence[Timing]) -> Table:
    """Return the medians and quartiles of every phase, with the number of samples."""
    phases = [phase for phase in PHASES if any(phase in timing.phases for timing in timings)]
    rows = (
        (
            findings.timing_label(timing),
            findings.setting_of(timing),
            *(
                spread_text(timing.phases[phase]) + noise_mark(timing.record, phase)
                if phase in timing.phases
                else ""
                for phase in phases
            ),
            range_text(timing.step.smallest, timing.step.largest),
            str(len(timing.step.samples)),
            origin_text(timing.record),
        )
        for timing in timings
    )
    head = ("optimizer", "model", *phases, "fastest to slowest step", "samples", "origin")
    return text_table(head, rows)
