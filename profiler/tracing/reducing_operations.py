"""The operations that reduce on CUDA, and the numbers each gives to the rule in reductions.py.

A kernel is compiled for the dtypes of its input, output and partial results. Each function names
its file of ATen/native/cuda.
"""

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import torch

from .reductions import Arithmetic, staging
from .requests import (
    HALF_DTYPES,
    Device,
    KernelMemory,
    after_outputs,
    before_outputs,
    copied_bytes,
)

_MAX_THREADS = 512
_MAX_THREADS_COMPLEX_DOUBLE = 256


@cache
def _arithmetic(
    item: torch.dtype,
    output: torch.dtype,
    accumulator: int,
    *,
    vector: int = 4,
    in_output: bool = True,
) -> Arithmetic:
    stays_half = item == output and item in HALF_DTYPES
    return Arithmetic(
        item=item.itemsize,
        accumulator=accumulator,
        output=output.itemsize,
        input_vector=vector,
        max_threads=_MAX_THREADS_COMPLEX_DOUBLE if item == torch.complex128 else _MAX_THREADS,
        accumulates_in_output=in_output and not stays_half,
    )


_INDEX_PAIR = 16
aten = torch.ops.aten


def _dims(tensor: torch.Tensor, dim: Any) -> tuple[int, ...]:
    """Return the reduced dimensions, counted from 0; without `dim` all of them."""
    count = tensor.dim()
    dims = (dim,) if isinstance(dim, int) else dim or range(count)
    return tuple([place % count if count else 0 for place in dims])


def _numbers(tensor: torch.Tensor, dim: Any, arithmetic: Arithmetic) -> tuple[Any, ...]:
    return (
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
        _dims(tensor, dim),
        arithmetic,
    )


def _with_cast(device: Device, cast: int, *numbers: Any) -> tuple[int, ...]:
    """The input in the output's dtype if the kernel cannot cast it, then the reduction's own."""
    return cast, *staging(device, *numbers)


def _in_output_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
    """make_reduction_from_out_ty (ReduceOpsUtils.h): bytes of the cast input, and that input."""
    if tensor.dtype == dtype or (tensor.dtype in HALF_DTYPES and dtype == torch.float32):
        return 0, tensor
    return tensor.numel() * dtype.itemsize, torch.empty_like(tensor, dtype=dtype)


