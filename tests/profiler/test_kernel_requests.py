"""Requests of the kernels of attention, indexing, norms and products.

They are compared with recordings and with sizes from ATen's sources.
"""

from collections.abc import Callable

import pytest
import torch
from traced import meta, stream

aten = torch.ops.aten
MIB = 1 << 20


def tokens(*shape: int) -> torch.Tensor:
    return meta(*shape, dtype=torch.int64)


# Recorded on GPUs: index_put sums a gradient of 10,000 rows; the storage of its sort of 14 bits.
@pytest.mark.parametrize(
    ("batch", "length", "storage"),
    [(4, 128, 1), (4, 256, 1), (4, 1024, 72_191), (32, 256, 138_751)],
)
def test_adding_to_indexed_rows_takes_the_six_buffers_that_were_recorded(
    batch: int, length: int, storage: int
):
    indices = 8 * batch * length
    events = stream(
        lambda rows, index, values: aten._index_put_impl_(rows, [index], values, True, True),
        meta(10_000, 64),
        tokens(batch, length),
        meta(batch, length, 64),
        gpu="a100-80",
    )
    sort = [indices, indices, indices, storage, -storage, -indices, -indices, -indices]
    assert events == [indices, indices, -indices, *sort, -indices]


def test_values_that_are_repeated_for_each_index_are_copied():
    events = stream(
        lambda rows, index, value: aten.index_put_(rows, [index], value, True),
        meta(100, 16),
        tokens(40),
        meta(16),
    )
    assert 40 * 16 * 4 in events
    assert sum(events) == 0


def test_setting_indexed_rows_takes_nothing():
    assert (
        stream(
            lambda rows, index, values: aten.index_put_(rows, [index], values),
            meta(100, 16),
            tokens(40),
            meta(40, 16),
        )
        == []
    )


def embedding_backward(count: int) -> list[int]:
    return stream(
        lambda grad, index: aten.embedding_dense_backward(grad, index, 50_257, -1, False),
        meta(1, count, 1600),
        tokens(1, count),
        gpu="a100-80",
    )


def test_few_indices_of_an_embedding_are_not_sorted():
    assert embedding_backward(3072) == [50_257 * 1600 * 4]


def test_many_indices_of_an_embedding_are_sorted_and_their_rows_summed_in_parts():
    events = embedding_backward(8192)
    longs = 8 * 8192
    # 8 x 256 x 8, 3 blocks' counts of 1,024 bytes, keys and values, 256 and 255.
    sort = 16_384 + 3_072 + 2 * longs + 256 + 255
    assert events[:8] == [longs, longs, longs, sort, -sort, -longs, 50_257 * 1600 * 4, longs]
    # Parts of ten rows, and one for each of at most 8,192 distinct indices.
    assert 4 * (819 + 8192) * 1600 in events
    assert sum(events) == 50_257 * 1600 * 4


