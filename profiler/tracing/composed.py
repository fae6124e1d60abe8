"""Operations that CUDA runs as several others, but meta tensors as one.

Their intermediate results are allocations too: the exponentials of a logsumexp are as large as its
operand. Each function here runs the steps of one operation.
"""

from collections.abc import Callable, Mapping
from functools import partial
from math import prod
from typing import Any

import torch

from . import recurrent
from .ctc import CTC

aten = torch.ops.aten
# at::Reduction, as an operation's argument.
_NONE, _MEAN = 0, 1


def _logsumexp(tensor: torch.Tensor, dim: list[int], keepdim: bool = False) -> torch.Tensor:
    """Run the steps of logsumexp_out_impl in ATen/native/ReduceOps.cpp."""
    if not tensor.is_floating_point():
        tensor = tensor.to(torch.get_default_dtype())
    largest = tensor.amax(dim, keepdim=True)
    shift = largest if keepdim else largest.squeeze(dim)
    sizes = shift.abs()
    infinite = sizes == torch.inf
    shift.masked_fill_(infinite, 0)
    # C++ frees the last temporary first.
    del infinite, sizes
    return (tensor - largest).exp_().sum(dim, keepdim=keepdim).log_().add_(shift)


def _median(tensor: torch.Tensor) -> torch.Tensor:
    """Run the steps of median_impl in ATen/native/cuda/Sorting.cpp."""
    numbers = tensor.flatten().sort()[0]
    return torch.where(numbers[-1].isnan(), numbers[-1], numbers[(tensor.numel() - 1) // 2])


def _count_nonzero(tensor: torch.Tensor, dim: int | None = None) -> torch.Tensor:
    return _count_nonzero_in(tensor, [] if dim is None else [dim])


def _count_nonzero_in(tensor: torch.Tensor, dim: list[int]) -> torch.Tensor:
    """Run the steps of count_nonzero_cuda in ATen/native/TensorAdvancedIndexing.cpp."""
    return (tensor if tensor.dtype == torch.bool else tensor != 0).sum(dim)


def _multinomial(
    tensor: torch.Tensor, num_samples: int, replacement: bool = False, *, generator: Any = None
) -> torch.Tensor:
    """Run the steps of multinomial_out in ATen/native/Distributions.cpp except its checks.

    Several samples with replacement follow MultinomialKernel.cu.
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


def _binary_loss(
    tensor: torch.Tensor, target: torch.Tensor, reduction: int = 1, *_: Any, **__: Any
) -> torch.Tensor:
    """Run the steps of mse_loss_out and smooth_l1_loss_out in ATen/native/Loss.cpp.

    The output is allocated as large as the losses and then resized to one number, which keeps all
    the memory.
    """
    output = tensor - target
    if reduction == _NONE:
        return output
    reduce = torch.mean if reduction == _MEAN else torch.sum
    return reduce(tensor - target, dim=[], out=output.resize_(()))


def _huber_loss(
    tensor: torch.Tensor, target: torch.Tensor, reduction: int = 1, delta: float = 1.0
) -> torch.Tensor:
    """Run the steps of huber_loss in ATen/native/Loss.cpp."""
    del target, delta
    losses = torch.empty_like(tensor)
    return losses if reduction == _NONE else losses.mean() if reduction == _MEAN else losses.sum()


def _binary_cross_entropy(
    tensor: torch.Tensor,
    target: torch.Tensor,
    weight: torch.Tensor | None = None,
    reduction: int = 1,
) -> torch.Tensor:
    """Run the steps of binary_cross_entropy_out_cuda in ATen/native/cuda/Loss.cu.

    The output keeps the memory of all losses here too.
    """
    del target, weight
    return _reduced_in_place(torch.empty_like(tensor), reduction)


def _soft_margin_loss(
    tensor: torch.Tensor, target: torch.Tensor, reduction: int = 1
) -> torch.Tensor:
    """Run the steps of soft_margin_loss_out in ATen/native/Loss.cpp, which also keeps memory."""
    del target
    return _reduced_in_place(-tensor, reduction)


def _soft_margin_loss_backward(
    grad: torch.Tensor, tensor: torch.Tensor, target: torch.Tensor, reduction: int
) -> torch.Tensor:
    """Run the steps of soft_margin_loss_backward_out in ATen/native/Loss.cpp."""
    del grad, reduction
    negated = -target
    product = negated * tensor
    exponentials = torch.exp(product)
    del product, negated
    return target * exponentials


def _reduced_in_place(losses: torch.Tensor, reduction: int) -> torch.Tensor:
    if reduction == _NONE:
        return losses
    reduced = losses.mean() if reduction == _MEAN else losses.sum()
    return losses.resize_(()).copy_(reduced)


def _decomposed(func: Any, key: str = "CompositeExplicitAutograd") -> Callable[..., Any]:
    """Return torch's own decomposition of an operation."""
    return partial(func._op_dk, getattr(torch._C.DispatchKey, key))


# Below autograd, torch does not decompose it by itself.
_SPARSE_BACKWARD = _decomposed(aten.embedding_sparse_backward.default, "CompositeImplicitAutograd")
# The mode of an embedding bag that averages.
_AVERAGED = 1


def _embedding_bag_backward(
    grad: torch.Tensor,
    indices: torch.Tensor,
    offsets: torch.Tensor,
    bags: torch.Tensor,
    sizes: torch.Tensor,
    largest: torch.Tensor,
    rows: int,
    by_frequency: bool,
    mode: int,
    sparse: bool,
    weights: torch.Tensor | None,
    padding_idx: int = -1,
) -> Any:
    """Run the steps of _embedding_bag_sparse_backward in ATen/native/EmbeddingBag.cpp.

    A dense gradient is one operation.
    """
    del offsets, largest
    if not sparse:
        return NotImplemented
    values = grad.index_select(0, bags)
    if mode == _AVERAGED:
        values *= (1 / sizes.to(values.dtype)).unsqueeze(1).index_select(0, bags)
    if weights is not None:
        values.mul_(weights.unsqueeze(1))
    return _SPARSE_BACKWARD(values, indices, rows, padding_idx, by_frequency)


def _masked_select(tensor: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Run the steps of masked_select_out_cuda_impl in ATen/native/cuda/IndexKernel.cpp."""
    shape = torch.broadcast_shapes(tensor.shape, mask.shape) or (1,)
    return tensor.expand(shape)[mask.expand(shape)]


def _im2col(
    tensor: torch.Tensor,
    kernel_size: list[int],
    dilation: list[int],
    padding: list[int],
    stride: list[int],
) -> torch.Tensor:
    """Run the steps of im2col_cuda in ATen/native/cuda/Im2Col.cu."""
    along = zip(tensor.shape[-2:], kernel_size, dilation, padding, stride, strict=True)
    places = [
        (size + 2 * pad - gap * (kernel - 1) - 1) // step + 1
        for size, kernel, gap, pad, step in along
    ]
    rows = tensor.shape[-3] * prod(kernel_size)
    return _resized(tensor, (*tensor.shape[:-3], rows, prod(places)))


def _col2im(
    tensor: torch.Tensor, output_size: list[int], kernel_size: list[int], *_: list[int]
) -> torch.Tensor:
    """Run the steps of col2im_cuda in ATen/native/cuda/Col2Im.cu."""
    channels = tensor.shape[-2] // prod(kernel_size)
    return _resized(tensor, (*tensor.shape[:-2], channels, *output_size))


def _resized(tensor: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Return an output that is allocated like the operand and then resized.

    A smaller output keeps all the memory: folded columns are as large as the columns.
    """
    output = torch.empty_like(tensor, memory_format=torch.contiguous_format)
    _contiguous = tensor.contiguous()
    if prod(shape) <= tensor.numel():
        return output.resize_(shape)
    larger = tensor.new_empty(shape)
    del output
    return larger


def _like_second(_: torch.Tensor, tensor: torch.Tensor, *__: Any, **___: Any) -> torch.Tensor:
    """Return a gradient like the second operand, for operations without a meta kernel."""
    return torch.empty_like(tensor, memory_format=torch.contiguous_format)


def _sample_dirichlet(concentration: torch.Tensor, generator: Any = None) -> torch.Tensor:
    """Run the steps of _s_dirichlet_cuda in ATen/native/cuda/Distributions.cpp."""
    del generator
    result = torch.empty_like(concentration, memory_format=torch.contiguous_format)
    _sums = result.sum(-1, keepdim=True)
    return result


def _equal(tensor: torch.Tensor, other: torch.Tensor) -> bool:
    """Run the steps of cuda_equal in ATen/native/cuda/Equal.cpp."""
    if tensor.shape != other.shape or not tensor.numel():
        return tensor.shape == other.shape
    alike = tensor.stride() == other.stride() and tensor.dtype == other.dtype
    same_offset = tensor.storage_offset() == other.storage_offset()
    if alike and same_offset and tensor.untyped_storage()._cdata == other.untyped_storage()._cdata:
        return True
    return aten._local_scalar_dense((tensor == other).all())


def _allclose(tensor: torch.Tensor, other: torch.Tensor, *args: Any) -> bool:
    return aten._local_scalar_dense(aten.isclose.default.decompose(tensor, other, *args).all())


_PARTS: Mapping[Any, Callable[..., Any]] = {
    **CTC,
    aten.allclose.default: _allclose,
    aten.equal.default: _equal,
    aten.logsumexp.default: _logsumexp,
    aten.mse_loss.default: _binary_loss,
    aten.smooth_l1_loss.default: _binary_loss,
    aten.huber_loss.default: _huber_loss,
    aten.binary_cross_entropy.default: _binary_cross_entropy,
    aten.soft_margin_loss.default: _soft_margin_loss,
    aten.soft_margin_loss_backward.default: _soft_margin_loss_backward,
    aten.median.default: _median,
    aten.count_nonzero.default: _count_nonzero,
    aten.count_nonzero.dim_IntList: _count_nonzero_in,
    aten.multinomial.default: _multinomial,
    **recurrent.PARTS,
    aten._embedding_bag_backward.default: _embedding_bag_backward,
    aten.masked_select.default: _masked_select,
    aten.im2col.default: _im2col,
    aten.col2im.default: _col2im,
    aten.multi_margin_loss_backward.default: _like_second,
    aten.multilabel_margin_loss_backward.default: _like_second,
    aten._standard_gamma_grad.default: _like_second,
    aten._dirichlet_grad.default: _like_second,
    aten._sample_dirichlet.default: _sample_dirichlet,
    # Below autograd, torch does not decompose them by itself.
    aten.matmul.default: _decomposed(aten.matmul.default, "CompositeImplicitAutograd"),
    aten.linear.default: _decomposed(aten.linear.default, "CompositeImplicitAutograd"),
    **{
        func: _decomposed(func)
        for func in (
            aten.binary_cross_entropy_with_logits.default,
            aten._euclidean_dist.default,
            aten.isinf.default,
            aten.dist.default,
        )
    },
}
PARTS = {id(func): run for func, run in _PARTS.items()}
"""Functions that run an operation as its parts, by the operation's id.

They run inside a recorder, which records each part. NotImplemented means that the operation is one
for these arguments.
"""
