"""Memory of what sorts indices on CUDA: gradients of an embedding, and adding to indexed places.

Indices that repeat are brought together before their rows are added. From ATen/native/cuda
(Embedding.cu, EmbeddingBackwardKernel.cu, Indexing.cu).
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from .cub import scan_bytes, sort_bytes, unique_by_key_bytes
from .masks import Mask, nonzero
from .requests import OUTPUT, Device, Kernel

aten = torch.ops.aten
_LONG = 8
# Up to so many indices a kernel adds the rows of an embedding's gradient without sorting.
_UNSORTED = 3072
_ROWS_PER_PART = 10


def _embedding_backward(
    device: Device,
    unsorted: int,
    count: int,
    rows: int,
    width: int,
    item: int,
    accumulator: int,
    bits: int,
) -> list[int]:
    """Places before and after the sort, and its storage; then parts of ten rows and their sums."""
    if count <= unsorted:
        return [0] * 14
    indices, segments = item * count, min(count, rows)
    parts = count // _ROWS_PER_PART + segments
    return [
        indices,
        indices,
        indices,
        sort_bytes(device, count, item, item, bits),
        indices,
        _LONG,
        indices,
        unique_by_key_bytes(count),
        item * segments,
        item * segments,
        scan_bytes(segments, item),
        _LONG,
        item * parts,
        accumulator * parts * width,
    ]


def _of_embedding_backward(
    _: Any,
    grad: torch.Tensor,
    indices: torch.Tensor,
    num_weights: int,
    padding_idx: int,
    scale_grad_by_freq: bool,
) -> tuple[int, ...] | None:
    del padding_idx
    if scale_grad_by_freq:
        return None
    item = indices.element_size()
    return (
        _UNSORTED,
        indices.numel(),
        num_weights,
        grad.size(-1),
        item,
        max(4, grad.element_size()),
        8 * item,
    )


# Modes of a bag: 0 sums, 1 averages, 2 takes the largest.
_MAX = 2


def _of_bag_backward(
    _: Any,
    grad: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    offset2bag: torch.Tensor,
    bag_size: torch.Tensor,
    maximum_indices: torch.Tensor,
    num_weights: int,
    scale_grad_by_freq: bool,
    mode: int,
    sparse: bool,
    per_sample_weights: torch.Tensor | None,
    padding_idx: int = -1,
) -> tuple[int, ...] | None:
    """embedding_bag_backward_cuda_sum_avg: sorted by as many bits as rows have."""
    del offsets, offset2bag, bag_size, maximum_indices, per_sample_weights
    if scale_grad_by_freq or sparse or mode == _MAX:
        return None
    highest = num_weights if padding_idx >= 0 else num_weights - 1 - padding_idx
    bits = max(1, highest.bit_length())
    return (
        0,
        indices.numel(),
        num_weights,
        grad.size(-1),
        indices.element_size(),
        max(4, grad.element_size()),
        bits,
    )


def _index_put(
    device: Device, count: int, dimensions: int, values: int, bits: int, mask: Mask | None
) -> list[int]:
    """Linear indices, made dimension by dimension; values laid out anew; the sort; a mask's places.

    `count` is 0 where nothing is added up: the indices are used as they are.
    """
    found = [0] * 5 if mask is None else nonzero(device, mask)
    indices = _LONG * count
    more = indices if dimensions > 1 else 0
    sort = sort_bytes(device, count, _LONG, _LONG, bits) if count else 0
    return [indices, indices, more, more, values, indices, indices, indices, sort, *found]


def _of_index_put(
    _: Any,
    tensor: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
    *__: Any,
    **___: Any,
) -> tuple[Any, ...] | None:
    given = [index for index in indices if index is not None]
    is_mask = [index.dtype in (torch.bool, torch.uint8) for index in given]
    if not given or (any(is_mask) and len(given) > 1):
        return None
    places = [place for place, index in enumerate(indices) if index is not None]
    if is_mask[0]:
        places = list(range(places[0], places[0] + given[0].dim()))
    elif not accumulate:
        return None
    if not accumulate and values.numel() == 1:
        # canDispatchToMaskedFill in native/TensorAdvancedIndexing.cpp
        return None
    kept = prod(size for place, size in enumerate(tensor.shape) if place not in places)
    if is_mask[0]:
        # The values tell how many places the mask has, unless they are repeated.
        count = values.numel() // max(1, kept)
        mask = Mask.of(given[0], count)
    else:
        count, mask = prod(torch.broadcast_shapes(*(index.shape for index in given))), None
    if not accumulate:
        return 0, 0, 0, 0, mask
    # Indexed dimensions that others stand between are moved to the front: all others lie behind.
    adjacent = places[-1] - places[0] == len(places) - 1
    behind = prod(tensor.shape[places[-1] + 1 :]) if adjacent else kept
    laid_out = values.is_contiguous() and values.numel() == count * kept
    highest = (tensor.numel() - 1) // max(1, behind)
    bits = max(1, highest.bit_length())
    return count, len(places), 0 if laid_out else count * kept * values.element_size(), bits, mask


_EMBEDDING_ORDER = (
    0,
    1,
    2,
    3,
    ~3,
    ~2,
    OUTPUT,
    4,
    5,
    6,
    7,
    ~7,
    ~6,
    8,
    9,
    10,
    ~10,
    11,
    12,
    13,
    ~13,
    ~12,
    ~11,
    ~9,
    ~8,
    ~5,
    ~4,
    ~1,
    ~0,
)
_INDEX_PUT = Kernel(
    rule=_index_put,
    numbers=_of_index_put,
    order=(
        OUTPUT,
        9,
        10,
        11,
        ~11,
        12,
        13,
        ~13,
        ~10,
        ~9,
        0,
        1,
        ~0,
        2,
        3,
        ~2,
        ~3,
        ~12,
        4,
        5,
        6,
        7,
        8,
        ~8,
        ~7,
        ~6,
        ~5,
        ~4,
        ~1,
    ),
)
SORTING: Mapping[Any, Kernel] = {
    aten.embedding_dense_backward.default: Kernel(
        rule=_embedding_backward, numbers=_of_embedding_backward, order=_EMBEDDING_ORDER
    ),
    aten._embedding_bag_backward.default: Kernel(
        rule=_embedding_backward, numbers=_of_bag_backward, order=_EMBEDDING_ORDER
    ),
    aten.index_put.default: _INDEX_PUT,
    aten.index_put_.default: _INDEX_PUT,
    aten._index_put_impl_.default: _INDEX_PUT,
}
