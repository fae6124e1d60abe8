"""The simulator compared with snapshots that others recorded on GPUs.

The allocator is compared event by event, and training steps as a whole. The snapshots are the files
in ../shared/gpu-snapshots or in the folder OPTPROF_SNAPSHOTS. Reading them and undoing their events
is tested on simulated snapshots, which need no files.
"""

import gzip
import os
import pickle
import random
import sys
from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.caching import CachingAllocator
from optprof.profiler.allocator.segments import LowestAddresses
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.allocator.state import BlockState, SegmentState
from optprof.profiler.simulating.replay import play
from optprof.profiler.simulating.simulation import Simulation, run_simulation, simulated_allocator
from optprof.profiler.simulating.snapshot import snapshot
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario

TESTS = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("OPTPROF_SNAPSHOTS", TESTS.parent.parent / "shared" / "gpu-snapshots"))
KIB, MIB = 1 << 10, 1 << 20
EXPANDABLE = "expandable_segments:True"


def load(name: str) -> Any:
    """Return a module of tests/recordings, which is not a package."""
    spec = spec_from_file_location(name, TESTS / "recordings" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


snapshots = load("snapshots")
load("decoder")
FILES = sorted(FOLDER.glob(f"*{snapshots.SUFFIX}"))
recorded = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name.removesuffix(snapshots.SUFFIX)) for path in FILES]
    or [
        pytest.param(
            None, id="none", marks=pytest.mark.skip(reason=f"no recorded snapshots in {FOLDER}")
        )
    ],
)


@recorded
def test_a_recorded_snapshot_replays_exactly(path: Path):
    snapshot = snapshots.read(path)
    try:
        assert snapshots.replay(snapshot).events == len(snapshot.entries) > 0
    except snapshots.UnsupportedError as reason:
        pytest.skip(f"{path.name} is not replayed: {reason}")


def weds(length: int, steps: int, **more: Any) -> dict[str, Any]:
    """Return the scenario of the author's script, which records the sixth step.

    It makes batches for six steps, and drops the logits before the last. In float32 all steps from
    the second on are alike; under autocast blocks change places until the sixth.
    """
    return {
        "model": "decoder:training",
        "optimizer": "decoder:PlainAdamW",
        "config": {"forgets_at": steps, "earlier": 5},
        "steps": steps,
        "batch_size": 4,
        "sequence_length": length,
        **more,
    }


# The GPUs are unknown; their cuBLAS workspaces are those of compute capability 8.0.
STEPS: Mapping[str, Mapping[str, Any]] = {
    "weds_128_training": weds(128, steps=2),
    "weds_256_training": weds(256, steps=2),
    "weds_1024_training": weds(1024, steps=6, amp="bf16"),
    # Gradients are accumulated in place without a step: SGD without momentum takes nothing.
    "magma27": {
        "model": "decoder:training",
        "config": {"width": 768, "layers": 12, "heads": 12, "inner": 3072},
        "optimizer": "sgd",
        "options": {"momentum": 0.0},
        "set_to_none": False,
        "batch_size": 32,
        "sequence_length": 256,
    },
}
steps = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.skipif(
                not (FOLDER / f"{name}{snapshots.SUFFIX}").exists(), reason=f"not in {FOLDER}"
            ),
        )
        for name in STEPS
    ],
)


@cache
def simulated(name: str) -> Simulation:
    return run_simulation(Scenario(**STEPS[name], implementation="loop", gpu="a100-80"))


def last_step(simulation: Simulation) -> tuple[list[Segment], list[Segment]]:
    """Return the segments before the last step, and those of that step."""
    first = max(
        place for place, segment in enumerate(simulation.segments) if segment.phase == "forward"
    )
    return simulation.segments[:first], [
        segment for segment in simulation.segments[first:] if segment.phase != "zero_grad"
    ]


