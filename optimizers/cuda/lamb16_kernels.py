"""LAMB16's kernels: each program takes one chunk of one tensor, or combines one tensor's chunks."""

import triton
import triton.language as tl

from ..float8 import E4M3_TAIL, E5M2_TAIL, PERIOD, stride
from .shared_kernels import _chunk, _rate

_FIRST_TAIL, _SECOND_TAIL = tl.constexpr(E4M3_TAIL), tl.constexpr(E5M2_TAIL)
_FIRST_MASK, _SECOND_MASK = tl.constexpr(2**E4M3_TAIL - 1), tl.constexpr(2**E5M2_TAIL - 1)
_FIRST_STRIDE, _SECOND_STRIDE = tl.constexpr(stride(E4M3_TAIL)), tl.constexpr(stride(E5M2_TAIL))
# The exponents that align the biases of a float32 and of the formats.
_FIRST_BIAS, _SECOND_BIAS = tl.constexpr(120), tl.constexpr(112)
_PERIOD = tl.constexpr(PERIOD)
_NAN = tl.constexpr(tl.PropagateNan.ALL)


@triton.jit
def measure(
    table, sizes, owners, places, tensors, beta1, first_taken, beta2, second_taken, least, eps,
    weight_decay, partials,
    WEIGHT: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a chunk's largest |m| and v, and the sizes of its weights and directions.

    The table has rows for parameters, gradients, both moments and their scales. `partials` gets
    four rows, a column a chunk.
    """
    chunk = tl.program_id(0)
    owner, begin, count = _chunk(owners, places, sizes, chunk, CHUNK)
    params, grads, first, second = _pointers(table, owner, tensors, begin, WEIGHT, ALIGNED)
    first_kept, second_kept, bound = _kept(table, owner, tensors, beta1, beta2, least)
    most_first = tl.zeros((BLOCK,), tl.int32)
    most_second = tl.zeros((BLOCK,), tl.int32)
    weight_size = tl.zeros((BLOCK,), tl.float32)
    direction_size = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        # Only whole blocks load without a mask, and so by 16 bytes at once.
        if start + BLOCK <= count:
            weight, mean, square = _take_in(
                params, grads, first, second, offsets, None, first_kept, second_kept, first_taken,
                second_taken,
            )  # fmt: skip
            direction = _direct(mean, square, weight, bound, eps, weight_decay)
            weight_size += _clipped_square(weight, eps)
            direction_size += _clipped_square(direction, eps)
        else:
            mask = offsets < count
            weight, mean, square = _take_in(
                params, grads, first, second, offsets, mask, first_kept, second_kept, first_taken,
                second_taken,
            )  # fmt: skip
            mean, square = tl.where(mask, mean, 0.0), tl.where(mask, square, 0.0)
            direction = _direct(mean, square, weight, bound, eps, weight_decay)
            weight_size += tl.where(mask, _clipped_square(weight, eps), 0.0)
            direction_size += tl.where(mask, _clipped_square(direction, eps), 0.0)
        # Magnitudes have the order of their bits; NaN is the largest.
        most_first = tl.maximum(most_first, mean.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
        most_second = tl.maximum(most_second, square.to(tl.int32, bitcast=True) & 0x7FFFFFFF)
    row = tl.num_programs(0)
    tl.store(partials + chunk, tl.max(most_first, 0).to(tl.float32, bitcast=True))
    tl.store(partials + row + chunk, tl.max(most_second, 0).to(tl.float32, bitcast=True))
    tl.store(partials + 2 * row + chunk, tl.sum(weight_size, 0))
    tl.store(partials + 3 * row + chunk, tl.sum(direction_size, 0))


@triton.jit
def combine(partials, firsts, chunks, measures, tensors, BLOCK: tl.constexpr):
    """Combine one tensor's chunks: two rows of maxima, two of sums, which are added in float64."""
    owner = tl.program_id(0)
    begin, end = tl.load(firsts + owner), tl.load(firsts + owner + 1)
    for row in tl.static_range(4):
        most = tl.zeros((BLOCK,), tl.int32)
        sums = tl.zeros((BLOCK,), tl.float64)
        for start in range(begin, end, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            values = tl.load(partials + row * chunks + offsets, offsets < end, 0.0)
            if row < 2:
                most = tl.maximum(most, values.to(tl.int32, bitcast=True))
            else:
                sums += values.to(tl.float64)
        if row < 2:
            result = tl.max(most, 0).to(tl.float32, bitcast=True)
        else:
            result = tl.sum(sums, 0).to(tl.float32)
        tl.store(measures + row * tensors + owner, result)


@triton.jit
def advance(
    table, sizes, owners, places, tensors, beta1, first_taken, beta2, second_taken, least, eps,
    weight_decay, factors, turns, whole_places, lr, partials,
    TENSOR_LR: tl.constexpr, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr, CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Store a chunk's new moments and weights.

    `factors` has rows for the inverses of both new scales and for the trust. `partials` gets two
    rows: the sums of the squares of the scaled second moment before and after rounding.
    """
    # The last chunks first: the cache still has what the first pass read last.
    chunk = tl.num_programs(0) - 1 - tl.program_id(0)
    owner, begin, count = _chunk(owners, places, sizes, chunk, CHUNK)
    params, grads, first, second = _pointers(table, owner, tensors, begin, WEIGHT, ALIGNED)
    first_kept, second_kept, bound = _kept(table, owner, tensors, beta1, beta2, least)
    first_inverse = tl.load(factors + owner)
    second_inverse = tl.load(factors + tensors + owner)
    trust = tl.load(factors + 2 * tensors + owner)
    first_turn = tl.load(turns + owner).to(tl.int32)
    second_turn = tl.load(turns + tensors + owner).to(tl.int32)
    place = ((tl.load(whole_places + owner) + begin) % _PERIOD).to(tl.int32)
    rate = _rate(lr, TENSOR_LR)
    before = tl.zeros((BLOCK,), tl.float32)
    after = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        if start + BLOCK <= count:
            scaled, stored = _advance(
                params, grads, first, second, offsets, None, first_kept, second_kept, first_taken,
                second_taken, bound, eps, weight_decay, first_inverse, second_inverse, trust, rate,
                place, first_turn, second_turn, WEIGHT,
            )  # fmt: skip
            before += scaled * scaled
            after += stored * stored
        else:
            mask = offsets < count
            scaled, stored = _advance(
                params, grads, first, second, offsets, mask, first_kept, second_kept, first_taken,
                second_taken, bound, eps, weight_decay, first_inverse, second_inverse, trust, rate,
                place, first_turn, second_turn, WEIGHT,
            )  # fmt: skip
            before += tl.where(mask, scaled * scaled, 0.0)
            after += tl.where(mask, stored * stored, 0.0)
    tl.store(partials + chunk, tl.sum(before, 0))
    tl.store(partials + tl.num_programs(0) + chunk, tl.sum(after, 0))


@triton.jit
def _advance(
    params, grads, first, second, offsets, mask, first_kept, second_kept, first_taken,
    second_taken, bound, eps, weight_decay, first_inverse, second_inverse, trust, rate,
    place, first_turn, second_turn, WEIGHT: tl.constexpr,
):  # fmt: skip
    weight, mean, square = _take_in(
        params, grads, first, second, offsets, mask, first_kept, second_kept, first_taken,
        second_taken,
    )  # fmt: skip
    direction = _direct(mean, square, weight, bound, eps, weight_decay)
    tl.store(params + offsets, (weight - rate * (direction * trust)).to(WEIGHT), mask)
    places = (place + offsets) & (_PERIOD - 1)
    thresholds = (places * _FIRST_STRIDE + first_turn) & _FIRST_MASK
    codes = _encode(mean * first_inverse, thresholds, _FIRST_TAIL, _FIRST_BIAS, 0x80)
    tl.store(first + offsets, codes.to(tl.uint8), mask)
    scaled = square * second_inverse
    thresholds = (places * _SECOND_STRIDE + second_turn) & _SECOND_MASK
    codes = _encode(scaled, thresholds, _SECOND_TAIL, _SECOND_BIAS, 0) & 0xFF
    tl.store(second + offsets, codes.to(tl.uint8), mask)
    stored = _decode(codes, _SECOND_TAIL, 4, _SECOND_BIAS, 0)
    return scaled, stored


@triton.jit
def _pointers(table, owner, tensors, begin, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr):
    params = tl.load(table + owner).to(tl.pointer_type(WEIGHT)) + begin
    grads = tl.load(table + tensors + owner).to(tl.pointer_type(WEIGHT)) + begin
    first = tl.load(table + 2 * tensors + owner).to(tl.pointer_type(tl.uint8)) + begin
    second = tl.load(table + 3 * tensors + owner).to(tl.pointer_type(tl.uint8)) + begin
    if ALIGNED:
        params = tl.multiple_of(params, 16)
        grads = tl.multiple_of(grads, 16)
        first = tl.multiple_of(first, 16)
        second = tl.multiple_of(second, 16)
    return params, grads, first, second


@triton.jit
def _kept(table, owner, tensors, beta1, beta2, least):
    """Return the factors of both old moments, and the smallest second moment."""
    first = tl.load(tl.load(table + 4 * tensors + owner).to(tl.pointer_type(tl.float32)))
    second = tl.load(tl.load(table + 5 * tensors + owner).to(tl.pointer_type(tl.float32)))
    return first * beta1, second * beta2, second * least


@triton.jit
def _take_in(
    params, grads, first, second, offsets, mask, first_kept, second_kept, first_taken, second_taken
):
    """Return the weights and both new moments."""
    weight = tl.load(params + offsets, mask).to(tl.float32)
    gradient = tl.load(grads + offsets, mask).to(tl.float32)
    first_codes = tl.load(first + offsets, mask).to(tl.int32)
    second_codes = tl.load(second + offsets, mask).to(tl.int32)
    mean = _decode(first_codes, _FIRST_TAIL, 8, _FIRST_BIAS, 0x80) * first_kept
    square = _decode(second_codes, _SECOND_TAIL, 4, _SECOND_BIAS, 0) * second_kept
    return weight, mean + gradient * first_taken, square + gradient * gradient * second_taken


@triton.jit
def _direct(mean, square, weight, bound, eps, weight_decay):
    root = tl.sqrt_rn(tl.maximum(square, bound, propagate_nan=_NAN))
    return tl.div_rn(mean, root + eps) + weight_decay * weight


@triton.jit
def _clipped_square(value, least):
    clipped = tl.minimum(value * value, 1.0, propagate_nan=_NAN)
    return tl.maximum(clipped, least, propagate_nan=_NAN)


@triton.jit
def _decode(
    codes, TAIL: tl.constexpr, NORMAL: tl.constexpr, BIAS: tl.constexpr, SIGN: tl.constexpr
):
    """Return the numbers of codes; subnormal ones are below `NORMAL`."""
    unsigned = codes & (0xFF - SIGN)
    normal = ((unsigned << TAIL) + (BIAS << 23)).to(tl.float32, bitcast=True)
    # A subnormal code lacks the leading 1: subtract it, and double for the exponent of 1.
    value = tl.where(unsigned < NORMAL, (normal - 2.0 ** (BIAS - 127)) * 2, normal)
    signs = (codes & SIGN) << 24
    return (value.to(tl.int32, bitcast=True) | signs).to(tl.float32, bitcast=True)


@triton.jit
def _encode(values, thresholds, TAIL: tl.constexpr, BIAS: tl.constexpr, SIGN: tl.constexpr):
    bits = (values * 2.0 ** (-BIAS)).to(tl.int32, bitcast=True)
    return (((bits & 0x7FFFFFFF) + thresholds) >> TAIL) | ((bits >> 24) & SIGN)
