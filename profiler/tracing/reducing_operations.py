"""The operations that reduce on CUDA, and what each gives to the rule of Reduce.cuh's kernels.

A kernel is compiled for the dtypes of its input, output and partial results; each file of
ATen/native/cuda is named where its operation is.
"""

from functools import cache
from typing import Any

import torch

from .reductions import Arithmetic, staging
from .requests import Device, Kernel, after_outputs

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
    in_half = item == output and item in _HALVES
    return Arithmetic(
        item=item.itemsize,
        accumulator=accumulator,
        output=output.itemsize,
        input_vector=vector,
        max_threads=_MAX_THREADS_COMPLEX_DOUBLE if item == torch.complex128 else _MAX_THREADS,
        accumulates_in_output=in_output and not in_half,
    )


_HALVES = (torch.float16, torch.bfloat16)
_INDEX_PAIR = 16
aten = torch.ops.aten


def _dims(tensor: torch.Tensor, dim: Any) -> tuple[int, ...]:
    """The reduced dimensions, counted from 0; none given are all."""
    dimensions = tensor.dim()
    given = (dim,) if isinstance(dim, int) else dim or range(dimensions)
    return tuple([place % dimensions if dimensions else 0 for place in given])


def _numbers(tensor: torch.Tensor, dim: Any, arithmetic: Arithmetic) -> tuple[Any, ...]:
    return (
        tuple(tensor.shape),
        tensor.stride(),
        int(tensor.storage_offset()),
        _dims(tensor, dim),
        arithmetic,
    )


def _with_cast(device: Device, cast: int, *numbers: Any) -> tuple[int, ...]:
    """The input in the output's dtype, where the kernel cannot cast it, then the reduction's."""
    return cast, *staging(device, *numbers)


def _in_output_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
    """make_reduction_from_out_ty (ReduceOpsUtils.h): bytes of the input's copy; what is reduced."""
    if tensor.dtype == dtype or (tensor.dtype in _HALVES and dtype == torch.float32):
        return 0, tensor
    return tensor.numel() * dtype.itemsize, torch.empty_like(tensor, dtype=dtype)


def _first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def _summed(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """sum and mean (ReduceSumProdKernel.cu, ReduceMomentKernel.cu): halves in float32, eight a
    load.
    """
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    half = tensor.dtype in _HALVES
    accumulator = 4 if half else tensor.dtype.itemsize
    return cast, *_numbers(
        tensor, dim, _arithmetic(tensor.dtype, result.dtype, accumulator, vector=8 if half else 4)
    )


def _multiplied(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """prod: as sum, four loaded at once."""
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    accumulator = 4 if tensor.dtype in _HALVES else tensor.dtype.itemsize
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
    """std, var and both with the mean (ReduceMomentKernel.cu): WelfordData, two a load."""
    # Mean, sum of squares and count as floating point, and the count as an int.
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
    """max and min of everything, in a contiguous copy if need be (ReduceAllOps.cpp)."""
    copied = 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()
    return copied, *_extreme(
        result,
        tensor if not copied else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"),
    )[1:]


def _extreme_with_index(
    result: Any, tensor: torch.Tensor, dim: int, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """max and min with indices (TensorCompare.cu): a value and an index of 64 bits."""
    del result
    return 0, *_numbers(
        tensor, dim, _arithmetic(tensor.dtype, tensor.dtype, _INDEX_PAIR, in_output=False)
    )


def _index(
    result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any
) -> tuple[Any, ...]:
    """argmax and argmin (ReduceArgMaxKernel.cu): all numbers in a row without a dimension."""
    copied = 0
    if dim is None:
        copied = 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()
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
    """Bytes that `sum(0)` of a contiguous matrix stages, and of its semaphores."""
    half = dtype in _HALVES
    arithmetic = _arithmetic(dtype, dtype, 4 if half else dtype.itemsize, vector=8 if half else 4)
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
REDUCTIONS = {
    operation: Kernel(rule=_with_cast, numbers=numbers, order=after_outputs(4))
    for numbers, operations in _BY_NUMBERS.items()
    for operation in operations
}
