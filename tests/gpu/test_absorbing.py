"""Constants and comparisons from samples written by hand."""

from typing import Any

import pytest
from comparison import Comparison, Peak, marks
from derived import catalogue_lines, derive

MIB = 1 << 20


def stream(mebibytes: int, seconds: float) -> dict[str, Any]:
    return {"copy": {"bytes": 2 * mebibytes * MIB, "seconds": [seconds, seconds, 9.0]}}


def test_the_copy_bandwidth_is_that_of_tensors_larger_than_the_caches():
    # 2 x 512 MiB in a quarter of a millisecond; the small tensor is in the cache and faster.
    groups = {"bandwidth": {"a": stream(1, 1e-9), "b": stream(512, 0.25e-3)}}
    constants = derive(groups)
    assert constants["copy_bandwidth"] == pytest.approx((1 << 30) / 0.25e-3)
    assert constants.keys() == {"copy_bandwidth", "bandwidths"}
    assert catalogue_lines(constants, (1 << 30) / 0.2e-3) == ["ACHIEVED_BANDWIDTH = 0.800"]


def test_python_s_cost_is_the_time_of_each_further_tensor():
    times = {"16": {"host": [1e-4, 1e-4]}, "128": {"host": [1e-4 + 112 * 3e-6]}}
    launches = {f"launch foreach_add_ {n}": {"host": [1e-5 + n * 2e-7]} for n in (8, 512)}
    constants = derive({"small-steps": {"step adamw loop": times}, "launches": launches})
    assert constants["small_steps"]["step adamw loop"]["each_tensor"] == pytest.approx(3e-6)
    assert constants["foreach_seconds_per_tensor"] == pytest.approx(2e-7)


def test_staging_is_the_memory_of_a_sum_without_its_result():
    # Recorded on 132 multiprocessors: 1,024 outputs of 4,096 rows take 33,554,432 bytes.
    case = {"peak": 33_554_432 + 4096, "result": 4096, "kept": 0}
    assert derive({"reductions": {"sum 4096x1024": case}})["staging_bytes"] == {
        "sum 4096x1024": 33_554_432
    }


def test_a_campaign_without_samples_gives_no_constants():
    assert derive({}) == {}
    assert catalogue_lines({}, None) == []


def compared(*, allocated: int, reserved: int = 1000, **changes: Any) -> Comparison:
    peaks = (
        Peak(name="allocated", simulated=allocated, recorded=100_000),
        Peak(name="reserved", simulated=reserved, recorded=1000),
    )
    usual: dict[str, Any] = {"events": 9, "replay": None, "same_state": True, "same_end": True}
    return Comparison(name="one", peaks=peaks, **{**usual, **changes})


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({"allocated": 101_000}, True),
        ({"allocated": 101_001}, False),
        ({"allocated": 99_500}, True),
        ({"allocated": 99_499}, False),
        ({"allocated": 100_000, "reserved": 1020}, True),
        ({"allocated": 100_000, "reserved": 1021}, False),
        ({"allocated": 100_000, "replay": "event 2: block at another place"}, False),
        ({"allocated": 100_000, "same_state": False}, False),
        ({"allocated": 100_000, "same_end": False}, False),
    ],
)
def test_a_simulation_agrees_with_a_recording_only_within_its_target(
    changes: dict[str, Any], met: bool
):
    assert compared(**changes).is_met == met


def test_the_median_s_target_is_smaller_than_that_of_the_worst():
    near, far = compared(allocated=100_100), compared(allocated=100_900)
    allocated, reserved = marks([near, near, far])
    assert (allocated["median"], allocated["worst"]) == (pytest.approx(0.001), pytest.approx(0.009))
    assert allocated["met"]
    assert reserved["met"]
    assert not marks([near, far, far])[0]["met"]
