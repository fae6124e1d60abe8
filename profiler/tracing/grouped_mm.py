"""Grouped matrix products, as of the experts of a mixture, with the output layout of CUDA.

From aten/src/ATen/native/GroupedMMUtils.h of torch 2.13. The sizes of the groups are values on the
device, but do not change what is allocated: the fallback, for dtypes other than bf16 and for GPUs
other than Hopper and B200, writes each group into its part of the one output.
"""

from typing import NoReturn

import torch

_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
_ALIGNMENT = 16


def grouped_mm(
    self: torch.Tensor,
    mat2: torch.Tensor,
    offs: torch.Tensor | None = None,
    bias: torch.Tensor | None = None,
    out_dtype: torch.dtype | None = None,
) -> torch.Tensor:
    """Return the output of `_grouped_mm`, whose rows begin on multiples of 16 bytes.

    torch's own meta kernel takes only bf16, and pads rows only in CUDA builds.
    """
    _validate(self, mat2, offs, bias, out_dtype)
    *outer, width = _shape(self, mat2, offs)
    row = _ALIGNMENT // self.element_size()
    padded = -(-width // row) * row
    strides = (padded, 1) if len(outer) == 1 else (outer[1] * padded, padded, 1)
    return torch.empty_strided((*outer, width), strides, dtype=self.dtype, device="meta")


def _shape(
    left: torch.Tensor,
    right: torch.Tensor,
    offsets: torch.Tensor | None,
) -> tuple[int, ...]:
    """create_grouped_gemm_output_tensor."""
    if left.dim() == right.dim() == 3:
        return left.size(0), left.size(1), right.size(2)
    assert offsets is not None
    if left.dim() == right.dim():
        return offsets.size(0), left.size(0), right.size(1)
    return left.size(-2), right.size(-1)


def _validate(
    left: torch.Tensor,
    right: torch.Tensor,
    offsets: torch.Tensor | None,
    bias: torch.Tensor | None,
    out_dtype: torch.dtype | None,
) -> None:
    """_grouped_mm_validate_inputs, _resolve_grouped_mm_out_dtype."""
    if left.dtype not in _DTYPES or right.dtype not in _DTYPES:
        _refuse(f"takes bf16, fp16 and fp32, got {left.dtype} and {right.dtype}")
    if left.dim() not in (2, 3) or right.dim() not in (2, 3):
        _refuse(f"takes tensors of 2 or 3 dimensions, got {left.dim()} and {right.dim()}")
    if (left.dim() == 3 or right.dim() == 3) and left.size(-1) != right.size(-2):
        _refuse(f"cannot multiply {tuple(left.shape)} by {tuple(right.shape)}")
    if (offsets is None) != (left.dim() == right.dim() == 3):
        _refuse("takes offs if and only if a tensor has 2 dimensions")
    if offsets is not None and (offsets.dim() != 1 or offsets.dtype != torch.int32):
        _refuse(f"takes int32 offsets of one dimension, got {offsets.dtype}, {offsets.dim()}")
    if bias is not None:
        _refuse("takes no bias yet")
    if out_dtype not in (None, left.dtype):
        _refuse(f"returns its first tensor's dtype, {left.dtype}, got out_dtype={out_dtype}")
    stacked = [tensor for tensor in (left, right) if tensor.dim() == 3]
    groups = {tensor.size(0) for tensor in (*stacked, *(() if offsets is None else (offsets,)))}
    if len(groups) > 1:
        _refuse(f"takes one number of groups, got {sorted(groups)}")
    for tensor in (left, right):
        _check_strides(tensor)


def _check_strides(tensor: torch.Tensor) -> None:
    """check_valid_strides_and_return_transposed."""
    row = _ALIGNMENT // tensor.element_size()
    (rows, columns), (outer, inner) = tensor.shape[-2:], tensor.stride()[-2:]
    if outer == 1 and inner >= max(1, rows):
        stride = inner
    elif inner == 1 and outer >= max(1, columns):
        stride = outer
    else:
        _refuse(f"takes rows or columns without gaps, got strides {tensor.stride()}")
    if stride % row:
        _refuse(
            f"takes rows that begin on multiples of {_ALIGNMENT} bytes, got a stride of {stride}"
        )


def _refuse(reason: str) -> NoReturn:
    raise RuntimeError(f"grouped_mm {reason}")
