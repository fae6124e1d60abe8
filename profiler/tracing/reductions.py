"""Memory of reductions on CUDA: partial results that the blocks of a grid leave for one another.

A reduction of many numbers to few is cut across blocks. Each writes its part to a staging buffer in
global memory, and a semaphore for each output tells which block comes last. By `setReduceConfig`
and `gpu_reduce_kernel` of ATen/native/cuda/Reduce.cuh, torch 2.13.
"""

from math import prod
from typing import NamedTuple

from .requests import Device
from .tensor_loops import Loop, pieces, reduction_loop

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


def staging(
    device: Device,
    shape: tuple[int, ...],
    strides: tuple[int, ...],
    offset: int,
    dims: tuple[int, ...],
    arithmetic: Arithmetic,
) -> tuple[int, int, int]:
    """Bytes of the accumulation buffer, the staging buffer and the semaphores.

    A tensor too large for 32-bit offsets is reduced in pieces, one after the other: the largest is
    given.
    """
    if 0 in shape:
        return 0, 0, 0
    loop = reduction_loop(shape, strides, dims, arithmetic.item, arithmetic.output)
    buffer = 0
    if (
        not (loop.fits_int or arithmetic.accumulates_in_output)
        and arithmetic.output < arithmetic.accumulator
    ):
        buffer = loop.num_outputs * arithmetic.accumulator
    parts = [_of_piece(device, piece, offset, arithmetic) for piece in pieces(loop)]
    return buffer, max(staged for staged, _ in parts), max(flags for _, flags in parts)


def _of_piece(device: Device, loop: Loop, offset: int, arithmetic: Arithmetic) -> tuple[int, int]:
    """setReduceConfig: bytes of staging and semaphores, 0 where one block does an output alone."""
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
        # Each warp handles outputs of its own: no output is left to several blocks.
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


def _output_vector(loop: Loop, offset: int, arithmetic: Arithmetic) -> int:
    """get_output_vec_size: up to four outputs at once, if it divides every address and stride."""
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
    """set_block_dimension: threads along each side of a block."""
    low, high = (
        threads if size >= threads else max(1, 1 << (size.bit_length() - 1))
        for size in (dim0, dim1)
    )
    width = min(low, device.warp)
    height = min(high, threads // width)
    return min(low, threads // height), height
