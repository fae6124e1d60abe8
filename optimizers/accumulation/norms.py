"""The norm of many gradients at once, sharded ones too, and of each micro-batch's own gradient
while autograd sums them.
"""

# pyright: reportPrivateImportUsage=false

from collections import defaultdict
from collections.abc import Hashable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..reductions import l2_norms
from ..sharded import is_sharded, local, over_ranks


def total_norm(tensors: Iterable[Tensor]) -> Tensor:
    """The L2 norm of all elements of one or more tensors: a 0-dim tensor in float32 or wider, on
    the first one's device.

    Reads every tensor once and does not wait for the device. Half precision is summed in float32.
    Of sharded tensors (DTensor) it is the norm of the whole ones, the same on every rank.
    """
    alike: defaultdict[Hashable, list[Tensor]] = defaultdict(list)
    for tensor in tensors:
        alike[_layout(tensor)].append(tensor)
    norms = [_norm_of_alike(group) for group in alike.values()]
    if len(norms) == 1:
        return norms[0]
    dtype = torch.float64 if any(norm.dtype == torch.float64 for norm in norms) else torch.float32
    return torch.linalg.vector_norm(
        torch.stack([norm.to(norms[0].device, dtype) for norm in norms])
    )


def _layout(tensor: Any) -> Hashable:
    return (
        tensor.device,
        tensor.dtype,
        (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else None,
    )


def _norm_of_alike(tensors: list[Tensor]) -> Tensor:
    held = [elements for elements in map(_elements, tensors) if elements.numel()]
    dtype = torch.promote_types(
        torch.float32, tensors[0].real.dtype if tensors[0].is_complex() else tensors[0].dtype
    )
    norm = (
        torch.linalg.vector_norm(torch.stack(l2_norms(held, dtype)))
        if held
        else torch.zeros((), dtype=dtype, device=tensors[0].device)
    )
    return (
        over_ranks(norm.square(), tensors[0], torch.sum).sqrt() if is_sharded(tensors[0]) else norm
    )


def _elements(tensor: Tensor) -> Tensor:
    """What this rank holds, as a dense real tensor."""
    held = local(tensor)
    held = held.coalesce().values() if held.is_sparse else held
    return torch.view_as_real(held) if held.is_complex() else held


class FreshNorms:
    """The norm of each micro-batch's own gradient, taken by hooks before autograd adds it to the
    sum in `.grad`.

    A parameter counts from the first micro-batch that begins after it was watched. Under DDP a hook
    sees this rank's gradient, before it is averaged. Gradients that do not come through autograd's
    accumulation, as those of FSDP2's shards, are not seen. One backward pass makes a micro-batch:
    of the sum of two only a sum would know the norm.
    """

    def __init__(self) -> None:
        self._hooks: dict[int, RemovableHandle] = {}
        self._norms: dict[int, Tensor] = {}

    def watch(self, params: Iterable[Tensor]) -> None:
        """Hook every parameter that is trained and has no hook yet."""
        for param in params:
            if param.requires_grad and id(param) not in self._hooks:
                self._hooks[id(param)] = param.register_hook(partial(self.see, id(param)))

    def see(self, key: int, gradient: Tensor) -> None:
        """Take the norm of a gradient as this micro-batch's own of the parameter with this id;
        RuntimeError where it has one.
        """
        if key in self._norms:
            raise RuntimeError(
                "a second backward pass before step(); take one for each step, clear what is not to"
                " count by the wrapper's zero_grad(), or pass buffered=True"
            )
        with torch.no_grad():
            self._norms[key] = total_norm([gradient])

    def take(self) -> Tensor | None:
        """The norm over all gradients seen since this was last asked; None where there was none."""
        norms, self._norms = self._norms, {}
        return total_norm(norms.values()) if norms else None

    def close(self) -> None:
        """Remove every hook."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
