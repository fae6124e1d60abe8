"""The simulator compared with recordings of real GPUs in tests/data/golden.

The allocator is compared event by event, and whole scenarios by their peaks. The reading of
recordings is tested on a history written by hand, in the form that torch.cuda.memory._snapshot
documents.
"""

import sys
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

TESTS = Path(__file__).parent.parent
FOLDER = TESTS / "data" / "golden"
MIB = 1 << 20


def load(name: str) -> Any:
    """Return a module of tests/golden, which is not a package."""
    spec = spec_from_file_location(name, TESTS / "golden" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


recording, replaying = load("recording"), load("replaying")
comparison = load("comparison")
FILES = sorted(FOLDER.glob(f"*{recording.SUFFIX}"))
golden = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name.removesuffix(recording.SUFFIX)) for path in FILES]
    or [
        pytest.param(
            None,
            id="none",
            marks=pytest.mark.skip(
                reason="no GPU has recorded yet; run tests/golden/record.py on one"
            ),
        )
    ],
)


@golden
def test_a_recorded_stream_replays_exactly(path: Path):
    assert replaying.replay_exactly(recording.Recording.read(path)) > 0


@cache
def compared(path: Path) -> Any:
    return comparison.compare(path.name, recording.Recording.read(path))


@golden
def test_a_simulated_scenario_meets_the_recorded_peaks(path: Path):
    assert compared(path).is_met, compared(path)


@pytest.mark.skipif(not FILES, reason="no GPU has recorded yet; run `make gpu` on one")
def test_the_medians_of_all_recordings_meet_their_targets():
    assert [
        row for row in comparison.marks([compared(path) for path in FILES]) if not row["met"]
    ] == []


def entry(action: str, size: int, addr: int | None = None, **more: int) -> dict[str, object]:
    """Return one entry as torch.cuda.memory._snapshot documents it."""
    place = {} if addr is None else {"addr": addr}
    return {
        "action": action,
        "size": size,
        "stream": 0,
        "frames": [],
        "time_us": 1,
        "pool_id": (0, 0),
        **place,
        **more,
    }


