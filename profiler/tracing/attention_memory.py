"""Memory that the fused attention kernels take besides their outputs, forward and backward.

From ATen/native/transformers/cuda (attention.cu, attention_backward.cu, flash_attn/flash_api.cpp,
mem_eff_attention/kernel_forward.h, kernel_backward.h, kernels/cutlassB.h) and cuDNN's frontend.
"""

from collections.abc import Mapping
from math import ceil
from typing import Any, NamedTuple

import torch

from .requests import HALF_DTYPES, OUTPUT, Device, KernelMemory, after_outputs, copied_bytes

aten = torch.ops.aten
# Compute capabilities whose blocks may take more than 99 KiB of shared memory, as wide kernels do.
_LARGE_SHARED_MEMORY = ((8, 0), (9, 0), (10, 0))


def _rounded(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


class _Blocks(NamedTuple):
    """Queries and keys of a block; `in_registers` if registers hold the gradients of keys."""

    queries: int
    keys: int
    in_registers: bool


def _efficient_blocks(device: Device, width: int, is_half: bool) -> _Blocks:
    """dispatch_cutlassB: the first kernel that is wide enough and fits the shared memory."""
    capability = device.compute_capability
    large = capability in _LARGE_SHARED_MEMORY
    if width <= 64:
        return _Blocks(64, 64, is_half)
    if is_half and width <= 96 and capability in ((8, 6), (8, 9)):
        return _Blocks(128, 64, True)
    if is_half and width <= 128 and large:
        return _Blocks(128, 128, True)
    return _Blocks(128 if large else 64, 64, False)


def _efficient_backward(
    device: Device,
    shape: tuple[int, int, int, int],
    keys: int,
    value_width: int,
    is_half: bool,
    copied: int,
) -> list[int]:
    """A copy of the gradient; output times gradient, its sum, a copy of the sum; the workspace.

    In half precision the kernel computes the sums itself. The workspace has the queries' gradients
    in float32, in whole blocks with four ints each, and those of keys and values if registers do
    not hold them.
    """
    batch, heads, queries, width = shape
    rows = batch * heads * queries
    block = _efficient_blocks(device, max(width, value_width), is_half)
    floats = (
        -(-queries // block.queries) * -(-width // block.keys) * (4 + block.queries * block.keys)
    )
    if is_half and not block.in_registers:
        splits = -(-keys // block.keys)
        if batch * heads >= 256 and keys <= 2 * block.keys:
            splits = 1
        splits = max(1, min(splits, 200 // (batch * heads)))
        floats += (
            splits
            * block.keys
            * sum(_rounded(number, block.queries) for number in (width, value_width))
        )
    product = 0 if is_half else 4 * rows * value_width
    return [
        copied,
        product,
        0 if is_half else 4 * rows,
        4 * rows,
        4 * batch * heads * _rounded(floats, 4),
    ]


def _of_efficient_backward(
    _: Any,
    grad_out: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *__: Any,
    **___: Any,
) -> tuple[Any, ...]:
    copied = copied_bytes(grad_out.transpose(1, 2))
    return tuple(query.shape), key.size(2), value.size(3), query.dtype in HALF_DTYPES, copied


def _efficient_forward(_: Device, rows: int, width: int, is_half: bool) -> list[int]:
    """The output in float32 if heads in half precision are too wide for a block to hold a row."""
    return [4 * rows * width if is_half and width > 128 else 0]


def _of_efficient_forward(
    _: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *__: Any, **___: Any
) -> tuple[int, int, bool]:
    del key
    return query.numel() // query.size(-1), value.size(-1), query.dtype in HALF_DTYPES


def _splits(device: Device, blocks: int, key_blocks: int) -> int:
    """num_splits_heuristic: the fewest parts of the keys that fill the GPU to 85 % of the best."""
    places = 2 * device.multiprocessors
    if blocks >= 0.8 * places:
        return 1
    most = min(128, places, key_blocks)
    # A count with parts as large as the count before would leave one of them empty.
    counts = [
        n for n in range(1, most + 1) if n == 1 or -(-key_blocks // n) != -(-key_blocks // (n - 1))
    ]
    waves = {n: blocks * n / places for n in counts}
    filled = {n: waves[n] / ceil(waves[n]) for n in counts}
    return next(n for n in counts if filled[n] >= 0.85 * max(filled.values()))


def _flash_forward(
    device: Device, heads: int, queries: int, keys: int, width: int, drops: bool
) -> list[int]:
    """set_params_splitkv: float32 sums of exponentials and outputs for each part of the keys."""
    key_block = 256 if width <= 64 else 128 if width <= 128 else 64
    parts = 1 if drops else _splits(device, heads * -(-queries // 64), -(-keys // key_block))
    rows = 4 * parts * heads * queries if parts > 1 else 0
    return [rows, rows * _padded(width)]


def _padded(width: int) -> int:
    return _rounded(width, 32 if width <= 128 else 64)


def _of_flash_forward(
    _: Any,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    dropout_p: float = 0.0,
    *__: Any,
    **___: Any,
) -> tuple[Any, ...]:
    del value
    batch, heads, queries, width = query.shape
    return batch * heads, queries, key.size(2), width, bool(dropout_p)


def _flash_backward(_: Device, heads: int, queries: int, width: int, repeated: int) -> list[int]:
    """mha_bwd: float32 sums of the queries' gradients; gradients of repeated keys and values."""
    rows = 4 * heads * _rounded(queries, 128)
    return [rows, rows * _padded(width), repeated, repeated]


def _repeated(query: torch.Tensor, key: torch.Tensor) -> int:
    batch, heads, _, width = query.shape
    return 0 if key.size(1) == heads else batch * heads * key.size(2) * width * key.element_size()


def _of_flash_backward(
    _: Any, grad_out: torch.Tensor, query: torch.Tensor, key: torch.Tensor, *__: Any, **___: Any
) -> tuple[int, ...]:
    del grad_out
    batch, heads, queries, width = query.shape
    return batch * heads, queries, width, _repeated(query, key)


def _cudnn_backward(_: Device, heads: int, queries: int, width: int, repeated: int) -> list[int]:
    """The single workspace of cuDNN's frontend: as flash, without rounding to blocks.

    It holds the backward node's softmax_sum, dQ_accum, dK_fullhead and dV_fullhead; kernels may
    need more.
    """
    return [4 * heads * queries * (1 + width) + 2 * repeated]


_MEMORY = {
    "_scaled_dot_product_efficient_attention": KernelMemory(
        rule=_efficient_forward,
        numbers=_of_efficient_forward,
        order=(OUTPUT, OUTPUT, 0, OUTPUT, ~0),
    ),
    "_scaled_dot_product_efficient_attention_backward": KernelMemory(
        rule=_efficient_backward,
        numbers=_of_efficient_backward,
        order=(0, OUTPUT, 1, 2, 3, ~2, ~1, 4, ~3, ~4, ~0),
    ),
    "_scaled_dot_product_flash_attention": KernelMemory(
        rule=_flash_forward, numbers=_of_flash_forward, order=(OUTPUT, OUTPUT, 0, 1, OUTPUT, ~1, ~0)
    ),
    "_scaled_dot_product_flash_attention_backward": KernelMemory(
        rule=_flash_backward, numbers=_of_flash_backward, order=after_outputs(4)
    ),
    "_scaled_dot_product_cudnn_attention_backward": KernelMemory(
        rule=_cudnn_backward, numbers=_of_flash_backward, order=after_outputs(1)
    ),
}
ATTENTION: Mapping[Any, KernelMemory] = {
    getattr(aten, name).default: memory for name, memory in _MEMORY.items()
}
