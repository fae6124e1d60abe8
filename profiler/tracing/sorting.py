"""Memory of what sorts indices on CUDA: gradients of an embedding, and adding to indexed places.

Indices that repeat are brought together before their rows are added. From ATen/native/cuda
(Embedding.cu, EmbeddingBackwardKernel.cu, Indexing.cu), ATen/cuda/cub.cuh, and cub's
dispatch_radix_sort.cuh.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from .requests import OUTPUT, Device, Kernel

aten = torch.ops.aten
_LONG = 8
# Up to so many indices a kernel adds the rows of an embedding's gradient without sorting.
_UNSORTED = 3072
_ROWS_PER_PART = 10

# Numbers that a block sorts, by the bytes of a key: one block alone, and one of many.
_ONE_BLOCK = {4: 256 * 19, 8: 256 * 9}
_BLOCK = {4: 384 * 17, 8: 384 * 10}
_DIGIT_BITS = 8


def sort_pairs_bytes(count: int, item: int, bits: int) -> int:
    """Bytes that DeviceRadixSort::SortPairs needs: histograms, counts of blocks, a second buffer.

    Keys and values are as wide. The sizes of blocks are those of compute capability 8.0; two sizes
    that were recorded, one on 9.0, agree with them.
    """
    if count <= _ONE_BLOCK[item]:
        return 1
    passes, digits = -(-bits // _DIGIT_BITS), 1 << _DIGIT_BITS
    second = count * item if passes > 1 else 0
    parts = (passes * digits * _LONG, -(-count // _BLOCK[item]) * digits * 4, second, second, passes * 4)
    return _in_one(parts)


def _scan_bytes(count: int) -> int:
    """Bytes that a scan over longs needs: a state for each block of about 1,024, and 32 more."""
    return _in_one((16 * (-(-count // 1024) + 32),))


def _in_one(parts: Sequence[int]) -> int:
    """cub::AliasTemporaries: each part begins at a multiple of 256 bytes, wherever all begins."""
    return sum(-(-part // 256) * 256 for part in parts) + 255


def _embedding_backward(_: Device, count: int, rows: int, width: int, item: int, accumulator: int) -> list[int]:
    """Places before and after the sort, and its storage; then parts of ten rows and their sums."""
    if count <= _UNSORTED:
        return [0] * 14
    indices, segments = item * count, min(count, rows)
    parts = count // _ROWS_PER_PART + segments
    return [
        indices,
        indices,
        indices,
        sort_pairs_bytes(count, item, 8 * item),
        indices,
        _LONG,
        indices,
        _scan_bytes(count),
        item * segments,
        item * segments,
        _scan_bytes(segments),
        _LONG,
        item * parts,
        accumulator * parts * width,
    ]


def _of_embedding_backward(
    _: Any, grad: torch.Tensor, indices: torch.Tensor, num_weights: int, padding_idx: int, scale_grad_by_freq: bool
) -> tuple[int, ...] | None:
    del padding_idx
    if scale_grad_by_freq:
        return None
    return indices.numel(), num_weights, grad.size(-1), indices.element_size(), max(4, grad.element_size())


def _index_put(_: Device, count: int, dimensions: int, values: int, bits: int) -> list[int]:
    """Linear indices, made dimension by dimension; values laid out anew; the sort of indices."""
    indices = _LONG * count
    more = indices if dimensions > 1 else 0
    return [indices, indices, more, more, values, indices, indices, indices, sort_pairs_bytes(count, _LONG, bits)]


def _of_index_put(
    _: Any,
    tensor: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
    *__: Any,
    **___: Any,
) -> tuple[int, ...] | None:
    given = [index for index in indices if index is not None]
    if not accumulate or not given or any(index.dtype in (torch.bool, torch.uint8) for index in given):
        return None
    count = prod(torch.broadcast_shapes(*(index.shape for index in given)))
    places = [place for place, index in enumerate(indices) if index is not None]
    kept = prod(size for place, size in enumerate(tensor.shape) if place not in places)
    # Indexed dimensions that others stand between are moved to the front: all others lie behind.
    adjacent = places[-1] - places[0] == len(places) - 1
    behind = prod(tensor.shape[places[-1] + 1 :]) if adjacent else kept
    laid_out = values.is_contiguous() and values.numel() == count * kept
    highest = (tensor.numel() - 1) // max(1, behind)
    return count, len(given), 0 if laid_out else count * kept * values.element_size(), max(1, highest.bit_length())


_EMBEDDING = Kernel(
    rule=_embedding_backward,
    numbers=_of_embedding_backward,
    order=(0, 1, 2, 3, ~3, ~2, OUTPUT, 4, 5, 6, 7, ~7, ~6, 8, 9, 10, ~10, 11, 12, 13, ~13, ~12, ~11, ~9, ~8, ~5, ~4, ~1, ~0),
)
_INDEX_PUT = Kernel(
    rule=_index_put,
    numbers=_of_index_put,
    order=(OUTPUT, 0, 1, ~0, 2, 3, ~2, ~3, 4, 5, 6, 7, 8, ~8, ~7, ~6, ~5, ~4, ~1),
)
SORTING: Mapping[Any, Kernel] = {
    aten.embedding_dense_backward.default: _EMBEDDING,
    aten.index_put.default: _INDEX_PUT,
    aten.index_put_.default: _INDEX_PUT,
    aten._index_put_impl_.default: _INDEX_PUT,
}