BASE = 0x7F00_0000_0000
LARGE = BASE + 64 * MIB
# By hand: 1000 bytes get 1024 of a small segment. 9 MiB and 10.5 MiB get a segment of 20, in which
# the second takes 11, as the rest is too small to split off. A segment of 30 is too large for the
# device.
HISTORY = [
    entry("segment_alloc", 2 * MIB, BASE),
    entry("alloc", 1000, BASE),
    entry("segment_alloc", 20 * MIB, LARGE),
    entry("alloc", 9 * MIB, LARGE),
    entry("snapshot", 0, 0),
    entry("alloc", 10 * MIB + MIB // 2, LARGE + 9 * MIB),
    entry("free_requested", 1000, BASE),
    entry("free_completed", 1000, BASE),
    entry("segment_free", 2 * MIB, BASE),
    entry("oom", 30 * MIB, device_free=20 * MIB),
    entry("free_requested", 9 * MIB, LARGE),
    entry("free_completed", 9 * MIB, LARGE),
    entry("snapshot", 0, 0),
    entry("alloc", 512, BASE),
]
# Its lengths at the ends of two phases; torch left a mark of the snapshot that gave the length.
ENDS = (4, 12)


def by_hand() -> Any:
    """Return the recording of the history above that record.py makes on a device of 40 MiB."""
    of_build = {
        "allocated_bytes.all.current": 9 * MIB + 1024,
        "allocated_bytes.all.peak": 9 * MIB + 1024,
        "allocated_bytes.all.allocated": 9 * MIB + 1024,
        "allocated_bytes.all.freed": 0,
        "active_bytes.all.current": 9 * MIB + 1024,
        "active_bytes.all.peak": 9 * MIB + 1024,
        "requested_bytes.all.current": 9 * MIB + 1000,
        "requested_bytes.all.peak": 9 * MIB + 1000,
        "reserved_bytes.all.current": 22 * MIB,
        "reserved_bytes.all.peak": 22 * MIB,
        "inactive_split_bytes.all.current": 13 * MIB - 1024,
        "inactive_split_bytes.all.peak": 13 * MIB - 1024,
        "num_alloc_retries": 0,
        "num_device_alloc": 2,
        "num_device_free": 0,
    }
    of_forward = {
        "allocated_bytes.all.current": 11 * MIB,
        "allocated_bytes.all.peak": 20 * MIB + 1024,
        "allocated_bytes.all.allocated": 20 * MIB + 1024,
        "allocated_bytes.all.freed": 9 * MIB + 1024,
        "active_bytes.all.current": 11 * MIB,
        "active_bytes.all.peak": 20 * MIB + 1024,
        "requested_bytes.all.current": 10 * MIB + MIB // 2,
        "requested_bytes.all.peak": 19 * MIB + MIB // 2 + 1000,
        "reserved_bytes.all.current": 20 * MIB,
        "reserved_bytes.all.peak": 22 * MIB,
        "inactive_split_bytes.all.current": 9 * MIB,
        "inactive_split_bytes.all.peak": 13 * MIB - 1024,
        "num_alloc_retries": 1,
        "num_device_alloc": 2,
        "num_device_free": 1,
    }
    names, statistics = ("build", "forward"), (of_build, of_forward)
    phases = tuple(
        recording.Phase(
            name=name,
            actions=actions,
            addresses=addresses,
            sizes=sizes,
            statistics=of_phase,
            device_free=0,
        )
        for name, of_phase, (actions, addresses, sizes, _) in zip(
            names, statistics, recording.cut(HISTORY, ENDS), strict=True
        )
    )
    return recording.Recording(
        scenario={"model": "gpt2"},
        torch="2.13.0+cu130",
        driver="580.1",
        gpu="by hand",
        compute_capability=(9, 0),
        total=45 * MIB,
        free_before=40 * MIB,
        nvml_used=None,
        versions={},
        state_bytes={},
        phases=phases,
    )


def test_a_history_is_cut_into_phases_and_read_as_events():
    recorded = by_hand()
    assert [phase.actions for phase in recorded.phases] == ["3030", "0124712"]
    stream = recording.Stream()
    # All events are of stream 0, the last item.
    build, forward = (
        [event[:-1] for event in stream.read(phase.entries())] for phase in recorded.phases
    )
    assert build == [("alloc", 0, 1000, BASE, 2 * MIB), ("alloc", 1, 9 * MIB, LARGE, 22 * MIB)]
    assert forward == [
        ("alloc", 2, 10 * MIB + MIB // 2, LARGE + 9 * MIB, 22 * MIB),
        ("free", 0, 1000, BASE, 22 * MIB),
        ("oom", -1, 30 * MIB, 0, 20 * MIB),
        ("free", 1, 9 * MIB, LARGE, 20 * MIB),
    ]
    assert list(recording.segment_addresses(recorded.phases)) == [BASE, LARGE]


def test_a_recording_is_read_as_it_was_written(tmp_path: Path):
    recorded = by_hand()
    recorded.write(tmp_path / "one.json.xz")
    assert recording.Recording.read(tmp_path / "one.json.xz") == recorded


@pytest.mark.parametrize("version", ["2.13.0+cu130", "2.11.0+cu126"])
def test_the_history_written_by_hand_replays(version: str):
    recorded = by_hand()
    object.__setattr__(recorded, "torch", version)
    assert replaying.replay_exactly(recorded) == 6


def test_a_history_of_expandable_segments_replays():
    """Handles have 2 and 20 MiB; of 9, 10.5 and 5 MiB in a row the last needs a second handle."""
    history = [
        entry("segment_map", 2 * MIB, BASE),
        entry("alloc", 1000, BASE),
        entry("segment_map", 20 * MIB, LARGE),
        entry("alloc", 9 * MIB, LARGE),
        entry("alloc", 10 * MIB + MIB // 2, LARGE + 9 * MIB),
        entry("segment_map", 20 * MIB, LARGE + 20 * MIB),
        entry("alloc", 5 * MIB, LARGE + 19 * MIB + MIB // 2),
        entry("snapshot", 0, 0),
    ]
    ((actions, addresses, sizes, _),) = recording.cut(history, [7])
    allocated, requested, reserved = (
        24 * MIB + MIB // 2 + 1024,
        24 * MIB + MIB // 2 + 1000,
        42 * MIB,
    )
    statistics = {
        **{f"allocated_bytes.all.{name}": allocated for name in ("current", "peak", "allocated")},
        **{f"requested_bytes.all.{name}": requested for name in ("current", "peak")},
        **{f"reserved_bytes.all.{name}": reserved for name in ("current", "peak")},
        **{f"inactive_split_bytes.all.{name}": 0 for name in ("current", "peak")},
        "allocated_bytes.all.freed": 0,
        **{f"active_bytes.all.{name}": allocated for name in ("current", "peak")},
        "num_alloc_retries": 0,
        "num_device_alloc": 3,
        "num_device_free": 0,
    }
    build = recording.Phase(
        name="build",
        actions=actions,
        addresses=addresses,
        sizes=sizes,
        statistics=statistics,
        device_free=0,
    )
    recorded = by_hand()
    object.__setattr__(
        recorded, "scenario", {"model": "gpt2", "alloc_conf": "expandable_segments:True"}
    )
    object.__setattr__(recorded, "total", 85 * MIB)
    object.__setattr__(recorded, "free_before", 80 * MIB)
    object.__setattr__(recorded, "phases", (build,))
    assert replaying.replay_exactly(recorded) == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [("place", "block at another place"), ("reserved", "event 2"), ("sizes", "at the end of")],
)
def test_a_recording_that_deviates_from_the_rules_is_detected(change: str, message: str):
    recorded = by_hand()
    build = recorded.phases[0]
    if change == "place":
        object.__setattr__(
            recorded.phases[1], "addresses", (LARGE + 8 * MIB, *recorded.phases[1].addresses[1:])
        )
    elif change == "reserved":
        object.__setattr__(build, "sizes", (2 * MIB, 1000, 22 * MIB, 9 * MIB))
    else:
        object.__setattr__(
            build, "statistics", {**build.statistics, "allocated_bytes.all.peak": 10 * MIB}
        )
    with pytest.raises(AssertionError, match=message):
        replaying.replay_exactly(recorded)


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        ([{**entry("alloc", 1, BASE), "pool_id": (0, 3)}], "history has a private pool"),
        ([entry("workspace_snapshot", 1, BASE)], "unknown action 'workspace_snapshot'"),
    ],
)
def test_a_history_that_a_replay_cannot_follow_is_refused(
    spoiled: list[dict[str, object]], message: str
):
    with pytest.raises(ValueError, match=message):
        recording.cut(spoiled, [len(spoiled)])


def test_a_block_of_another_stream_lies_in_a_segment_of_its_own():
    history = [
        entry("segment_alloc", 2 * MIB, BASE),
        entry("alloc", 512, BASE),
        entry("segment_alloc", 2 * MIB, LARGE, stream=7),
        entry("alloc", 512, LARGE, stream=7),
        entry("free_requested", 512, BASE),
        entry("free_completed", 512, BASE),
        entry("alloc", 512, BASE),
    ]
    ((actions, addresses, sizes, streams),) = recording.cut(history, [len(history)])
    assert streams == (0, 0, 1, 1, 0, 0, 0)
    build = recording.Phase(
        name="build",
        actions=actions,
        addresses=addresses,
        sizes=sizes,
        streams=streams,
        statistics={},
        device_free=0,
    )
    recorded = by_hand()
    object.__setattr__(recorded, "phases", (build,))
    with pytest.raises(KeyError):
        # There are no statistics to compare with: every event agreed.
        replaying.replay_exactly(recorded)
    object.__setattr__(build, "streams", ())
    with pytest.raises(AssertionError, match="event 2"):
        replaying.replay_exactly(recorded)


def test_a_history_without_its_end_is_refused():
    with pytest.raises(ValueError, match="history has 14 entries, and had 15"):
        recording.cut(HISTORY, (4, 15))


def test_a_block_that_waits_for_another_stream_is_refused():
    entries = [
        ("alloc", BASE, 512, 0),
        ("alloc", BASE + 512, 512, 0),
        ("free_requested", BASE, 512, 0),
        ("free_completed", BASE + 512, 512, 0),
    ]
    with pytest.raises(ValueError, match="was freed late"):
        list(recording.Stream().read(entries))


def test_the_list_of_scenarios_covers_the_simulator_s_options():
    listed = load("record").listed()
    # Thirteen setups with seven optimizers each, twice except for the ResNet, and eleven others.
    assert len(listed) == 13 * 7 * 2 - 7 + 11
    assert {scenario.device for scenario in listed.values()} == {"cuda"}
    precisions = {
        (scenario.dtype, scenario.amp)
        for scenario in listed.values()
        if scenario.model == "gpt2-medium"
    }
    assert precisions == {("fp32", None), ("bf16", None), ("fp32", "bf16"), ("fp32", "fp16")}


def test_without_a_gpu_nothing_is_recorded(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
):
    record = load("record")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["record.py"])
    assert record.main() == 1
    assert "recordings are made by a GPU" in capsys.readouterr().err


def test_a_gpu_is_found_in_the_catalogue_by_torch_s_properties():
    record = load("record")
    assert record.catalogue_name((9, 0), 84_942_979_072 - 10 * MIB) == "h100-80"
    assert record.catalogue_name((9, 0), 150_109_880_320) == "h200"
    assert record.catalogue_name((8, 6), 8 << 30) is None
