"""Words: what was found as short phrases, the same in pictures, pages and on the terminal."""

from collections.abc import Iterable, Mapping, Sequence

from profiler.record import Record

from .courses import Course
from .paces import Pace
from .peaks import Peak
from .savings import Saving
from .times import Spread, Timing, samples_per_second, tokens_per_second
from .units import (
    BINARY,
    DASH,
    Units,
    around_text,
    bytes_text,
    factor_text,
    gib_text,
    percent_text,
    range_text,
    rate_text,
    seconds_text,
)

DEVICES: Mapping[str, str] = {"sim": "simulated CUDA", "cpu": "CPU", "cuda": "CUDA"}
PLACES: Mapping[str, str] = {"sim": "for CUDA", "cpu": "on CPU", "cuda": "on CUDA"}


def saving_text(row: Saving, units: Units = BINARY) -> str:
    """The saving: saves 5.803 GiB, 2.00 times, 50.0 %."""
    if row.is_baseline:
        return "the baseline"
    size = f"{gib_text(abs(row.saved_bytes), units)} {units.giga}"
    amount = f"saves {size}" if row.saved_bytes > 0 else f"keeps {size} more" if row.saved_bytes else "saves nothing"
    return f"{amount} · {factor_text(row.factor)} · {percent_text(row.saved_bytes, row.baseline_bytes)}"


def against_text(row: Saving) -> str:
    """The state set against the baseline's: 2.00 times smaller."""
    if row.is_baseline:
        return "the baseline"
    if not row.state_bytes:
        return "keeps nothing"
    if row.saved_bytes == 0:
        return "the same"
    return f"{factor_text(row.factor)} smaller" if row.saved_bytes > 0 else f"{factor_text(1 / row.factor)} as large"


def pace_text(row: Pace) -> str:
    """The time of the step against the baseline's, and the 95 % interval of that: 0.50 times (0.48 to 0.53 times)."""
    if row.ratio.low is None or row.ratio.high is None:
        return factor_text(row.ratio.value)
    return f"{factor_text(row.ratio.value)} ({factor_text(row.ratio.low)} {DASH} {factor_text(row.ratio.high)})"


def peak_text(row: Peak, units: Units = BINARY) -> str:
    """The peak and its phase: 29.012 GiB in step · 29.338 reserved."""
    phase = f" in {phase_name(row.phase)}" if row.phase else ""
    reserved = f" · {gib_text(row.reserved, units)} reserved" if row.reserved is not None else ""
    return f"{gib_text(row.allocated, units)} {units.giga}{phase}{reserved}"


def course_text(course: Course, units: Units = BINARY) -> str:
    """The peak of a course: 29.656 GiB in step · 31.375 reserved; and whether the device ran out of memory."""
    timeline = course.timeline
    phase = phase_name(timeline.peak_stretch.phase)
    end = "out of memory: " if course.record.outcome == "out-of-memory" else ""
    peak, reserved = timeline.peak_allocated, max(timeline.reserved)
    return f"{end}{gib_text(peak, units)} {units.giga} in {phase} · {gib_text(reserved, units)} reserved"


def fragmentation_text(course: Course) -> str:
    """A sentence on the peak of a course: what the allocator has in hand beyond it."""
    timeline = course.timeline
    stretch, spare = timeline.peak_stretch, timeline.fragmentation[timeline.peak]
    share = percent_text(spare, timeline.reserved[timeline.peak])
    return (
        f"{course.label} holds most: {gib_text(timeline.peak_allocated)} GiB in {phase_name(stretch.phase)} of training step "
        f"{stretch.step}, where {bytes_text(spare)} ({share}) of what is reserved is not in use."
    )


def category_name(category: str) -> str:
    """A category of bytes: parameters, optimizer state."""
    plurals = {"parameter", "buffer", "gradient", "activation"}
    if category == "temporary":
        return "temporaries"
    return category.replace("_", " ") + ("s" if category in plurals else "")


def phase_name(phase: str | None) -> str:
    """A phase: zero grad; empty for none."""
    return (phase or "").replace("_", " ")


def spread_text(spread: Spread) -> str:
    """The median and the quartiles around it: 462 ms (455 to 471 ms)."""
    if len(spread.samples) == 1:
        return seconds_text(spread.median)
    return f"{seconds_text(spread.median)} ({range_text(spread.lower, spread.upper)})"


def origin_text(record: Record) -> str:
    """The record's origin, and what an estimate stands on: estimated from 31.2 %."""
    share = record.measured_share
    return record.origin + (f" from {percent_text(share, 1)}" if record.origin == "estimated" and share else "")


def step_text(timing: Timing) -> str:
    """The step's time: 462 ms (455 to 471 ms), and where it comes from unless it was measured whole."""
    note = "" if timing.record.origin == "measured" else f" · {origin_text(timing.record)}"
    return spread_text(timing.step) + note


def share_text(timing: Timing) -> str:
    """The step's share of an iteration: step 23.1 % of 1.95 s."""
    whole = timing.iteration
    return f"step {percent_text(timing.step.median, whole)} of {seconds_text(whole)}" if whole else ""


def interval_text(spread: Spread) -> str:
    """The 95 % confidence interval of the median: 455 to 471 ms, and how far it reaches; empty without one."""
    found = spread.interval
    if found is None:
        return ""
    return f"{range_text(found.lower, found.upper)} ({around_text(found.lower, spread.median, found.upper)})"


def throughput_text(record: Record) -> str:
    """What training gets through: 231 tokens/s, or images or sequences; empty where no whole iteration was timed."""
    tokens, samples = tokens_per_second(record), samples_per_second(record)
    if tokens is not None:
        return rate_text(tokens, "tokens")
    return "" if samples is None else rate_text(samples, "samples")


def warning_lines(records: Iterable[Record]) -> list[str]:
    """What has spoiled times, with whose they are: adamw on gpt2 (CPU, loop): other processes took 40 % of ..."""
    found: dict[str, list[str]] = {}
    for record in records:
        for warning in record.watched.warnings if record.watched else ():
            found.setdefault(f"{record.scenario.model} ({conditions(record)}): {warning}", []).append(record.scenario.optimizer)
    return [f"times of {listed(list(dict.fromkeys(names)))} on {where}" for where, names in found.items()]


def conditions(record: Record) -> str:
    """Device and implementation of a record: CPU, loop."""
    return f"{DEVICES[record.scenario.device]}, {record.scenario.implementation}"


def clock_name(clock: str) -> str:
    """What tells a time: a device's clock, or an estimate for a GPU of that name."""
    return f"on {DEVICES[clock]}" if clock in DEVICES else f"estimated for {clock}"


def source_text(record: Record) -> str:
    """Where a record comes from: simulated for CUDA; estimated from 31.2 % on CPU."""
    return f"{origin_text(record)} {PLACES[record.scenario.device]}"


def shared(texts: Iterable[str]) -> str | None:
    """The text that all of them are, None where they differ."""
    different = set(texts)
    return different.pop() if len(different) == 1 else None


def listed(words: Sequence[str], most: int = 4) -> str:
    """A list in a sentence: a, b and c; a number of them where they are many."""
    if len(words) > most:
        words = [*words[: most - 1], f"{len(words) - most + 1} more"]
    return " and ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)
