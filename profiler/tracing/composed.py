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


def _own_parts(func: Any) -> Callable[..., Any]:
    return partial(func._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd)


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten.logsumexp.default: _logsumexp,
    **{
        func: _own_parts(func)
        for func in (
            aten.binary_cross_entropy_with_logits.default,
            aten._safe_softmax.default,
            aten.soft_margin_loss.default,
            aten.soft_margin_loss_backward.default,
        )
    },
}
"""What runs an operation's parts; to be called where each of them is recorded."""
