"""The simulator compared with snapshots that others recorded on GPUs.

The allocator is compared event by event, and training steps as a whole. The snapshots are the files
in ../shared/gpu-snapshots or in the folder OPTPROF_SNAPSHOTS. test_snapshot_replay.py tests the
replay on simulated snapshots, which need no files.
"""

import os
import sys
from collections.abc import Mapping
from difflib import SequenceMatcher
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest

from optprof.profiler.allocator.blocks import Block
from optprof.profiler.allocator.segments import LowestAddresses
from optprof.profiler.allocator.settings import AllocatorSettings
from optprof.profiler.simulating.replay import play
from optprof.profiler.simulating.simulation import Simulation, run_simulation, simulated_allocator
from optprof.profiler.snapshots.reading import read_snapshot
from optprof.profiler.snapshots.replay import (
    BY_ADDRESS,
    BY_AGE,
    DifferenceError,
    Exact,
    replay_exactly,
    replay_in_order,
)
from optprof.profiler.snapshots.snapshot import Device
from optprof.profiler.snapshots.start import UnsupportedError, start_of
from optprof.profiler.tracing.stream import Segment
from optprof.scenarios import Scenario

TESTS = Path(__file__).parent.parent
FOLDER = Path(os.environ.get("OPTPROF_SNAPSHOTS", TESTS.parent.parent / "shared" / "gpu-snapshots"))


def load(name: str) -> Any:
    """Return a module of tests/recordings, which is not a package."""
    spec = spec_from_file_location(name, TESTS / "recordings" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[name] = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


load("decoder")
SUFFIX = ".pickle.gz"
FILES = sorted(FOLDER.glob(f"*{SUFFIX}"))
recorded = pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=path.name.removesuffix(SUFFIX)) for path in FILES]
    or [
        pytest.param(
            None, id="none", marks=pytest.mark.skip(reason=f"no recorded snapshots in {FOLDER}")
        )
    ],
)


def recording(path: Path) -> tuple[Device, Exact]:
    """Return the device of a snapshot, and the exact replay of its events."""
    snapshot = read_snapshot(path)
    (device,) = [device for device in snapshot.devices if len(device.events)]
    settings = AllocatorSettings.parse(snapshot.conf)
    return device, replay_exactly(device, settings, start_of(device, settings))


@recorded
def test_a_recorded_snapshot_replays_exactly(path: Path):
    try:
        device, exact = recording(path)
    except UnsupportedError as reason:
        pytest.skip(f"{path.name} is not replayed: {reason}")
    assert len(device.events) > 0
    assert exact.peak_allocated <= exact.peak_reserved


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
                not (FOLDER / f"{name}{SUFFIX}").exists(), reason=f"not in {FOLDER}"
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
    _, recorded = recording(FOLDER / f"{name}{SUFFIX}")
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
    device, _ = recording(FOLDER / f"{name}{SUFFIX}")
    recorded = [
        event.size if event.action == "alloc" else -event.size
        for event in device.events
        if event.action != "free_requested"
    ]
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
def test_the_order_by_age_does_not_explain_torch_2_11():
    device, exact = recording(FOLDER / "charan.pickle.gz")
    assert (exact.order, exact.peak_reserved) == (BY_ADDRESS, 937_426_944)
    settings = AllocatorSettings()
    with pytest.raises(DifferenceError, match="block at"):
        replay_in_order(device, settings, start_of(device, settings), BY_AGE)
