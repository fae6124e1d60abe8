"""Memory of reductions on CUDA: partial results that the blocks of a grid leave for one another.

A reduction of many numbers to few is cut across blocks. Each writes its part to a staging buffer in
global memory, and a semaphore for each output tells which block comes last. By `setReduceConfig`
and `gpu_reduce_kernel` of ATen/native/cuda/Reduce.cuh and TensorIterator.cpp, torch 2.13.
"""

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import Any, NamedTuple

import torch

from .requests import Device, Kernel, after_outputs

_MAX_THREADS = 512
_MAX_THREADS_COMPLEX_DOUBLE = 256
_MAX_VALUES_PER_THREAD = 256
_MIN_VALUES_PER_THREAD = 16
_MIN_VALUES_PER_THREAD_AMD = 128
_FEWEST_BLOCKS_AMD = 64
_LARGEST_INT = 2**31 - 1


class Arithmetic(NamedTuple):
    """The template arguments of a reduction's kernel; sizes are bytes."""

    item: int
    accumulator: int
    output: int
    input_vector: int
    max_threads: int
    accumulates_in_output: bool


class _Loop(NamedTuple):
    """The dimensions of a TensorIterator, the fastest first, with byte strides; `outputs` is 0 where reduced."""

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def reduced(self) -> int:
        """Dimensions that are reduced; they come first."""
        return sum(stride == 0 for stride in self.outputs)

    @property
    def num_outputs(self) -> int:
        """Numbers that come out."""
        return prod(size for size, stride in zip(self.shape, self.outputs, strict=True) if stride)

    @property
    def fits_int(self) -> bool:
        """True where 32 bits hold every number of elements and every offset in bytes."""
        reach = max(self._reach(self.outputs), self._reach(self.inputs))
        return prod(self.shape) <= _LARGEST_INT and reach <= _LARGEST_INT

    def _reach(self, strides: Sequence[int]) -> int:
        return 1 + sum((size - 1) * stride for size, stride in zip(self.shape, strides, strict=True))

    def halves(self) -> "tuple[_Loop, _Loop]":
        """The loop cut in two along the dimension that reaches furthest."""
        reach = [(size - 1) * max(strides) for size, *strides in zip(*self, strict=True)]
        # The first of equals, counted from the slowest.
        place = max(range(len(reach)), key=lambda place: (reach[place], place))
        low = self.shape[place] // 2
        shapes = [(*self.shape[:place], size, *self.shape[place + 1 :]) for size in (low, self.shape[place] - low)]
        return self._replace(shape=shapes[0]), self._replace(shape=shapes[1])


def staging(
    device: Device,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    dims: tuple[int, ...],
    arithmetic: Arithmetic,
) -> tuple[int, int, int]:
    """Bytes of the accumulation buffer, the staging buffer and the semaphores.

    A tensor too large for 32-bit offsets is reduced in pieces, one after the other: the largest is given.
    """
    if 0 in shape:
        return 0, 0, 0
    loop = _loop(shape, strides, dims, arithmetic)
    buffer = 0
    if not (loop.fits_int or arithmetic.accumulates_in_output) and arithmetic.output < arithmetic.accumulator:
        buffer = loop.num_outputs * arithmetic.accumulator
    pieces = [_of_piece(device, piece, offset, arithmetic) for piece in _pieces(loop)]
    return buffer, max(staged for staged, _ in pieces), max(flags for _, flags in pieces)


def _pieces(loop: _Loop) -> Iterator[_Loop]:
    if loop.fits_int:
        yield loop
    else:
        for half in loop.halves():
            yield from _pieces(half)


def _loop(shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...], arithmetic: Arithmetic) -> _Loop:
    """The dimensions as TensorIteratorBase::build leaves them: sorted by strides and joined."""
    kept = [1 if place in dims else size for place, size in enumerate(shape)]
    outputs = [0 if place in dims else arithmetic.output * prod(kept[place + 1 :]) for place in range(len(shape))]
    inputs = [stride * arithmetic.item for stride in strides]
    # A dimension of one element has no stride to sort by where the other operand's is longer, which none is here.
    order = _sorted(list(range(len(shape)))[::-1], shape, outputs, inputs)
    joined: list[list[int]] = []
    for place in order:
        size, output, stride = shape[place], outputs[place], inputs[place]
        if not joined:
            joined.append([size, output, stride])
            continue
        last = joined[-1]
        if 1 in (last[0], size) or (last[0] * last[1], last[0] * last[2]) == (output, stride):
            if last[0] == 1:
                last[1:] = output, stride
            last[0] *= size
        else:
            joined.append([size, output, stride])
    sizes, out, into = zip(*joined, strict=True) if joined else ((), (), ())
    return _Loop(sizes, out, into)


