"""Norms of gradients: of shards, and of each micro-batch while autograd sums.

All ranks read the same numbers, so that they decide alike.
"""

from collections.abc import Iterable, Sequence
from functools import partial

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.hooks import RemovableHandle

from ..reductions import total_norm


def rank_count() -> int:
    """Return the number of ranks that train together, 1 without torch.distributed."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def on_host(numbers: Sequence[Tensor]) -> list[list[float]]:
    """Return every rank's value of each 0-dim tensor, by one exchange and one wait."""
    mine = torch.stack([number.detach().to(numbers[0].device, torch.float64) for number in numbers])
    if mine.is_meta:
        # A simulation supports only item().
        return [[number.item()] for number in mine]
    table = mine.unsqueeze(0)
    if rank_count() > 1:
        table = mine.new_empty(rank_count(), len(numbers))
        dist.all_gather(list(table.unbind()), mine)
    return table.T.tolist()


def norm_over_shards(norm: Tensor) -> Tensor:
    """Return the norm of sharded tensors from the norms of the shards."""
    square = norm.square()
    if rank_count() > 1:
        dist.all_reduce(square)
    return square.sqrt()


class MicroBatchNorms:
    """The norm of a micro-batch's own gradient, taken by hooks before autograd adds it to `.grad`.

    A parameter counts from the first micro-batch that starts after it was hooked. Under DDP a hook
    gets this rank's gradient before it is averaged. Gradients that bypass autograd's accumulation,
    as those of FSDP2's shards, are not seen. A micro-batch is one backward pass: the norm of a sum
    of two does not follow from their norms.
    """

    def __init__(self) -> None:
        self._hooks: dict[int, RemovableHandle] = {}
        self._norms: dict[int, Tensor] = {}

    def watch(self, params: Iterable[Tensor]) -> None:
        """Hook every trained parameter that has no hook yet."""
        for param in params:
            if param.requires_grad and id(param) not in self._hooks:
                self._hooks[id(param)] = param.register_hook(partial(self.see, id(param)))

    def see(self, key: int, gradient: Tensor) -> None:
        """Take a gradient as this micro-batch's of the parameter with this id.

        RuntimeError if the parameter has one already.
        """
        if key in self._norms:
            raise RuntimeError(
                "a second backward pass before step(); take one for each step, clear gradients that"
                " shall not count by the wrapper's zero_grad(), or pass buffered=True"
            )
        with torch.no_grad():
            self._norms[key] = total_norm([gradient])

    def take(self) -> Tensor | None:
        """Return the norm of all gradients since the last call, None if there were none."""
        norms, self._norms = self._norms, {}
        return total_norm(norms.values()) if norms else None

    def close(self) -> None:
        """Remove every hook."""
        for hook in self._hooks.values():
            hook.remove()
        self._hooks.clear()
