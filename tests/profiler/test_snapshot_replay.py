"""Replays of memory snapshots: exact ones, and under other settings.

Simulated programs are the judge: their requests, recorded under one setting and replayed under
another, must take what the simulation takes under the other.
"""

import copy
import pickle
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from optprof.profiler.allocator.blocks import Block, Lane
from optprof.profiler.allocator.segments import Ages
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.allocator.state import BlockState
from optprof.profiler.records.snapshots import DeviceContents, Trial
from optprof.profiler.simulating.replay import play
from optprof.profiler.simulating.simulation import simulated_allocator
from optprof.profiler.simulating.snapshot import snapshot
from optprof.profiler.snapshots.answer import answer
from optprof.profiler.snapshots.reading import UnreadableSnapshotError, read_snapshot
from optprof.profiler.snapshots.replay import BY_AGE, DifferenceError, Exact, replay_exactly
from optprof.profiler.snapshots.snapshot import ACTIONS, Device, Event, Events
from optprof.profiler.snapshots.start import (
    UnsupportedError,
    block_sizes,
    ends_shown,
    laid_out,
    start_of,
)
from optprof.profiler.snapshots.trying import attempt, steps_of
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario

KIB, MIB = 1 << 10, 1 << 20
EXPANDABLE = "expandable_segments:True"
CONFS = ("", EXPANDABLE, "roundup_power2_divisions:4", "max_split_size_mb:24")
BASE = 0x7F00_0000_0000
DEFAULT = AllocatorSettings()


def program(seed: int, events: int = 600) -> tuple[list[Segment], Allocations]:
    """Return a random program with some 40 blocks of 1 B to 40 MiB."""
    rng = random.Random(seed)
    sizes: list[int] = []
    live: list[int] = []
    stream: list[int] = []
    for _ in range(events):
        if live and rng.random() < len(live) / 80:
            stream.append(~live.pop(rng.randrange(len(live))))
        else:
            live.append(len(sizes))
            stream.append(len(sizes))
            sizes.append(int(2 ** rng.uniform(0, 25.3)))
    allocations = Allocations(sizes, ["temporary"] * len(sizes), [Source()] * len(sizes))
    return [Segment("forward", stream)], allocations


def recorded(seed: int, conf: str = "") -> dict[str, Any]:
    """Return the snapshot of the simulated program."""
    return snapshot(Scenario(model="gpt2", alloc_conf=conf), *program(seed))


def device_of(data: Mapping[str, Any], folder: Path) -> Device:
    """Write a snapshot, and return the only device that it has events of."""
    path = folder / "memory.pickle"
    path.write_bytes(pickle.dumps(data))
    (device,) = [each for each in read_snapshot(path).devices if len(each.events)]
    return device


def exact(data: Mapping[str, Any], folder: Path, conf: str = "") -> Exact:
    device, settings = device_of(data, folder), AllocatorSettings.parse(conf)
    return replay_exactly(device, settings, start_of(device, settings))


def answered(data: Mapping[str, Any], folder: Path, *confs: str) -> DeviceContents:
    """Return what optprof snapshot finds, with trials of these settings."""
    path = folder / "memory.pickle"
    path.write_bytes(pickle.dumps(data))
    return answer(path, confs).devices[0]


def trial_of(found: DeviceContents, conf: str) -> Trial:
    """Return the trial of a setting in the order of equal blocks that was recorded."""
    (trial,) = [each for each in found.trials if (each.conf, each.torch) == (conf, found.order)]
    return trial


def cut(data: Mapping[str, Any], first: int) -> dict[str, Any]:
    """Return the snapshot as if recording began at an event."""
    return {**data, "device_traces": [[], data["device_traces"][0][first:]]} | {
        "segments": [{**segment, "device": 1} for segment in data["segments"]]
    }


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("seed", range(4))
def test_a_simulated_snapshot_replays_exactly_from_any_event_on(
    seed: int, conf: str, tmp_path: Path
):
    data = recorded(seed, conf)
    whole = exact(cut(data, 0), tmp_path, conf)
    assert whole.peak_reserved > 100 * MIB
    trace = data["device_traces"][0]
    for first in range(1, len(trace), 150):
        # Recording begins between requests, never between a segment and the request that it was
        # taken for, nor inside a free.
        if trace[first]["action"] in ("alloc", "free_completed"):
            continue
        assert exact(cut(data, first), tmp_path, conf).peak_reserved <= whole.peak_reserved


