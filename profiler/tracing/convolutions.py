"""The largest workspace that cuDNN takes for one convolution.

cuDNN is closed source, and its choice of a kernel changes with its version and the GPU. The
workspace is therefore a range, from nothing to the most that two kinds of kernels need: kernels for
tensor cores copy the operands into their own layout, and Winograd's kernels keep all transformed
tiles at once. tests/profiler/test_convolutions.py compares both with the allocations of a V100 in
training steps of ResNet-50. FFT kernels may need more; they are not counted, since none of those
steps uses one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .requests import KernelMemory, after_outputs, fixed

# Offsets that a kernel computes before it runs; the recorded ones take 44,544 bytes at most.
_OFFSETS = 64 << 10
# Tensor cores read 16 bytes of channels at once; cuDNN pads channels with zeros to that.
_CHANNEL_BYTES = 16
# The side of a tile of outputs by the side of the kernel, in cuDNN's winograd_nonfused:
# winogradForwardData4x4 for 3 x 3 kernels and winogradForwardData9x9_5x5 for 5 x 5 kernels.
_TILES = {3: 4, 5: 9}


def _of_forward(
    result: torch.Tensor, source: torch.Tensor, weight: torch.Tensor, _: Any, *options: Any
) -> tuple[int] | None:
    return _of_convolution(source, weight, result, options)


def _of_backward(
    _: Any,
    gradient: torch.Tensor,
    source: torch.Tensor,
    weight: torch.Tensor,
    __: Any,
    *options: Any,
) -> tuple[int] | None:
    """Return the bound of both gradients, which are computed one after the other."""
    output_mask = options[-1]
    return _of_convolution(source, weight, gradient, options[:-1]) if any(output_mask[:2]) else None


def _of_convolution(
    source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor, options: Sequence[Any]
) -> tuple[int] | None:
    """Return the most bytes that cuDNN takes for this convolution; None if it does not run it."""
    stride, _, dilation, transposed, output_padding, groups = options
    if any(more >= step for more, step in zip(output_padding, stride, strict=False)):
        return None
    if source.numel() == 0 or _is_native(source, weight, groups, transposed):
        return None
    is_plain = groups == 1 and {*stride, *dilation} == {1}
    winograd = _winograd(source, weight, result) if is_plain else 0
    return (max(_copies(source, weight, result), winograd),)


def _is_native(source: torch.Tensor, weight: torch.Tensor, groups: int, transposed: bool) -> bool:
    """Return whether ATen runs it without cuDNN: _select_conv_backend in native/Convolution.cpp.

    Depthwise convolutions reach cuDNN only in half precision or the layout channels_last. In half
    precision further conditions may still keep them from it; the range covers both cases.
    """
    if not torch.backends.cudnn.enabled:
        return True
    if transposed or groups == 1 or source.size(1) != groups or weight.size(0) % groups:
        return False
    is_half = source.element_size() == 2
    is_contiguous = source.is_contiguous() and weight.is_contiguous()
    return source.dim() in (4, 5) and is_contiguous and not is_half


def _copies(source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    """Bytes of input, output and weight in another layout, and of float32 sums for each weight."""
    sums = max(source.element_size(), 4) * weight.numel()
    return sum(map(_copied, (source, weight, result))) + sums + _OFFSETS


def _copied(tensor: torch.Tensor) -> int:
    channels, multiple = tensor.size(1), _CHANNEL_BYTES // tensor.element_size()
    padded = -(-channels // multiple) * multiple
    return tensor.numel() // channels * padded * tensor.element_size()


def _winograd(source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    """Bytes of the transformed input, output and weight.

    A tile of m x m outputs with an n x n kernel has (m + n - 1)^2 numbers for each input channel
    and for each output channel; the weight has as many for each pair of channels.
    """
    side = weight.size(-1)
    if weight.dim() != 4 or weight.size(-2) != side or side not in _TILES:
        return 0
    if source.element_size() > 4:
        return 0
    tile = _TILES[side]
    # The gradient of the input has the input's size, the larger one if there is no padding.
    areas = zip(source.shape[2:], result.shape[2:], strict=True)
    high, wide = (-(-max(sizes) // tile) for sizes in areas)
    tiles, channels = source.size(0) * high * wide, source.size(1) + result.size(1)
    numbers = tiles * channels + source.size(1) * result.size(1)
    return (tile + side - 1) ** 2 * numbers * source.element_size()


CONVOLUTIONS: Mapping[Any, KernelMemory] = {
    operation: KernelMemory(rule=fixed, numbers=numbers, order=after_outputs(1), optional=True)
    for operation, numbers in (
        (torch.ops.aten.convolution.default, _of_forward),
        (torch.ops.aten.convolution_backward.default, _of_backward),
    )
}
