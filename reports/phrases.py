"""Phrases: findings in a few words, the same for pictures, pages and the terminal."""

from collections.abc import Sequence

from optprof.profiler.records.record import Record
from optprof.scenarios import nccl

from .arithmetic.courses import Course
from .arithmetic.entries import Setting, failures
from .arithmetic.findings import Findings
from .arithmetic.peaks import Peak
from .arithmetic.ratios import Ratio
from .arithmetic.savings import USUAL, Saving, unpaced, without_baseline
from .arithmetic.times import (
    NOISY,
    PHASES,
    Spread,
    Timing,
    noise,
    samples_per_second,
    tokens_per_second,
)
from .units import (
    BINARY,
    DASH,
    MINUS,
    Units,
    around_text,
    bytes_text,
    factor_text,
    percent_text,
    range_text,
    rate_text,
    seconds_text,
)
from .words import OUTCOMES, listed, origin_text, phase_name

NOISE = (
    f"± marks a noisy figure. A time is noisy if the 95 % interval of its median reaches"
    f" further than {100 * NOISY:.0f} %, if it has fewer than six samples (±?), or if something"
    " disturbed it; a ratio is noisy if its interval includes 1."
)


def saving_text(row: Saving, units: Units = BINARY) -> str:
    """The saving: 2.00 times smaller, saves 5.803 GiB, 50.0 %."""
    if row.is_baseline:
        return "the baseline"
    size = bytes_text(abs(row.saved_bytes), units)
    if not row.saved_bytes:
        return "saves nothing"
    if row.saved_bytes < 0:
        return f"{against_text(row)} · keeps {size} more"
    share = percent_text(row.saved_bytes, row.baseline_bytes)
    return f"{against_text(row)} · saves {size}, {share}"


def missing_text(findings: Findings) -> str:
    """The reasons why settings have no baseline to compare with; empty where all have one."""
    reasons: dict[str, list[str]] = {}
    if len(findings.labels) == 1 and findings.baseline != USUAL[0]:
        return (
            f"Nothing to compare {findings.baseline} with: {_advice(findings.records, USUAL[0])}."
        )
    for setting in without_baseline(findings.entries, findings.baseline):
        alike = [record for record in findings.records if Setting.of(record.scenario) == setting]
        reasons.setdefault(_missing(alike, findings.baseline), []).append(findings.names[setting])
    return " ".join(reason.format(listed(names)) for reason, names in reasons.items())


def _missing(records: Sequence[Record], baseline: str) -> str:
    """The reason why one setting has no baseline; braces stand for the setting's name."""
    tried = [record for record in records if record.scenario.optimizer == baseline]
    # A failure says more than a success without bytes.
    if record := next(iter([*failures(tried), *tried]), None):
        return (
            f"{baseline} {OUTCOMES[record.outcome]} on {{}}, so there is nothing to compare with."
        )
    return f"No {baseline} to compare with on {{}}: {_advice(records, baseline)}."


def _advice(records: Sequence[Record], baseline: str) -> str:
    if any(record.is_of_own_loop for record in records):
        return f"watch the loop with {baseline}, too"
    return f"add {baseline} to --optimizers"


def unlike_text(rows: Sequence[Saving]) -> str:
    """The optimizers that a baseline of another implementation is compared with; empty for none."""
    baseline = rows[0].baseline.scenario.optimizer if rows else ""
    labels: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        if not row.is_alike:
            ways = row.entry.scenario.implementation, row.baseline.scenario.implementation
            labels.setdefault(ways, []).append(row.entry.label)
    pairs = [
        f"{listed(list(dict.fromkeys(names)))} ({own}) with {baseline} ({other})"
        for (own, other), names in labels.items()
    ]
    return (
        f"States and peaks are compared across implementations: {'; '.join(pairs)}. The run has no"
        f" result of {baseline} with the same implementation."
        if pairs
        else ""
    )


def unpaced_text(findings: Findings) -> str:
    """The optimizers whose steps were timed another way than the baseline's; empty for none."""
    labels: dict[tuple[str, str], list[str]] = {}
    for pair in unpaced(findings.entries, findings.baseline):
        ways = [each.times_from.scenario.implementation for each in pair if each.times_from]
        labels.setdefault((ways[0], ways[1]), []).append(pair[0].label)
    pairs = [
        f"{listed(list(dict.fromkeys(names)))} ({own}) with {findings.baseline} ({other})"
        for (own, other), names in labels.items()
    ]
    if not pairs:
        return ""
    is_ours = not any(record.is_of_own_loop for record in findings.records)
    advice = " --implementation loop times all of them alike." if is_ours else ""
    return f"Step times are not compared across implementations: {'; '.join(pairs)}.{advice}"