def test_few_indices_of_bags_are_sorted_by_the_bits_of_a_row():
    def run(weight: torch.Tensor, indices: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        output = torch.nn.functional.embedding_bag(indices, weight, offsets, mode="sum")
        (gradient,) = torch.autograd.grad(output, weight, torch.empty_like(output))
        return gradient

    events = stream(run, meta(1000, 64).requires_grad_(), tokens(2560), tokens(100), gpu="a100-80")
    longs = 8 * 2560
    # Ten bits: two histograms of 256 longs, one block's counts, keys and values, 256 and 255.
    sort = 4096 + 1024 + 2 * longs + 256 + 255
    start = events.index(sort) - 3
    assert events[start : start + 8] == [
        longs,
        longs,
        longs,
        sort,
        -sort,
        -longs,
        1000 * 64 * 4,
        longs,
    ]
    # Parts of ten rows, and one for each of at most 1,000 distinct indices.
    assert 4 * (256 + 1000) * 64 in events


HEADS = (2, 4, 100, 48)


def attention_backward(dtype: torch.dtype, shape: tuple[int, ...], gpu: str) -> list[int]:
    batch, heads, length, width = shape

    def run(query: torch.Tensor, saved: torch.Tensor, seed: torch.Tensor) -> object:
        grad = query.new_empty(batch, length, heads, width).transpose(1, 2)
        return aten._scaled_dot_product_efficient_attention_backward(
            grad,
            query,
            query,
            query,
            None,
            query,
            saved,
            seed,
            seed,
            0.0,
            [True, True, True, False],
            True,
        )

    events = stream(run, meta(*shape, dtype=dtype), meta(batch, heads, length), tokens(), gpu=gpu)
    # Without the incoming gradient and the outgoing ones.
    nbytes = batch * heads * length * width * dtype.itemsize
    assert events[:4] == [nbytes] * 4
    assert events[-1] == -nbytes
    return events[4:-1]


def test_efficient_attention_in_float32_sums_output_times_gradient_and_keeps_gradients_in_blocks():
    product, rows = 2 * 4 * 100 * 48 * 4, 2 * 4 * 100 * 4
    # 2 blocks of 64 queries for 100, one of 64 columns for 48; 64 x 64 numbers and four ints each.
    workspace = 2 * 4 * 2 * (64 * 64 + 4) * 4
    expected = [product, rows, rows, -rows, -product, workspace, -rows, -workspace]
    assert attention_backward(torch.float32, HEADS, "h100-80") == expected


def test_efficient_attention_in_half_precision_computes_its_sums_itself():
    rows, workspace = 2 * 4 * 100 * 4, 2 * 4 * 2 * (64 * 64 + 4) * 4
    assert attention_backward(torch.bfloat16, HEADS, "h100-80") == [
        rows,
        workspace,
        -rows,
        -workspace,
    ]


def test_wide_heads_on_a_small_multiprocessor_keep_the_keys_gradients_in_float32():
    rows = 2 * 4 * 256 * 4
    # Blocks of 64 x 64: 4 blocks of queries by 2 of 128 columns; 4 parts of 64 keys by 128 columns
    # for keys and for values.
    queries, keys = 4 * 2 * (64 * 64 + 4), 4 * 64 * 128
    small = 2 * 4 * (queries + 2 * keys) * 4
    assert attention_backward(torch.float16, (2, 4, 256, 128), "rtx4090")[1] == small
    # Blocks of 128 x 128 keep them in registers: 2 blocks of queries by one of columns.
    large = 2 * 4 * 2 * (128 * 128 + 4) * 4
    assert attention_backward(torch.float16, (2, 4, 256, 128), "a100-80") == [
        rows,
        large,
        -rows,
        -large,
    ]


def flash_forward(batch: int, heads: int, length: int, gpu: str, dropout: float = 0.0) -> list[int]:
    query = meta(batch, heads, length, 64, dtype=torch.bfloat16)
    events = stream(
        lambda q: aten._scaled_dot_product_flash_attention(q, q, q, dropout, True), query, gpu=gpu
    )
    return [
        size
        for size in events
        if abs(size) > 2 * query.nbytes or abs(size) == 4 * 4 * heads * length
    ]


def test_flash_attention_with_few_heads_splits_the_keys():
    # 12 heads of 16 blocks of 64 queries on 132 x 2 places: 0.73 of a wave. Two parts fill 1.45 of
    # 2 waves, three have as many blocks of 256 keys as two, four fill 2.91 of 3 waves.
    sums, outputs = 4 * 4 * 12 * 1024, 4 * 4 * 12 * 1024 * 64
    assert flash_forward(1, 12, 1024, "h100-80") == [sums, outputs, -outputs, -sums]
    # On 108 x 2 places 192 blocks fill more than 0.8 of a wave. A split kernel has no dropout.
    assert flash_forward(1, 12, 1024, "a100-80") == []
    assert flash_forward(1, 12, 1024, "h100-80", 0.1) == []


def test_the_layer_norm_of_many_short_rows_sums_its_gradients_in_two_passes():
    rows, width = 131_072, 768

    def run(grad: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor) -> object:
        return aten.native_layer_norm_backward(
            grad, grad, [width], mean, mean, weight, weight, [True, True, True]
        )

    events = stream(run, meta(rows, width), meta(rows, 1), meta(width), gpu="h100-80")
    # 24 blocks of 32 columns, so 32,768 / 24 rows of blocks.
    part = 1365 * width * 4
    # The rest is their sum: 1,365 rows, 768 outputs: 342 values a thread, 22 blocks of 16 values, 6
    # blocks across.
    staged = 4 * 768 * 22 * 32 * 4
    assert events == [
        rows * width * 4,
        width * 4,
        width * 4,
        part,
        part,
        staged,
        24,
        -24,
        -staged,
        -part,
        -part,
    ]


def test_the_layer_norm_of_fewer_rows_takes_nothing():
    def run(grad: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor) -> object:
        return aten.native_layer_norm_backward(
            grad, grad, [768], mean, mean, weight, weight, [True, True, True]
        )

    assert len(stream(run, meta(65_536, 768), meta(65_536, 1), meta(768))) == 3


def test_norms_and_softmax_copy_operands_that_are_not_contiguous():
    nbytes = 2 * 8 * 25 * 4

    def norm(x: torch.Tensor) -> object:
        return aten.native_layer_norm(x.permute(0, 2, 1), [8], None, None, 1e-5)

    def norm_backward(x: torch.Tensor, grad: torch.Tensor, mean: torch.Tensor) -> object:
        return aten.native_layer_norm_backward(
            grad.permute(0, 2, 1),
            x.permute(0, 2, 1),
            [8],
            mean,
            mean,
            None,
            None,
            [True, False, False],
        )

    x, mean = meta(2, 8, 25), meta(2, 25, 1)
    assert stream(norm, x) == [nbytes, nbytes, 200, 200, -nbytes]
    assert stream(norm_backward, x, meta(2, 8, 25), mean) == [
        nbytes,
        nbytes,
        nbytes,
        -nbytes,
        -nbytes,
    ]
    assert stream(lambda x: x.transpose(1, 2).softmax(-1), x) == [nbytes, nbytes, -nbytes]
    assert stream(lambda x: x.softmax(-1), x) == [nbytes]
    # The gradient of a sum is one number, expanded.
    events = stream(
        lambda g, y: aten._log_softmax_backward_data(g.expand(2, 8, 25), y, -1, torch.float32),
        meta(1),
        x,
    )
    assert events == [nbytes, nbytes, -nbytes]


def test_a_group_norm_takes_a_factor_and_an_offset_for_each_channel():
    events = stream(
        lambda x, w: aten.native_group_norm(x, w, w, 8, 64, 256, 4, 1e-5),
        meta(8, 64, 16, 16),
        meta(64),
    )
    assert events[3:] == [8 * 64 * 4] * 2 + [-8 * 64 * 4] * 2


def test_a_group_norm_in_half_precision_takes_float32_statistics():
    half = torch.bfloat16
    events = stream(
        lambda x, w: aten.native_group_norm(x, w, w, 8, 64, 256, 4, 1e-5),
        meta(8, 64, 16, 16, dtype=half),
        meta(64, dtype=half),
    )
    assert events[3:7] == [8 * 4 * 4] * 2 + [8 * 64 * 4] * 2


def test_the_backward_pass_of_a_group_norm_takes_sums_of_channels_and_groups():
    def run(x: torch.Tensor, mean: torch.Tensor, weight: torch.Tensor) -> object:
        return aten.native_group_norm_backward(
            x, x, mean, mean, weight, 8, 64, 256, 4, [True, True, True]
        )

    events = stream(run, meta(8, 64, 16, 16), meta(8, 4), meta(64))
    channels, groups = 8 * 64 * 4, 8 * 4 * 4
    assert events[3:8] == [channels, channels, groups, groups, channels]
    assert events[8:] == [-size for size in reversed(events[3:8])]


def copies(product: Callable[..., object], *operands: torch.Tensor) -> list[int]:
    """Return the bytes of each event of a product after its result and cuBLAS's workspace."""
    return stream(product, *operands)[2:]


@pytest.mark.parametrize(
    "readable",
    [
        meta(64, 32),
        meta(32, 64).T,
        meta(64, 100)[:, :32],
        meta(128, 32)[::2],
        meta(100, 64).T[:, :32],
        meta(64, 1, 32)[:, 0],
    ],
)
def test_a_product_reads_dense_rows_or_columns_without_a_copy(readable: torch.Tensor):
    assert copies(torch.mm, readable, meta(32, 16)) == []
    assert copies(torch.mv, readable, meta(32)) == []


@pytest.mark.parametrize(
    "operand",
    [meta(1, 1).expand(64, 32), meta(1, 32).expand(64, 32), meta(64, 64)[:, ::2]],
    ids=["expanded", "rows", "gaps"],
)
def test_a_product_copies_an_operand_that_is_expanded_or_has_gaps(operand: torch.Tensor):
    copy = 64 * 32 * 4
    assert copies(torch.mm, operand, meta(32, 16)) == [copy, -copy]
    assert copies(torch.mm, meta(16, 64), operand) == [copy, -copy]
    assert copies(torch.addmm, meta(16), operand, meta(32, 16)) == [copy, -copy]


def test_a_product_copies_the_second_operand_first():
    left, right = meta(1).expand(64, 32), meta(1).expand(32, 16)
    assert copies(torch.mm, left, right) == [2048, 8192, -8192, -2048]


def test_a_batched_product_reads_an_expanded_matrix_but_copies_an_expanded_row():
    other = meta(8, 32, 16)
    for readable in (
        meta(64, 32).expand(8, 64, 32),
        meta(64, 8, 32).transpose(0, 1),
        meta(8, 32, 64).mT,
        meta(8, 1, 32),
    ):
        assert copies(torch.bmm, readable, other) == []
    copy = 8 * 64 * 32 * 4
    for operand in (meta(8, 1, 32).expand(8, 64, 32), meta(64, 32, 8).permute(2, 0, 1)):
        assert copies(torch.bmm, operand, other) == [copy, -copy]
