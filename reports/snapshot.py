"""Snapshots: what a torch.cuda.memory snapshot holds, as a page and on a terminal."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from shlex import quote

from optprof.profiler.records.snapshots import (
    DeviceContents,
    Group,
    OutOfMemory,
    SnapshotContents,
    Trial,
)

from .arithmetic.provenance import shell
from .document import Block, Document, Note, Section
from .pictures.charts import Chart
from .pictures.snapshot import block_map, segment_table, timeline
from .tables.table import Cell, Facts, Table, bytes_cell, number_cell
from .units import NOTHING, Sized, bytes_text, percent_text

VARIABLE = "PYTORCH_CUDA_ALLOC_CONF"
# Rows on a terminal.
MOST_SEGMENTS = 8
# Later failures are most often the same again.
MOST_FAILURES = 3
KEPT = (
    "A range has two ends: the memory before the first event requested again under the new"
    " settings, and kept as it was."
)


def snapshot_page(contents: SnapshotContents, command: Sequence[str]) -> Document:
    """Return the page of a snapshot; the command line repeats it."""
    sections: list[Section] = []
    for device in contents.devices:
        of_one = len(contents.devices) == 1
        label = "" if of_one else f" (GPU {device.index})"
        name = "" if of_one else f"-{device.index}"
        charts = [Chart.of(picture) for picture in timeline(device)]
        maps = [Chart.of(picture) for picture in block_map(device)]
        sections += [
            Section(f"In short{label}", [Facts(_facts(device))], f"short{name}"),
            Section(
                f"Other settings{label}",
                _trial_blocks(device, contents.conf),
                f"settings{name}",
                f"The recorded requests, replayed under each setting of {VARIABLE}. {KEPT}",
            ),
            Section(
                f"Out of memory{label}",
                [
                    Note(text, "says")
                    for each in device.out_of_memory[:MOST_FAILURES]
                    for text in _failure(each)
                ],
                f"out-of-memory{name}",
                "Each failed request, and what stood in its way.",
            ),
            Section(f"Memory over time{label}", charts, f"memory{name}"),
            Section(
                f"In use at the peak{label}",
                [group_table(device)],
                f"peak{name}",
                "Requested bytes by the line of code that requested them.",
            ),
            Section(
                f"Pools and streams{label}",
                [lane_table(device)],
                f"pools{name}",
                "At the peak of reserved memory. A block never moves to another pool or stream.",
            ),
            Section(f"Block map{label}", maps, f"map{name}"),
            Section(
                f"Segments{label}",
                [segment_table(device.segments)],
                f"segments{name}",
                "At the peak of reserved memory, those with the most free bytes first.",
            ),
        ]
    sections.append(
        Section("How to repeat it", [Note(shell(command), "code")], "repeat", "The command.")
    )
    return Document(
        title=f"Memory snapshot {contents.file}",
        context=(
            f"{VARIABLE}={contents.conf}" if contents.conf else f"recorded without {VARIABLE}",
            "bytes: those of the file, from a GPU or a simulation; other settings are simulated",
        ),
        notes=_passed_over(contents),
        sections=sections,
        rows=[
            {"gpu": device.index, **asdict(segment)}
            for device in contents.devices
            for segment in device.segments
        ],
    )


def snapshot_summary(contents: SnapshotContents) -> Document:
    """Return a snapshot for a terminal."""
    sections: list[Section] = []
    for device in contents.devices:
        lines = [Note(f"{name}: {_binary(text)}", "plain") for name, text in _facts(device)]
        failed = [
            Note(text, "plain")
            for each in device.out_of_memory[:MOST_FAILURES]
            for text in _failure(each)
        ]
        segments = [each for each in device.segments if each.free][:MOST_SEGMENTS]
        sections += [
            Section(f"{contents.file}, GPU {device.index}", lines),
            Section("out of memory", failed),
            Section("in use at the peak, by the line that requested it", [group_table(device)]),
            Section("pools at the peak of reserved memory", [lane_table(device)]),
            Section("segments with the most free bytes", [segment_table(segments)]),
            Section("under other settings (simulated)", _trial_blocks(device, contents.conf)),
        ]
    sections.append(Section(blocks=[Note(text) for text in _passed_over(contents)]))
    return Document(sections=sections)


def _binary(text: str | Sized) -> str:
    return text if isinstance(text, str) else text.binary


def _passed_over(contents: SnapshotContents) -> list[str]:
    if not contents.passed_over:
        return []
    actions = ", ".join(f"{count:,} {name}" for name, count in contents.passed_over.items())
    return [f"passed over, because no replay needs or knows them: {actions}"]


def _facts(device: DeviceContents) -> tuple[tuple[str, str | Sized], ...]:
    peak = (
        f", event {device.peak_reserved_event:,} of {device.events:,}"
        if device.events
        else "; no events were recorded, so this is the state at the end"
    )
    facts: list[tuple[str, str | Sized]] = [
        (
            "most reserved",
            Sized.of(lambda units: f"{bytes_text(device.peak_reserved, units)}{peak}"),
        ),
        (
            "of it not requested",
            Sized.of(
                lambda units: (
                    f"{bytes_text(device.fragmented, units)},"
                    f" {percent_text(device.fragmented, device.peak_reserved)}"
                )
            ),
        ),
        (
            "most in use",
            Sized.of(lambda units: f"{bytes_text(device.peak_used, units)} requested"),
        ),
    ]
    if device.allocated is not None:
        allocated = device.allocated
        facts.append(
            ("most allocated", Sized.of(lambda units: f"{bytes_text(allocated, units)} in blocks"))
        )
    if device.exact:
        facts.append(
            ("replay", f"our allocator agrees with all {device.events:,} events, byte for byte")
        )
    if device.problem:
        facts.append(("no replay" if not device.exact else "other settings", device.problem))
    return tuple(facts)


def group_table(device: DeviceContents) -> Table:
    """Return the places in the code whose blocks were in use at the peak."""
    groups = [*device.groups, *([device.other_groups] if device.other_groups else [])]
    total = sum(group.nbytes for group in groups)
    return Table(
        head=("requested by", "bytes", "share", "blocks"),
        rows=tuple(_group_row(group, total) for group in groups),
    )


def _group_row(group: Group, total: int) -> tuple[Cell, ...]:
    return (
        Cell(text=group.name, exact=" < ".join(group.frames)),
        bytes_cell(group.nbytes),
        Cell(text=percent_text(group.nbytes, total), number=True, value=group.nbytes),
        Cell(text=f"{group.blocks:,}", number=True, value=group.blocks),
    )


def lane_table(device: DeviceContents) -> Table:
    """Return the pools at the peak of reserved memory."""
    return Table(
        head=("pool", "segments", "reserved", "in use", "free", "largest gap"),
        rows=tuple(
            (
                Cell(text=each.lane),
                Cell(text=f"{each.segments:,}", number=True, value=each.segments),
                *map(
                    bytes_cell,
                    (each.reserved, each.used, each.reserved - each.used, each.largest),
                ),
            )
            for each in device.lanes
        ),
    )


def _failures(device: DeviceContents) -> list[str]:
    return [text for each in device.out_of_memory[:MOST_FAILURES] for text in _failure(each)]


def _failure(failure: OutOfMemory) -> list[str]:
    text = (
        f"event {failure.event:,}: {bytes_text(failure.wanted)} wanted,"
        f" {bytes_text(failure.free)} left on the GPU; {bytes_text(failure.reserved)} reserved,"
        f" {bytes_text(failure.used)} of it in use. Its pool had {bytes_text(failure.unused)}"
        f" free, the largest gap {bytes_text(failure.largest)}."
    )
    obstacle = failure.obstacle
    if obstacle is not None:
        holders = "; ".join(f"{name} ({bytes_text(count)})" for name, count in obstacle.holders)
        reason = (
            f"The segment {obstacle.address:#x} has {bytes_text(obstacle.free)} free, but not in"
            f" one piece. In use in it: {holders}."
        )
        return [text, reason]
    if failure.unused < failure.wanted:
        return [text, "All free bytes of its pool together would not have been enough."]
    return [text, "No single segment of its pool has enough free bytes."]


def baseline(device: DeviceContents, conf: str) -> Trial:
    """Return the trial of the recorded settings, which others are compared with."""
    return next(each for each in device.trials if (each.conf, each.torch) == (conf, device.order))


def savings(trial: Trial, recorded: Trial) -> tuple[int, int] | None:
    """Return the least and the most reserved bytes that a trial saves; None if either runs out."""
    if trial.failed is not None or recorded.failed is not None:
        return None
    afresh = recorded.afresh.reserved - trial.afresh.reserved
    kept = recorded.kept.reserved - trial.kept.reserved
    return min(afresh, kept), max(afresh, kept)


def best(device: DeviceContents, conf: str) -> Trial | None:
    """Return the trial that reserves least, if it saves memory or alone does not run out."""
    recorded = baseline(device, conf)
    better = []
    for each in device.trials:
        saved = savings(each, recorded)
        helps = saved is not None and saved[0] >= 0 < saved[1]
        saves = recorded.failed is not None and each.failed is None
        if each.conf != conf and (helps or saves):
            better.append(each)
    return min(better, key=_rank, default=None)


def _rank(trial: Trial) -> tuple[float, int, int, int]:
    """Rank by the memory that a new run would reserve; what runs out comes last, the first last."""
    fails = -math.inf if trial.failed is None else -trial.failed
    return fails, trial.afresh.reserved, trial.kept.reserved, len(trial.conf)


def _trial_blocks(device: DeviceContents, conf: str) -> list[Block]:
    if not device.trials:
        return []
    recorded, found = baseline(device, conf), best(device, conf)
    if found is None:
        advice = "None of these settings reserves less than the recorded ones."
    else:
        advice = f"export {VARIABLE}={quote(found.conf)}" if found.conf else f"unset {VARIABLE}"
        saved = savings(found, recorded)
        advice += (
            " does not run out of memory." if saved is None else f" reserves {_span(*saved)} less."
        )
    return [Note(advice, "verdict"), trial_table(device, conf)]


def _span(least: int, most: int) -> str:
    return bytes_text(most) if least == most else f"{bytes_text(least)} to {bytes_text(most)}"


def trial_table(device: DeviceContents, conf: str) -> Table:
    """Return a row for each setting, the one that reserves least first."""
    trials = sorted(device.trials, key=lambda each: (*_rank(each)[:3], each.conf != conf))
    return Table(
        head=("settings", "most reserved", "saves", "most allocated", "segments", "runs out"),
        rows=tuple(_trial_row(each, device, conf) for each in trials),
    )


def _trial_row(trial: Trial, device: DeviceContents, conf: str) -> tuple[Cell, ...]:
    recorded = baseline(device, conf)
    name = trial.conf or "none"
    if trial.conf == conf:
        name += " (recorded)" if trial is recorded else f" (torch {trial.torch})"
    ends = sorted((trial.afresh.reserved, trial.kept.reserved))
    saved = savings(trial, recorded)
    return (
        Cell(text=name),
        bytes_cell(*ends),
        Cell(text=NOTHING, number=True) if saved is None else bytes_cell(*saved),
        bytes_cell(max(trial.afresh.allocated, trial.kept.allocated)),
        number_cell(trial.kept.segments, lambda count: f"{count:,}"),
        Cell(text=_runs_out(trial), tone="" if trial.failed is None else "bad"),
    )


def _runs_out(trial: Trial) -> str:
    if trial.failed is None:
        return "no"
    where = f"at event {trial.failed:,}" if trial.failed else "at the start"
    is_sure = None not in (trial.afresh.failed, trial.kept.failed)
    return where if is_sure else f"perhaps, {where}"
