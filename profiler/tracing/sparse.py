"""Sparse tensors in a trace: operations on their indices and values, as CUDA runs them.

torch has sparse meta tensors but hardly any operations on them. The number of entries that
`coalesce` leaves depends on values; it is known if it follows from the batch's integers. From
ATen/native/sparse (SparseTensor.cpp, SparseTensorMath.cpp) and native/sparse/cuda
(SparseCUDATensor.cu, SparseCUDATensorMath.cu, SparseBlasLegacy.cpp).
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from math import prod
from typing import Any
from unittest import mock

import torch

from .layouts import compressed, data_of, is_sparse, made
from .values import UnknownError, entries_of, remember_entries

aten = torch.ops.aten
MAKING = {
    id(aten._sparse_coo_tensor_with_dims_and_tensors.default): 3,
    id(aten._sparse_coo_tensor_unsafe.default): 0,
    id(aten.sparse_coo_tensor.indices): 0,
    id(aten.sparse_coo_tensor.indices_size): 0,
}
"""The place of the indices among the arguments of operations that make sparse tensors, by id."""


def _like(
    sparse: torch.Tensor,
    indices: torch.Tensor,
    values: torch.Tensor,
    *,
    coalesced: bool | None = None,
) -> torch.Tensor:
    """Return a sparse tensor with the entries of another and new values."""
    result = made(
        indices,
        values,
        sparse.shape,
        coalesced=sparse.is_coalesced() if coalesced is None else coalesced,
    )
    remember_entries(result, entries_of(sparse))
    return result


def _clone(sparse: torch.Tensor, *, memory_format: Any = None) -> torch.Tensor:
    del memory_format
    return _like(sparse, *(part.clone() for part in data_of(sparse)))


def _flat(sparse: torch.Tensor) -> torch.Tensor:
    """Return a number for each entry: flatten_indices in native/SparseTensorUtils.cpp."""
    indices = sparse._indices()
    if sparse.sparse_dim() == 1:
        return indices.squeeze(0)
    factors = torch.empty(sparse.sparse_dim(), 1, dtype=indices.dtype, device=indices.device)
    return (indices * factors).sum(0)


def _coalesce(sparse: torch.Tensor) -> torch.Tensor:
    """Sort the entries and add up the values of equal ones.

    thrust's merge sort holds keys and places twice. The flat indices keep the memory of all entries
    when they are cut to the distinct ones. UnknownError means that the entries are unknown.
    """
    if sparse._nnz() < 2:
        return _like(sparse, sparse._indices().clone(), sparse._values().clone(), coalesced=True)
    entries, dimensions = entries_of(sparse), sparse.sparse_dim()
    if entries is None:
        raise UnknownError
    distinct = torch.unique(entries, dim=1)
    values = sparse._values()
    flat = _flat(sparse).clone() if dimensions == 1 else _flat(sparse)
    places, offsets = torch.empty_like(flat), torch.empty_like(flat)
    sort = flat.new_empty(2 * flat.numel())
    del sort
    flat.resize_(1, distinct.size(1))
    merged = values.new_empty(distinct.size(1), *values.shape[1:])
    values = values.contiguous()
    indices = flat if dimensions == 1 else flat.new_empty(dimensions, distinct.size(1))
    result = made(indices, merged, sparse.shape, coalesced=True)
    remember_entries(result, distinct)
    del offsets, places
    return result


def _add(tensor: torch.Tensor, other: torch.Tensor, *, alpha: Any = 1) -> torch.Tensor:
    if tensor.layout is torch.strided:
        return _add_(
            torch.empty_like(tensor, dtype=torch.promote_types(tensor.dtype, other.dtype)),
            other,
            alpha=alpha,
        )
    return _joined(tensor, other, alpha)


def _add_(tensor: torch.Tensor, other: torch.Tensor, *, alpha: Any = 1) -> torch.Tensor:
    """Add in place: to a dense tensor by rows, to a sparse one by joining the entries."""
    if tensor.layout is torch.strided:
        return _add_to_dense(tensor, other, alpha)
    _replace(tensor, _joined(tensor, other, alpha))
    return tensor


def _add_to_dense(dense: torch.Tensor, sparse: torch.Tensor, alpha: Any) -> torch.Tensor:
    """add_out_dense_sparse_cuda."""
    if not sparse._nnz():
        return dense
    values = sparse._values().to(torch.promote_types(dense.dtype, sparse.dtype))
    if sparse.is_coalesced():
        values = values.contiguous()
        return dense
    places, rows = _flat(sparse), prod(sparse.shape[: sparse.sparse_dim()])
    dense.view(rows, -1).index_add_(0, places, values.reshape(sparse._nnz(), -1), alpha=alpha)
    return dense


def _joined(tensor: torch.Tensor, other: torch.Tensor, alpha: Any) -> torch.Tensor:
    """add_out_sparse_cuda of two sparse tensors."""
    if tensor.layout is not torch.sparse_coo or other.layout is not torch.sparse_coo:
        raise NotImplementedError
    if not other._nnz() or not tensor._nnz():
        kept = tensor if tensor._nnz() else other
        return _like(kept, kept._indices().clone(), kept._values().clone())
    added = other._values() if alpha == 1 else other._values() * alpha
    indices = torch.cat([tensor._indices(), other._indices()], 1)
    values = torch.cat([tensor._values(), added])
    result = made(indices, values, tensor.shape, coalesced=False)
    entries = entries_of(tensor), entries_of(other)
    remember_entries(
        result,
        (
            None
            if entries[0] is None or entries[1] is None
            else torch.cat([entries[0], entries[1]], 1)
        ),
    )
    return result if result._nnz() <= result.numel() else _coalesce(result)


def _replace(tensor: torch.Tensor, other: torch.Tensor) -> None:
    """Give a sparse tensor the parts of another."""
    tensor.data = other
    remember_entries(tensor, entries_of(other))


def _mul(tensor: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Multiply by a number or a dense tensor: _mul_dense_sparse_out."""
    sparse, dense = (tensor, other) if is_sparse(tensor) else (other, tensor)
    if is_sparse(dense) or (
        isinstance(dense, torch.Tensor)
        and dense.dim() > sparse.dense_dim()
        and dense.shape != sparse.shape
    ):
        raise NotImplementedError
    indices, values = data_of(sparse)
    if isinstance(dense, torch.Tensor) and dense.dim() > sparse.dense_dim():
        dense = dense[tuple(indices)]
    return _like(sparse, indices.clone(), values * dense)


