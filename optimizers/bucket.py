"""Buckets: parameters that are updated together, and the operations in which updates are written.

An operation takes lists of tensors and one number. The number is a float or, in compiled updates
and for tensor learning rates, a 0-dim tensor. No operation reads a tensor's value: that would wait
for the device, and torch.compile would compile the value as a constant.
"""

# pyright: reportPrivateImportUsage=false

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Options = dict[str, Any]
State = dict[str, Tensor]
Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Parameters that are updated together, with gradients, states and the options of their group.

    The learning rate in the options is a float or a 0-dim tensor on the parameters' device.
    `numbers` change from step to step, one a parameter. In a compiled update every number is a
    0-dim tensor, except options of 0, so that no value needs a compilation of its own. `largest`
    counts the elements of the step's largest parameter, which bounds an update's temporaries; it is
    0 in a compiled update, which has no temporaries.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]
    options: Options
    numbers: dict[str, list[float] | list[Tensor]] = field(default_factory=dict)
    largest: int = 0

    def state(self, key: str) -> list[Tensor]:
        """Return one state of every parameter."""
        return [state[key] for state in self.states]

    def select(self, indices: list[int]) -> "Bucket":
        """Return the bucket of some of its parameters."""
        lists: Any = {
            name: [getattr(self, name)[index] for index in indices]
            for name in ("params", "grads", "states")
        }
        numbers: Any = {
            name: [values[index] for index in indices] for name, values in self.numbers.items()
        }
        return replace(self, **lists, numbers=numbers)


def is_nonzero(option: float | Tensor) -> bool:
    """Return whether an option is nonzero, without reading a tensor.

    Compiled updates get zeros as floats, so a tensor is never 0.
    """
    return isinstance(option, Tensor) or option != 0


def descend(
    params: Tensors, directions: Tensors, lr: float | Tensor, scales: Tensors | None = None
) -> None:
    """Subtract lr * scale * direction from every parameter, in one pass over it."""
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
    """Move every average towards the new tensor by a weight in [0, 1], in the average's dtype."""
    new = [tensor.to(mean.dtype) for tensor, mean in zip(new, averages, strict=True)]
    if isinstance(weight, Tensor):
        # A compiled update does not store the difference; lerp with a tensor would not run in
        # place.
        torch._foreach_addcmul_(
            averages, torch._foreach_sub(new, averages), [weight] * len(averages)
        )
    else:
        torch._foreach_lerp_(averages, new, weight)


def add_squares(totals: Tensors, new: Tensors, weight: float | Tensor) -> None:
    """Add weight * new^2 to every total, computed in the total's dtype."""
    if isinstance(weight, Tensor):
        # A compiled update does not store the product.
        weighted = [
            tensor.to(total.dtype) * weight for tensor, total in zip(new, totals, strict=True)
        ]
        torch._foreach_addcmul_(totals, weighted, new)
    else:
        torch._foreach_addcmul_(totals, new, new, value=weight)


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on a device; only a copy to the host waits until it has arrived."""
    return tensor.to(device, non_blocking=device.type != "cpu")