@pytest.mark.parametrize("conf", CONFS)
@pytest.mark.parametrize("other", CONFS)
def test_a_replay_under_other_settings_is_the_simulation_under_them(
    conf: str, other: str, tmp_path: Path
):
    """Compare reserved and allocated bytes after each request and each free."""
    device = device_of(recorded(5, conf), tmp_path)
    settings = AllocatorSettings.parse(conf)
    replay = attempt(
        start_of(device, settings), AllocatorSettings.parse(other), (), total=None, order=BY_AGE
    )
    allocator = replay.requests.allocator
    ours = [
        (allocator.reserved_bytes, allocator.allocated_bytes)
        for step in replay.run(device)
        if step.event is not None and step.event.action != "free_requested"
    ]
    segments, allocations = program(5)
    simulated = simulated_allocator(Scenario(model="gpt2", alloc_conf=other), Ages())
    blocks: dict[int, Block] = {}
    expected = [
        (simulated.reserved_bytes, simulated.allocated_bytes)
        for segment in segments
        for _ in play(segment, allocations, simulated, blocks)
    ]
    assert ours == expected
    assert len(ours) == 600
    found = trial_of(answered(recorded(5, conf), tmp_path, other), other)
    assert found.afresh == found.kept
    assert found.kept.reserved == simulated.peak_reserved_bytes
    assert found.kept.allocated == simulated.peak_allocated_bytes


@pytest.mark.parametrize("conf", CONFS)
def test_a_snapshot_without_its_beginning_gives_bounds(conf: str, tmp_path: Path):
    """The recorded settings are known exactly; the others lie near their own run from the start."""
    data = recorded(6)
    whole = answered(data, tmp_path, conf)
    truth = trial_of(whole, conf)
    first = next(
        place
        for place, each in enumerate(data["device_traces"][0])
        if place > 200
        if each["action"] == "free_requested"
    )
    found = answered(cut(data, first), tmp_path, conf)
    trial = trial_of(found, conf)
    if conf == "":
        assert trial.kept.reserved == truth.kept.reserved
    assert trial.afresh.reserved <= truth.kept.reserved + 64 * MIB


def test_streams_that_share_a_device_replay_exactly(tmp_path: Path):
    data, other = recorded(1), recorded(2)
    away = 1 << 44
    for each in other["device_traces"][0]:
        each |= {"stream": 7, "addr": each["addr"] + away}
    for segment in other["segments"]:
        segment |= {"stream": 7, "address": segment["address"] + away}
        for block in segment["blocks"]:
            block["address"] += away
    queues = [data["device_traces"][0], other["device_traces"][0]]
    # The segment that was taken for a request stays in front of it, and a free stays together.
    merged = []
    rng = random.Random(3)
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        while queue[0]["action"] in ("segment_alloc", "free_requested"):
            merged.append(queue.pop(0))
        merged.append(queue.pop(0))
    both = {"device_traces": [merged], "segments": data["segments"] + other["segments"]}
    found = answered(both, tmp_path)
    assert found.exact
    assert {lane.lane for lane in found.lanes} == {
        *("small", "large", "small, stream 0x7", "large, stream 0x7"),
    }
    alone = exact(recorded(1), tmp_path), exact(recorded(2), tmp_path)
    assert found.peak_reserved <= sum(each.peak_reserved for each in alone)


def entry(action: str, addr: int, size: int, stream: int = 0) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": stream, "frames": []}


def freed(addr: int, size: int) -> list[dict[str, Any]]:
    return [entry("free_requested", addr, size), entry("free_completed", addr, size)]


def segment_of(address: int, *blocks: tuple[int, int], size: int | None = None) -> dict[str, Any]:
    """Return a large segment with blocks of (size, requested bytes), free ones with 0."""
    return {
        "address": address,
        "total_size": size or sum(nbytes for nbytes, _ in blocks),
        "stream": 0,
        "segment_type": "large",
        "blocks": [
            {
                "size": nbytes,
                "requested_size": requested,
                "state": "active_allocated" if requested else "inactive",
            }
            for nbytes, requested in blocks
        ],
    }


