"""Staging buffers of reductions, compared with recordings and with sizes from Reduce.cuh."""

import json
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path

import pytest
import torch

from optprof.profiler.simulating.batches import StreamCache
from optprof.profiler.tracing.kernel_memory import sized_for
from optprof.profiler.tracing.trace import Recorder
from optprof.scenarios import Scenario


def stream(
    run: Callable[[torch.Tensor], object], tensor: torch.Tensor, gpu: str | None = None
) -> list[int]:
    """Return the bytes of each event of `run` on this GPU, negative for a free."""
    recorder = Recorder(workspaces=())
    with recorder.phase("forward"):
        results = run(tensor)
    segments, allocations = sized_for(recorder.segments, recorder.allocations, gpu)
    del results
    nbytes = allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in segments
        for event in segment.events
    ]


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


# Recorded on 132 multiprocessors of 2,048 threads: outputs, reduced rows, bytes of the staging
# buffer.
SUMS = [
    (1024, 512, 0),
    (1024, 1024, 8_388_608),
    (1024, 2048, 16_777_216),
    (1024, 4096, 33_554_432),
    (1024, 1280, 10_485_760),
    (768, 8192, 50_331_648),
    (512, 2560, 10_485_760),
    (1024, 2560, 20_971_520),
    (2048, 2560, 41_943_040),
    (512, 10000, 41_156_608),
    (1024, 10000, 82_313_216),
    (2048, 10000, 138_412_032),
]
MAXIMA = [(512, 10000, 164_626_432), (1024, 10000, 329_252_864), (2048, 10000, 553_648_128)]


@pytest.mark.parametrize(("outputs", "rows", "staged"), SUMS)
def test_a_sum_over_rows_takes_the_recorded_staging_buffer(outputs: int, rows: int, staged: int):
    events = stream(lambda x: x.sum(0), meta(rows, outputs))
    # A semaphore of 4 bytes for each block of 32 threads with 4 outputs each.
    flags = 4 * outputs // 128
    assert events == [4 * outputs, *([staged, flags, -flags, -staged] if staged else [])]


@pytest.mark.parametrize(("outputs", "rows", "staged"), MAXIMA)
def test_a_maximum_with_indices_takes_the_recorded_staging_buffer(
    outputs: int, rows: int, staged: int
):
    flags = 4 * outputs // 128
    expected = [4 * outputs, 8 * outputs, staged, flags, -flags, -staged]
    assert stream(lambda x: x.max(0), meta(rows, outputs)) == expected


# GPT-2 XL's c_fc: 6,400 outputs, 1,024 rows for each sequence. Blocks of 32 x 4 threads with 4
# outputs each: a grid of 50. Blocks for each output: 16 at batch 1 (256 values for each thread, 16
# values for each block); at batch 8 as many as fill the GPU: 108 x 16 / 50 rounded up is 35,
# 132 x 16 / 50 is 43. Staged: 4 bytes x 6,400 x blocks x 32 x 4.
@pytest.mark.parametrize(
    ("gpu", "batch", "blocks"),
    [("a100-80", 1, 16), ("a100-80", 8, 35), ("h100-80", 1, 16), ("h100-80", 8, 43)],
)
def test_the_bias_of_gpt2_xl_s_widest_layer_takes_blocks_that_fill_the_gpu(
    gpu: str, batch: int, blocks: int
):
    staged = 4 * 6400 * blocks * 32 * 4
    assert stream(lambda x: x.sum(0), meta(batch * 1024, 6400), gpu) == [
        4 * 6400,
        staged,
        4 * 50,
        -4 * 50,
        -staged,
    ]


def test_adjacent_dimensions_are_reduced_as_one():
    two = stream(lambda x: x.sum(0), meta(4096, 1024))
    assert stream(lambda x: x.sum((0, 1), keepdim=True), meta(4, 1024, 1024)) == two


def test_a_sum_along_the_rows_of_a_matrix_stages_a_number_for_each_block():
    # One output of 2^24 numbers: 512 threads, vectors of 4, 32,768 values for each thread. 132 x 4
    # = 528 blocks fill the GPU, between the bounds 32,768 / 256 = 128 and 32,768 / 16 = 2,048.
    # 4 bytes for each block, one semaphore.
    assert stream(lambda x: x.sum(), meta(1 << 24)) == [4, 4 * 528, 4, -4, -4 * 528]