def against_text(row: Saving) -> str:
    """The state set against the baseline's: 2.00 times smaller."""
    if row.is_baseline:
        return "the baseline"
    if not row.state_bytes:
        return "keeps nothing"
    if row.saved_bytes == 0:
        return "the same"
    return (
        f"{factor_text(row.factor)} smaller"
        if row.saved_bytes > 0
        else f"{factor_text(1 / row.factor)} as large"
    )


def pace_text(ratio: Ratio) -> str:
    """Return a ratio of step times with its 95 % interval: 0.50 times (0.48 to 0.53 times)."""
    if ratio.low is None or ratio.high is None:
        return factor_text(ratio.value)
    unclear = ", no clear difference" if ratio.includes_one else ""
    span = f"{factor_text(ratio.low)} {DASH} {factor_text(ratio.high)}{unclear}"
    return f"{factor_text(ratio.value)} ({span})"


def short_pace_text(ratio: Ratio) -> str:
    """Return a ratio of step times; one that may as well be 1 with its reach: 1.13 times ±20 %."""
    if ratio.low is None or ratio.high is None or not ratio.includes_one:
        return factor_text(ratio.value)
    reach = max(ratio.high - ratio.value, ratio.value - ratio.low) / ratio.value
    return f"{factor_text(ratio.value)} ±{_whole_percent(reach)}"


def peak_text(row: Peak, units: Units = BINARY) -> str:
    """The peak and its phase: 29.01 GiB in step · 29.34 GiB reserved.

    Parts of another origin add their sum and its difference from the peak.
    """
    phase = f" in {phase_name(row.phase)}" if row.phase else ""
    reserved = ""
    if row.reserved is not None:
        reserved = f" · {bytes_text(row.reserved, units, row.reserved_upper)} reserved"
    whole = f"{bytes_text(row.allocated, units, row.allocated_upper)}{phase}{reserved}"
    if row.parts_origin == row.entry.origin:
        return whole
    off = (
        f", {bytes_text(abs(row.residual), units)} {'less' if row.residual > 0 else 'more'}"
        if row.residual
        else ""
    )
    return (
        f"{row.entry.origin} {whole} · parts {row.parts_origin}: {bytes_text(row.split, units)} in"
        f" all{off}"
    )


def course_text(course: Course, units: Units = BINARY) -> str:
    """The peak of a timeline, "out of memory" first: 29.66 GiB in step · 31.38 GiB reserved."""
    timeline = course.timeline
    phase = phase_name(timeline.peak_stretch.phase)
    end = "out of memory: " if course.record.outcome == "out-of-memory" else ""
    memory = course.record.memory
    upper = (memory.peak_allocated_upper, memory.peak_reserved_upper) if memory else (None, None)
    peak = bytes_text(timeline.peak_allocated, units, upper[0])
    reserved = bytes_text(max(timeline.reserved), units, upper[1])
    return f"{end}{peak} in {phase} · {reserved} reserved"


def fragmentation_text(course: Course, units: Units = BINARY) -> str:
    """A sentence on the unused memory that the allocator has reserved at the peak."""
    timeline = course.timeline
    stretch, spare = timeline.peak_stretch, timeline.fragmentation[timeline.peak]
    share, peak = (
        percent_text(spare, timeline.reserved[timeline.peak]),
        bytes_text(timeline.peak_allocated, units),
    )
    return (
        f"{course.label} has the highest peak: {peak} in {phase_name(stretch.phase)} of training"
        f" step {stretch.step}. There {bytes_text(spare, units)} ({share}) of the reserved memory"
        " are not in use."
    )


def nothing_text(labels: Sequence[str]) -> str:
    """A note on the optimizers that a logarithmic axis leaves out."""
    return f"Not on the logarithmic axis, because the state has 0 bytes: {listed(labels)}."


def spread_text(spread: Spread) -> str:
    """The median and the quartiles around it: 462 ms (455 to 471 ms)."""
    if len(spread.samples) == 1:
        return seconds_text(spread.median)
    return f"{seconds_text(spread.median)} ({range_text(spread.lower, spread.upper)})"