def test_a_block_that_another_stream_uses_is_freed_when_that_stream_is_done(tmp_path: Path):
    """While 4 MiB wait for their event, 4 more cannot take their place; afterwards they can."""
    whole = 20 * MIB
    trace = [
        entry("segment_alloc", BASE, whole),
        entry("alloc", BASE, 4 * MIB),
        entry("free_requested", BASE, 4 * MIB),
        entry("alloc", BASE + 4 * MIB, 4 * MIB),
        entry("free_completed", BASE, 4 * MIB),
        entry("alloc", BASE, 4 * MIB),
    ]
    segment = segment_of(BASE, (4 * MIB, 4 * MIB), (4 * MIB, 4 * MIB), (12 * MIB, 0))
    found = exact({"segments": [segment], "device_traces": [trace]}, tmp_path)
    assert (found.peak_allocated, found.peak_reserved) == (8 * MIB, whole)
    # Without the wait the second block would be at the first one's place.
    trace[2:5] = [trace[2], trace[4], trace[3]]
    with pytest.raises(DifferenceError, match="block at 0x7f0000000000"):
        exact({"segments": [segment], "device_traces": [trace]}, tmp_path)


def with_tail() -> dict[str, Any]:
    """Return a snapshot of a 20 MiB segment with a block of 11.5 MiB and a tail of 0.5 MiB.

    Only the block that is placed after it shows the tail.
    """
    trace = [
        entry("alloc", BASE + 12 * MIB, 2 * MIB),
        *freed(BASE, 11 * MIB + 512 * KIB),
        entry("alloc", BASE, 12 * MIB),
    ]
    segment = segment_of(BASE, (12 * MIB, 12 * MIB), (2 * MIB, 2 * MIB), (6 * MIB, 0))
    return {"segments": [segment], "device_traces": [trace]}


def test_a_tail_is_derived_from_the_block_that_is_placed_after_it(tmp_path: Path):
    device = device_of(with_tail(), tmp_path)
    start = start_of(device, DEFAULT)
    sizes = block_sizes(start, DEFAULT, ends_shown(device, start))
    (laid,) = laid_out(device, start, DEFAULT, sizes)
    assert laid.state.blocks == (
        BlockState(size=12 * MIB, requested=11 * MIB + 512 * KIB),
        BlockState(size=8 * MIB),
    )
    assert exact(with_tail(), tmp_path).peak_allocated == 14 * MIB


def test_a_tail_is_derived_from_a_request_that_skips_its_place(tmp_path: Path):
    """11.5 MiB kept a tail of 0.5 MiB before 4 free MiB, so 4.25 MiB go to a larger place."""
    middle = 4 * MIB + 256 * KIB
    first = segment_of(BASE, (16 * MIB, 0), (4 * MIB, 4 * MIB))
    other = segment_of(BASE + 32 * MIB, (middle, middle), (20 * MIB - middle, 0))
    trace = [entry("alloc", BASE + 32 * MIB, middle), *freed(BASE, 11 * MIB + 512 * KIB)]
    assert exact({"segments": [first, other], "device_traces": [trace]}, tmp_path)
    # No tail of at most 1 MiB explains that 3 MiB went elsewhere.
    other = segment_of(BASE + 32 * MIB, (3 * MIB, 3 * MIB), (17 * MIB, 0))
    trace[0] = entry("alloc", BASE + 32 * MIB, 3 * MIB)
    with pytest.raises(DifferenceError, match="block at"):
        exact({"segments": [first, other], "device_traces": [trace]}, tmp_path)


def test_memory_that_was_released_is_released_in_the_replay(tmp_path: Path):
    idle = BASE + 64 * MIB
    trace = [*freed(idle, 30 * MIB), entry("segment_free", idle, 30 * MIB)]
    segment = segment_of(BASE, (20 * MIB, 20 * MIB))
    data = {"segments": [segment], "device_traces": [trace]}
    assert exact(data, tmp_path).peak_reserved == 50 * MIB
    inactive = segment_of(BASE + 32 * MIB, (20 * MIB, 0))
    with pytest.raises(
        DifferenceError,
        match=r"segments .*segment_free 0x7f0002000000.*, recorded were segment_free",
    ):
        exact({**data, "segments": [segment, inactive]}, tmp_path)


def test_a_trace_that_deviates_from_the_rules_is_detected(tmp_path: Path):
    data = {
        "segments": [segment_of(BASE, (4 * MIB, 4 * MIB), (16 * MIB, 0))],
        "device_traces": [[entry("segment_alloc", BASE, 20 * MIB), entry("alloc", BASE, 4 * MIB)]],
    }
    assert exact(data, tmp_path).peak_reserved == 20 * MIB
    data["segments"] = [segment_of(BASE, (16 * MIB, 0), (4 * MIB, 4 * MIB))]
    data["device_traces"][0][1] = entry("alloc", BASE + 16 * MIB, 4 * MIB)
    with pytest.raises(
        DifferenceError, match="block at 0x7f0000000000, recorded was 0x7f0001000000"
    ):
        exact(data, tmp_path)