@steps
def test_a_whole_step_meets_the_recorded_peaks(name: str):
    recorded = snapshots.replay(snapshots.read(FOLDER / f"{name}{snapshots.SUFFIX}"))
    simulation = simulated(name)
    # Up to torch 2.11 blocks of equal size are taken in the order of addresses.
    allocator = simulated_allocator(simulation.record.scenario, LowestAddresses())
    blocks: dict[int, Block] = {}
    before, step = last_step(simulation)
    for segment in before:
        for _ in play(segment, simulation.allocations, allocator, blocks):
            pass
    allocated = max(
        allocator.allocated_bytes
        for segment in step
        for _ in play(segment, simulation.allocations, allocator, blocks)
    )
    reserved = allocator.reserved_bytes
    print(
        f"{name}: allocated {allocated}, recorded {recorded.peak_allocated}; reserved {reserved},"
        f" recorded {recorded.peak_reserved}"
    )
    assert allocated == pytest.approx(recorded.peak_allocated, rel=0.002)
    assert reserved == pytest.approx(recorded.peak_reserved, rel=0.005)


@steps
def test_a_whole_step_makes_the_recorded_requests_in_their_order(name: str):
    """Compare the sizes of requests and frees; a failure shows each place that differs."""
    entries = snapshots.read(FOLDER / f"{name}{snapshots.SUFFIX}").entries
    recorded = [entry.size if entry.action == "alloc" else -entry.size for entry in entries]
    simulation = simulated(name)
    nbytes = simulation.allocations.nbytes
    _, step = last_step(simulation)
    if name == "magma27":
        step = [segment for segment in step if segment.phase != "step"]
    ours = [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in step
        for event in segment.events
    ]
    if name.startswith("weds"):
        # The logits and the loss of the step before, which the author's script dropped before the
        # recording began.
        assert ours[1] == -4
        del ours[:2]
    matcher = SequenceMatcher(None, recorded, ours, autojunk=False)
    differences = [
        (i, recorded[i:j], ours[k:m]) for tag, i, j, k, m in matcher.get_opcodes() if tag != "equal"
    ]
    assert differences == []


@pytest.mark.skipif(
    not (FOLDER / "charan.pickle.gz").exists(), reason=f"no charan.pickle.gz in {FOLDER}"
)
def test_the_order_by_age_does_not_explain_torch_2_11(monkeypatch: pytest.MonkeyPatch):
    snapshot = snapshots.read(FOLDER / "charan.pickle.gz")
    assert snapshots.replay(snapshot).peak_reserved == 937_426_944
    monkeypatch.setattr(snapshots, "Driver", Aged)
    with pytest.raises(AssertionError, match="block at"):
        snapshots.replay(snapshot)


class Aged(snapshots.Driver):
    """Orders segments by age, and uses the recorded addresses only for the comparison."""

    def __init__(self, *, expandable: bool) -> None:
        super().__init__(expandable=expandable)
        self._places: list[int] = []

    def take(self, nbytes: int) -> int:
        self._places.append(super().take(nbytes))
        return len(self._places) - 1

    def address_of(self, segment: int) -> int:
        return self._places[segment]


def random_snapshot(seed: int, alloc_conf: str = "", events: int = 600) -> dict[str, Any]:
    """Return a simulated snapshot of a random program with some 40 blocks of 1 B to 40 MiB."""
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
    return snapshot(
        Scenario(model="gpt2", alloc_conf=alloc_conf), [Segment("forward", stream)], allocations
    )


def cut(data: Mapping[str, Any], first: int) -> dict[str, Any]:
    """Return the snapshot as if recording began at an event."""
    return {**data, "device_traces": [[], data["device_traces"][0][first:]]} | {
        "segments": [{**segment, "device": 1} for segment in data["segments"]]
    }


@pytest.mark.parametrize(
    "alloc_conf", ["", EXPANDABLE, "roundup_power2_divisions:4", "max_split_size_mb:24"]
)
@pytest.mark.parametrize("seed", range(4))
def test_a_simulated_snapshot_replays_from_any_event_on(seed: int, alloc_conf: str):
    data = random_snapshot(seed, alloc_conf)
    whole = snapshots.replay(snapshots.Snapshot.of(cut(data, 0)))
    assert whole.peak_reserved > 100 * MIB
    trace = data["device_traces"][0]
    for first in range(1, len(trace), 150):
        # Recording begins between requests, never between a segment and the request that it was
        # taken for.
        if trace[first]["action"] == "alloc":
            continue
        assert (
            snapshots.replay(snapshots.Snapshot.of(cut(data, first))).peak_reserved
            <= whole.peak_reserved
        )


