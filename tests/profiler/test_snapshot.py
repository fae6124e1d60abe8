"""Snapshots, compared with the record of the same simulation and read by torch's tools."""

import pickle
import pickletools
from pathlib import Path
from typing import Any

import pytest
from torch.cuda import _memory_viz

from optprof.profiler.simulating.simulation import Simulation, run_simulation
from optprof.profiler.simulating.snapshot import snapshot, write_snapshot
from optprof.profiler.tracing.sources import Source
from optprof.profiler.tracing.stream import Allocations, Segment
from optprof.scenarios import Scenario

MIB = 1 << 20
TAKEN = ("segment_alloc", "segment_map")
# The opcodes that the page's reader supports, from torch/utils/viz/MemoryViz.js.
OPCODES = {
    "APPEND",
    "APPENDS",
    "BINFLOAT",
    "BINGET",
    "BININT",
    "BININT1",
    "BININT2",
    "BINPUT",
    "BINUNICODE",
    "DICT",
    "EMPTY_DICT",
    "EMPTY_LIST",
    "EMPTY_TUPLE",
    "FRAME",
    "LIST",
    "LONG1",
    "LONG_BINGET",
    "LONG_BINPUT",
    "MARK",
    "MEMOIZE",
    "NEWFALSE",
    "NEWTRUE",
    "NONE",
    "PROTO",
    "SETITEM",
    "SETITEMS",
    "SHORT_BINUNICODE",
    "STOP",
    "TUPLE",
    "TUPLE1",
    "TUPLE2",
    "TUPLE3",
}


@pytest.fixture(scope="module", params=["", "expandable_segments:True"])
def simulation(request: pytest.FixtureRequest) -> Simulation:
    return run_simulation(Scenario(model="resnet18", optimizer="adamw", alloc_conf=request.param))


@pytest.fixture(scope="module")
def written(simulation: Simulation, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("snapshots") / "run.pickle"
    write_snapshot(path, simulation.record.scenario, simulation.segments, simulation.allocations)
    return path


@pytest.fixture
def taken(written: Path) -> dict[str, Any]:
    return pickle.loads(written.read_bytes())


def test_a_stream_counted_by_hand():
    allocations = Allocations(
        [4 * MIB, 3 * MIB],
        ["parameter", "temporary"],
        [Source("w"), Source("layer", "aten::mm", "model.py:3")],
    )
    taken = snapshot(
        Scenario(model="gpt2"), [Segment("build", [0]), Segment("forward", [1, ~1])], allocations
    )
    (entries,) = taken["device_traces"]
    assert [(entry["action"], entry["size"]) for entry in entries] == [
        ("segment_alloc", 20 * MIB),
        ("alloc", 4 * MIB),
        ("alloc", 3 * MIB),
        ("free_requested", 3 * MIB),
        ("free_completed", 3 * MIB),
    ]
    base = entries[0]["addr"]
    assert [entry["addr"] - base for entry in entries] == [0, 0, 4 * MIB, 4 * MIB, 4 * MIB]
    assert [frame["name"] for frame in entries[2]["frames"]] == ["aten::mm", "layer", "forward"]
    assert (entries[2]["frames"][2]["filename"], entries[2]["frames"][2]["line"]) == ("model.py", 3)
    (segment,) = taken["segments"]
    assert [(block["state"], block["size"]) for block in segment["blocks"]] == [
        ("active_allocated", 4 * MIB),
        ("inactive", 16 * MIB),
    ]


def test_its_totals_are_the_record_s(simulation: Simulation, taken: dict[str, Any]):
    memory = simulation.record.memory
    assert memory is not None
    allocated = reserved = peak_allocated = peak_reserved = 0
    for entry in taken["device_traces"][0]:
        change = {"alloc": 1, "free_completed": -1}.get(entry["action"], 0)
        allocated += change * entry.get("user_metadata", {}).get("block_bytes", 0)
        reserved += entry["size"] if entry["action"] in TAKEN else 0
        peak_allocated, peak_reserved = max(peak_allocated, allocated), max(peak_reserved, reserved)
    assert (peak_allocated, peak_reserved) == (memory.peak_allocated, memory.peak_reserved)
    assert sum(segment["total_size"] for segment in taken["segments"]) == reserved
    assert sum(segment["allocated_size"] for segment in taken["segments"]) == allocated


def test_segments_are_full_and_do_not_overlap(taken: dict[str, Any]):
    end = 0
    for segment in taken["segments"]:
        assert segment["address"] >= end
        reached = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == reached
            reached += block["size"]
        end = segment["address"] + segment["total_size"]
        assert reached == end


def test_a_block_is_inside_a_segment_and_overlaps_no_other(taken: dict[str, Any]):
    segments, alive = {}, {}
    for entry in taken["device_traces"][0]:
        start, end = entry["addr"], entry["addr"] + entry["size"]
        if entry["action"] in TAKEN:
            # Memory mapped after a run extends it.
            before = next((low for low, high in segments.items() if high == start), start)
            segments[before] = segments.pop(end, end)
        elif entry["action"] == "alloc":
            assert any(low <= start and end <= high for low, high in segments.items())
            assert all(end <= low or high <= start for low, high in alive.items())
            alive[start] = end
        elif entry["action"] == "free_completed":
            assert alive.pop(start) == end


def test_torch_s_tools_read_it(simulation: Simulation, taken: dict[str, Any]):
    memory = simulation.record.memory
    assert memory is not None
    assert memory.peak_reserved is not None
    summary = _memory_viz.segsum(taken)
    assert f"total_reserved: {_memory_viz.Bytes(memory.peak_reserved)}" in summary
    assert _memory_viz.trace(taken).count("\n") >= len(taken["device_traces"][0])
    flames = _memory_viz.memory(taken, format_flamegraph=lambda lines: lines)
    nbytes = [int(line.rpartition(" ")[2]) for line in flames.splitlines()]
    assert sum(nbytes) == memory.peak_reserved
    assert "exp_avg of resnet.embedder.embedder.convolution.weight" in flames
    for plot in (_memory_viz.trace_plot, _memory_viz.segment_plot):
        assert "MemoryViz.js" in plot(taken)
    assert "MemoryViz.js" in _memory_viz.trace_plot(taken, filter_freed=True)


def test_the_page_can_read_it(written: Path):
    """The page supports some of the opcodes, and fails without a category "unknown"."""
    used = {
        opcode.name: argument for opcode, argument, _ in pickletools.genops(written.read_bytes())
    }
    assert set(used) <= OPCODES
    assert used["PROTO"] in (2, 3, 4)
    entries = pickle.loads(written.read_bytes())["device_traces"][0]
    assert "unknown" in {entry["category"] for entry in entries}


def test_a_full_device_releases_segments_before_it_runs_out():
    """On a T4 with 15 GiB, a segment of 5 fits after three segments of 4 are released."""
    allocations = Allocations([4 << 30] * 3 + [5 << 30], ["temporary"] * 4, [Source()] * 4)
    segments = [Segment("forward", [0, 1, 2, ~0, ~1, ~2, 3])]
    taken = snapshot(Scenario(model="gpt2", gpu="t4"), segments, allocations)
    actions = [entry["action"] for entry in taken["device_traces"][0]]
    assert actions.count("segment_alloc") == 4
    assert actions[-5:] == ["segment_free"] * 3 + ["segment_alloc", "alloc"]
    assert [segment["total_size"] for segment in taken["segments"]] == [5 << 30]