def test_a_segment_that_the_rules_do_not_take_is_detected(tmp_path: Path):
    """A request of 4 MiB takes a segment of 20 MiB, not one of its own size."""
    data = {
        "segments": [segment_of(BASE, (4 * MIB, 4 * MIB))],
        "device_traces": [[entry("segment_alloc", BASE, 4 * MIB), entry("alloc", BASE, 4 * MIB)]],
    }
    with pytest.raises(DifferenceError, match="segment_alloc 0x7f0000000000 20971520, recorded"):
        exact(data, tmp_path)


def test_a_block_of_another_size_at_the_end_is_detected(tmp_path: Path):
    data = with_tail()
    data["segments"] = [
        segment_of(BASE, (12 * MIB, 12 * MIB), (3 * MIB, 2 * MIB), (5 * MIB, 0)),
    ]
    with pytest.raises(DifferenceError):
        exact(data, tmp_path)


@pytest.mark.parametrize("action", ["alloc", "free_completed", "segment_alloc"])
def test_events_that_do_not_lead_to_the_state_at_their_end_are_named(action: str, tmp_path: Path):
    data = {"device_traces": [[entry(action, 1 << 30, 512)]], "segments": []}
    with pytest.raises(UnsupportedError, match=r"event 1 of 1, .* does not belong|no segment has"):
        exact(data, tmp_path)


def events_of(*rows: tuple[str, int, int]) -> Device:
    """Return a device with events of (action, address, stack)."""
    events = Events()
    for action, address, stack in rows:
        events.append(Event(action, address, MIB, Lane(), 0, stack))
    return Device(index=0, events=events, segments=())


def test_releases_for_a_request_are_told_from_calls_of_empty_cache():
    """A request that needs memory releases with its own stack; empty_cache has another one."""
    for_request = events_of(("segment_free", 1, 5), ("segment_alloc", 2, 5), ("alloc", 2, 5))
    called = events_of(("segment_free", 1, 4), ("segment_alloc", 2, 5), ("alloc", 2, 5))
    at_end = events_of(("alloc", 2, 5), ("segment_free", 1, 4))
    assert [step.event is None for step in steps_of(for_request)] == [False]
    assert [step.event is None for step in steps_of(called)] == [True, False]
    assert [step.event is None for step in steps_of(at_end)] == [False, True]


def out_of_memory() -> dict[str, Any]:
    """Return a device of 60 MiB on which 24 MiB do not fit, though 28 are free in a segment.

    Blocks of 14, 12 and 14 MiB fill a segment of 40 MiB; the outer ones are freed. The device has
    20 MiB left.
    """
    first, second, third = (14 * MIB, 12 * MIB, 14 * MIB)
    trace = [
        entry("segment_alloc", BASE, 40 * MIB),
        entry("alloc", BASE, 40 * MIB),
        *freed(BASE, 40 * MIB),
        entry("alloc", BASE, first),
        entry("alloc", BASE + first, second),
        entry("alloc", BASE + first + second, third),
        *freed(BASE, first),
        *freed(BASE + first + second, third),
        {"action": "oom", "size": 24 * MIB, "stream": 0, "device_free": 20 * MIB, "frames": []},
    ]
    for each in trace[4:6]:
        each["frames"] = [
            {"filename": "/env/site-packages/torch/nn/linear.py", "line": 9, "name": "forward"},
            {"filename": "/home/me/train.py", "line": 41, "name": "step"},
        ]
    segment = segment_of(BASE, (first, 0), (second, second), (third, 0))
    segment["blocks"][1]["frames"] = trace[5]["frames"]
    return {"segments": [segment], "device_traces": [trace]}


def test_an_out_of_memory_says_what_stood_in_its_way_and_which_setting_avoids_it(tmp_path: Path):
    found = answered(out_of_memory(), tmp_path, "", EXPANDABLE, "max_split_size_mb:32")
    (failure,) = found.out_of_memory
    assert (failure.wanted, failure.free, failure.reserved) == (24 * MIB, 20 * MIB, 40 * MIB)
    assert (failure.unused, failure.largest, failure.capacity) == (28 * MIB, 14 * MIB, 60 * MIB)
    assert failure.obstacle is not None
    assert failure.obstacle.holders == (("train.py:41 step", 12 * MIB),)
    assert trial_of(found, "").failed == len(out_of_memory()["device_traces"][0])
    expandable = trial_of(found, EXPANDABLE)
    # It maps 10 MiB behind the last 14; the segment of 40 grows to 60 in handles of 20.
    assert (expandable.failed, expandable.kept.reserved) == (None, 60 * MIB)


