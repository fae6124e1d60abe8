"""Verdict: the run in a few lines: one sentence, and a card for each optimizer."""

from collections.abc import Sequence
from dataclasses import dataclass

from optprof.profiler.records.record import Record

from ..arithmetic.entries import Entry, Setting, by_setting
from ..arithmetic.findings import Findings
from ..arithmetic.savings import BASELINE, Saving
from ..phrases import against_text, pace_text
from ..units import (
    BINARY,
    DECIMAL,
    Units,
    bytes_text,
    exact_text,
    factor_text,
    gib_text,
    per_parameter_text,
    percent_text,
    seconds_text,
)
from ..words import PLACES, conditions, listed, origin_text, phase_name

RANGES = "peaks of convolutions and RNNs: from the least that cuDNN takes to the most"
# With more settings than these, the verdict is about the largest model alone.
MOST_SETTINGS = 2


@dataclass(frozen=True, kw_only=True)
class Line:
    """One line of a card: what, how much, a remark below it, and the same to the byte and in powers
    of 1,000 where it is a size.
    """

    name: str
    text: str
    remark: str = ""
    exact: str = ""
    decimal: str = ""


@dataclass(frozen=True, kw_only=True)
class Card:
    """What one optimizer costs in one setting."""

    label: str
    origin: str
    headline: Line
    lines: tuple[Line, ...]


def verdict(findings: Findings, units: Units = BINARY) -> str:
    """The lightest state of the largest model in one sentence; empty where no state is known."""
    entries = [entry for entry in _largest(findings) if entry.state_bytes is not None]
    if not entries:
        return ""
    least = min(entries, key=lambda entry: entry.state_bytes or 0)
    if not least.state_bytes:
        return f"{least.label} keeps no state at all{_peak_falls(findings, least, units)}."
    keeps = (
        f"{least.label} keeps {'the least state' if len(entries) > 1 else 'a state'}:"
        f" {bytes_text(least.state_bytes, units)}"
    )
    saving = _saving(findings, least)
    if saving is None or saving.saved_bytes <= 0:
        return f"{keeps}."
    return (
        f"{keeps}, {factor_text(saving.factor)} smaller than"
        f" {BASELINE}'s{_peak_falls(findings, least, units)}."
    )


def headline_groups(findings: Findings) -> dict[str, Sequence[Entry]]:
    """The entries of each setting, by its name; of many settings only the one with the largest
    model.
    """
    groups = {
        findings.names[setting]: group for setting, group in by_setting(findings.entries).items()
    }
    if len(groups) <= MOST_SETTINGS:
        return dict(groups)
    largest = _largest(findings)
    return {f"{findings.names[largest[0].setting]}, the largest of {len(groups)}": largest}


def cards(findings: Findings) -> dict[str, list[Card]]:
    """The cards of those entries, by the name of their setting."""
    return {
        name: [_card(findings, entry) for entry in group]
        for name, group in headline_groups(findings).items()
    }


def sources(findings: Findings) -> list[str]:
    """Lines on where bytes and times come from, and why a peak is a range: a line each, none for
    what the run does not have.
    """
    found = {
        "bytes": [entry.bytes_from for entry in findings.entries if entry.bytes_from],
        "step times": [entry.times_from for entry in findings.entries if entry.times_from],
    }
    gpus = dict.fromkeys(entry.estimate.gpu for entry in findings.entries if entry.estimate)
    estimated = (
        [
            (
                f"step times on {listed(list(gpus))}: estimated from the bytes, launches and waits"
                " of the step's kernels"
            )
        ]
        if gpus
        else []
    )
    lines = [
        f"{name}: {'; '.join(_sources(records))}" for name, records in found.items() if records
    ]
    return (
        lines
        + estimated
        + ([RANGES] if any(entry.peak_upper is not None for entry in findings.entries) else [])
    )


