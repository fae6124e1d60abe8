"""Requests of CUDA's kernels that sort, scan and look up masks, compared with sizes by hand."""

import pytest
import torch
from traced import meta, stream

from optprof.profiler.tracing.cub import scan_bytes, sort_bytes, sum_bytes
from optprof.profiler.tracing.requests import Request, device_of
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.values import with_value

aten = torch.ops.aten
LONG = torch.int64


def nested(*nbytes: int) -> list[int]:
    """Return requests that are freed in reverse."""
    return [*nbytes, *(-size for size in reversed(nbytes))]


def test_a_short_row_is_sorted_in_place_after_its_places_are_counted():
    assert stream(lambda x: x.sort(), meta(3, 4096)) == [
        3 * 4096 * 4,
        3 * 4096 * 8,
        *nested(8 * 4096),
    ]


def test_one_long_row_is_sorted_with_storage_and_a_row_of_places():
    # 16,384 + 15 blocks of 4,608 x 1,024 + two buffers of 524,288 + 256 + 255.
    storage = 16_384 + 15 * 1024 + 2 * 524_288 + 256 + 255
    places = 8 * 65_536
    assert stream(lambda x: x.argsort(), meta(65_536, dtype=LONG)) == [
        places,
        places,
        *nested(places, storage),
        -places,
    ]


def test_a_few_long_rows_are_sorted_at_once_and_then_by_row():
    count = 8 * 5000
    # Four digits of 2,048 bytes, 8 blocks of 5,376; one digit of a row's number, 7 blocks of 5,760.
    by_value = 4 * 2048 + 8 * 1024 + 160_000 + 320_000 + 256 + 255
    by_row = 2048 + 7 * 1024 + 256 + 255
    events = stream(lambda x: x.sort(stable=True), meta(8, 5000))
    pairs = 8 * count
    assert events == [
        4 * count,
        8 * count,
        pairs,
        pairs,
        4 * count,
        by_value,
        -by_value,
        -4 * count,
        by_row,
        -by_row,
        -pairs,
        -pairs,
    ]


def test_many_long_rows_are_sorted_as_segments():
    count = 128 * 5000
    storage = 4 * count + 8 * count + 255
    assert stream(lambda x: x.sort(), meta(128, 5000)) == [
        4 * count,
        8 * count,
        *nested(8 * count, storage),
    ]


def test_transposed_rows_and_their_outputs_are_copied():
    count = 5000 * 128
    events = stream(lambda x: x.sort(0), meta(5000, 128))
    assert events[:5] == [4 * count, 8 * count, 4 * count, 4 * count, 8 * count]
    assert sum(events) == 12 * count


def test_rows_with_gaps_are_copied_but_not_their_outputs():
    events = stream(lambda x: x[:, :5000].sort(), meta(128, 6000))
    count = 128 * 5000
    assert events[:4] == [4 * count, 8 * count, 4 * count, 8 * count]


def test_topk_of_few_numbers_takes_no_memory():
    assert stream(lambda x: x.topk(2), meta(8192, 8)) == [8192 * 2 * 4, 8192 * 2 * 8]


def test_topk_of_a_long_row_runs_on_several_blocks():
    # 202,752 threads on 132 multiprocessors: four numbers each, 1,024 a block, 126 blocks.
    events = stream(lambda x: x.topk(50), meta(1, 128_256), gpu="h100-80")
    scan = 1279
    assert events[2:7] == [4, 4, 8, 8, 126 * 256 * 2]
    assert events[7:13] == [126 * 4, 126 * 4, scan, -scan, scan, -scan]
    assert sum(events) == 50 * 12


def test_topk_sorts_more_than_4096_results_with_memory():
    events = stream(lambda x: x.topk(5000), meta(1, 6000))
    storage = sort_bytes(device_of(None), 5000, 4, 8, 32)
    inner = [8 * 5000, storage, -storage, -8 * 5000]
    assert events == [
        4 * 5000,
        8 * 5000,
        8 * 5000,
        4 * 5000,
        *inner,
        *nested(8 * 5000),
        -4 * 5000,
        -8 * 5000,
    ]
    assert stream(lambda x: x.topk(5000, sorted=False), meta(1, 6000)) == [4 * 5000, 8 * 5000]


