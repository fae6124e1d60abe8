"""Memory of sorts, selections and scans along a dimension on CUDA.

That is sort, topk, kthvalue, median, mode and randperm; cumsum, cumprod, logcumsumexp and cummax.
From ATen/native/cuda (Sort.cpp, Sort.cu, SortStable.cu, TensorTopK.cpp, TensorTopK.cu, Sorting.cpp,
TensorModeKernel.cpp, Randperm.cu, ScanKernels.cpp, ScanUtils.cuh) and native/ReduceOps.cpp. The
rules hold for up to 2^31 numbers.
"""

from collections.abc import Mapping, Sequence
from math import ceil, log, log2
from typing import Any, NamedTuple

import torch

from .cub import keyed_scan_bytes, scan_bytes, segmented_sort_bytes, sort_bytes
from .requests import (
    OUTPUT,
    Device,
    KernelMemory,
    after_outputs,
    before_outputs,
    copied_bytes,
    fixed,
)

aten = torch.ops.aten
_LONG = 8
_INT = 4
# should_use_small_sort: one block sorts a row in place.
_SMALL_SORT = 4096
# The longest row that one block takes: twice its threads.
_MOST_OF_MODE = 2048


class _Rows(NamedTuple):
    """Rows to sort; outputs are copied too if their rows are not contiguous (`lies_across`)."""

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


def _sort(device: Device, sorted_rows: _Rows) -> list[int]:
    """The places of a small row; contiguous copies of input and outputs; the buffers of the sort.

    A single row and very long rows are sorted one by one, 2 to 127 rows at once and then by row
    number, more rows as segments.
    """
    rows, length, item, is_copied, lies_across = sorted_rows
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


# The order in which they are requested and freed.
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
    """should_use_multiblock: return whether several blocks share one row."""
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
    """mbtopk::launch: numbers of each row, digit counts of each block, sums of two counts."""
    if not _shares_rows(rows, length):
        return [0] * 9
    in_flight = device.multiprocessors * _TOPK_BLOCKS * _TOPK_THREADS
    items = max(4, min(-(-rows * length // in_flight), 64))
    blocks = rows * -(-length // (items * _TOPK_THREADS))
    pattern = _LONG if item == _LONG else _INT
    each_row = [rows * item, rows * _INT, 2 * rows * _INT, 2 * rows * pattern]
    scan = keyed_scan_bytes(blocks)
    return [*each_row, blocks * _DIGITS * 2, blocks * _INT, blocks * _INT, scan, scan]


def _topk(device: Device, copied: int, rows: _Rows, k: int, is_sorted: bool) -> list[int]:
    """The copied input and the selection; then a sort of the results if a block cannot sort them.

    That sort has indices, values, its own requests, and the sorted indices.
    """
    selection = [copied, *_selection(device, rows.rows, rows.length, rows.item)]
    if not is_sorted or k <= _SMALL_SORT:
        return selection + [0] * (3 + _SORT_PLACES)
    indices, values = _LONG * rows.rows * k, rows.item * rows.rows * k
    return [*selection, indices, values, *_sort(device, rows._replace(length=k)), indices]


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


def _of_copied(_: Any, tensor: torch.Tensor, *__: Any, **___: Any) -> tuple[int]:
    """kthvalue_out_cuda, median_with_indices_impl, cummax: a contiguous copy of the input."""
    return (copied_bytes(tensor),)


def _of_mode(
    _: Any, tensor: torch.Tensor, dim: int = -1, *__: Any, **___: Any
) -> tuple[int] | None:
    """mode_kernel_impl: the input with contiguous rows; a copy if a row needs several blocks."""
    if not tensor.dim() or tensor.size(dim) <= 1:
        return None
    rows = tensor.transpose(dim, -1)
    is_copied = not rows.is_contiguous() or tensor.size(dim) > _MOST_OF_MODE
    return (tensor.numel() * tensor.element_size() if is_copied else 0,)


def _randperm(device: Device, count: int, item: int) -> list[int]:
    """randperm_out_cuda: sorted numbers, random keys, sorted keys, and the sort's storage.

    Keys have enough bits to be distinct with a probability of 0.9.
    """
    bits = min(64, ceil(log2(count - (6 * count**2 + 1) / (12 * log(0.9)))))
    key = _INT if bits <= 32 else _LONG
    return [item * count, key * count, key * count, sort_bytes(device, count, key, item, bits)]


def _of_randperm(result: torch.Tensor, *_: Any, **__: Any) -> tuple[int, int] | None:
    return (result.numel(), result.element_size()) if result.numel() else None


def _scan(
    _: Device, cast: int, output: int, copied: int, rows: int, length: int, item: int
) -> list[int]:
    """The input cast to the output's dtype, contiguous copies of output and input, cub's storage.

    cub scans a single row; many rows need no storage.
    """
    return [cast, output, copied, scan_bytes(length, item) if rows == 1 else 0]


def _of_scan(
    result: torch.Tensor, tensor: torch.Tensor, dim: int, *_: Any, **__: Any
) -> tuple[int, ...] | None:
    if not tensor.dim() or not tensor.numel():
        return None
    nbytes = tensor.numel() * result.element_size()
    cast = nbytes if tensor.dtype != result.dtype else 0
    output = copied_bytes(result)
    # A cast keeps the strides of a dense tensor.
    copied = 0 if tensor.is_contiguous() else nbytes
    length = tensor.size(dim)
    return cast, output, copied, tensor.numel() // length, length, result.element_size()


_SORT = KernelMemory(rule=_sort, numbers=_of_sort, order=(OUTPUT, *_SORT_ORDER))
_FIRST_OF_SORT = 12
_TOPK = KernelMemory(
    rule=_topk,
    numbers=_of_topk,
    order=(
        *(OUTPUT, 0, 1, 2, 3, 4, 5, 6, 7, 8, ~8, 9, ~9, ~7, ~6, ~5, ~4, ~3, ~2, ~1, ~0, 10, 11),
        *(step + _FIRST_OF_SORT if step >= 0 else step - _FIRST_OF_SORT for step in _SORT_ORDER),
        *(21, ~21, ~11, ~10),
    ),
)
_SELECTION = KernelMemory(rule=fixed, numbers=_of_copied, order=before_outputs(1))
_RANDPERM = KernelMemory(rule=_randperm, numbers=_of_randperm, order=after_outputs(4))
_SCAN = KernelMemory(rule=_scan, numbers=_of_scan, order=after_outputs(4))
_SCAN_WITH_INDICES = KernelMemory(rule=fixed, numbers=_of_copied, order=after_outputs(1))
SORTING: Mapping[Any, KernelMemory] = {
    aten.sort.default: _SORT,
    aten.sort.stable: _SORT,
    aten.topk.default: _TOPK,
    aten.topk.values: _TOPK,
    aten.kthvalue.default: _SELECTION,
    aten.median.dim: _SELECTION,
    aten.nanmedian.dim: _SELECTION,
    aten.mode.default: KernelMemory(rule=fixed, numbers=_of_mode, order=after_outputs(1)),
    aten.randperm.default: _RANDPERM,
    aten.randperm.generator: _RANDPERM,
    aten.cumsum.default: _SCAN,
    aten.cumsum_.default: _SCAN,
    aten.cumprod.default: _SCAN,
    aten.cumprod_.default: _SCAN,
    aten.logcumsumexp.default: _SCAN,
    aten.cummax.default: _SCAN_WITH_INDICES,
    aten.cummin.default: _SCAN_WITH_INDICES,
}
