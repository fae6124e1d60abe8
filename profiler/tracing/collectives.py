"""Collectives: the operations by which ranks exchange data, as an operation's call shows them."""

from typing import Any

import torch
from torch.utils._pytree import tree_leaves

from .stream import Collective

COLLECTIVES = ("c10d", "_c10d_functional", "_dtensor")
"""The namespaces of torch's collective operations."""
# Their names in NCCL's spelling; torch's differ by what they take, as in _allgather_base_.
_OPERATIONS = ("all_gather", "all_reduce", "reduce_scatter", "broadcast")


def collective(func: Any, args: Any, outputs: list[Any]) -> Collective | None:
    """Return the exchange of a call; None for an operation that only waits or wraps."""
    from torch.distributed._tools.fake_collectives import CollectiveOp, collective_ops, sync_ops

    if func not in collective_ops or func in sync_ops:
        return None
    words = func._schema.name.partition("::")[2].replace("_", "")
    name = next((name for name in _OPERATIONS if words.startswith(name.replace("_", ""))), words)
    ranks = CollectiveOp.get_process_group(func, args).size()
    return Collective(name, ranks, max(map(_bytes_in, (*args, outputs))))


def tensors_in(value: Any) -> list[torch.Tensor]:
    """Return the tensors among the leaves of a value."""
    return [each for each in tree_leaves(value) if isinstance(each, torch.Tensor)]


def _bytes_in(value: Any) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors_in(value))
