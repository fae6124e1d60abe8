"""Memory that puts numbers in order on CUDA: sort, topk, kthvalue, median, mode, randperm.

From ATen/native/cuda (Sort.cpp, Sort.cu, SortStable.cu, TensorTopK.cpp, TensorTopK.cu,
Sorting.cpp, TensorModeKernel.cpp, Randperm.cu). The rules hold for up to 2^31 numbers.
"""

from collections.abc import Mapping, Sequence
from math import ceil, log, log2
from typing import Any, NamedTuple

import torch

from .cub import keyed_scan_bytes, segmented_sort_bytes, sort_bytes
from .masks import copied_bytes
from .requests import OUTPUT, Device, Kernel, after_outputs, before_outputs

aten = torch.ops.aten
_LONG = 8
_INT = 4
# should_use_small_sort: one block sorts a row in place.
_SMALL_SORT = 4096
# Twice the threads of a block.
_MOST_OF_MODE = 2048


class _Rows(NamedTuple):
    """Rows to sort, which may have to be laid out anew; so have outputs where rows lie across."""

    rows: int
    length: int
    item: int
    is_copied: bool
    lies_across: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, dim: int, output: torch.Tensor) -> "_Rows":
        """Return the rows along a dimension of a tensor, as sort_cuda_kernel sees them."""
        if not tensor.dim():
            return cls(1, 1, tensor.element_size(), is_copied=False, lies_across=False)
        length = tensor.size(dim)
        is_copied = tensor.stride(dim) != 1 or not aten.is_non_overlapping_and_dense.default(tensor)
        lies_across = is_copied and output.stride(dim) != 1
        return cls(
            tensor.numel() // max(1, length),
            length,
            tensor.element_size(),
            is_copied=is_copied,
            lies_across=lies_across,
        )


_SORT_PLACES = 9


def _sort(device: Device, given: _Rows) -> list[int]:
    """Numbers of a small row's places; input and both outputs side by side; the buffers of a sort.

    Few rows are sorted one by one, up to 127 all at once and then by their row, many as segments.
    """
    rows, length, item, is_copied, lies_across = given
    if length <= _SMALL_SORT:
        return [_LONG * length] + [0] * (_SORT_PLACES - 1)
    count = rows * length
    moved = [
        count * item if is_copied else 0,
        count * item if lies_across else 0,
        count * _LONG if lies_across else 0,
    ]
    if rows == 1 or length >= 1_000_000:
        buffers = [_LONG * length, 0, 0, sort_bytes(device, length, item, _LONG, 8 * item), 0]
    elif rows < 128:
        bits = max(1, ceil(log2(rows)))
        by_value = sort_bytes(device, count, item, _LONG, 8 * item)
        by_row = sort_bytes(device, count, _LONG, 0, bits)
        buffers = [_LONG * count, _LONG * count, item * count, by_value, by_row]
    else:
        buffers = [_LONG * count, 0, 0, segmented_sort_bytes(count, item, _LONG), 0]
    return [0, *moved, *buffers]


# The order in which they are requested and given back.
_SORT_ORDER = (0, ~0, 1, 2, 3, 4, 5, 6, 7, ~7, ~6, 8, ~8, ~5, ~4, ~3, ~2, ~1)


def _of_sort(
    result: Sequence[torch.Tensor], tensor: torch.Tensor, dim: int = -1, *_: Any, **__: Any
) -> tuple[_Rows] | None:
    return (_Rows.of(tensor, dim, result[0]),) if tensor.dim() and tensor.numel() else None


# get_items_per_thread: blocks of 256 threads with 40 registers each, 6 on a multiprocessor.
_TOPK_THREADS = 256
_TOPK_BLOCKS = 6
_DIGITS = 256


def _shares_rows(rows: int, length: int) -> bool:
    """should_use_multiblock: several blocks take one row."""
    for most, least in (
        (20, 20_000),
        (40, 10_000),
        (80, 8000),
        (199, 5000),
        (799, 3000),
        (4000, 800),
    ):
        if rows <= most:
            return length >= least
    return length >= 400


