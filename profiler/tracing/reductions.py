"""Memory of reductions on CUDA: partial results that the blocks of a grid leave for one another.

A reduction of many numbers to few is divided among blocks. Each block writes its part to a staging
buffer in global memory, and a semaphore for each output tells which block comes last. The rule is
that of `setReduceConfig` and `gpu_reduce_kernel` in ATen/native/cuda/Reduce.cuh, torch 2.13. It
sees the dimensions as TensorIterator leaves them, sorted by strides, joined and cut:
TensorIteratorBase::build, reorder_dimensions, coalesce_dimensions and with_32bit_indexing in
ATen/native/TensorIterator.cpp.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

from .requests import Device

_LARGEST_INT = 2**31 - 1
_MAX_VALUES_PER_THREAD = 256
_MIN_VALUES_PER_THREAD = 16
_MIN_VALUES_PER_THREAD_AMD = 128
_FEWEST_BLOCKS_AMD = 64


class Arithmetic(NamedTuple):
    """The template arguments of a reduction's kernel; sizes are bytes."""

    item: int
    accumulator: int
    output: int
    input_vector: int
    max_threads: int
    accumulates_in_output: bool


class _Loop(NamedTuple):
    """Dimensions and byte strides, the fastest first; a reduced one has output stride 0."""

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def reduced(self) -> int:
        """Number of reduced dimensions; they come first."""
        return sum(stride == 0 for stride in self.outputs)

    @property
    def num_outputs(self) -> int:
        """Number of elements in the output."""
        return prod(size for size, stride in zip(self.shape, self.outputs, strict=True) if stride)

    @property
    def fits_int(self) -> bool:
        """True if 32 bits hold the number of elements and every offset in bytes."""
        reach = max(self._reach(self.outputs), self._reach(self.inputs))
        return prod(self.shape) <= _LARGEST_INT and reach <= _LARGEST_INT

    def _reach(self, strides: Sequence[int]) -> int:
        return 1 + sum(
            (size - 1) * stride for size, stride in zip(self.shape, strides, strict=True)
        )

    def halves(self) -> "tuple[_Loop, _Loop]":
        """Return both halves of the loop, cut along the dimension that spans the most memory."""
        reach = [(size - 1) * max(strides) for size, *strides in zip(*self, strict=True)]
        # Among equals the slowest dimension.
        place = max(range(len(reach)), key=lambda place: (reach[place], place))
        low = self.shape[place] // 2
        shapes = [
            (*self.shape[:place], size, *self.shape[place + 1 :])
            for size in (low, self.shape[place] - low)
        ]
        return self._replace(shape=shapes[0]), self._replace(shape=shapes[1])


def staging(
    device: Device,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    dims: tuple[int, ...],
    arithmetic: Arithmetic,
) -> tuple[int, int, int]:
    """Return the bytes of the accumulation buffer, the staging buffer and the semaphores.

    A tensor too large for 32-bit offsets is reduced in pieces, one after the other; the largest
    piece counts.
    """
    if 0 in shape:
        return 0, 0, 0
    loop = _reduction_loop(shape, strides, dims, arithmetic.item, arithmetic.output)
    buffer = 0
    if (
        not (loop.fits_int or arithmetic.accumulates_in_output)
        and arithmetic.output < arithmetic.accumulator
    ):
        buffer = loop.num_outputs * arithmetic.accumulator
    parts = [_of_piece(device, piece, offset, arithmetic) for piece in _pieces(loop)]
    return buffer, max(staged for staged, _ in parts), max(flags for _, flags in parts)