def step_text(timing: Timing) -> str:
    """The step's time: 462 ms (455 to 471 ms), a mark of noise, and its origin unless measured."""
    note = "" if timing.record.origin == "measured" else f" · {origin_text(timing.record)}"
    return spread_text(timing.step) + noise_mark(timing.record) + note


def share_text(timing: Timing) -> str:
    """The step's share of an iteration: step 23.1 % of 1.95 s."""
    whole = timing.iteration
    if not whole:
        return ""
    marks = (noise_mark(timing.record, phase) for phase in (*PHASES, "iteration"))
    share = f"step {percent_text(timing.step.median, whole)} of {seconds_text(whole)}"
    return share + next(filter(None, marks), "")


def noise_mark(record: Record, phase: str = "step") -> str:
    """The mark behind a noisy median: ±12 %, or ±? for too few samples; empty for a sound one."""
    if not noise(record, phase):
        return ""
    reach = Spread.of((record.times or {})[phase]).reach
    return " ±?" if reach is None else f" ±{_whole_percent(reach)}"


def _whole_percent(reach: float) -> str:
    return f"{max(1, round(100 * reach))} %"


def noise_note(findings: Findings) -> str:
    """The meaning of the marks of noisy figures, if there are any."""
    is_noisy = any(timing.noise() for timing in findings.timings) or any(
        ratio.includes_one for _, ratio in findings.paces
    )
    return NOISE if is_noisy else ""


def interval_text(spread: Spread) -> str:
    """The 95 % confidence interval of the median, and its reach: 455 to 471 ms (±1.7 %)."""
    interval = spread.interval
    if interval is None:
        return ""
    return (
        f"{range_text(interval.lower, interval.upper)}"
        f" ({around_text(interval.lower, spread.median, interval.upper)})"
    )


def throughput_text(record: Record) -> str:
    """The throughput of training: 231 tokens/s, or samples; empty without timed iterations."""
    tokens, samples = tokens_per_second(record), samples_per_second(record)
    if tokens is not None:
        return rate_text(tokens, "tokens")
    return "" if samples is None else rate_text(samples, "samples")


def ranks_notes(findings: Findings, units: Units = BINARY) -> list[str]:
    """Sentences on whose bytes a report of several ranks has, and on what it leaves out."""
    rows = findings.ranks
    notes = [
        _WHOSE,
        *(
            text
            for applies, text in (
                (any(row.is_bound for row in rows), _BOUND),
                (any(row.differ and row.total is None for row in rows), _UNKNOWN),
                (any(row.sent is not None for row in rows), _RING),
            )
            if applies
        ),
    ]
    # On the CPU ranks talk by gloo.
    ways = dict.fromkeys(
        (row.record.scenario.parallel, row.count)
        for row in rows
        if row.record.scenario.device != "cpu"
    )
    texts = dict.fromkeys(nccl_text(parallel, count, units) for parallel, count in ways)
    return [*notes, *filter(None, texts)] if rows else []


_WHOSE = (
    "All bytes are those of one rank: the simulated one, or of a measured training the rank with"
    " the highest peak or, without peaks, the most bytes."
)
_BOUND = (
    "Where ranks differ, the first holds the most, so all ranks together hold at most as many times"
    " its state."
)
_UNKNOWN = (
    "Under ZeRO-1 the state of each parameter is on one rank: all ranks together hold what one"
    " process holds without it."
)
_RING = (
    f"What a rank sends is counted for rings of n ranks: (n{MINUS}1)/n of a tensor that is gathered"
    " or reduced and scattered, twice that if all ranks get the sum, and a broadcast tensor whole."
)


def nccl_text(parallel: str | None, ranks: int, units: Units = BINARY) -> str:
    """The memory that NCCL takes, and how it is estimated; empty if ranks exchange nothing."""
    size = nccl.nccl_bytes(parallel, ranks)
    if size is None:
        return ""
    count = nccl.communicators(parallel, ranks)
    return (
        f"NCCL takes an estimated {bytes_text(size[0], units, size[1])} more of each GPU, which"
        f" torch's allocator does not count and no number here contains: {count}"
        f" communicator{'' if count == 1 else 's'} with {nccl.FEWEST_CHANNELS} to"
        f" {nccl.MOST_CHANNELS} channels, and for each {nccl.FEWEST_CONNECTIONS} to"
        f" {nccl.MOST_CONNECTIONS} buffers of {bytes_text(nccl.CONNECTION_BYTES, units)} (sizes"
        " from NCCL 2.30's source; the GPUs' links decide the channels)."
    )