def _selection(device: Device, rows: int, length: int, item: int) -> list[int]:
    """mbtopk::launch: numbers of each row, counts of digits in each block, sums of two counts."""
    if not _shares_rows(rows, length):
        return [0] * 9
    in_flight = device.multiprocessors * _TOPK_BLOCKS * _TOPK_THREADS
    items = max(4, min(-(-rows * length // in_flight), 64))
    blocks = rows * -(-length // (items * _TOPK_THREADS))
    pattern = _LONG if item == _LONG else _INT
    each_row = [rows * item, rows * _INT, 2 * rows * _INT, 2 * rows * pattern]
    scan = keyed_scan_bytes(blocks)
    return [*each_row, blocks * _DIGITS * 2, blocks * _INT, blocks * _INT, scan, scan]


def _topk(device: Device, copied: int, given: _Rows, k: int, is_sorted: bool) -> list[int]:
    """The input laid out anew, the selection; more than a block sorts are sorted aside.

    Indices and values of that sort, its places, and the indices by it.
    """
    found = [copied, *_selection(device, given.rows, given.length, given.item)]
    if not is_sorted or k <= _SMALL_SORT:
        return found + [0] * (3 + _SORT_PLACES)
    indices, values = _LONG * given.rows * k, given.item * given.rows * k
    return [*found, indices, values, *_sort(device, given._replace(length=k)), indices]


def _of_topk(
    result: Sequence[torch.Tensor],
    tensor: torch.Tensor,
    k: int,
    dim: int = -1,
    *options: bool,
    **_: Any,
) -> tuple[Any, ...] | None:
    is_sorted = options[1] if len(options) > 1 else True
    if not tensor.numel() or not k:
        return None
    rows = _Rows.of(result[0], dim, result[0])._replace(
        length=tensor.size(dim) if tensor.dim() else 1
    )
    return copied_bytes(tensor), rows, k, is_sorted


def _copy(_: Device, copied: int) -> list[int]:
    return [copied]


def _of_selection(_: Any, tensor: torch.Tensor, *__: Any, **___: Any) -> tuple[int]:
    """kthvalue_out_cuda, median_with_indices_impl: the input laid out anew."""
    return (copied_bytes(tensor),)


def _of_mode(
    _: Any, tensor: torch.Tensor, dim: int = -1, *__: Any, **___: Any
) -> tuple[int] | None:
    """mode_kernel_impl: the input with its rows side by side; a copy of rows beyond one block."""
    if not tensor.dim() or tensor.size(dim) <= 1:
        return None
    rows = tensor.transpose(dim, -1)
    is_copied = not rows.is_contiguous() or tensor.size(dim) > _MOST_OF_MODE
    return (tensor.numel() * tensor.element_size() if is_copied else 0,)


def _randperm(device: Device, count: int, item: int) -> list[int]:
    """randperm_out_cuda: numbers in order, random keys, keys in order, and the sort's storage.

    So many bits that keys are different with a probability of 0.9.
    """
    bits = min(64, ceil(log2(count - (6 * count**2 + 1) / (12 * log(0.9)))))
    key = _INT if bits <= 32 else _LONG
    return [item * count, key * count, key * count, sort_bytes(device, count, key, item, bits)]


def _of_randperm(result: torch.Tensor, *_: Any, **__: Any) -> tuple[int, int] | None:
    return (result.numel(), result.element_size()) if result.numel() else None


_SORT = Kernel(rule=_sort, numbers=_of_sort, order=(OUTPUT, *_SORT_ORDER))
_FIRST_OF_SORT = 12
_TOPK = Kernel(
    rule=_topk,
    numbers=_of_topk,
    order=(
        *(OUTPUT, 0, 1, 2, 3, 4, 5, 6, 7, 8, ~8, 9, ~9, ~7, ~6, ~5, ~4, ~3, ~2, ~1, ~0, 10, 11),
        *(step + _FIRST_OF_SORT if step >= 0 else step - _FIRST_OF_SORT for step in _SORT_ORDER),
        *(21, ~21, ~11, ~10),
    ),
)
_SELECTION = Kernel(rule=_copy, numbers=_of_selection, order=before_outputs(1))
ORDERING: Mapping[Any, Kernel] = {
    aten.sort.default: _SORT,
    aten.sort.stable: _SORT,
    aten.topk.default: _TOPK,
    aten.topk.values: _TOPK,
    aten.kthvalue.default: _SELECTION,
    aten.median.dim: _SELECTION,
    aten.nanmedian.dim: _SELECTION,
    aten.mode.default: Kernel(rule=_copy, numbers=_of_mode, order=after_outputs(1)),
    aten.randperm.default: Kernel(rule=_randperm, numbers=_of_randperm, order=after_outputs(4)),
    aten.randperm.generator: Kernel(rule=_randperm, numbers=_of_randperm, order=after_outputs(4)),
}
