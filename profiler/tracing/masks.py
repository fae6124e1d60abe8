"""Memory that CUDA takes to find the places where a mask is set, and to fill them.

How many there are hangs on values. The trace knows it from them, or from what fills the places.
From ATen/native/cuda (Nonzero.cu, IndexKernel.cpp, IndexKernel.cu), native/IndexingUtils.h and
native/TensorAdvancedIndexing.cpp.
"""

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import torch

from .cub import scan_bytes, select_bytes, sum_bytes
from .requests import OUTPUT, Device, Kernel

aten = torch.ops.aten
_LONG = 8
_INT = 4


class Mask(NamedTuple):
    """A tensor whose nonzero places are looked up, their number, and bytes of its contiguous
    copy.
    """

    numbers: int
    dimensions: int
    places: int
    copied: int

    @classmethod
    def of(cls, tensor: torch.Tensor, places: int) -> "Mask":
        """Return the mask that a tensor is."""
        return cls(tensor.numel(), tensor.dim(), places, copied_bytes(tensor))


def copied_bytes(tensor: torch.Tensor) -> int:
    """Bytes of what `contiguous` makes."""
    return 0 if tensor.is_contiguous() else tensor.numel() * tensor.element_size()


def nonzero(device: Device, mask: Mask) -> list[int]:
    """The mask laid out anew, a counter, storage to count, the places, storage to write them.

    nonzero_cuda_out_impl.
    """
    places = _LONG * mask.dimensions * mask.places
    return [
        mask.copied,
        _INT,
        sum_bytes(device, mask.numbers),
        places,
        select_bytes(mask.numbers) if mask.dimensions else 0,
    ]


def _of_nonzero(result: torch.Tensor, tensor: torch.Tensor) -> tuple[Mask]:
    return (Mask.of(tensor, result.size(0)),)


def _masked_scatter(_: Device, numbers: int, copied: int) -> list[int]:
    """masked_scatter__cuda: sums over the mask, the mask laid out anew, the scan; the source."""
    return [_LONG * numbers, copied, scan_bytes(numbers, _LONG)]


def _of_masked_scatter(
    result: torch.Tensor, _: Any, mask: torch.Tensor, source: torch.Tensor
) -> tuple[int, int] | None:
    del source
    if not result.numel():
        return None
    return result.numel(), copied_bytes(mask.expand(result.shape))


def _of_masked_scatter_backward(
    _: Any, grad: torch.Tensor, mask: torch.Tensor, sizes: Sequence[int]
) -> tuple[Mask]:
    """masked_select of as many places as the source has: the trace takes none to be left over."""
    return (Mask.of(mask.expand(grad.shape), prod(sizes)),)


_SCATTER = Kernel(
    rule=_masked_scatter, numbers=_of_masked_scatter, order=(OUTPUT, 0, 1, 2, ~2, ~1, ~0)
)


def _without_places(device: Device, mask: Mask) -> list[int]:
    """As `nonzero`, where the places are the output."""
    copied, counter, counting, _, writing = nonzero(device, mask)
    return [copied, counter, counting, writing]


MASKS: Mapping[Any, Kernel] = {
    aten.nonzero.default: Kernel(
        rule=_without_places, numbers=_of_nonzero, order=(0, 1, 2, ~2, OUTPUT, 3, ~3, ~1, ~0)
    ),
    aten.masked_scatter.default: _SCATTER,
    aten.masked_scatter_.default: _SCATTER,
    aten.masked_scatter_backward.default: Kernel(
        rule=nonzero,
        numbers=_of_masked_scatter_backward,
        order=(0, 1, 2, ~2, 3, 4, ~4, ~1, ~0, OUTPUT, ~3),
    ),
}
