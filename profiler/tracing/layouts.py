"""The plain tensors inside sparse and jagged tensors, on the host or on the meta device."""

from collections.abc import Sequence
from typing import Any

import torch

from ..training.reachable import plain_tensors


def data_of(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Return the tensors with the data, the values last; a strided tensor is its own."""
    if tensor.layout is torch.strided:
        return (tensor,)
    if tensor.layout is torch.jagged:
        nested: Any = tensor
        return nested.offsets(), nested.values()
    return tuple(plain_tensors(tensor))


def is_sparse(value: Any) -> bool:
    """Return whether a value is a sparse meta tensor."""
    return (
        isinstance(value, torch.Tensor)
        and value.layout not in (torch.strided, torch.jagged)
        and value.is_meta
    )


def made(
    indices: torch.Tensor, values: torch.Tensor, shape: Any, *, coalesced: bool
) -> torch.Tensor:
    """Return the sparse tensor of these indices and values."""
    return torch.sparse_coo_tensor(
        indices, values, shape, check_invariants=False, is_coalesced=coalesced
    )


def compressed(parts: Sequence[torch.Tensor], shape: Any, layout: torch.layout) -> torch.Tensor:
    """Return the tensor of compressed rows or columns with these parts."""
    pointers, places, values = parts
    return torch.sparse_compressed_tensor(
        pointers, places, values, shape, layout=layout, check_invariants=False
    )