def _first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def _summed(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """sum and mean (ReduceSumProdKernel.cu, ReduceMomentKernel.cu).

    Half precision is summed in float32, and eight elements are loaded at once.
    """
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    is_half = tensor.dtype in HALF_DTYPES
    accumulator = 4 if is_half else tensor.dtype.itemsize
    return cast, *_numbers(
        tensor,
        dim,
        _arithmetic(tensor.dtype, result.dtype, accumulator, vector=8 if is_half else 4),
    )


def _multiplied(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """prod: as sum, but four elements are loaded at once."""
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    accumulator = 4 if tensor.dtype in HALF_DTYPES else tensor.dtype.itemsize
    return cast, *_numbers(tensor, dim, _arithmetic(tensor.dtype, result.dtype, accumulator))


def _norm(
    result: torch.Tensor, tensor: torch.Tensor, order: Any = 2, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """linalg_vector_norm (ReduceNormKernel.cu)."""
    del order
    return _multiplied(result, tensor, dim)


def _moments(
    result: Any, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """std, var and both with the mean (ReduceMomentKernel.cu): WelfordData, two at once."""
    # A mean, a sum of squares, and the count as a floating-point number and as an int.
    output = _first(result).dtype
    cast, tensor = _in_output_dtype(tensor, output)
    accumulator = 32 if tensor.dtype == torch.float64 else 16
    return cast, *_numbers(
        tensor, dim, _arithmetic(tensor.dtype, output, accumulator, vector=2, in_output=False)
    )


def _extreme(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """amax and amin (ReduceMaxValuesKernel.cu, ReduceMinValuesKernel.cu): in the input's dtype."""
    del result
    return 0, *_numbers(tensor, dim, _arithmetic(tensor.dtype, tensor.dtype, tensor.dtype.itemsize))


def _extreme_of_all(result: torch.Tensor, tensor: torch.Tensor) -> tuple[Any, ...]:
    """max and min of all elements, of a contiguous copy if necessary (ReduceAllOps.cpp)."""
    copied = copied_bytes(tensor)
    return copied, *_extreme(
        result,
        tensor if not copied else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"),
    )[1:]


def _extreme_with_index(
    result: Any, tensor: torch.Tensor, dim: int, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """max and min with indices (TensorCompare.cu): pairs of a value and an index of 64 bits."""
    del result
    return 0, *_numbers(
        tensor, dim, _arithmetic(tensor.dtype, tensor.dtype, _INDEX_PAIR, in_output=False)
    )


def _index(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """argmax and argmin (ReduceArgMaxKernel.cu); without a dimension of the flat tensor."""
    copied = 0
    if dim is None:
        copied = copied_bytes(tensor)
        tensor, dim = torch.empty(tensor.numel(), dtype=tensor.dtype, device="meta"), 0
    return copied, *_numbers(
        tensor, dim, _arithmetic(tensor.dtype, result.dtype, _INDEX_PAIR, in_output=False)
    )


def _logical(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """any and all (ReduceLogicKernel.cu): partial results in the input's dtype."""
    return 0, *_numbers(tensor, dim, _arithmetic(tensor.dtype, result.dtype, tensor.dtype.itemsize))


def column_sums(device: Device, rows: int, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the bytes of the staging buffer and semaphores of `sum(0)` of a contiguous matrix."""
    is_half = dtype in HALF_DTYPES
    accumulator = 4 if is_half else dtype.itemsize
    arithmetic = _arithmetic(dtype, dtype, accumulator, vector=8 if is_half else 4)
    return staging(device, (rows, columns), (columns, 1), 0, (0,), arithmetic)[1:]


_BY_NUMBERS = {
    _summed: (
        aten.sum.default,
        aten.sum.dim_IntList,
        aten.sum.IntList_out,
        aten.mean.default,
        aten.mean.dim,
        aten.mean.out,
        aten.nansum.default,
    ),
    _multiplied: (aten.prod.default, aten.prod.dim_int, aten.prod.int_out),
    _norm: (
        aten.linalg_vector_norm.default,
        aten.linalg_vector_norm.out,
        aten.norm.Scalar,
        aten.norm.ScalarOpt_dim,
    ),
    _moments: (
        aten.var.correction,
        aten.std.correction,
        aten.var_mean.correction,
        aten.std_mean.correction,
    ),
    _extreme: (aten.amax.default, aten.amax.out, aten.amin.default, aten.amin.out),
    _extreme_of_all: (aten.max.default, aten.min.default),
    _extreme_with_index: (aten.max.dim, aten.min.dim),
    _index: (aten.argmax.default, aten.argmin.default),
    _logical: (
        aten.any.default,
        aten.any.dim,
        aten.any.dims,
        aten.all.default,
        aten.all.dim,
        aten.all.dims,
    ),
}


def _foreach_norm(_: Device, tensors: int, longest: int, item: int) -> list[int]:
    """foreach_tensor_norm_cuda (ForeachReduceOp.cu): for each tensor the chunks of the longest."""
    return [item * tensors * -(-longest // 65_536)]


def _of_foreach_norm(
    _: Any, tensors: Sequence[torch.Tensor], *__: Any, **___: Any
) -> tuple[int, int, int]:
    item = max(4, tensors[0].element_size())
    return len(tensors), max(tensor.numel() for tensor in tensors), item


REDUCTIONS: Mapping[Any, KernelMemory] = {
    **{
        operation: KernelMemory(rule=_with_cast, numbers=numbers, order=after_outputs(4))
        for numbers, operations in _BY_NUMBERS.items()
        for operation in operations
    },
    aten._foreach_norm.Scalar: KernelMemory(
        rule=_foreach_norm, numbers=_of_foreach_norm, order=before_outputs(1)
    ),
}