def test_streams_that_share_a_device_are_replayed_separately():
    data, other = random_snapshot(1), random_snapshot(2)
    away = 1 << 44
    for entry in other["device_traces"][0]:
        entry |= {"stream": 7, "addr": entry["addr"] + away}
    for segment in other["segments"]:
        segment |= {"stream": 7, "address": segment["address"] + away}
        for block in segment["blocks"]:
            block["address"] += away
    queues = [data["device_traces"][0], other["device_traces"][0]]
    # The segment that was taken for a request stays in front of it.
    merged = []
    rng = random.Random(3)
    while any(queues):
        queue = rng.choice([queue for queue in queues if queue])
        while queue[0]["action"] == "segment_alloc":
            merged.append(queue.pop(0))
        merged.append(queue.pop(0))
    both = {"device_traces": [merged], "segments": data["segments"] + other["segments"]}
    assert snapshots.replay(snapshots.Snapshot.of(both)).events > 1000


def entry(action: str, addr: int, size: int) -> dict[str, Any]:
    return {"action": action, "addr": addr, "size": size, "stream": 0, "frames": []}


def freed(addr: int, size: int) -> list[dict[str, Any]]:
    return [entry("free_requested", addr, size), entry("free_completed", addr, size)]


BASE = 0x7F00_0000_0000


def with_tail() -> dict[str, Any]:
    """Return a snapshot of a 20 MiB segment with a block of 11.5 MiB and a tail of 0.5 MiB.

    Only the block that is placed after it shows the tail.
    """
    trace = [
        entry("alloc", BASE + 12 * MIB, 2 * MIB),
        *freed(BASE, 11 * MIB + 512 * KIB),
        entry("alloc", BASE, 12 * MIB),
    ]
    blocks = [
        {"size": 12 * MIB, "requested_size": 12 * MIB, "state": "active_allocated"},
        {"size": 2 * MIB, "requested_size": 2 * MIB, "state": "active_allocated"},
        {"size": 6 * MIB, "requested_size": 0, "state": "inactive"},
    ]
    segment = {
        "address": BASE,
        "total_size": 20 * MIB,
        "stream": 0,
        "segment_type": "large",
        "blocks": blocks,
    }
    return {"segments": [segment], "device_traces": [trace]}


def test_a_tail_is_derived_from_the_block_that_is_placed_after_it():
    snapshot = snapshots.Snapshot.of(with_tail())
    start = snapshots.start_of(snapshot)
    sizes = snapshots.block_sizes(snapshot, start, snapshots.ends_shown(snapshot, start))
    (laid,) = snapshots.laid_out(snapshot, start, sizes)
    assert laid.state.blocks == (
        BlockState(size=12 * MIB, requested=11 * MIB + 512 * KIB),
        BlockState(size=8 * MIB),
    )
    assert snapshots.replay(snapshot).peak_allocated == 14 * MIB


def test_a_tail_is_derived_from_a_request_that_skips_its_place():
    """11.5 MiB kept a tail of 0.5 MiB before 4 free MiB, so 4.25 MiB go to a larger place."""
    blocks = [
        {"size": 16 * MIB, "requested_size": 0, "state": "inactive"},
        {"size": 4 * MIB, "requested_size": 4 * MIB, "state": "active_allocated"},
    ]
    other = [
        {
            "size": 4 * MIB + 256 * KIB,
            "requested_size": 4 * MIB + 256 * KIB,
            "state": "active_allocated",
        },
        {"size": 16 * MIB - 256 * KIB, "requested_size": 0, "state": "inactive"},
    ]
    large = {"total_size": 20 * MIB, "stream": 0, "segment_type": "large"}
    segments = [
        {**large, "address": BASE, "blocks": blocks},
        {**large, "address": BASE + 32 * MIB, "blocks": other},
    ]
    trace = [
        entry("alloc", BASE + 32 * MIB, 4 * MIB + 256 * KIB),
        *freed(BASE, 11 * MIB + 512 * KIB),
    ]
    assert (
        snapshots.replay(
            snapshots.Snapshot.of({"segments": segments, "device_traces": [trace]})
        ).events
        == 2
    )
    trace = [entry("alloc", BASE + 32 * MIB, 3 * MIB), *freed(BASE, 11 * MIB + 512 * KIB)]
    # No tail of at most 1 MiB explains that 3 MiB went elsewhere.
    other[:] = [
        {"size": 3 * MIB, "requested_size": 3 * MIB, "state": "active_allocated"},
        {"size": 17 * MIB, "requested_size": 0, "state": "inactive"},
    ]
    with pytest.raises(AssertionError, match="block at"):
        snapshots.replay(snapshots.Snapshot.of({"segments": segments, "device_traces": [trace]}))


