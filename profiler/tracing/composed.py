"""Operations that every device runs as several others, which torch's meta tensors run as one.

Their results in between are allocations too: the exponentials of a logsumexp are as large as its operand.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

aten = torch.ops.aten


def _logsumexp(tensor: torch.Tensor, dim: list[int], keepdim: bool = False) -> torch.Tensor:
    """The steps of logsumexp_out_impl in ATen/native/ReduceOps.cpp."""
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    largest = tensor.amax(dim, keepdim=True)
    shift = largest if keepdim else largest.squeeze(dim)
    sizes = shift.abs()
    infinite = sizes == torch.inf
    shift.masked_fill_(infinite, 0)
    # As temporaries of C++ go: the last first.
    del infinite, sizes
    return (tensor - largest).exp_().sum(dim, keepdim=keepdim).log_().add_(shift)


_BINARY_CROSS_ENTROPY = aten.binary_cross_entropy_with_logits.default
PARTS: Mapping[int, Callable[..., Any]] = {
    id(aten.logsumexp.default): _logsumexp,
    # torch's own parts, in ATen/native/Loss.cpp.
    id(_BINARY_CROSS_ENTROPY): partial(_BINARY_CROSS_ENTROPY._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd),
}
"""What runs the parts of an operation, by its identity; to be called where each of them is recorded."""
