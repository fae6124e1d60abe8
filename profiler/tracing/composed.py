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


_NONE, _MEAN = 0, 1


def _pointwise_loss(tensor: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN, *_: float) -> torch.Tensor:
    """mse_loss and smooth_l1_loss in ATen/native/BinaryOps.cpp: the result is allocated for all losses, and keeps that."""
    result = tensor - target
    if reduction == _NONE:
        return result
    reduce = torch.mean if reduction == _MEAN else torch.sum
    return reduce(tensor - target, (), out=result.resize_(()))


def _huber_loss(tensor: torch.Tensor, target: torch.Tensor, reduction: int = _MEAN, _: float = 1.0) -> torch.Tensor:
    """huber_loss in ATen/native/Loss.cpp."""
    del target
    losses = torch.empty_like(tensor)
    if reduction == _NONE:
        return losses
    return losses.mean() if reduction == _MEAN else losses.sum()


def _binary_cross_entropy(
    tensor: torch.Tensor, target: torch.Tensor, weight: torch.Tensor | None = None, reduction: int = _MEAN
) -> torch.Tensor:
    """binary_cross_entropy in ATen/native/Loss.cpp and cuda/Loss.cu: the result keeps the memory of all losses."""
    del target, weight
    losses = torch.empty_like(tensor)
    if reduction == _NONE:
        return losses
    reduced = losses.mean() if reduction == _MEAN else losses.sum()
    return losses.resize_(()).copy_(reduced)


def _own_parts(func: Any) -> Callable[..., Any]:
    return partial(func._op_dk, torch._C.DispatchKey.CompositeExplicitAutograd)


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten.logsumexp.default: _logsumexp,
    aten.mse_loss.default: _pointwise_loss,
    aten.smooth_l1_loss.default: _pointwise_loss,
    aten.huber_loss.default: _huber_loss,
    aten.binary_cross_entropy.default: _binary_cross_entropy,
    **{
        func: _own_parts(func)
        for func in (
            aten.binary_cross_entropy_with_logits.default,
            aten._safe_softmax.default,
            aten._euclidean_dist.default,
            aten.soft_margin_loss.default,
            aten.soft_margin_loss.out,
            aten.soft_margin_loss_backward.default,
            aten.soft_margin_loss_backward.grad_input,
        )
    },
}
"""Functions that run an operation's parts; to be called where each of them is recorded."""
