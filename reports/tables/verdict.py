"""Verdict: a run in one sentence, and a card for each optimizer."""

from collections.abc import Sequence
from dataclasses import replace

from optprof.profiler.records.record import Record

from ..arithmetic.capacity import lacking
from ..arithmetic.entries import Entry, Setting, by_setting
from ..arithmetic.findings import Findings
from ..arithmetic.savings import Saving
from ..phrases import against_text, pace_text
from ..units import (
    BINARY,
    Sized,
    Units,
    bytes_text,
    factor_text,
    per_parameter_text,
    percent_text,
    seconds_text,
)
from ..words import PLACES, conditions, listed, origin_text, phase_name
from .table import Card, Cell, bytes_cell, time_cell, unfit_cell

RANGES = "peaks with convolutions or RNNs: from the least to the most that cuDNN may take"
# With more settings than these, the verdict is about the largest model alone.
MOST_SETTINGS = 2


def verdict(findings: Findings, units: Units = BINARY) -> str:
    """The smallest state of the largest model in one sentence; empty without a known state."""
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
        f" {findings.baseline}'s{_peak_falls(findings, least, units)}."
    )


def headline_groups(findings: Findings) -> dict[str, Sequence[Entry]]:
    """The entries of each setting by its name; of many settings only the largest model's."""
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
    """Lines on the sources of bytes, times and estimates, and on peaks that are ranges."""
    of_kind = {
        "bytes": [entry.bytes_from for entry in findings.entries if entry.bytes_from],
        "step times": [entry.times_from for entry in findings.entries if entry.times_from],
    }
    estimated = [_estimated(findings)] if findings.estimated_gpus else []
    lines = [
        f"{name}: {'; '.join(_sources(records))}" for name, records in of_kind.items() if records
    ]
    return (
        lines
        + estimated
        + ([RANGES] if any(entry.peak_upper is not None for entry in findings.entries) else [])
    )


def _estimated(findings: Findings) -> str:
    chosen = any(entry.estimate and entry.scenario.gpu is None for entry in findings.entries)
    return (
        f"step times on {listed(findings.estimated_gpus)}: estimated from the bytes, launches and"
        f" waits of the step's kernels{'; --gpu names another GPU' if chosen else ''}"
    )


def _sources(records: Sequence[Record]) -> list[str]:
    """Origin, device and implementation of the records, with the shares behind estimates."""
    shares: dict[tuple[str, str, str], list[float]] = {}
    for record in records:
        source = record.origin, PLACES[record.scenario.device], record.scenario.implementation
        shares.setdefault(source, []).extend(
            [record.measured_share] if record.measured_share else []
        )
    return [
        f"{origin}{_share_range(measured)} {place}, {implementation}"
        for (origin, place, implementation), measured in shares.items()
    ]


def _share_range(shares: Sequence[float]) -> str:
    span = dict.fromkeys(
        percent_text(share, 1) for share in ([min(shares), max(shares)] if shares else [])
    )
    return f" from {' to '.join(span)}" if span else ""


def _largest(findings: Findings) -> Sequence[Entry]:
    """The entries of the first setting with the largest model."""
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
    without = "" if entry.peak_upper is None else ", both with cuDNN's smallest workspaces"
    return (
        f"; the peak of a training step falls from {bytes_text(before, units)} to"
        f" {bytes_text(after, units)}{without}"
    )


def _card(findings: Findings, entry: Entry) -> Card:
    state = entry.state_bytes
    pairs = (
        ("a parameter", _bytes_cell(entry)),
        (f"against {findings.baseline}", _saving_cell(findings, entry)),
        ("peak", _peak_cell(entry)),
        (f"step on {entry.estimate.gpu}" if entry.estimate else "", _estimate_cell(entry)),
        (_clock(entry), _step_cell(findings, entry)),
    )
    return Card(
        label=entry.label,
        origin=entry.origin,
        headline=Cell(text="not known") if state is None else bytes_cell(state),
        lines=tuple((name, cell) for name, cell in pairs if cell),
    )


def _bytes_cell(entry: Entry) -> Cell | None:
    value = entry.bytes_per_parameter
    return None if value is None else Cell(text=f"{per_parameter_text(value)} bytes")


def _saving_cell(findings: Findings, entry: Entry) -> Cell | None:
    saving = _saving(findings, entry)
    if saving is None:
        return None
    share = percent_text(saving.saved_bytes, saving.baseline_bytes)
    return Cell(text=against_text(saving), remark="" if saving.is_baseline else f"{share} saved")


def _peak_cell(entry: Entry) -> Cell | None:
    if entry.ran_out:
        lack, unfit = lacking(entry.bytes_from), unfit_cell(entry)
        more = Sized.of(lambda units: f"{bytes_text(lack or 0, units)} more needed")
        known = replace(unfit, text=more.binary, decimal=more.decimal)
        gpu = entry.scenario.gpu
        return unfit if lack is None else replace(known, remark=f"does not fit on {gpu}")
    if entry.memory is None or entry.peak_bytes is None:
        return None
    phase = f"in {phase_name(entry.memory.peak_phase)}" if entry.memory.peak_phase else ""
    return replace(bytes_cell(entry.peak_bytes, entry.peak_upper), remark=phase)


def _clock(entry: Entry) -> str:
    return f"step {PLACES[entry.times_from.scenario.device]}" if entry.times_from else ""


def _step_cell(findings: Findings, entry: Entry) -> Cell | None:
    record = entry.times_from
    if entry.step is None or record is None:
        return None
    pace = next((ratio for timed, ratio in findings.paces if timed is entry), None)
    against = f"{pace_text(pace)} {findings.baseline}'s; " if pace else ""
    return replace(
        time_cell(record),
        remark=f"{against}{conditions(record)}, {origin_text(record)}",
    )


def _estimate_cell(entry: Entry) -> Cell | None:
    estimate = entry.estimate
    # A step that does not fit takes no time.
    if estimate is None or entry.ran_out:
        return None
    return Cell(
        text=seconds_text(estimate.seconds),
        remark=(f"estimated, at least {seconds_text(estimate.floor_seconds)}"),
    )