def test_memory_that_was_released_is_released_in_the_replay():
    idle = BASE + 64 * MIB
    trace = [*freed(idle, 30 * MIB), entry("segment_free", idle, 30 * MIB)]
    blocks = [{"size": 20 * MIB, "requested_size": 20 * MIB, "state": "active_allocated"}]
    segment = {
        "address": BASE,
        "total_size": 20 * MIB,
        "stream": 0,
        "segment_type": "large",
        "blocks": blocks,
    }
    assert (
        snapshots.replay(
            snapshots.Snapshot.of({"segments": [segment], "device_traces": [trace]})
        ).peak_reserved
        == 50 * MIB
    )
    inactive = {
        **segment,
        "address": BASE + 32 * MIB,
        "blocks": [{**blocks[0], "state": "inactive"}],
    }
    with pytest.raises(
        AssertionError,
        match=r"segments .*segment_free 0x7f0002000000.*, recorded were segment_free",
    ):
        snapshots.replay(
            snapshots.Snapshot.of({"segments": [segment, inactive], "device_traces": [trace]})
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"addr": BASE + 13 * MIB}, "block at 0x7f0000c00000, recorded was 0x7f0000d00000"),
        ({"size": 9 * MIB}, "is taken where CUDA's allocator took none"),
    ],
)
def test_a_trace_that_deviates_from_the_rules_is_detected(
    change: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
):
    data = with_tail()
    start = snapshots.start_of(snapshots.Snapshot.of(data))
    monkeypatch.setattr(snapshots, "start_of", lambda _: start)
    monkeypatch.setattr(snapshots, "ends_shown", lambda *_: {BASE: BASE + 12 * MIB})
    data["device_traces"][0][0] |= change
    with pytest.raises(AssertionError, match=message):
        snapshots.replay(snapshots.Snapshot.of(data))


def test_a_block_of_another_size_at_the_end_is_detected():
    data = with_tail()
    data["segments"][0]["blocks"][1:] = [
        {"size": 3 * MIB, "requested_size": 2 * MIB, "state": "active_allocated"},
        {"size": 5 * MIB, "requested_size": 0, "state": "inactive"},
    ]
    with pytest.raises(AssertionError):
        snapshots.replay(snapshots.Snapshot.of(data))


def test_an_unknown_action_is_unsupported():
    data = {"segments": [], "device_traces": [[entry("teleport", BASE, 1)]]}
    with pytest.raises(snapshots.UnsupportedError, match="'teleport'"):
        snapshots.replay(snapshots.Snapshot.of(data))


