"""SGD-SaI's kernel: each program updates one chunk of one tensor."""

import triton
import triton.language as tl

from .shared_kernels import _chunk, _rate


@triton.jit
def update(
    table,
    sizes,
    owners,
    places,
    tensors,
    lr,
    taken,
    weight_decay,
    WEIGHT: tl.constexpr,
    MOMENTUM: tl.constexpr,
    TENSOR_LR: tl.constexpr,
    ALIGNED: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Update a chunk; the table has rows for parameters, gradients, buffers and ratios."""
    owner, first, count = _chunk(owners, places, sizes, tl.program_id(0), CHUNK)
    params = tl.load(table + owner).to(tl.pointer_type(WEIGHT)) + first
    grads = tl.load(table + tensors + owner).to(tl.pointer_type(WEIGHT)) + first
    buffers = tl.load(table + 2 * tensors + owner).to(tl.pointer_type(WEIGHT)) + first
    if ALIGNED:
        params = tl.multiple_of(params, 16)
        grads = tl.multiple_of(grads, 16)
        buffers = tl.multiple_of(buffers, 16)
    # A ratio is float32: parameters of float64 have no kernel.
    ratio = tl.load(tl.load(table + 3 * tensors + owner).to(tl.pointer_type(tl.float32)))
    rate = _rate(lr, TENSOR_LR)
    kept, rate = 1 - rate * weight_decay, rate * ratio
    for start in range(0, count, BLOCK):
        offsets = start + tl.arange(0, BLOCK)
        # Only whole blocks load without a mask, and so by 16 bytes at once.
        if start + BLOCK <= count:
            _step(params, grads, buffers, offsets, None, taken, kept, rate, WEIGHT, MOMENTUM)
        else:
            mask = offsets < count
            _step(params, grads, buffers, offsets, mask, taken, kept, rate, WEIGHT, MOMENTUM)


@triton.jit
def _step(
    params,
    grads,
    buffers,
    offsets,
    mask,
    taken,
    kept,
    rate,
    WEIGHT: tl.constexpr,
    MOMENTUM: tl.constexpr,
):
    weight = tl.load(params + offsets, mask).to(tl.float32)
    direction = tl.load(grads + offsets, mask).to(tl.float32)
    if MOMENTUM:
        average = tl.load(buffers + offsets, mask).to(tl.float32)
        stored = (average + taken * (direction - average)).to(WEIGHT)
        tl.store(buffers + offsets, stored, mask)
        direction = stored.to(tl.float32)
    tl.store(params + offsets, (weight * kept - rate * direction).to(WEIGHT), mask)
