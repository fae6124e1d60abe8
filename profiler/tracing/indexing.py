"""Memory of indexing on CUDA: gradients of embeddings, index_put, and the places of a mask.

Equal indices are sorted next to each other before their rows are added. The number of places where
a mask is set depends on values; the trace knows it from them, or from what fills the places. From
ATen/native/cuda (Embedding.cu, EmbeddingBackwardKernel.cu, Indexing.cu, Nonzero.cu,
IndexKernel.cpp, IndexKernel.cu), native/IndexingUtils.h and native/TensorAdvancedIndexing.cpp.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from .cub import scan_bytes, select_bytes, sort_bytes, sum_bytes, unique_by_key_bytes
from .requests import OUTPUT, Device, KernelMemory, copied_bytes

aten = torch.ops.aten
_LONG = 8
_INT = 4
# Up to this many indices, a kernel adds the rows of an embedding's gradient without sorting.
_UNSORTED = 3072
_ROWS_PER_PART = 10
# The modes of an embedding bag: 0 sums, 1 averages, 2 takes the largest.
_MAX = 2


class _Mask(NamedTuple):
    """A tensor whose nonzero places are looked up; `copied` are bytes of its contiguous copy."""

    numbers: int
    dimensions: int
    places: int
    copied: int

    @classmethod
    def of(cls, tensor: torch.Tensor, places: int) -> "_Mask":
        """Return the mask that a tensor is; `places` counts its nonzero elements."""
        return cls(tensor.numel(), tensor.dim(), places, copied_bytes(tensor))


def _nonzero(device: Device, mask: _Mask) -> list[int]:
    """nonzero_cuda_out_impl.

    The copied mask, a counter, storage to count, the places, storage to write them.
    """
    places = _LONG * mask.dimensions * mask.places
    return [
        mask.copied,
        _INT,
        sum_bytes(device, mask.numbers),
        places,
        select_bytes(mask.numbers) if mask.dimensions else 0,
    ]


def _of_nonzero(result: torch.Tensor, tensor: torch.Tensor) -> tuple[_Mask]:
    return (_Mask.of(tensor, result.size(0)),)


def _masked_scatter(_: Device, numbers: int, copied: int) -> list[int]:
    """masked_scatter__cuda: sums over the mask, its contiguous copy, the storage of the scan."""
    return [_LONG * numbers, copied, scan_bytes(numbers, _LONG)]


def _of_masked_scatter(
    result: torch.Tensor, _: Any, mask: torch.Tensor, source: torch.Tensor
) -> tuple[int, int] | None:
    del source
    if not result.numel():
        return None
    return result.numel(), copied_bytes(mask.expand(result.shape))


def _of_masked_scatter_backward(
    _: Any, grad: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> tuple[_Mask]:
    """masked_select; the trace assumes that the mask takes every element of the source."""
    return (_Mask.of(mask.expand(grad.shape), prod(sizes)),)


def _without_places(device: Device, mask: _Mask) -> list[int]:
    """As `_nonzero`, but the places are the output and no request."""
    copied, counter, counting, _, writing = _nonzero(device, mask)
    return [copied, counter, counting, writing]


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


def _of_bag_backward(
    _: Any, grad: torch.Tensor, indices: torch.Tensor, *arguments: Any
) -> tuple[int, ...] | None:
    """embedding_bag_backward_cuda_sum_avg: the sort looks at the bits of the highest row."""
    num_weights, scale_grad_by_freq, mode, sparse = arguments[4:8]
    padding_idx = arguments[9] if len(arguments) > 9 else -1
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
    device: Device, count: int, dimensions: int, values: int, bits: int, mask: _Mask | None
) -> list[int]:
    """Linear indices of each dimension, the copied values, the sort, and a mask's places.

    `count` is 0 if nothing is accumulated: the indices are then used unsorted.
    """
    of_mask = [0] * 5 if mask is None else _nonzero(device, mask)
    indices = _LONG * count
    more = indices if dimensions > 1 else 0
    sort = sort_bytes(device, count, _LONG, _LONG, bits) if count else 0
    return [indices, indices, more, more, values, indices, indices, indices, sort, *of_mask]


def _of_index_put(
    _: Any,
    tensor: torch.Tensor,
    indices: Sequence[torch.Tensor | None],
    values: torch.Tensor,
    accumulate: bool = False,
    *__: Any,
    **___: Any,
) -> tuple[Any, ...] | None:
    tensors = [index for index in indices if index is not None]
    is_mask = [index.dtype in (torch.bool, torch.uint8) for index in tensors]
    if not tensors or (any(is_mask) and len(tensors) > 1):
        return None
    places = [place for place, index in enumerate(indices) if index is not None]
    if is_mask[0]:
        places = list(range(places[0], places[0] + tensors[0].dim()))
    elif not accumulate:
        return None
    if not accumulate and values.numel() == 1:
        # canDispatchToMaskedFill in native/TensorAdvancedIndexing.cpp
        return None
    kept = prod(size for place, size in enumerate(tensor.shape) if place not in places)
    if is_mask[0]:
        # The number of values is that of the mask's places, unless they are broadcast.
        count = values.numel() // max(1, kept)
        mask = _Mask.of(tensors[0], count)
    else:
        count, mask = prod(torch.broadcast_shapes(*(index.shape for index in tensors))), None
    if not accumulate:
        return 0, 0, 0, 0, mask
    # Indexed dimensions that are not adjacent are moved to the front, before all others.
    adjacent = places[-1] - places[0] == len(places) - 1
    behind = prod(tensor.shape[places[-1] + 1 :]) if adjacent else kept
    is_ready = values.is_contiguous() and values.numel() == count * kept
    highest = (tensor.numel() - 1) // max(1, behind)
    bits = max(1, highest.bit_length())
    return count, len(places), 0 if is_ready else count * kept * values.element_size(), bits, mask


# Requests and frees of the embedding's gradient and of index_put, in the order of ATen's code.
_EMBEDDING_ORDER = (
    0, 1, 2, 3, ~3, ~2, OUTPUT, 4, 5, 6, 7, ~7, ~6, 8, 9, 10, ~10, 11, 12, 13, ~13, ~12, ~11, ~9,
    ~8, ~5, ~4, ~1, ~0,
)  # fmt: skip
_INDEX_PUT_ORDER = (
    OUTPUT, 9, 10, 11, ~11, 12, 13, ~13, ~10, ~9, 0, 1, ~0, 2, 3, ~2, ~3, ~12, 4, 5, 6, 7, 8, ~8,
    ~7, ~6, ~5, ~4, ~1,
)  # fmt: skip
_INDEX_PUT = KernelMemory(rule=_index_put, numbers=_of_index_put, order=_INDEX_PUT_ORDER)
_MASKED_SCATTER = KernelMemory(
    rule=_masked_scatter, numbers=_of_masked_scatter, order=(OUTPUT, 0, 1, 2, ~2, ~1, ~0)
)
INDEXING: Mapping[Any, KernelMemory] = {
    aten.embedding_dense_backward.default: KernelMemory(
        rule=_embedding_backward, numbers=_of_embedding_backward, order=_EMBEDDING_ORDER
    ),
    aten._embedding_bag_backward.default: KernelMemory(
        rule=_embedding_backward, numbers=_of_bag_backward, order=_EMBEDDING_ORDER
    ),
    aten.index_put.default: _INDEX_PUT,
    aten.index_put_.default: _INDEX_PUT,
    aten._index_put_impl_.default: _INDEX_PUT,
    aten.nonzero.default: KernelMemory(
        rule=_without_places, numbers=_of_nonzero, order=(0, 1, 2, ~2, OUTPUT, 3, ~3, ~1, ~0)
    ),
    aten.masked_scatter.default: _MASKED_SCATTER,
    aten.masked_scatter_.default: _MASKED_SCATTER,
    aten.masked_scatter_backward.default: KernelMemory(
        rule=_nonzero,
        numbers=_of_masked_scatter_backward,
        order=(0, 1, 2, ~2, 3, 4, ~4, ~1, ~0, OUTPUT, ~3),
    ),
}