def test_a_median_along_a_dimension_copies_its_input():
    assert stream(lambda x: x.t().median(1), meta(30, 40)) == [4800, 160, 320, -4800]
    assert stream(lambda x: x.kthvalue(3), meta(30, 40)) == [120, 240]


def test_a_mode_copies_rows_of_more_than_2048_numbers():
    assert stream(lambda x: x.mode(), meta(3, 2048)) == [12, 24]
    assert stream(lambda x: x.mode(), meta(3, 2049)) == [12, 24, *nested(3 * 2049 * 4)]
    assert stream(lambda x: x.mode(0), meta(3, 40)) == [160, 320, *nested(480)]


# Keys of 32 bits are distinct often enough while log2(n + (6 n^2 + 1) / 1.264) is at most 32.
@pytest.mark.parametrize(("count", "key"), [(30_000, 4), (31_000, 8)])
def test_a_permutation_is_a_sort_by_random_keys(count: int, key: int):
    bits = 32 if key == 4 else 33
    storage = sort_bytes(device_of(None), count, key, 8, bits)
    expected = [8 * count, *nested(8 * count, key * count, key * count, storage)]
    assert stream(lambda: torch.randperm(count, device="meta")) == expected


def test_cumulative_sums_take_memory_only_for_a_single_row():
    assert stream(lambda x: x.cumsum(1), meta(4, 5000)) == [80_000]
    assert stream(lambda x: x.cumsum(0), meta(1_000_000)) == [4_000_000, *nested(5119)]
    assert stream(lambda x: x.cumprod(-1), meta(1, 1000)) == [4000, *nested(1023)]
    assert stream(lambda x: x.logcumsumexp(0), meta(1000)) == [4000, *nested(1023)]
    assert stream(lambda x: x.cumsum_(0), meta(1000)) == nested(1023)


def test_the_requests_of_a_third_batch_size_follow_from_two():
    def requests(batch: int) -> list[Request]:
        recorder = Recorder(workspaces=())
        with recorder.phase("forward"):
            # Only a single row has storage, and few rows are sorted in another way than many.
            meta(batch, 5000).cumsum(1)
            meta(100 * batch, 5000).sort()
        return list(recorder.allocations.requests.values())

    fitted = [low.at(4, high) for low, high in zip(requests(1), requests(2), strict=True)]
    device = device_of(None)
    assert [request.nbytes(device) for request in fitted] == [
        request.nbytes(device) for request in requests(5)
    ]


def test_booleans_are_cast_before_cumulative_sums():
    assert stream(lambda x: x.cumsum(1), meta(4, 5000, dtype=torch.bool)) == [
        160_000,
        *nested(160_000),
    ]


def test_transposed_tensors_are_copied_before_cumulative_sums():
    assert stream(lambda x: x.t().cumsum(1), meta(40, 30)) == [4800, *nested(4800)]
    assert stream(lambda x: x.t().cumsum_(1), meta(40, 30)) == nested(4800, 4800)
    assert stream(lambda x: x.t().cummax(1), meta(40, 30)) == [4800, 9600, *nested(4800)]


def counted(numbers: int) -> list[int]:
    """Return the counter and the storage of counting."""
    return [4, sum_bytes(device_of(None), numbers), -sum_bytes(device_of(None), numbers)]


def test_the_places_of_a_mask_are_counted_written_and_used():
    mask = torch.zeros(10, 100, dtype=torch.bool)
    mask[:4] = True
    valued = with_value(mask)
    places = stream(lambda mask: mask.nonzero(), valued)
    chosen = stream(lambda x, mask: x[mask], meta(10, 100, 6), valued)
    # Few enough for one block to count; 400 places of two dimensions.
    assert places == [4, 1, -1, 6400, *nested(1023), -4]
    assert chosen == [*places, 9600, -6400]


def test_writing_one_number_at_a_mask_takes_no_memory_for_places():
    def run(x: torch.Tensor, mask: torch.Tensor) -> None:
        x[mask] = 0.0

    assert stream(run, meta(10, 100), meta(10, 100, dtype=torch.bool)) == nested(4)