class Hostile:
    """Runs code when its pickle is loaded."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("false",)


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(pickle.dumps(Hostile(), protocol=0), id="global"),
        pytest.param(pickle.dumps(Hostile(), protocol=5), id="stack global"),
        pytest.param(b"(S'false'\nios\nsystem\n.", id="inst"),
        pytest.param(b"\x80\x02\x82\x01.", id="extension"),
        pytest.param(b"Pname\n.", id="persistent"),
        pytest.param(b"\x80\x05\x97.", id="buffer"),
        pytest.param(pickle.dumps([1, 2])[:-2], id="truncated"),
        pytest.param(b"\x80\x04\x8d\xff\xff\xff\xff\xff\xff\xff\x7f.", id="a text of 8 EiB"),
        pytest.param(b"\x80\x63.", id="protocol"),
        pytest.param(b"", id="empty"),
        pytest.param(pickle.dumps({1, 2} and complex(1, 2)), id="complex"),
        pytest.param(pickle.dumps([1, 2]), id="no snapshot"),
        pytest.param(pickle.dumps({"device_traces": [[]], "segments": []}), id="no events"),
        pytest.param(
            pickle.dumps({"device_traces": [[{"action": "alloc"}]], "segments": []}),
            id="an event without size",
        ),
        pytest.param(
            pickle.dumps(
                {
                    "device_traces": [[{"action": "alloc", "stream": 0, "size": float("nan")}]],
                    "segments": [],
                }
            ),
            id="a size that is no number",
        ),
    ],
)
def test_a_file_without_a_snapshot_is_refused_and_runs_no_code(
    data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(os, "system", lambda _: pytest.fail("the pickle ran code"))
    path = tmp_path / "one.pickle.gz"
    path.write_bytes(gzip.compress(data))
    with pytest.raises(snapshots.UnreadableError):
        snapshots.read(path)


def test_a_file_that_is_not_compressed_or_unpacks_to_too_much_is_refused(tmp_path: Path):
    path = tmp_path / "one.pickle.gz"
    path.write_bytes(pickle.dumps([]))
    with pytest.raises(snapshots.UnreadableError, match=r"one\.pickle\.gz is not a gzip'd file"):
        snapshots.read(path)
    path.write_bytes(gzip.compress(bytes(2000)))
    with pytest.raises(snapshots.UnreadableError, match="unpacks to more than 1000 bytes"):
        snapshots.read(path, most_bytes=1000)
    damaged = bytearray(gzip.compress(bytes(range(256)) * 100))
    damaged[20:40] = b"x" * 20
    path.write_bytes(damaged)
    with pytest.raises(snapshots.UnreadableError, match="is not a gzip'd file"):
        snapshots.read(path)


@pytest.mark.parametrize("action", ["alloc", "free_completed", "segment_alloc"])
def test_events_that_do_not_lead_to_the_snapshot_s_state_are_refused(action: str):
    entry = {"action": action, "stream": 0, "addr": 1 << 30, "size": 512}
    snapshot = snapshots.Snapshot.of({"device_traces": [[entry]], "segments": []})
    with pytest.raises(snapshots.UnsupportedError, match="do not belong together"):
        snapshots.replay(snapshot)


def test_an_allocator_continues_from_the_state_of_another():
    """The next 12 MiB go between two blocks of 4 MiB, and then no memory is left."""
    large = SegmentState(
        pool="large",
        blocks=(
            BlockState(size=4 * MIB, requested=4 * MIB),
            BlockState(size=12 * MIB),
            BlockState(size=4 * MIB, requested=3 * MIB),
        ),
    )
    small = SegmentState(
        pool="small", blocks=(BlockState(size=512, requested=1), BlockState(size=2 * MIB - 512))
    )
    allocator = CachingAllocator()
    first, last, tiny = allocator.adopt([large, small])
    assert (allocator.allocated_bytes, allocator.requested_bytes) == (8 * MIB + 512, 7 * MIB + 1)
    assert (allocator.reserved_bytes, allocator.inactive_split_bytes) == (22 * MIB, 14 * MIB - 512)
    between = allocator.malloc(12 * MIB)
    assert (between.segment, between.offset, between.next) == (first.segment, 4 * MIB, last)
    assert allocator.reserved_bytes == 22 * MIB
    for block in (first, between, last, tiny):
        allocator.free(block)
    allocator.empty_cache()
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 0)


def test_a_state_that_does_not_fit_or_needs_expandable_segments_is_refused():
    state = SegmentState(
        pool="large", blocks=(BlockState(size=20 * MIB), BlockState(size=20 * MIB, mapped=False))
    )
    with pytest.raises(
        ValueError,
        match="20971520 bytes of a segment are not mapped; this needs expandable_segments:True",
    ):
        CachingAllocator().adopt([state])
    with pytest.raises(ValueError, match="a segment of 20971520 bytes does not fit"):
        CachingAllocator(AllocatorSettings.parse(EXPANDABLE), total=10 * MIB).adopt([state])


@pytest.mark.parametrize(
    "change",
    [{"size": 0}, {"size": 1, "requested": 2}, {"size": 2, "requested": 1, "mapped": False}],
)
def test_an_impossible_state_of_a_block_is_refused(change: dict[str, Any]):
    with pytest.raises(ValueError, match="a block "):
        BlockState(**change)


@pytest.mark.parametrize("blocks", [(), (BlockState(size=1), BlockState(size=2))])
def test_an_impossible_state_of_a_segment_is_refused(blocks: tuple[BlockState, ...]):
    with pytest.raises(ValueError, match=r"at least one block|must be merged"):
        SegmentState(pool="large", blocks=blocks)
