"""SM3's kernels: a program updates one tile of one matrix, or replaces some accumulators.

Maxima are taken of the bits of squares. They are not negative, so their bits have their order, and
the maximum of integers does not depend on the order of the programs.
"""

import triton
import triton.language as tl

from .shared_kernels import _rate

# Maxima of an accumulator's element that are folded in one turn.
_TURN = tl.constexpr(128)
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def update(
    table, owners, places, matrices, scratch, lr, taken, kept, squares_taken, eps,
    WEIGHT: tl.constexpr, MOMENTUM: tl.constexpr, TENSOR_LR: tl.constexpr, ALIGNED: tl.constexpr,
    AXES: tl.constexpr, ROWS: tl.constexpr, HEIGHT: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """Update a tile of ROWS by WIDTH elements, HEIGHT rows at once.

    The table has rows for parameters, gradients, buffers, the rows' accumulators, the counts of
    rows and columns, the place of the maxima, and for each axis of the columns an accumulator, its
    size and its stride.
    """
    owner = tl.load(owners + tl.program_id(0))
    place = tl.load(places + tl.program_id(0))
    rows = tl.load(table + 4 * matrices + owner)
    columns = tl.load(table + 5 * matrices + owner)
    across = tl.cdiv(columns, WIDTH).to(tl.int32)
    first_row = (place // across).to(tl.int64) * ROWS
    first_column = (place % across).to(tl.int64) * WIDTH
    params = tl.load(table + owner).to(tl.pointer_type(WEIGHT))
    grads = tl.load(table + matrices + owner).to(tl.pointer_type(WEIGHT))
    buffers = tl.load(table + 2 * matrices + owner).to(tl.pointer_type(WEIGHT))
    if ALIGNED:
        params = tl.multiple_of(params, 16)
        grads = tl.multiple_of(grads, 16)
        buffers = tl.multiple_of(buffers, 16)
        columns = tl.multiple_of(columns, 16 // (WEIGHT.primitive_bitwidth // 8))
    covers = tl.load(table + 3 * matrices + owner).to(tl.pointer_type(tl.float32))
    first = first_row * columns + first_column
    params, grads, buffers = params + first, grads + first, buffers + first
    height = tl.minimum(rows - first_row, ROWS).to(tl.int32)
    width = tl.minimum(columns - first_column, WIDTH).to(tl.int32)
    covers += first_row
    row_maxima = scratch + tl.load(table + 6 * matrices + owner)
    column_maxima = row_maxima + rows + first_column
    row_maxima += first_row
    row, column = tl.arange(0, HEIGHT), tl.arange(0, WIDTH)
    inside = column < width
    least = _least(table, matrices, owner, first_column + column, inside, AXES)
    # No turn has 2^31 elements from its first to its last one.
    offsets = row[:, None] * columns.to(tl.int32) + column[None, :]
    rate = _rate(lr, TENSOR_LR)
    largest = tl.zeros((HEIGHT, WIDTH), tl.int32)
    for start in range(0, height, HEIGHT):
        present = row < height - start
        mask = present[:, None] & inside[None, :]
        gradient = tl.load(grads + offsets, mask, 0.0).to(tl.float32)
        weight = tl.load(params + offsets, mask, 0.0).to(tl.float32)
        cover = tl.load(covers + start + row, present, 0.0)
        smallest = tl.minimum(cover[:, None], least[None, :], propagate_nan=_NAN)
        square = smallest * kept + squares_taken * gradient * gradient
        square = tl.where(square == square, square, 0.0)
        bits = square.to(tl.int32, bitcast=True)
        largest = tl.maximum(largest, bits)
        tl.atomic_max(row_maxima + start + row, tl.max(bits, 1), present, sem="relaxed")
        direction = gradient * tl.rsqrt(square + eps)
        if MOMENTUM:
            average = tl.load(buffers + offsets, mask, 0.0).to(tl.float32)
            direction = direction.to(WEIGHT).to(tl.float32)
            stored = (average + taken * (direction - average)).to(WEIGHT)
            tl.store(buffers + offsets, stored, mask)
            direction = stored.to(tl.float32)
        tl.store(params + offsets, (weight - rate * direction).to(WEIGHT), mask)
        params += HEIGHT * columns
        grads += HEIGHT * columns
        buffers += HEIGHT * columns
    tl.atomic_max(column_maxima + column, tl.max(largest, 0), inside, sem="relaxed")


@triton.jit
def _least(table, matrices, owner, column, inside, AXES: tl.constexpr):
    """Return the least accumulator of each column, 0 outside of the matrix."""
    table += 7 * matrices + owner
    covers = tl.load(table).to(tl.pointer_type(tl.float32))
    if AXES == 1:
        least = tl.load(covers + column, inside, 0.0)
    else:
        least = tl.full(column.shape, float("inf"), tl.float32)
        for axis in tl.static_range(AXES):
            covers = tl.load(table + 3 * axis * matrices).to(tl.pointer_type(tl.float32))
            size = tl.load(table + (3 * axis + 1) * matrices)
            stride = tl.load(table + (3 * axis + 2) * matrices)
            cover = tl.load(covers + column // stride % size, inside, 0.0)
            least = tl.minimum(least, cover, propagate_nan=_NAN)
    return least


@triton.jit
def replace(
    table, owners, places, accumulators, scratch, COPIED: tl.constexpr, FOLDED: tl.constexpr
):
    """Store some elements of an accumulator: COPIED maxima, or the largest of several for FOLDED.

    The table has rows for accumulators, the place of their maxima, their sizes, the strides of
    their elements among the maxima, and the counts of maxima.
    """
    owner = tl.load(owners + tl.program_id(0))
    place = tl.load(places + tl.program_id(0)).to(tl.int64)
    target = tl.load(table + owner).to(tl.pointer_type(tl.float32))
    maxima = scratch + tl.load(table + accumulators + owner)
    size = tl.load(table + 2 * accumulators + owner)
    stride = tl.load(table + 3 * accumulators + owner)
    count = tl.load(table + 4 * accumulators + owner)
    if count == size:
        _copy(target, maxima, size, place * COPIED, COPIED)
    else:
        _fold(target, maxima, size, stride, count // size, place * FOLDED, FOLDED)


@triton.jit
def _copy(target, maxima, size, first, COPIED: tl.constexpr):
    element = first + tl.arange(0, COPIED)
    bits = tl.load(maxima + element, element < size, 0)
    tl.store(target + element, bits.to(tl.float32, bitcast=True), element < size)


@triton.jit
def _fold(target, maxima, size, stride, covered, first, FOLDED: tl.constexpr):
    element = first + tl.arange(0, FOLDED)
    mask = element < size
    largest = tl.zeros((FOLDED, _TURN), tl.int32)
    for start in range(0, covered, _TURN):
        other = start + tl.arange(0, _TURN)
        offsets = other // stride * size * stride + other % stride
        bits = tl.load(
            maxima + element[:, None] * stride + offsets[None, :],
            mask[:, None] & (other < covered)[None, :],
            0,
        )
        largest = tl.maximum(largest, bits)
    tl.store(target + element, tl.max(largest, 1).to(tl.float32, bitcast=True), mask)
