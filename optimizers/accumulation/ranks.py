"""What several ranks must agree on: numbers of one micro-batch, read by all, so that all decide
alike.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor


def count() -> int:
    """The ranks that train together: 1 where torch.distributed is not initialised."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def on_host(numbers: Sequence[Tensor]) -> list[list[float]]:
    """Each 0-dim tensor as all ranks have it, rank by rank: one exchange, and one wait for the
    device.
    """
    mine = torch.stack([number.detach().to(numbers[0].device, torch.float64) for number in numbers])
    if mine.is_meta:
        # A simulation answers item() alone.
        return [[number.item()] for number in mine]
    table = mine.unsqueeze(0)
    if count() > 1:
        table = mine.new_empty(count(), len(numbers))
        dist.all_gather(list(table.unbind()), mine)
    return table.T.tolist()


def norm_over_shards(norm: Tensor) -> Tensor:
    """The norm of tensors of which each rank holds a part, from the norms of the parts."""
    square = norm.square()
    if count() > 1:
        dist.all_reduce(square)
    return square.sqrt()
