"""Memory that norms take on CUDA besides their outputs: sums in parts, statistics of groups.

From ATen/native/cuda/layer_norm_kernel.cu and group_norm_kernel.cu.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from .reducing_operations import column_sums
from .requests import OUTPUT, Device, Kernel, after_outputs

aten = torch.ops.aten
_ROWS_IN_ONE_PASS = 65_536
_MOST_BLOCKS = 32_768
_ROWS_OF_A_BLOCK = 32


def _layer_norm_backward(device: Device, rows: int, width: int, weight: torch.dtype, gradients: int) -> list[int]:
    """LaunchGammaBetaBackwardCUDAKernel: sums over many short rows are made in two passes."""
    columns = device.warp
    if rows <= _ROWS_IN_ONE_PASS or width // columns >= device.multiprocessors // 2:
        return [0] * 4
    parts = min(_MOST_BLOCKS // -(-width // columns), -(-rows // _ROWS_OF_A_BLOCK))
    part = parts * width * weight.itemsize
    return [part, part if gradients > 1 else 0, *column_sums(device, parts, width, weight)]


def _of_layer_norm_backward(
    result: Sequence[torch.Tensor | None], grad_out: torch.Tensor, tensor: torch.Tensor, shape: Sequence[int], *_: Any, **__: Any
) -> tuple[Any, ...] | None:
    del grad_out
    gradients = [gradient for gradient in result[1:] if gradient is not None]
    width = prod(shape)
    return (tensor.numel() // width, width, gradients[0].dtype, len(gradients)) if gradients else None


def _group_norm(_: Device, batch: int, channels: int, groups: int, pixels: int, is_half: bool, scaled: bool) -> list[int]:
    """GroupNormKernelImplInternal: statistics in float32; each channel's factor and offset."""
    statistics = 4 * batch * groups if is_half else 0
    factors = 4 * batch * channels if pixels > 1 and scaled else 0
    return [statistics, statistics, factors, factors]


def _of_group_norm(
    _: Any, tensor: torch.Tensor, weight: Any, bias: Any, batch: int, channels: int, pixels: int, groups: int, *__: Any, **___: Any
) -> tuple[Any, ...]:
    scaled = weight is not None or bias is not None
    return batch, channels, groups, pixels, tensor.element_size() == 2, scaled


def _group_norm_backward(_: Device, batch: int, channels: int, groups: int, pixels: int, scaled: bool) -> list[int]:
    """GroupNormBackwardKernelImplInternal: sums and factors of channels, numbers of groups."""
    sums = 4 * batch * channels if pixels > 1 else 0
    return [sums, sums, 4 * batch * groups, 4 * batch * groups, sums if scaled else 0]


def _of_group_norm_backward(
    _: Any,
    grad_out: Any,
    tensor: Any,
    mean: Any,
    rstd: Any,
    weight: Any,
    batch: int,
    channels: int,
    pixels: int,
    groups: int,
    *__: Any,
    **___: Any,
) -> tuple[Any, ...]:
    del grad_out, tensor, mean, rstd
    return batch, channels, groups, pixels, weight is not None


_LAYER_NORM = Kernel(rule=_layer_norm_backward, numbers=_of_layer_norm_backward, order=(OUTPUT, 0, 1, 2, 3, ~3, ~2, ~1, ~0))
NORMS: Mapping[Any, Kernel] = {
    aten.native_layer_norm_backward.default: _LAYER_NORM,
    aten._fused_rms_norm_backward.default: _LAYER_NORM,
    aten.native_group_norm.default: Kernel(rule=_group_norm, numbers=_of_group_norm, order=after_outputs(4)),
    aten.native_group_norm_backward.default: Kernel(rule=_group_norm_backward, numbers=_of_group_norm_backward, order=after_outputs(5)),
}
