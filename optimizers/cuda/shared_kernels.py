"""Parts of several kernels: a program's chunk, the learning rate, and sums over chunks."""

import triton
import triton.language as tl


@triton.jit
def _chunk(owners, places, sizes, chunk, CHUNK: tl.constexpr):
    """Return the tensor of a chunk, its first element there, and its count of elements."""
    owner = tl.load(owners + chunk)
    begin = tl.load(places + chunk).to(tl.int64) * CHUNK
    return owner, begin, tl.minimum(tl.load(sizes + owner) - begin, CHUNK).to(tl.int32)


@triton.jit
def _rate(lr, TENSOR_LR: tl.constexpr):
    rate = lr
    if TENSOR_LR:
        rate = tl.load(lr).to(tl.float32)
    return rate


@triton.jit
def total(partials, firsts, chunks, squares, tensors, BLOCK: tl.constexpr):
    """Add up one tensor's chunks, in float64."""
    owner = tl.program_id(0)
    begin, end = tl.load(firsts + owner), tl.load(firsts + owner + 1)
    for row in tl.static_range(2):
        sums = tl.zeros((BLOCK,), tl.float64)
        for start in range(begin, end, BLOCK):
            offsets = start + tl.arange(0, BLOCK)
            sums += tl.load(partials + row * chunks + offsets, offsets < end, 0.0).to(tl.float64)
        tl.store(squares + row * tensors + owner, tl.sum(sums, 0).to(tl.float32))