def _mul_(tensor: torch.Tensor, other: Any) -> torch.Tensor:
    _replace(tensor, _mul(tensor, other))
    return tensor


def _on_values(
    run: Callable[..., torch.Tensor], *, merged: bool = False
) -> Callable[..., torch.Tensor]:
    """Return the operation that maps each value; `merged` adds up equal entries first."""

    def applied(sparse: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if merged and not sparse.is_coalesced():
            sparse = _coalesce(sparse)
        indices, values = data_of(sparse)
        return _like(sparse, indices.clone(), run(values, *args, **kwargs))

    return applied


def _on_values_(name: str) -> Callable[..., torch.Tensor]:
    """Return the operation that overwrites the values."""

    def applied(sparse: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        getattr(sparse._values(), name)(*args, **kwargs)
        return sparse

    return applied


def _converted(sparse: torch.Tensor, *, dtype: torch.dtype | None = None, **_: Any) -> torch.Tensor:
    indices, values = data_of(sparse)
    return _like(sparse, indices.clone(), values.to(dtype or values.dtype, copy=True))


def _mask(
    dense: torch.Tensor, mask: torch.Tensor, accumulate_matches: bool = False
) -> torch.Tensor:
    """sparse_mask of a dense tensor: its values at the mask's entries, times ones."""
    del accumulate_matches
    if is_sparse(dense):
        raise NotImplementedError
    indices, values = data_of(mask)
    ones = torch.ones(1, dtype=values.dtype, device=values.device).expand_as(values)
    copied = indices.clone()
    return _like(mask, copied, dense[tuple(indices)] * ones)


def _to_dense(
    sparse: torch.Tensor, dtype: torch.dtype | None = None, masked_grad: bool | None = None
) -> torch.Tensor:
    """sparse_to_dense in native/TensorConversions.cpp."""
    del masked_grad
    zeros = torch.zeros(sparse.shape, dtype=dtype or sparse.dtype, device=sparse.device)
    return _add_to_dense(zeros, sparse, 1) if sparse.layout is torch.sparse_coo else zeros


def _zero_(sparse: torch.Tensor) -> torch.Tensor:
    indices, values = data_of(sparse)
    empty = made(
        indices.new_empty(sparse.sparse_dim(), 0),
        values.new_empty(0, *values.shape[1:]),
        sparse.shape,
        coalesced=True,
    )
    remember_entries(empty, torch.empty(sparse.sparse_dim(), 0, dtype=torch.int64))
    _replace(sparse, empty)
    return sparse


def _t(sparse: torch.Tensor) -> torch.Tensor:
    """transpose_sparse_: a copy with its rows of indices swapped."""
    if sparse.layout is not torch.sparse_coo:
        layout = torch.sparse_csc if sparse.layout is torch.sparse_csr else torch.sparse_csr
        shape = tuple(reversed(sparse.shape))
        return compressed(data_of(sparse), shape, layout)
    indices, values = data_of(sparse)
    result = made(indices.clone(), values.clone(), tuple(reversed(sparse.shape)), coalesced=False)
    entries = entries_of(sparse)
    remember_entries(result, None if entries is None else entries.flip(0))
    return result


def _mm(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """_sparse_mm: the product is added to zeros."""
    if is_sparse(left) and is_sparse(right):
        raise NotImplementedError
    if is_sparse(right):
        return _mm(_t(right), left.t()).t()
    zeros = torch.zeros(left.size(0), right.size(1), dtype=right.dtype, device=right.device)
    return _addmm(zeros, left, right)


def _addmm(
    added: torch.Tensor, sparse: torch.Tensor, dense: torch.Tensor, **_: Any
) -> torch.Tensor:
    """s_addmm_out_sparse_dense_cuda: indices of 4 bytes, and the product by columns.

    cuSPARSE's own buffer is left out. A compressed matrix needs no conversion.
    """
    result = torch.empty(sparse.size(0), dense.size(1), dtype=added.dtype, device=added.device)
    if sparse.layout is not torch.sparse_coo:
        return result
    if not sparse.is_coalesced():
        sparse = _coalesce(sparse)
    count = sparse._nnz()
    if count:
        rows = result.new_empty(sparse.size(0) + 1, dtype=torch.int32)
        _narrowed = result.new_empty(count, dtype=torch.int32)
        del _narrowed
        columns = result.new_empty(count, dtype=torch.int32)
        by_column = torch.empty_like(result)
        del by_column, columns, rows
    return result


_RUN: Mapping[Any, Callable[..., Any]] = {
    aten.clone.default: _clone,
    aten._coalesce.default: _coalesce,
    aten.add.Tensor: _add,
    aten.add_.Tensor: _add_,
    aten.mul.Tensor: _mul,
    aten.mul.Scalar: _mul,
    aten.mul_.Tensor: _mul_,
    aten.mul_.Scalar: _mul_,
    aten.div.Tensor: _on_values(torch.div),
    aten.div_.Tensor: _on_values_("div_"),
    aten.neg.default: _on_values(torch.neg, merged=True),
    aten.abs.default: _on_values(torch.abs, merged=True),
    aten.sqrt.default: _on_values(torch.sqrt, merged=True),
    aten.sign.default: _on_values(torch.sign, merged=True),
    aten.isnan.default: _on_values(torch.isnan, merged=True),
    aten.pow.Tensor_Scalar: _on_values(torch.pow, merged=True),
    aten._to_copy.default: _converted,
    aten.sparse_mask.default: _mask,
    aten._to_dense.default: _to_dense,
    aten.zero_.default: _zero_,
    aten.t.default: _t,
    aten.mm.default: _mm,
    aten._sparse_addmm.default: _addmm,
    aten.addmm.default: _addmm,
}
RUN = {id(func): run for func, run in _RUN.items()}
"""Functions that run an operation on sparse tensors as its parts, by the operation's id.

They run inside a recorder, which records each part.
"""

_PLAIN = (
    "_indices", "_values", "indices", "values", "crow_indices", "col_indices", "ccol_indices",
    "row_indices", "_nnz", "is_coalesced", "sparse_dim", "dense_dim", "_dimI", "_dimV", "detach",
    "alias", "_has_compatible_shallow_copy_type", "set_data",
)  # fmt: skip
PLAIN = frozenset(id(getattr(aten, name).default) for name in _PLAIN)
"""Operations that only read a sparse tensor's parts or properties, by id."""


@contextmanager
def sparse_constructor() -> Iterator[None]:
    """Inside, `new` of a sparse meta tensor takes indices and values, as SparseAdam calls it.

    torch itself refuses this.
    """
    new = torch.Tensor.new

    def new_sparse(tensor: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        if is_sparse(tensor) and len(args) == 3:
            return made(*args, coalesced=False)
        return new(tensor, *args, **kwargs)

    with mock.patch.object(torch.Tensor, "new", new_sparse):
        yield
