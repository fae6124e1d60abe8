"""Memory of matrix products on CUDA: cuBLAS's workspace, and copies of operands it cannot read.

cuBLAS cannot read expanded operands, nor operands with gaps in both directions. The gradient of
`sum()` is such an operand: one number, expanded. From ATen/native/cuda: cuBlasCommonArgs.h
(prepare_matrix_for_cublas) and Blas.cpp (prepare_batch_matrix_for_cublas, addmv_out_cuda).
"""

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from .in_place import is_dense
from .requests import Device, KernelMemory, Request, after_outputs, fixed

aten = torch.ops.aten
# parseChosenWorkspaceSize in ATen/cuda/CublasHandlePool.cpp, by the major compute capability;
# cublasLt uses the same memory.
_WORKSPACE = 2 * 4096 * 1024 + 8 * 16 * 1024
_LARGE_WORKSPACE = 32 << 20
_AMD_WORKSPACE = 128 << 20


def _workspace(device: Device) -> tuple[int]:
    if device.is_amd:
        return (_AMD_WORKSPACE,)
    return (_LARGE_WORKSPACE if device.compute_capability[0] >= 9 else _WORKSPACE,)


WORKSPACE = Request(_workspace, (), 0)


def _of_product(first: int, result: Any, *operands: Any, **__: Any) -> tuple[int, int] | None:
    """Bytes of the copies of the second operand and of the first, which are made in this order."""
    del result
    left, right = operands[first : first + 2]
    copies = _copied(right), _copied(left)
    return copies if any(copies) else None


def _copied(tensor: torch.Tensor) -> int:
    return 0 if _is_readable(tensor) else tensor.numel() * tensor.element_size()


def _is_readable(tensor: torch.Tensor) -> bool:
    """Return whether the rows or the columns of each matrix are dense, at a fixed stride."""
    if tensor.dim() == 1:
        return tensor.stride(0) != 0
    (down, across), (rows, columns) = tensor.stride()[-2:], tensor.shape[-2:]
    if (across == 1 and down >= columns > 0) or (down == 1 and across >= rows > 0):
        return True
    if tensor.dim() == 2:
        return is_dense(tensor)
    return tensor.is_contiguous() and down != 0 and across != 0


PRODUCTS: Mapping[Any, KernelMemory] = {
    operation: KernelMemory(rule=fixed, numbers=partial(_of_product, first), order=after_outputs(2))
    for operation, first in (
        (aten.mm.default, 0),
        (aten.addmm.default, 1),
        (aten.bmm.default, 0),
        (aten.baddbmm.default, 1),
        (aten.mv.default, 0),
        (aten.addmv.default, 1),
    )
}
