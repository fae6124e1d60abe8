"""Storage of cub's algorithms, compared with cub's own answers.

The sizes are those of cub 3.0 in CUDA 13.0, compiled for a GPU's compute capability and called with
the GPU's properties.
"""

import pytest

from optprof.profiler.tracing.cub import (
    keyed_scan_bytes,
    scan_bytes,
    segmented_sort_bytes,
    select_bytes,
    sort_bytes,
    sum_bytes,
    unique_by_key_bytes,
)
from optprof.profiler.tracing.requests import device_of


# Bytes of a key, of a value, bits; cub's answers for an H100 (9.0) and an A100 (8.0).
@pytest.mark.parametrize(
    ("count", "key", "value", "bits", "h100", "a100"),
    [
        (1000, 8, 8, 64, 1, 1),
        (3000, 8, 8, 64, 66_047, 66_047),
        (4096, 8, 8, 14, 71_167, 72_191),
        (8192, 8, 8, 14, 137_727, 138_751),
        (1_000_000, 8, 8, 14, 16_227_839, 16_271_871),
        (1_000_000, 4, 8, 32, 12_200_191, 12_342_527),
        (8192, 4, 4, 32, 76_287, 76_287),
        (8192, 8, 0, 64, 84_479, 85_503),
        (1_000_000, 8, 0, 64, 8_195_071, 8_284_159),
    ],
)
def test_a_sort_takes_as_much_as_cub_answers(
    count: int, key: int, value: int, bits: int, h100: int, a100: int
):
    assert sort_bytes(device_of("h100-80"), count, key, value, bits) == h100
    assert sort_bytes(device_of("a100-80"), count, key, value, bits) == a100


def test_a_sort_of_small_keys_takes_as_much_as_cub_answers_from_9_0_on():
    assert sort_bytes(device_of("h100-80"), 8192, 2, 8, 16) == 88_575
    assert sort_bytes(device_of("h100-80"), 1_000_000, 2, 8, 16) == 10_187_007


@pytest.mark.parametrize(
    ("count", "item", "nbytes"),
    [(1, 8, 1279), (1_000_000, 8, 18_943), (1_000_000, 4, 5119), (1_000_000, 2, 1791)],
)
def test_a_scan_takes_as_much_as_cub_answers(count: int, item: int, nbytes: int):
    assert scan_bytes(count, item) == nbytes


def test_selections_segments_and_sums_take_as_much_as_cub_answers():
    assert segmented_sort_bytes(1_048_576, 4, 8) == 12_583_167
    assert [select_bytes(count) for count in (100, 1_000_000, 100_000_000)] == [1023, 2815, 190_207]
    assert [unique_by_key_bytes(count) for count in (100, 1_000_000, 100_000_000)] == [
        1279,
        4351,
        325_887,
    ]
    assert [keyed_scan_bytes(count) for count in (1, 10_000)] == [1279, 1279]
    assert sum_bytes(device_of("h100-80"), 4096) == 1