def test_blocks_are_grouped_by_the_user_s_line(tmp_path: Path):
    found = answered(out_of_memory(), tmp_path)
    assert [(group.name, group.nbytes, group.blocks) for group in found.groups][:1] == [
        ("no stack recorded", 40 * MIB, 1)
    ]
    assert found.peak_used == 40 * MIB
    assert found.fragmented == 0


def test_a_snapshot_without_events_shows_its_end(tmp_path: Path):
    data = {**out_of_memory(), "device_traces": []}
    found = answered(data, tmp_path, "all")
    assert (found.events, found.curve, found.trials) == (0, None, ())
    assert (found.peak_reserved, found.peak_used, found.fragmented) == (
        40 * MIB,
        12 * MIB,
        28 * MIB,
    )
    assert [(group.name, group.blocks) for group in found.groups] == [("train.py:41 step", 1)]


VALUES = (0, 1, 7, 1 << 40, 1 << 62, (1 << 63) - 1)


def mutated(data: dict[str, Any], chance: random.Random) -> dict[str, Any]:
    """Return a snapshot with some events lost, repeated or changed, or segments changed."""
    data = copy.deepcopy(data)
    trace = next((each for each in data["device_traces"] if each), [])
    for _ in range(chance.randint(1, 4)):
        blocks = [block for segment in data["segments"] for block in segment["blocks"]]
        rows = chance.choice([trace, trace, trace, data["segments"], blocks])
        if not rows:
            continue
        row = chance.choice(rows)
        what = chance.random() if rows is trace else 1
        if what < 0.2:
            trace.remove(row)
        elif what < 0.4:
            trace.insert(chance.randrange(len(trace)), dict(row))
        elif what < 0.5:
            row["action"] = chance.choice(ACTIONS)
            row["device_free"] = chance.choice([0, MIB, 1 << 30])
        else:
            key = chance.choice([key for key, value in row.items() if type(value) is int])
            near = (row[key] + 512, max(0, row[key] - 512), row[key] * 2)
            row[key] = chance.choice([*VALUES, *near])
    return data


@pytest.mark.parametrize("conf", CONFS)
def test_a_damaged_snapshot_is_a_problem_in_words(conf: str, tmp_path: Path):
    """Nothing raises anything else, and what is still sound is answered."""
    data = snapshot(Scenario(model="gpt2", alloc_conf=conf), *program(3, events=40))
    problems = 0
    for seed in range(60):
        chance = random.Random(seed)
        damaged = mutated(cut(data, chance.randrange(60)) if seed % 2 else data, chance)
        try:
            found = answered(damaged, tmp_path, "all")
        except UnreadableSnapshotError:
            problems += 1
            continue
        assert found.exact or found.problem or not found.events
        problems += found.problem is not None
    assert 20 < problems < 60


def test_another_device_is_replayed_not_taken_from_the_recording(tmp_path: Path):
    """On 60 MiB the last request fails; 64 MiB have room for its own segment of 24."""
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(out_of_memory()))
    for total, fails in ((64 * MIB, False), (63 * MIB, True)):
        (device,) = answer(path, [""], total).devices
        assert (trial_of(device, "").failed is not None) == fails


def test_a_device_that_is_too_small_for_the_start_has_rows_that_say_so(tmp_path: Path):
    data = recorded(6)
    path = tmp_path / "memory.pickle"
    path.write_bytes(pickle.dumps(cut(data, 400)))
    (device,) = [each for each in answer(path, [EXPANDABLE], 20 * MIB).devices if each.events]
    assert len(device.trials) == 3
    assert {trial.failed for trial in device.trials} == {0}


def test_releases_without_stacks_are_calls_of_empty_cache():
    called = events_of(("segment_free", 1, 0), ("segment_alloc", 2, 0), ("alloc", 2, 0))
    assert [step.event is None for step in steps_of(called)] == [True, False]


def test_unknown_settings_leave_what_is_in_the_snapshot(tmp_path: Path):
    settings = {"PYTORCH_CUDA_ALLOC_CONF": "backend:cudaMallocAsync"}
    found = answered({**out_of_memory(), "allocator_settings": settings}, tmp_path, "all")
    assert found.problem is not None
    assert "backend must be native" in found.problem
    assert (found.peak_used, found.exact, found.trials) == (40 * MIB, False, ())