def test_writing_rows_at_a_mask_looks_its_places_up():
    events = stream(
        lambda x, m, v: aten.index_put_(x, [m], v),
        meta(1000, 6),
        meta(1000, dtype=torch.bool),
        meta(40, 6),
    )
    # Forty places of one dimension; they are freed after the rows are written.
    assert events == [*counted(1000), 320, *nested(1023), -4, -320]


def test_the_gradient_of_a_selection_is_added_at_the_mask_s_places():
    events = stream(
        lambda x, m, v: aten.index_put_(x, [m], v, True),
        meta(1000, 6),
        meta(1000, dtype=torch.bool),
        meta(40, 6),
    )
    # Few enough for one block.
    assert events == [
        *counted(1000),
        320,
        *nested(1023),
        -4,
        320,
        320,
        -320,
        -320,
        320,
        320,
        320,
        1,
        -1,
        -320,
        -320,
        -320,
        -320,
    ]


def test_masked_scatter_sums_over_the_expanded_mask():
    def run(x: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        return x.masked_scatter(mask.unsqueeze(-1).expand_as(x), source)

    numbers = 2 * 100 * 64
    events = stream(run, meta(2, 100, 64), meta(2, 100, dtype=torch.bool), meta(50, 64))
    assert events == [4 * numbers, *nested(8 * numbers, numbers, scan_bytes(numbers, 8))]


def test_the_gradient_of_masked_scatter_looks_places_up():
    grad, mask = meta(2, 100, 64), meta(2, 100, 1, dtype=torch.bool)
    events = stream(
        lambda g, m: aten.masked_scatter_backward(g, m.expand_as(g), [50, 64]), grad, mask
    )
    numbers, places = 2 * 100 * 64, 8 * 3 * 50 * 64
    assert events == [
        numbers,
        *counted(numbers),
        places,
        *nested(1023),
        -4,
        -numbers,
        4 * 50 * 64,
        -places,
    ]


def test_pairwise_distances_are_a_product_with_the_norms():
    events = stream(lambda a, b: torch.cdist(a, b), meta(50, 8), meta(60, 8))
    # Squares, their sums and ones; both operands with two more columns; distances; the workspace.
    operands = {4 * 50 * 10, 4 * 60 * 10}
    assert operands <= set(events)
    assert events.count(4 * 50) == 2
    assert events.count(4 * 60) == 2
    assert [size for size in events if size > 0 and -size not in events] == [4 * 50 * 60, 32 << 20]


def test_counting_nonzero_numbers_compares_casts_and_sums():
    # One byte for each number, and eight for the copy of the sum.
    assert stream(lambda x: x.count_nonzero(), meta(30, 40)) == [1200, 8, *nested(9600), -1200]
    assert stream(lambda x: x.count_nonzero(1), meta(30, 40)) == [1200, 240, *nested(9600), -1200]


def test_the_median_of_all_numbers_is_a_sort():
    events = stream(lambda x: x.median(), meta(30, 40))
    assert events == [4800, 9600, *nested(9600), -9600, 1, 4, -1, -4800]


def test_isinf_takes_absolute_values():
    assert stream(lambda x: x.isinf(), meta(30, 40)) == [4800, 1200, -4800]


def test_the_distance_of_two_tensors_takes_their_difference():
    assert stream(lambda x, y: torch.dist(x, y), meta(30, 40), meta(30, 40)) == [4800, 4, -4800]


def test_the_norms_of_many_columns_are_staged_like_sums():
    norms = stream(lambda x: torch.ops.aten.norm.ScalarOpt_dim(x, 2, [0]), meta(10_000, 1024))
    assert norms == stream(lambda x: x.sum(0), meta(10_000, 1024))
    assert len(norms) > 1


def test_one_sample_is_the_argmax_of_noise():
    assert stream(lambda x: x.multinomial(1), meta(4, 500)) == [32, *nested(8000)]


def test_several_samples_are_the_topk_of_noise():
    assert stream(lambda x: x.multinomial(3), meta(4, 500)) == [96, *nested(8000, 48)]


def test_samples_with_replacement_take_shares_and_their_sums():
    assert stream(lambda x: x.multinomial(3, replacement=True), meta(4, 500)) == [
        96,
        *nested(8000, 8000),
    ]