def _of_piece(device: Device, loop: _Loop, offset: int, arithmetic: Arithmetic) -> tuple[int, int]:
    """setReduceConfig: bytes of staging and semaphores; none if one block makes each output."""
    num_outputs = loop.num_outputs
    num_inputs = prod(loop.shape) // num_outputs
    along_input = (
        not loop.shape
        or loop.reduced == len(loop.shape)
        or loop.inputs[0] < loop.inputs[loop.reduced]
    )
    dim0, dim1, output_vector = (
        (num_inputs, num_outputs, 1) if along_input else (num_outputs, num_inputs, 1)
    )
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
        # Each warp makes its own outputs, so no blocks share one.
        return 0, 0
    values = -(-num_inputs // (step_input * height))
    grid = -(-(num_outputs // output_vector) // step_output)
    target = device.multiprocessors * (device.threads_per_multiprocessor // (width * height))
    if values < _MAX_VALUES_PER_THREAD or grid > target:
        return 0, 0
    fewest = _MIN_VALUES_PER_THREAD_AMD if device.is_amd else _MIN_VALUES_PER_THREAD
    blocks = max(
        min(-(-target // grid), -(-values // fewest)), -(-values // _MAX_VALUES_PER_THREAD)
    )
    if blocks <= 1:
        return 0, 0
    if device.is_amd:
        blocks = max(blocks, _FEWEST_BLOCKS_AMD)
    staged = arithmetic.accumulator * num_outputs * blocks
    return staged if along_input else staged * width * output_vector, 4 * grid


def _output_vector(loop: _Loop, offset: int, arithmetic: Arithmetic) -> int:
    """get_output_vec_size: the largest of 4, 2 and 1 that divides every address and stride."""
    others = [
        stride // arithmetic.item
        for place, stride in enumerate(loop.inputs)
        if place != loop.reduced
    ]
    return next(
        size
        for size in (4, 2, 1)
        if not any(n % size for n in (offset, loop.shape[loop.reduced], *others))
    )


def _block(device: Device, dim0: int, dim1: int, threads: int) -> tuple[int, int]:
    """set_block_dimension: threads along both sides of a block."""
    low, high = (
        threads if size >= threads else max(1, 1 << (size.bit_length() - 1))
        for size in (dim0, dim1)
    )
    width = min(low, device.warp)
    height = min(high, threads // width)
    return min(low, threads // height), height


def _pieces(loop: _Loop) -> Iterator[_Loop]:
    """Yield the loop in pieces that 32 bits can index."""
    if loop.fits_int:
        yield loop
    else:
        for half in loop.halves():
            yield from _pieces(half)


def _reduction_loop(
    shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...], item: int, output: int
) -> _Loop:
    """Return the loop of a reduction over `dims`; `item` and `output` are bytes of one element."""
    kept = [1 if place in dims else size for place, size in enumerate(shape)]
    out = [0 if place in dims else output * prod(kept[place + 1 :]) for place in range(len(shape))]
    inputs = [stride * item for stride in strides]
    order = _sorted(list(range(len(shape)))[::-1], shape, out, inputs)
    joined: list[list[int]] = []
    for place in order:
        size, written, stride = shape[place], out[place], inputs[place]
        if not joined:
            joined.append([size, written, stride])
            continue
        last = joined[-1]
        if 1 in (last[0], size) or (last[0] * last[1], last[0] * last[2]) == (written, stride):
            if last[0] == 1:
                last[1:] = written, stride
            last[0] *= size
        else:
            joined.append([size, written, stride])
    return _Loop(*zip(*joined, strict=True)) if joined else _Loop((), (), ())


def _sorted(
    order: list[int], shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]
) -> list[int]:
    """reorder_dimensions: an insertion sort that leaves ambiguous neighbours in place."""
    for first in range(1, len(order)):
        moving = first
        for place in range(first - 1, -1, -1):
            comparison = _compare(order[place], order[moving], shape, outputs, inputs)
            if comparison > 0:
                order[place], order[moving] = order[moving], order[place]
                moving = place
            elif comparison < 0:
                break
    return order


def _compare(
    low: int, high: int, shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]
) -> int:
    """Return 1 to swap two dimensions, -1 to stop, 0 if their strides decide nothing."""
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
