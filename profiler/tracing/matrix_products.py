"""Copies of operands that cuBLAS cannot read where they lie: expanded ones, and those with gaps in
both directions.

prepare_matrix_for_cublas in ATen/native/cuda/cuBlasCommonArgs.h, and
prepare_batch_matrix_for_cublas and addmv_out_cuda in Blas.cpp beside it. The gradient of `sum()` is
such an operand: one number, expanded.
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from .in_place import is_dense
from .requests import Device, Kernel, after_outputs

aten = torch.ops.aten


def _copies(_: Device, *nbytes: int) -> tuple[int, ...]:
    return nbytes


def _of_product(first: int, result: Any, *operands: Any, **__: Any) -> tuple[int, int] | None:
    """Bytes of the copies of the second operand and of the first, which are made in this order."""
    del result
    left, right = operands[first : first + 2]
    copies = _copied(right), _copied(left)
    return copies if any(copies) else None


def _copied(tensor: torch.Tensor) -> int:
    return 0 if _is_readable(tensor) else tensor.numel() * tensor.element_size()


def _is_readable(tensor: torch.Tensor) -> bool:
    """Return whether the rows or the columns of each matrix are dense, with a stride between
    them.
    """
    if tensor.dim() == 1:
        return tensor.stride(0) != 0
    (down, across), (rows, columns) = tensor.stride()[-2:], tensor.shape[-2:]
    if (across == 1 and down >= columns > 0) or (down == 1 and across >= rows > 0):
        return True
    if tensor.dim() == 2:
        return is_dense(tensor)
    return tensor.is_contiguous() and down != 0 and across != 0


PRODUCTS: Mapping[Any, Kernel] = {
    func: Kernel(rule=_copies, numbers=partial(_of_product, first), order=after_outputs(2))
    for func, first in (
        (aten.mm.default, 0),
        (aten.addmm.default, 1),
        (aten.bmm.default, 0),
        (aten.baddbmm.default, 1),
        (aten.mv.default, 0),
        (aten.addmv.default, 1),
    )
}
