"""LAMB's kernels: each program takes one chunk of one tensor."""

import triton
import triton.language as tl

from .shared_kernels import _chunk, _rate


@triton.jit
def average(
    table, sizes, owners, places, tensors, divisors, lr, eps, weight_decay,
    first_taken, second_kept, second_taken, clip, partials,
    ADAPTS: tl.constexpr, CLIPPED: tl.constexpr, WEIGHT: tl.constexpr, CORRECTED: tl.constexpr,
    TENSOR_LR: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Update a chunk's moments; sum the squares of its weights and directions, or move weights.

    The table has rows for parameters, gradients and both moments. `partials` gets two rows of sums,
    a column a chunk.
    """
    chunk = tl.program_id(0)
    owner, begin, count = _chunk(owners, places, sizes, chunk, CHUNK)
    params, first, second = _pointers(table, owner, tensors, begin, WEIGHT, ALIGNED)
    grads = tl.load(table + tensors + owner).to(tl.pointer_type(WEIGHT)) + begin
    if ALIGNED:
        grads = tl.multiple_of(grads, 16)
    divisor, root = _corrections(divisors, owner, tensors, CORRECTED)
    factor = 1.0
    if CLIPPED:
        factor = tl.load(clip).to(tl.float32)
    rate = _rate(lr, TENSOR_LR)
    weight_sum = tl.zeros((BLOCK,), tl.float32)
    direction_sum = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        # Only whole blocks load without a mask, and so by 16 bytes at once.
        if start + BLOCK <= count:
            weight, direction = _average(
                params, grads, first, second, offsets, None, factor, divisor, root, rate, eps,
                weight_decay, first_taken, second_kept, second_taken, ADAPTS, WEIGHT,
            )  # fmt: skip
            weight_sum += weight * weight
            direction_sum += direction * direction
        else:
            mask = offsets < count
            weight, direction = _average(
                params, grads, first, second, offsets, mask, factor, divisor, root, rate, eps,
                weight_decay, first_taken, second_kept, second_taken, ADAPTS, WEIGHT,
            )  # fmt: skip
            weight_sum += tl.where(mask, weight * weight, 0.0)
            direction_sum += tl.where(mask, direction * direction, 0.0)
    if ADAPTS:
        tl.store(partials + chunk, tl.sum(weight_sum, 0))
        tl.store(partials + tl.num_programs(0) + chunk, tl.sum(direction_sum, 0))


@triton.jit
def _average(
    params, grads, first, second, offsets, mask, factor, divisor, root, rate, eps, weight_decay,
    first_taken, second_kept, second_taken, ADAPTS: tl.constexpr, WEIGHT: tl.constexpr,
):  # fmt: skip
    weight = tl.load(params + offsets, mask).to(tl.float32)
    gradient = tl.load(grads + offsets, mask).to(tl.float32) * factor
    mean = tl.load(first + offsets, mask)
    mean += first_taken * (gradient - mean)
    square = tl.load(second + offsets, mask) * second_kept + second_taken * gradient * gradient
    tl.store(first + offsets, mean, mask)
    tl.store(second + offsets, square, mask)
    direction = _direct(mean, square, weight, divisor, root, eps, weight_decay)
    if not ADAPTS:
        tl.store(params + offsets, (weight - rate * direction).to(WEIGHT), mask)
    return weight, direction


@triton.jit
def _direct(mean, square, weight, divisor, root, eps, weight_decay):
    spread = (tl.div_rn(tl.sqrt_rn(square), root) + eps) * divisor
    return tl.div_rn(mean, spread) + weight_decay * weight


@triton.jit
def descend(
    table, sizes, owners, places, tensors, divisors, lr, eps, weight_decay, ratios,
    WEIGHT: tl.constexpr, CORRECTED: tl.constexpr, TENSOR_LR: tl.constexpr, ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Move a chunk's weights, by directions from the new moments."""
    # The last chunks first: the cache still has what the first pass read last.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    owner, begin, count = _chunk(owners, places, sizes, chunk, CHUNK)
    params, first, second = _pointers(table, owner, tensors, begin, WEIGHT, ALIGNED)
    divisor, root = _corrections(divisors, owner, tensors, CORRECTED)
    rate = _rate(lr, TENSOR_LR) * tl.load(ratios + owner)
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        if start + BLOCK <= count:
            _descend(
                params, first, second, offsets, None, divisor, root, rate, eps, weight_decay, WEIGHT
            )
        else:
            mask = offsets < count
            _descend(
                params, first, second, offsets, mask, divisor, root, rate, eps, weight_decay, WEIGHT
            )


@triton.jit
def _descend(
    params, first, second, offsets, mask, divisor, root, rate, eps, weight_decay,
    WEIGHT: tl.constexpr,
):  # fmt: skip
    weight = tl.load(params + offsets, mask).to(tl.float32)
    mean, square = tl.load(first + offsets, mask), tl.load(second + offsets, mask)
    direction = _direct(mean, square, weight, divisor, root, eps, weight_decay)
    tl.store(params + offsets, (weight - rate * direction).to(WEIGHT), mask)


@triton.jit
def _pointers(table, owner, tensors, begin, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr):
    params = tl.load(table + owner).to(tl.pointer_type(WEIGHT)) + begin
    first = tl.load(table + 2 * tensors + owner).to(tl.pointer_type(tl.float32)) + begin
    second = tl.load(table + 3 * tensors + owner).to(tl.pointer_type(tl.float32)) + begin
    if ALIGNED:
        params = tl.multiple_of(params, 16)
        first = tl.multiple_of(first, 16)
        second = tl.multiple_of(second, 16)
    return params, first, second


@triton.jit
def _corrections(divisors, owner, tensors, CORRECTED: tl.constexpr):
    divisor, root = 1.0, 1.0
    if CORRECTED:
        divisor = tl.load(divisors + owner)
        root = tl.sqrt_rn(tl.load(divisors + tensors + owner))
    return divisor, root
