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


def _median(tensor: torch.Tensor) -> torch.Tensor:
    """The steps of median_impl in ATen/native/cuda/Sorting.cpp."""
    numbers = tensor.flatten().sort()[0]
    return torch.where(numbers[-1].isnan(), numbers[-1], numbers[(tensor.numel() - 1) // 2])


def _count_nonzero(tensor: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    return _count_nonzero_in(tensor, [] if dim is None else [dim])


def _count_nonzero_in(tensor: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """The steps of count_nonzero_cuda in ATen/native/TensorAdvancedIndexing.cpp."""
    return (tensor if tensor.dtype == torch.bool else tensor != 0).sum(dim)


def _multinomial(tensor: torch.Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None) -> torch.Tensor:
    """The steps of multinomial_out in ATen/native/Distributions.cpp, without the checks of values.

    Samples with replacement, of which the kernel draws several, follow MultinomialKernel.cu.
    """
    del generator
    result = torch.empty((*tensor.shape[:-1], num_samples), dtype=torch.int64, device=tensor.device)
    if replacement and num_samples > 1:
        shares = torch.empty_like(tensor, memory_format=torch.contiguous_format)
        _sums = torch.cumsum(shares, -1)
        return result
    noise = torch.empty_like(tensor).exponential_()
    torch.div(tensor, noise, out=noise)
    if num_samples == 1:
        torch.argmax(noise, -1, keepdim=True, out=result)
    else:
        torch.topk(noise, num_samples, out=(torch.empty_like(result, dtype=tensor.dtype), result))
    return result


def _own_parts(func: Any, key: str = "CompositeExplicitAutograd") -> Callable[..., Any]:
    return partial(func._op_dk, getattr(torch._C.DispatchKey, key))


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten.logsumexp.default: _logsumexp,
    aten.median.default: _median,
    aten.count_nonzero.default: _count_nonzero,
    aten.count_nonzero.dim_IntList: _count_nonzero_in,
    aten.multinomial.default: _multinomial,
    # Below autograd nothing else takes it apart.
    aten.matmul.default: _own_parts(aten.matmul.default, "CompositeImplicitAutograd"),
    **{
        func: _own_parts(func)
        for func in (
            aten.binary_cross_entropy_with_logits.default,
            aten._safe_softmax.default,
            aten.soft_margin_loss.default,
            aten.soft_margin_loss_backward.default,
            aten._euclidean_dist.default,
        )
    },
}
"""What runs an operation's parts; to be called where each of them is recorded."""