def _sorted(order: list[int], shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]) -> list[int]:
    """TensorIteratorBase::reorder_dimensions: an insertion sort that lets ambiguous neighbours be."""
    for first in range(1, len(order)):
        moving = first
        for place in range(first - 1, -1, -1):
            found = _compare(order[place], order[moving], shape, outputs, inputs)
            if found > 0:
                order[place], order[moving] = order[moving], order[place]
                moving = place
            elif found < 0:
                break
    return order


def _compare(low: int, high: int, shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]) -> int:
    """Positive where dimension `low` belongs behind `high`, negative where it is right, 0 where nothing tells."""
    if (outputs[low] == 0) != (outputs[high] == 0):
        return 1 if outputs[high] == 0 else -1
    for strides in (outputs, inputs):
        if not strides[low] or not strides[high]:
            continue
        if strides[low] != strides[high]:
            return -1 if strides[low] < strides[high] else 1
        if shape[low] > shape[high]:
            return 1
    return 0


def _of_piece(device: Device, loop: _Loop, offset: int, arithmetic: Arithmetic) -> tuple[int, int]:
    """setReduceConfig: bytes of the staging buffer and of the semaphores, both 0 where one block does an output."""
    num_outputs = loop.num_outputs
    num_inputs = prod(loop.shape) // num_outputs
    along_input = not loop.shape or loop.reduced == len(loop.shape) or loop.inputs[0] < loop.inputs[loop.reduced]
    dim0, dim1, output_vector = (num_inputs, num_outputs, 1) if along_input else (num_outputs, num_inputs, 1)
    if not loop.shape:
        dim0 = dim1 = 1
    elif along_input:
        if loop.inputs[0] == arithmetic.item and dim0 >= 128 and loop.reduced == 1:
            dim0 //= arithmetic.input_vector
    elif loop.inputs[loop.reduced] == arithmetic.item:
        output_vector = _output_vector(loop, offset, arithmetic)
        dim0 //= output_vector
    width, height = _block(device, dim0, dim1, arithmetic.max_threads // output_vector)

    step_input, step_output = (width, 1) if along_input else (1, width)
    if -(-num_inputs // step_input) < min(height * 16, _MAX_VALUES_PER_THREAD):
        # Each warp handles outputs of its own: no output is left to several blocks.
        return 0, 0
    values = -(-num_inputs // (step_input * height))
    grid = -(-(num_outputs // output_vector) // step_output)
    target = device.multiprocessors * (device.threads_per_multiprocessor // (width * height))
    if values < _MAX_VALUES_PER_THREAD or grid > target:
        return 0, 0
    fewest = _MIN_VALUES_PER_THREAD_AMD if device.is_amd else _MIN_VALUES_PER_THREAD
    blocks = max(min(-(-target // grid), -(-values // fewest)), -(-values // _MAX_VALUES_PER_THREAD))
    if blocks <= 1:
        return 0, 0
    if device.is_amd:
        blocks = max(blocks, _FEWEST_BLOCKS_AMD)
    staged = arithmetic.accumulator * num_outputs * blocks
    return staged if along_input else staged * width * output_vector, 4 * grid


def _output_vector(loop: _Loop, offset: int, arithmetic: Arithmetic) -> int:
    """get_output_vec_size: as many outputs at once as every address and stride is a multiple of, at most four."""
    others = [stride // arithmetic.item for place, stride in enumerate(loop.inputs) if place != loop.reduced]
    return next(size for size in (4, 2, 1) if not any(n % size for n in (offset, loop.shape[loop.reduced], *others)))


def _block(device: Device, dim0: int, dim1: int, threads: int) -> tuple[int, int]:
    """set_block_dimension: threads along each side of a block."""
    low, high = (threads if size >= threads else max(1, 1 << (size.bit_length() - 1)) for size in (dim0, dim1))
    width = min(low, device.warp)
    height = min(high, threads // width)
    return min(low, threads // height), height


@cache
def _arithmetic(item: torch.dtype, output: torch.dtype, accumulator: int, *, vector: int = 4, in_output: bool = True) -> Arithmetic:
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
    return tuple(tensor.shape), tensor.stride(), int(tensor.storage_offset()), _dims(tensor, dim), arithmetic


def _with_cast(device: Device, cast: int, *numbers: Any) -> tuple[int, ...]:
    """The input in the output's dtype, where the kernel cannot cast as it loads, and what reducing it takes."""
    return cast, *staging(device, *numbers)


def _in_output_dtype(tensor: torch.Tensor, dtype: torch.dtype) -> tuple[int, torch.Tensor]:
    """make_reduction_from_out_ty in ATen/native/ReduceOpsUtils.h: bytes of the input's copy, and the input that is reduced."""
    if tensor.dtype == dtype or (tensor.dtype in _HALVES and dtype == torch.float32):
        return 0, tensor
    return tensor.numel() * dtype.itemsize, torch.empty_like(tensor, dtype=dtype)


def _first(result: Any) -> torch.Tensor:
    return result if isinstance(result, torch.Tensor) else result[0]


def _summed(result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """sum and mean (ReduceSumProdKernel.cu, ReduceMomentKernel.cu): halves are summed in float32, eight loaded at once."""
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    half = tensor.dtype in _HALVES
    accumulator = 4 if half else tensor.dtype.itemsize
    return cast, *_numbers(tensor, dim, _arithmetic(tensor.dtype, result.dtype, accumulator, vector=8 if half else 4))


def _multiplied(result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """prod: as sum, four loaded at once."""
    cast, tensor = _in_output_dtype(tensor, result.dtype)
    accumulator = 4 if tensor.dtype in _HALVES else tensor.dtype.itemsize
    return cast, *_numbers(tensor, dim, _arithmetic(tensor.dtype, result.dtype, accumulator))


def _norm(result: torch.Tensor, tensor: torch.Tensor, order: Any = 2, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """linalg_vector_norm (ReduceNormKernel.cu)."""
    del order
    return _multiplied(result, tensor, dim)


def _moments(result: Any, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """std, var and those with the mean (ReduceMomentKernel.cu): a WelfordData, two loaded at once."""
    # Mean, sum of squares and count as floating point, and the count as an int.
    output = _first(result).dtype
    cast, tensor = _in_output_dtype(tensor, output)
    accumulator = 32 if tensor.dtype == torch.float64 else 16
    return cast, *_numbers(tensor, dim, _arithmetic(tensor.dtype, output, accumulator, vector=2, in_output=False))


def _extreme(result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """amax and amin (ReduceMaxValuesKernel.cu, ReduceMinValuesKernel.cu): in the input's dtype."""
    del result
    return 0, *_numbers(tensor, dim, _arithmetic(tensor.dtype, tensor.dtype, tensor.dtype.itemsize))


def _extreme_of_all(result: torch.Tensor, tensor: torch.Tensor) -> tuple[Any, ...]:
    """max and min of everything: of a contiguous copy, where the input is not (ReduceAllOps.cpp)."""
    copied = 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()
    return copied, *_extreme(result, tensor if not copied else torch.empty(tensor.shape, dtype=tensor.dtype, device="meta"))[1:]


def _extreme_with_index(result: Any, tensor: torch.Tensor, dim: int, *_: Any, **__: Any) -> tuple[Any, ...]:
    """max and min with indices (TensorCompare.cu): a value and an index of 64 bits."""
    del result
    return 0, *_numbers(tensor, dim, _arithmetic(tensor.dtype, tensor.dtype, _INDEX_PAIR, in_output=False))


def _index(result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
    """argmax and argmin (ReduceArgMaxKernel.cu): as with indices, of all numbers in a row without a dimension."""
    copied = 0
    if dim is None:
        copied = 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()
        tensor, dim = torch.empty(tensor.numel(), dtype=tensor.dtype, device="meta"), 0
    return copied, *_numbers(tensor, dim, _arithmetic(tensor.dtype, result.dtype, _INDEX_PAIR, in_output=False))


def _logical(result: torch.Tensor, tensor: torch.Tensor, dim: Any = None, *_: Any, **__: Any) -> tuple[Any, ...]:
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
    _norm: (aten.linalg_vector_norm.default, aten.linalg_vector_norm.out),
    _moments: (aten.var.correction, aten.std.correction, aten.var_mean.correction, aten.std_mean.correction),
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
