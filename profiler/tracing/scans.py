"""Memory of sums and products along a dimension on CUDA: cumsum, cumprod, logcumsumexp, cummax.

One row is scanned by cub, many rows without storage. From ATen/native/cuda (ScanKernels.cpp,
ScanUtils.cuh) and native/ReduceOps.cpp.
"""

from collections.abc import Mapping
from typing import Any

import torch

from .cub import scan_bytes
from .masks import copied_bytes
from .requests import Device, Kernel, after_outputs

aten = torch.ops.aten


def _scan(
    _: Device, cast: int, laid_out: int, copied: int, rows: int, length: int, item: int
) -> list[int]:
    """The input in the output's dtype, output and input laid out anew, storage for one row."""
    return [cast, laid_out, copied, scan_bytes(length, item) if rows == 1 else 0]


def _copy(_: Device, copied: int) -> list[int]:
    return [copied]


def _of_scan(
    result: torch.Tensor, tensor: torch.Tensor, dim: int, *_: Any, **__: Any
) -> tuple[int, ...] | None:
    if not tensor.dim() or not tensor.numel():
        return None
    nbytes = tensor.numel() * result.element_size()
    cast = nbytes if tensor.dtype != result.dtype else 0
    laid_out = copied_bytes(result)
    # A cast keeps the strides of what is dense.
    copied = 0 if tensor.is_contiguous() else nbytes
    length = tensor.size(dim)
    return cast, laid_out, copied, tensor.numel() // length, length, result.element_size()


def _of_scan_with_indices(_: Any, tensor: torch.Tensor, *__: Any, **___: Any) -> tuple[int]:
    return (copied_bytes(tensor),)


_SCAN = Kernel(rule=_scan, numbers=_of_scan, order=after_outputs(4))
_WITH_INDICES = Kernel(rule=_copy, numbers=_of_scan_with_indices, order=after_outputs(1))
SCANS: Mapping[Any, Kernel] = {
    aten.cumsum.default: _SCAN,
    aten.cumsum_.default: _SCAN,
    aten.cumprod.default: _SCAN,
    aten.cumprod_.default: _SCAN,
    aten.logcumsumexp.default: _SCAN,
    aten.cummax.default: _WITH_INDICES,
    aten.cummin.default: _WITH_INDICES,
}
