"""The most memory that cuDNN takes as the workspace of one convolution.

cuDNN's code is closed and its choice of a kernel changes with its version and the GPU, so the
workspace is a range from nothing to the most that one of two kinds of kernels needs. Kernels for
the tensor cores copy the operands into their own layout. Winograd's kernels keep all transformed
tiles at once. tests/profiler/test_convolutions.py holds both to what a V100 has allocated in
training steps of ResNet-50. Kernels by FFT may need more and are not counted: none of those steps
has one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from .requests import Device, Kernel, after_outputs

# Offsets that a kernel works out before it runs; the recorded ones take 44,544 bytes at most.
_OFFSETS = 64 << 10
# Tensor cores read 16 bytes of channels at once; cuDNN fills channels up to that with zeros.
_CHANNEL_BYTES = 16
# The side of a tile of outputs by that of the kernel: cuDNN's winograd_nonfused, which has
# winogradForwardData4x4 for kernels of 3 x 3 and winogradForwardData9x9_5x5 for those of 5 x 5.
_TILES = {3: 4, 5: 9}


def _most(_: Device, nbytes: int) -> tuple[int]:
    return (nbytes,)


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
    """The gradients of input and weight are worked out one after the other, within the same
    bound.
    """
    wanted = options[-1]
    return _of_convolution(source, weight, gradient, options[:-1]) if any(wanted[:2]) else None


def _of_convolution(
    source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor, options: Sequence[Any]
) -> tuple[int] | None:
    """Bytes that cuDNN takes at most while this convolution runs; None where it does not run it."""
    stride, _, dilation, transposed, output_padding, groups = options
    if any(more >= step for more, step in zip(output_padding, stride, strict=False)):
        return None
    if source.numel() == 0 or _is_native(source, weight, groups, transposed):
        return None
    is_plain = groups == 1 and {*stride, *dilation} == {1}
    winograd = _winograd(source, weight, result) if is_plain else 0
    return (max(_copies(source, weight, result), winograd),)


def _is_native(source: torch.Tensor, weight: torch.Tensor, groups: int, transposed: bool) -> bool:
    """Return whether ATen runs it by itself (_select_conv_backend in native/Convolution.cpp).

    Depthwise convolutions reach cuDNN in half precision and in the layout channels_last alone. In
    half precision further conditions may still keep them from it, which the range allows for.
    """
    if not torch.backends.cudnn.enabled:
        return True
    if transposed or groups == 1 or source.size(1) != groups or weight.size(0) % groups:
        return False
    is_half = source.element_size() == 2
    is_contiguous = source.is_contiguous() and weight.is_contiguous()
    return source.dim() in (4, 5) and is_contiguous and not is_half


def _copies(source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    """Input, output and weight in another layout, and sums of the weight's size in float32."""
    sums = max(source.element_size(), 4) * weight.numel()
    return sum(map(_copied, (source, weight, result))) + sums + _OFFSETS


def _copied(tensor: torch.Tensor) -> int:
    channels, together = tensor.size(1), _CHANNEL_BYTES // tensor.element_size()
    filled = -(-channels // together) * together
    return tensor.numel() // channels * filled * tensor.element_size()


def _winograd(source: torch.Tensor, weight: torch.Tensor, result: torch.Tensor) -> int:
    """Input, output and weight transformed: a tile of m x m outputs and an n x n kernel become
    m + n - 1 numbers squared, for each channel of the input, of the output, and for each pair.
    """
    side = weight.size(-1)
    if weight.dim() != 4 or weight.size(-2) != side or side not in _TILES:
        return 0
    if source.element_size() > 4:
        return 0
    tile = _TILES[side]
    # The gradient of the input has the input's size, which is the larger one without padding.
    areas = zip(source.shape[2:], result.shape[2:], strict=True)
    high, wide = (-(-max(sizes) // tile) for sizes in areas)
    tiles, channels = source.size(0) * high * wide, source.size(1) + result.size(1)
    numbers = tiles * channels + source.size(1) * result.size(1)
    return (tile + side - 1) ** 2 * numbers * source.element_size()


CONVOLUTIONS: Mapping[Any, Kernel] = {
    func: Kernel(rule=_most, numbers=numbers, order=after_outputs(1), optional=True)
    for func, numbers in (
        (torch.ops.aten.convolution.default, _of_forward),
        (torch.ops.aten.convolution_backward.default, _of_backward),
    )
}
