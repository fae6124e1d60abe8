"""Memory of layer norm, RMS norm, group norm and softmax on CUDA besides their outputs.

Contiguous copies of operands, partial sums, and statistics of groups. From ATen/native/cuda:
layer_norm_kernel.cu, group_norm_kernel.cu and SoftMax.cu.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import torch

from .reducing_operations import column_sums
from .requests import (
    OUTPUT,
    Device,
    KernelMemory,
    after_outputs,
    before_outputs,
    copied_bytes,
    fixed,
)

aten = torch.ops.aten
_ROWS_IN_ONE_PASS = 65_536
_MOST_BLOCKS = 32_768
_ROWS_OF_A_BLOCK = 32


def _layer_norm_backward(
    device: Device,
    copied: tuple[int, int],
    rows: int,
    width: int,
    weight: torch.dtype | None,
    gradients: int,
) -> list[int]:
    """Copies of tensor and gradient; partial sums of many short rows, which take two passes.

    LaunchGammaBetaBackwardCUDAKernel.
    """
    columns = device.warp
    if (
        weight is None
        or rows <= _ROWS_IN_ONE_PASS
        or width // columns >= device.multiprocessors // 2
    ):
        return [*copied, 0, 0, 0, 0]
    parts = min(_MOST_BLOCKS // -(-width // columns), -(-rows // _ROWS_OF_A_BLOCK))
    part = parts * width * weight.itemsize
    return [*copied, part, part if gradients > 1 else 0, *column_sums(device, parts, width, weight)]


def _of_layer_norm_backward(
    result: Sequence[torch.Tensor | None],
    grad_out: torch.Tensor,
    tensor: torch.Tensor,
    shape: Sequence[int],
    *_: Any,
    **__: Any,
) -> tuple[Any, ...] | None:
    gradients = [gradient for gradient in result[1:] if gradient is not None]
    copied = (copied_bytes(tensor), copied_bytes(grad_out))
    if not gradients and not any(copied):
        return None
    width = prod(shape)
    return (
        copied,
        tensor.numel() // max(1, width),
        width,
        gradients[0].dtype if gradients else None,
        len(gradients),
    )


def _of_layer_norm(_: Any, tensor: torch.Tensor, *__: Any, **___: Any) -> tuple[int] | None:
    """layer_norm_cuda, host_softmax: a contiguous copy of the tensor."""
    copied = copied_bytes(tensor)
    return (copied,) if copied else None


def _of_softmax_backward(
    _: Any, grad: torch.Tensor, output: torch.Tensor, *__: Any, **___: Any
) -> tuple[int, ...] | None:
    """host_softmax_backward: contiguous copies of gradient and output."""
    copied = (copied_bytes(grad), copied_bytes(output))
    return copied if any(copied) else None


def _group_norm(
    _: Device, batch: int, channels: int, groups: int, pixels: int, is_half: bool, scaled: bool
) -> list[int]:
    """GroupNormKernelImplInternal: float32 statistics; a factor and an offset for each channel."""
    statistics = 4 * batch * groups if is_half else 0
    factors = 4 * batch * channels if pixels > 1 and scaled else 0
    return [statistics, statistics, factors, factors]


def _of_group_norm(_: Any, tensor: torch.Tensor, *arguments: Any, **__: Any) -> tuple[Any, ...]:
    weight, bias, batch, channels, pixels, groups, *_ = arguments
    scaled = weight is not None or bias is not None
    return batch, channels, groups, pixels, tensor.element_size() == 2, scaled


def _group_norm_backward(
    _: Device, batch: int, channels: int, groups: int, pixels: int, scaled: bool
) -> list[int]:
    """GroupNormBackwardKernelImplInternal: sums and factors of channels, numbers of groups."""
    sums = 4 * batch * channels if pixels > 1 else 0
    return [sums, sums, 4 * batch * groups, 4 * batch * groups, sums if scaled else 0]


def _of_group_norm_backward(_: Any, *arguments: Any, **__: Any) -> tuple[Any, ...]:
    weight, batch, channels, pixels, groups = arguments[4:9]
    return batch, channels, groups, pixels, weight is not None


_LAYER_NORM = KernelMemory(rule=fixed, numbers=_of_layer_norm, order=before_outputs(1))
_LAYER_NORM_BACKWARD = KernelMemory(
    rule=_layer_norm_backward,
    numbers=_of_layer_norm_backward,
    order=(0, OUTPUT, 1, 2, 3, 4, 5, ~5, ~4, ~3, ~2, ~1, ~0),
)
_SOFTMAX = KernelMemory(rule=fixed, numbers=_of_layer_norm, order=after_outputs(1))
_SOFTMAX_BACKWARD = KernelMemory(rule=fixed, numbers=_of_softmax_backward, order=after_outputs(2))
NORMS: Mapping[Any, KernelMemory] = {
    aten._softmax.default: _SOFTMAX,
    aten._log_softmax.default: _SOFTMAX,
    aten._softmax_backward_data.default: _SOFTMAX_BACKWARD,
    aten._log_softmax_backward_data.default: _SOFTMAX_BACKWARD,
    aten.native_layer_norm.default: _LAYER_NORM,
    aten._fused_rms_norm.default: _LAYER_NORM,
    aten.native_layer_norm_backward.default: _LAYER_NORM_BACKWARD,
    aten._fused_rms_norm_backward.default: _LAYER_NORM_BACKWARD,
    aten.native_group_norm.default: KernelMemory(
        rule=_group_norm, numbers=_of_group_norm, order=after_outputs(4)
    ),
    aten.native_group_norm_backward.default: KernelMemory(
        rule=_group_norm_backward, numbers=_of_group_norm_backward, order=after_outputs(5)
    ),
}
