"""Operations on lists of tensors by one number, which is a float or, in a compiled update and for
some learning rates, a 0-dim tensor.

A tensor's value is never asked for: to read it would wait for its device, and would be compiled as
a constant.
"""

# pyright: reportPrivateImportUsage=false

import torch
from torch import Tensor

Tensors = list[Tensor] | tuple[Tensor, ...]


def is_set(option: float | Tensor) -> bool:
    """Whether an option has an effect, which one of 0 has not; told without reading a tensor, which
    a compiled update is given for no 0.
    """
    return isinstance(option, Tensor) or option != 0


def descend(
    params: Tensors, directions: Tensors, lr: float | Tensor, scales: Tensors | None = None
) -> None:
    """Subtract lr * scale * direction from every parameter, in one pass over it, whether the
    learning rate is a float or a tensor.
    """
    if isinstance(lr, Tensor):
        # A factor of the product, not value=: that would read the learning rate back to the host.
        factors = [-lr] * len(params) if scales is None else torch._foreach_mul(scales, -lr)
        torch._foreach_addcmul_(params, directions, factors)
    elif scales is None:
        torch._foreach_add_(params, directions, alpha=-lr)
    else:
        torch._foreach_addcmul_(params, directions, scales, value=-lr)


def add_number(tensors: Tensors, number: float | Tensor) -> None:
    """Add a number to all elements."""
    if isinstance(number, Tensor):
        # _foreach_add_ would take it for a Scalar, whose value is compiled as a constant.
        for tensor in tensors:
            tensor.add_(number)
    else:
        torch._foreach_add_(tensors, number)


def average(averages: Tensors, new: Tensors, weight: float | Tensor) -> None:
    """Move every average by a weight in [0, 1] towards what is new, which is first brought into its
    dtype.
    """
    new = [tensor.to(held.dtype) for tensor, held in zip(new, averages, strict=True)]
    if isinstance(weight, Tensor):
        # Of a compiled update, which keeps no difference; lerp with a tensor it would not do in
        # place.
        torch._foreach_addcmul_(
            averages, torch._foreach_sub(new, averages), [weight] * len(averages)
        )
    else:
        torch._foreach_lerp_(averages, new, weight)


def add_squares(totals: Tensors, new: Tensors, weight: float | Tensor) -> None:
    """Add weight * new^2 to every total, worked out in its dtype."""
    if isinstance(weight, Tensor):
        # Of a compiled update, which keeps no product.
        weighted = [
            tensor.to(total.dtype) * weight for tensor, total in zip(new, totals, strict=True)
        ]
        torch._foreach_addcmul_(totals, weighted, new)
    else:
        torch._foreach_addcmul_(totals, new, new, value=weight)


def beside(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on a device. Only the host waits for it: it would read what has not arrived."""
    return tensor.to(device, non_blocking=device.type != "cpu")
