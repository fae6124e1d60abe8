"""SM3's kernels: one moves the weights of a chunk, one stores new accumulators."""

import triton
import triton.language as tl


@triton.jit
def descend(
    table, layout, owners, places, tensors, scratch, lr, fraction, kept, taken, eps,
    WEIGHT: tl.constexpr, MOMENTUM: tl.constexpr, TENSOR_LR: tl.constexpr, ALIGNED: tl.constexpr,
    AXES: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, TURNS: tl.constexpr,
):  # fmt: skip
    """Move the weights of a chunk of ROWS * TURNS rows and COLUMNS columns.

    The table has rows for parameters, gradients, buffers, the accumulators of the first axis and
    those of AXES axes of columns. `layout` has rows for the counts of rows and columns, the places
    of both in `scratch`, and the size and the span of each axis.
    """
    owner = tl.load(owners + tl.program_id(0))
    place = tl.load(places + tl.program_id(0))
    rows = tl.load(layout + owner).to(tl.int32)
    columns = tl.load(layout + tensors + owner)
    across = ((columns + COLUMNS - 1) // COLUMNS).to(tl.int32)
    top, left = (place // across) * (ROWS * TURNS), (place % across) * COLUMNS
    begin = top.to(tl.int64) * columns + left
    params = tl.load(table + owner).to(tl.pointer_type(WEIGHT)) + begin
    grads = tl.load(table + tensors + owner).to(tl.pointer_type(WEIGHT)) + begin
    buffers = tl.load(table + 2 * tensors + owner).to(tl.pointer_type(WEIGHT)) + begin
    if ALIGNED:
        params, grads = tl.multiple_of(params, 16), tl.multiple_of(grads, 16)
        buffers = tl.multiple_of(buffers, 16)
        columns = tl.multiple_of(columns, 8)
    rate = lr
    if TENSOR_LR:
        rate = tl.load(lr).to(tl.float32)

    column = left + tl.arange(0, COLUMNS)
    in_columns = column < columns
    least = tl.full((COLUMNS,), float("inf"), tl.float32)
    for axis in tl.static_range(AXES):
        cover = tl.load(table + (4 + axis) * tensors + owner).to(tl.pointer_type(tl.float32))
        size = tl.load(layout + (4 + 2 * axis) * tensors + owner).to(tl.int32)
        span = tl.load(layout + (5 + 2 * axis) * tensors + owner).to(tl.int32)
        index = column if AXES == 1 else (column // span) % size
        # Only the last axis counts if it has one element: the others are then missing.
        limit = columns if axis == AXES - 1 else tl.where(size > 1, columns, 0)
        least = tl.minimum(least, tl.load(cover + index, column < limit, float("inf")))

    row_cover = tl.load(table + 3 * tensors + owner).to(tl.pointer_type(tl.float32))
    rows_at = tl.load(layout + 2 * tensors + owner)
    columns_at = tl.load(layout + 3 * tensors + owner)
    most = tl.zeros((ROWS, COLUMNS), tl.int32)
    inner = tl.arange(0, COLUMNS)
    whole = left + COLUMNS <= columns
    for turn in range(TURNS):
        first = top + turn * ROWS
        if first < rows:
            row = first + tl.arange(0, ROWS)
            of_row = tl.load(row_cover + row, row < rows, 0.0)
            bound = tl.minimum(of_row[:, None], least[None, :])
            offsets = (turn * ROWS + tl.arange(0, ROWS))[:, None] * columns + inner[None, :]
            # Only whole tiles load without a mask, and so by 16 bytes at once.
            if whole and first + ROWS <= rows:
                bits = _descend(
                    params, grads, buffers, offsets, None, bound, rate, fraction, kept, taken, eps,
                    WEIGHT, MOMENTUM,
                )  # fmt: skip
            else:
                mask = (row < rows)[:, None] & in_columns[None, :]
                bits = _descend(
                    params, grads, buffers, offsets, mask, bound, rate, fraction, kept, taken, eps,
                    WEIGHT, MOMENTUM,
                )  # fmt: skip
                bits = tl.where(mask, bits, 0)
            most = tl.maximum(most, bits)
            tl.atomic_max(scratch + rows_at + row, tl.max(bits, 1), row < rows, sem="relaxed")
    tl.atomic_max(scratch + columns_at + column, tl.max(most, 0), in_columns, sem="relaxed")


@triton.jit
def _descend(
    params, grads, buffers, offsets, mask, bound, rate, fraction, kept, taken, eps,
    WEIGHT: tl.constexpr, MOMENTUM: tl.constexpr,
):  # fmt: skip
    """Return the new squares as bits, which have the order of the numbers; NaN counts as 0."""
    weight = tl.load(params + offsets, mask).to(tl.float32)
    gradient = tl.load(grads + offsets, mask).to(tl.float32)
    square = bound * kept + gradient * gradient * taken
    direction = tl.div_rn(gradient, tl.sqrt_rn(square + eps))
    if MOMENTUM:
        average = tl.load(buffers + offsets, mask).to(tl.float32)
        rounded = direction.to(WEIGHT).to(tl.float32)
        stored = (average + fraction * (rounded - average)).to(WEIGHT)
        tl.store(buffers + offsets, stored, mask)
        direction = stored.to(tl.float32)
    tl.store(params + offsets, (weight - rate * direction).to(WEIGHT), mask)
    return tl.where(square == square, square, 0.0).to(tl.int32, bitcast=True)


@triton.jit
def store(
    table, layout, owners, places, tensors, scratch, ENTRIES: tl.constexpr, COLUMNS: tl.constexpr
):
    """Store some accumulators of one axis: each is the largest of its columns in `scratch`.

    `layout` has rows for the count of accumulators, the place of the columns in `scratch`, the
    columns from one accumulator to the next, and the times that all of them repeat.
    """
    owner = tl.load(owners + tl.program_id(0))
    count = tl.load(layout + owner)
    begin = tl.load(layout + tensors + owner)
    span = tl.load(layout + 2 * tensors + owner)
    repeats = tl.load(layout + 3 * tensors + owner)
    entry = tl.load(places + tl.program_id(0)) * ENTRIES + tl.arange(0, ENTRIES)
    most = tl.zeros((ENTRIES, COLUMNS), tl.int32)
    for start in range(0, span * repeats, COLUMNS):
        number = start + tl.arange(0, COLUMNS)
        column = (number // span) * (span * count) + number % span
        places_in = begin + entry[:, None] * span + column[None, :]
        mask = (entry < count)[:, None] & (number < span * repeats)[None, :]
        most = tl.maximum(most, tl.load(scratch + places_in, mask, 0))
    accumulators = tl.load(table + owner).to(tl.pointer_type(tl.float32))
    values = tl.max(most, 1).to(tl.float32, bitcast=True)
    tl.store(accumulators + entry, values, entry < count)