def _sources(records: Sequence[Record]) -> list[str]:
    """Origin, device and implementation of the records, each said once, with the range of the
    shares that estimates stand on.
    """
    shares: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        source = record.origin, PLACES[record.scenario.device], record.scenario.implementation
        shares.setdefault(source, []).extend(
            [record.measured_share] if record.measured_share else []
        )
    return [
        f"{origin}{_share_range(found)} {place}, {implementation}"
        for (origin, place, implementation), found in shares.items()
    ]


def _share_range(shares: Sequence[float]) -> str:
    span = dict.fromkeys(
        percent_text(share, 1) for share in ([min(shares), max(shares)] if shares else [])
    )
    return f" from {' to '.join(span)}" if span else ""


def _largest(findings: Findings) -> Sequence[Entry]:
    """The entries of the setting with the largest model; of several, the first."""
    groups = by_setting(findings.entries)
    sizes: dict[Setting, int] = {
        setting: max(entry.record.parameter_count or 0 for entry in group)
        for setting, group in groups.items()
    }
    return groups[max(sizes, key=lambda setting: sizes[setting])] if groups else []


def _saving(findings: Findings, entry: Entry) -> Saving | None:
    return next((saving for saving in findings.savings if saving.entry is entry), None)


def _peak_falls(findings: Findings, entry: Entry, units: Units) -> str:
    saving = _saving(findings, entry)
    before, after = (saving.baseline.peak_bytes if saving else None), entry.peak_bytes
    if before is None or after is None or after >= before:
        return ""
    without = "" if entry.peak_upper is None else ", both with the least that cuDNN takes"
    return (
        f"; the peak of a training step falls from {gib_text(before, units)} to"
        f" {gib_text(after, units)} {units.giga}{without}"
    )


def _card(findings: Findings, entry: Entry) -> Card:
    state = entry.state_bytes
    headline = Line(name="state", text="not known") if state is None else _size_line("state", state)
    lines = (
        _bytes_line(entry),
        _saving_line(findings, entry),
        _peak_line(entry),
        _step_line(findings, entry),
        _estimate_line(entry),
    )
    return Card(
        label=entry.label,
        origin=entry.origin,
        headline=headline,
        lines=tuple(line for line in lines if line),
    )


def _size_line(name: str, count: int, remark: str = "", upper: int | None = None) -> Line:
    return Line(
        name=name,
        text=bytes_text(count, upper=upper),
        remark=remark,
        exact=exact_text(count, upper),
        decimal=bytes_text(count, DECIMAL, upper),
    )


def _bytes_line(entry: Entry) -> Line | None:
    value = entry.bytes_per_parameter
    return (
        None
        if value is None
        else Line(name="a parameter", text=f"{per_parameter_text(value)} bytes")
    )


def _saving_line(findings: Findings, entry: Entry) -> Line | None:
    saving = _saving(findings, entry)
    if saving is None:
        return None
    share = (
        ""
        if saving.is_baseline
        else f"{percent_text(saving.saved_bytes, saving.baseline_bytes)} saved"
    )
    return Line(name=f"against {BASELINE}", text=against_text(saving), remark=share)


def _peak_line(entry: Entry) -> Line | None:
    if entry.memory is None or entry.peak_bytes is None:
        return None
    phase = f"in {phase_name(entry.memory.peak_phase)}" if entry.memory.peak_phase else ""
    return _size_line("peak", entry.peak_bytes, phase, entry.peak_upper)


def _step_line(findings: Findings, entry: Entry) -> Line | None:
    if entry.step is None or entry.times_from is None:
        return None
    record, pace = (
        entry.times_from,
        next((ratio for timed, ratio in findings.paces if timed is entry), None),
    )
    against = f"{pace_text(pace)} {BASELINE}'s; " if pace else ""
    return Line(
        name="step",
        text=seconds_text(entry.step.median),
        remark=f"{against}{conditions(record)}, {origin_text(record)}",
    )


def _estimate_line(entry: Entry) -> Line | None:
    found = entry.estimate
    if found is None:
        return None
    remark = (
        f"estimated, {entry.scenario.implementation}; no step takes less than"
        f" {seconds_text(found.floor_seconds)}"
    )
    return Line(name=f"step on {found.gpu}", text=seconds_text(found.seconds), remark=remark)