def test_half_precision_is_summed_in_float32():
    # As 1,024 x 1,024 in float32: the accumulator is as wide, and 4 outputs are loaded at once.
    assert stream(lambda x: x.sum(0), meta(1024, 1024, dtype=torch.bfloat16)) == [
        2048,
        8_388_608,
        32,
        -32,
        -8_388_608,
    ]


def test_integers_are_summed_in_a_copy_of_64_bits():
    assert stream(lambda x: x.sum(), meta(100, dtype=torch.bool)) == [8, 800, -800]


def test_an_odd_number_of_outputs_is_not_loaded_in_vectors():
    # 1,023 outputs: one at once, blocks of 32 x 16, 64 values for each thread: too few to split.
    assert stream(lambda x: x.sum(0), meta(1024, 1023)) == [4 * 1023]
    # 8,192 rows: 512 values for each thread, a grid of 32, 132 x 4 / 32 = 17 blocks (at most
    # 512 / 16 = 32).
    staged = 4 * 1023 * 17 * 32
    assert stream(lambda x: x.sum(0), meta(8192, 1023)) == [
        4 * 1023,
        staged,
        4 * 32,
        -4 * 32,
        -staged,
    ]


def test_the_variance_of_a_column_keeps_sixteen_bytes_for_each_thread():
    # A mean, a sum of squares and two counts; otherwise as the sum.
    assert stream(lambda x: x.var(0), meta(1024, 1024)) == [
        4096,
        4 * 8_388_608,
        32,
        -32,
        -4 * 8_388_608,
    ]


def test_a_tensor_beyond_32_bits_is_reduced_in_pieces():
    # 2^30 float32 numbers reach 4 GiB: two pieces of 2^20 rows, whose last byte has an offset below
    # 2^31. Each: 2^18 values for each thread and a grid of 4. 132 x 16 / 4 = 528 blocks would fill
    # the GPU, but no thread takes more than 256 values: 1,024.
    events = stream(lambda x: x.sum(0), meta(1 << 21, 512))
    staged = 4 * 512 * 1024 * 32 * 4
    assert events == [2048, staged, 16, -16, -staged]


def test_sizes_at_any_batch_follow_from_shapes_that_grow_with_it():
    scenario = Scenario(model="gpt2", sequence_length=256, config={"n_layer": 1}, gpu="a100-80")
    streams, alone = StreamCache(), {}
    for batch in (2, 5, 12, 13):
        streamed = streams.of(Scenario(**{**vars(scenario), "batch_size": batch}))
        alone[batch] = streamed
    for batch in (12, 13):
        fresh = StreamCache().of(Scenario(**{**vars(scenario), "batch_size": batch}))
        assert (fresh.segments, fresh.allocations.nbytes) == (
            alone[batch].segments,
            alone[batch].allocations.nbytes,
        )
    ((model,),) = streams._models.values()
    assert model._is_proportional


RESULTS = sorted((Path(__file__).parents[2] / "docs" / "results").glob("*/constants.json"))


@pytest.mark.parametrize(
    "path",
    RESULTS or [pytest.param(None, marks=pytest.mark.skip(reason="no GPU has run make gpu"))],
)
def test_sums_take_the_memory_that_a_campaign_recorded(path: Path):
    """`make gpu` records the memory of a sum over rows without its result.

    A block may be up to a MiB larger than the request.
    """
    cases = json.loads(path.read_text())["staging_bytes"]
    sums = {name: nbytes for name, nbytes in cases.items() if name.startswith("sum ")}
    assert sums
    for name, nbytes in sums.items():
        shape, dtype = name.removeprefix("sum ").split()
        events = stream(
            lambda x: x.sum(0),
            meta(*map(int, shape.split("x")), dtype=getattr(torch, dtype)),
            path.parent.name,
        )
        assert 0 <= nbytes - (max(accumulate(events)) - events[0]) < 2 << 20, name
