"""SM3's update on CUDA, in one pass over memory. sm3.py has the rule.

A tensor is seen as rows of its first axis and columns of all others; a vector is one row. The new
accumulators are maxima, which all programs collect in a scratch tensor of one number for each row
and one for each column. A second launch stores them, for tensors of more axes folded axis by axis.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from math import inf, prod

import torch
from torch import Tensor

from ..bucket import Bucket
from ..sharded import is_sharded, local, over_ranks
from .launching import ALIGNMENT, Chunks, addresses, chunks, launch, on_device

# Rows and columns of a tile: for common matrices, for few rows, and for two kinds of narrow ones.
_TILES = ((8, 256), (1, 2048), (32, 64), (256, 8))
# Turns of a program's loop, each over one tile's rows.
_TURNS = 8
# Columns and addresses that are multiples of this are loaded by 16 bytes, in half precision too.
_MULTIPLE = 8
# Accumulators of a program that stores them, and of the columns that it folds at once.
_STORED, _FOLDED = 1024, 256


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """A tensor as rows and columns, with the sizes and accumulators of the columns' axes.

    `rows_at` and `columns_at` are its places in the scratch tensor.
    """

    tensors: tuple[Tensor, ...]
    rows: int
    sizes: tuple[int, ...]
    accumulators: tuple[Tensor, ...]
    rows_at: int
    columns_at: int

    @property
    def columns(self) -> int:
        return prod(self.sizes)

    @property
    def tile(self) -> tuple[int, int]:
        if self.rows < _TILES[0][0]:
            return _TILES[1]
        return next((tile for tile in (_TILES[0], _TILES[2]) if self.columns >= tile[1]), _TILES[3])

    @property
    def is_aligned(self) -> bool:
        return self.columns % _MULTIPLE == 0 and all(
            tensor.data_ptr() % ALIGNMENT == 0 for tensor in self.tensors
        )


def update(bucket: Bucket) -> None:
    """Update a bucket; all its tensors are contiguous."""
    matrices, length = _matrices(bucket)
    device = bucket.params[0].device
    scratch = torch.zeros(max(length, 1), dtype=torch.int32, device=device)
    alike: defaultdict[tuple[tuple[int, int], bool], list[_Matrix]] = defaultdict(list)
    for matrix in matrices:
        alike[matrix.tile, matrix.is_aligned].append(matrix)
    for (tile, aligned), group in alike.items():
        _descend(group, bucket, scratch, tile, aligned)
    _store(matrices, scratch)
    if is_sharded(bucket.params[0]):
        _share(bucket)


def _matrices(bucket: Bucket) -> tuple[list[_Matrix], int]:
    """Return the tensors that have elements here, and the length of their scratch tensor."""
    buffers = bucket.state("momentum_buffer") if bucket.options["momentum"] else bucket.params
    free = on_device((inf,), torch.float32, bucket.params[0].device)
    matrices, length = [], 0
    for *tensors, state in zip(bucket.params, bucket.grads, buffers, bucket.states, strict=True):
        param, grad, buffer = (local(each) for each in tensors)
        if not param.numel():
            continue
        shape = tuple(param.shape) or (1,)
        cover = tuple(local(state[f"accumulator_{axis}"]) for axis in range(len(shape)))
        if len(shape) == 1:
            shape, cover = (1, *shape), (free, *cover)
        matrices.append(
            _Matrix(
                tensors=(param, grad, buffer),
                rows=shape[0],
                sizes=shape[1:],
                accumulators=cover,
                rows_at=length,
                columns_at=length + shape[0],
            )
        )
        length += shape[0] + prod(shape[1:])
    return matrices, length


def _descend(
    group: list[_Matrix], bucket: Bucket, scratch: Tensor, tile: tuple[int, int], aligned: bool
) -> None:
    options, device = bucket.options, scratch.device
    axes = max(len(matrix.sizes) for matrix in group)
    rows, columns = tile
    params, grads, buffers = zip(*(matrix.tensors for matrix in group), strict=True)
    # Every tensor has as many axes of columns as the one that has the most; others have one element
    # and the accumulator of the last axis, which covers every column.
    covers = [
        [matrix.accumulators[max(axis - axes, -len(matrix.sizes))] for matrix in group]
        for axis in range(axes)
    ]
    table, _ = addresses(params, grads, buffers, [m.accumulators[0] for m in group], *covers)
    numbers = [
        [matrix.rows for matrix in group],
        [matrix.columns for matrix in group],
        [matrix.rows_at for matrix in group],
        [matrix.columns_at for matrix in group],
    ]
    for axis in range(axes):
        for of_axis in (_size, _span):
            numbers.append([of_axis(matrix, axis - axes) for matrix in group])
    layout = on_device(tuple(number for row in numbers for number in row), torch.int64, device)
    high = rows * _TURNS
    cut = chunks([-(-m.rows // high) * -(-m.columns // columns) for m in group], 1, device)
    momentum, beta, lr = options["momentum"], options["beta"], options["lr"]
    launch(
        "sm3_kernels.descend",
        cut.count,
        *(table, layout, cut.owners, cut.places, len(group), scratch),
        *(lr, 1 - momentum, beta or 1.0, 1 - beta, options["eps"]),
        reads=grads,
        writes=[*params, *(buffers if momentum else ())],
        WEIGHT=params[0].dtype,
        MOMENTUM=bool(momentum),
        TENSOR_LR=isinstance(lr, Tensor),
        ALIGNED=aligned,
        AXES=axes,
        ROWS=rows,
        COLUMNS=columns,
        TURNS=_TURNS,
    )


def _size(matrix: _Matrix, axis: int) -> int:
    """Return the elements of an axis of columns, counted from the last; 1 if there is none."""
    return matrix.sizes[axis] if -axis <= len(matrix.sizes) else 1


def _span(matrix: _Matrix, axis: int) -> int:
    """Return the columns from one element of an axis to the next."""
    return prod(matrix.sizes[axis:][1:]) if -axis <= len(matrix.sizes) else 1


def _store(matrices: list[_Matrix], scratch: Tensor) -> None:
    """Replace the accumulators by the maxima, those of one axis of several by folded ones."""
    single: list[tuple[Tensor, int, int, int]] = []
    folded: list[tuple[Tensor, int, int, int]] = []
    for matrix in matrices:
        if len(matrix.tensors[0].shape) > 1:
            single.append((matrix.accumulators[0], matrix.rows_at, 1, 1))
        for axis, accumulator in enumerate(matrix.accumulators[1:]):
            span = _span(matrix, axis - len(matrix.sizes))
            outer = matrix.columns // (span * matrix.sizes[axis])
            kind = folded if span * outer > 1 else single
            kind.append((accumulator, matrix.columns_at, span, outer))
    for group, entries, columns in ((single, _STORED, 1), (folded, 8, _FOLDED)):
        if not group:
            continue
        accumulators = [entry[0] for entry in group]
        counts = [accumulator.numel() for accumulator in accumulators]
        table, _ = addresses(accumulators)
        numbers = zip(*(entry[1:] for entry in group), strict=True)
        layout = on_device(
            (*counts, *(each for row in numbers for each in row)), torch.int64, scratch.device
        )
        cut: Chunks = chunks(counts, entries, scratch.device)
        launch(
            "sm3_kernels.store",
            cut.count,
            *(table, layout, cut.owners, cut.places, len(group), scratch),
            reads=[scratch],
            writes=accumulators,
            ENTRIES=entries,
            COLUMNS=columns,
        )


def _share(bucket: Bucket) -> None:
    """Take the maxima over ranks of the accumulators of all axes that are not sharded."""
    shared = [
        local(accumulator)
        for state in bucket.states
        for name, accumulator in state.items()
        if name.startswith("accumulator_") and not _is_split(accumulator)
    ]
    if not shared:
        return
    flat = torch.cat([each.view(-1) for each in shared])
    reduced = over_ranks(flat, bucket.params[0], torch.amax)
    parts = reduced.split([each.numel() for each in shared])
    torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
        shared, [part.view(each.shape) for part, each in zip(parts, shared, strict=True)]
    )


def _is_split(accumulator: Tensor) -> bool:
    from torch.distributed.tensor import Shard

    return any(isinstance(each, Shard) for each in getattr(accumulator, "placements", ()))
