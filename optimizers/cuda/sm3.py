"""SM3's update on CUDA: one pass over memory, then a second launch replaces the accumulators.

Each tensor is taken as a matrix, whose rows are one axis and whose columns are the axes after it.
The first launch keeps the largest square of each row and of each column of that matrix in a
scratch tensor. The second one makes the accumulators from them. sm3.py has the rule.
"""

# pyright: reportPrivateImportUsage=false

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import chain
from math import inf, prod
from operator import or_
from typing import Any

import torch
from torch import Tensor

from ..bucket import Bucket
from ..sharded import is_sharded, largest_over, local, sharded_axes
from .launching import ALIGNMENT, chunks, launch, number, on_device

# Elements of a tile, of one turn of a kernel's loop over its rows, and of the width in bytes that a
# warp moves at once: a row then stays within one warp.
_TILE, _BLOCK, _WIDTH = 2**14, 2**10, 512
# Fewer rows leave most of a tile's rows empty, fewer columns most of its columns.
_FEW_ROWS, _FEW_COLUMNS = 8, 64
# Rows this long are taken one by one, so that a turn's offsets fit into 32 bits.
_MANY_COLUMNS = 2**26
# Accumulators that a program of the second launch copies, or folds from the columns' maxima.
_COPIED, _FOLDED = 2**10, 8


@dataclass(frozen=True, kw_only=True)
class _Layout:
    """The matrix of a shape.

    `row_axis` is -1 for a vector, which is one row without an accumulator. `axes` has four numbers
    for each axis: its size, the stride of its elements among the maxima that it covers, the count
    of those, and the place of the first one among the maxima of the rows and then of the columns.
    """

    row_axis: int
    rows: int
    columns: int
    axes: tuple[tuple[int, int, int, int], ...]


@lru_cache(maxsize=1024)
def _layout(shape: torch.Size) -> _Layout:
    last = len(shape) - 2
    # An axis of one element before that of the rows is as good as one of the columns.
    row_axis = next((axis for axis in range(last) if shape[axis] != 1), max(last, -1))
    rows = 1 if row_axis < 0 else shape[row_axis]
    columns = prod(shape[row_axis + 1 :])
    axes = [
        (size, columns if axis < row_axis else prod(shape[axis + 1 :]), columns, rows)
        for axis, size in enumerate(shape or (1,))
    ]
    if row_axis >= 0:
        axes[row_axis] = (rows, 1, rows, 0)
    return _Layout(row_axis=row_axis, rows=rows, columns=columns, axes=tuple(axes))


@dataclass(kw_only=True)
class _Matrix:
    """A local shard as the kernel sees it: parameter, gradient and buffer, and the accumulators.

    `place` is that of its maxima in the scratch tensor.
    """

    tensors: tuple[Tensor, Tensor, Tensor]
    cover: list[Tensor]
    layout: _Layout
    place: int = 0

    def row(self, axes: int, unlimited: Tensor) -> list[int]:
        """Return its numbers in the table of the first launch, padded to a count of axes."""
        layout = self.layout
        cover = unlimited if layout.row_axis < 0 else self.cover[layout.row_axis]
        numbers = [each.data_ptr() for each in (*self.tensors, cover)]
        numbers += [layout.rows, layout.columns, self.place]
        for axis, (size, stride, *_) in enumerate(layout.axes):
            if axis != layout.row_axis:
                numbers += [self.cover[axis].data_ptr(), size, stride]
        return numbers + [unlimited.data_ptr(), 1, 1] * (axes - (len(numbers) - 7) // 3)

    @property
    def kind(self) -> tuple[str, bool]:
        """The matrices of one kind are updated by one launch; the second is True if aligned."""
        rows, columns = self.layout.rows, self.layout.columns
        widths = (columns * self.tensors[0].element_size(), *(t.data_ptr() for t in self.tensors))
        aligned = reduce(or_, widths) % ALIGNMENT == 0
        if rows < _FEW_ROWS or columns >= _MANY_COLUMNS:
            return "few rows", aligned
        return "few columns" if columns < _FEW_COLUMNS else "tiles", aligned


def update(bucket: Bucket) -> None:
    """Update a bucket; all its tensors are contiguous."""
    buffers = bucket.state("momentum_buffer") if bucket.options["momentum"] else bucket.params
    matrices: list[_Matrix] = []
    kinds: dict[tuple[str, bool], list[_Matrix]] = {}
    for param, grad, buffer, state in zip(
        bucket.params, bucket.grads, buffers, bucket.states, strict=True
    ):
        shard = local(param)
        layout = _layout(shard.shape)
        matrix = _Matrix(
            tensors=(shard, local(grad), local(buffer)),
            cover=[local(state[f"accumulator_{axis}"]) for axis in range(len(layout.axes))],
            layout=layout,
        )
        matrices.append(matrix)
        kinds.setdefault(matrix.kind, []).append(matrix)
    places = [0]
    for alike in kinds.values():
        for matrix in alike:
            matrix.place = places[-1]
            places.append(places[-1] + matrix.layout.rows + matrix.layout.columns)
    device = matrices[0].tensors[0].device
    scratch = torch.zeros(places[-1], dtype=torch.int32, device=device)
    begun = 0
    for (kind, aligned), alike in kinds.items():
        maxima = scratch[places[begun] : places[begun + len(alike)]]
        _launch(kind, aligned, alike, scratch, maxima, bucket.options)
        begun += len(alike)
    # Ranks join their maxima by their order. The kinds may differ from rank to rank.
    _replace(matrices, scratch, bucket.params[0])


def _launch(
    kind: str,
    aligned: bool,
    matrices: list[_Matrix],
    scratch: Tensor,
    maxima: Tensor,
    options: dict[str, Any],
) -> None:
    """Update the matrices of one kind, whose maxima are a part of the scratch tensor."""
    lr, momentum, beta = options["lr"], options["momentum"], options["beta"]
    device, dtype = scratch.device, matrices[0].tensors[0].dtype
    height, width = _block(kind, max(matrix.layout.columns for matrix in matrices), dtype)
    rows = max(_TILE // width, height)
    # No other accumulator is larger. Its only element serves every index.
    unlimited = on_device((inf,), torch.float32, device)
    axes = max(max(len(matrix.cover) - 1, 1) for matrix in matrices)
    table = _columns([matrix.row(axes, unlimited) for matrix in matrices], device)
    programs = [
        -(-matrix.layout.rows // rows) * -(-matrix.layout.columns // width) for matrix in matrices
    ]
    cut = chunks(programs, 1, device)
    params, grads, buffers = zip(*(matrix.tensors for matrix in matrices), strict=True)
    launch(
        "sm3_kernels.update",
        cut.count,
        *(table, cut.owners, cut.places, len(matrices), scratch),
        *(number(lr), 1.0 - momentum),
        *(float(beta) or 1.0, 1.0 - beta, float(options["eps"])),
        reads=[*grads, *(each for matrix in matrices for each in matrix.cover)],
        writes=[*params, *(buffers if momentum else ()), maxima],
        WEIGHT=dtype,
        MOMENTUM=bool(momentum),
        TENSOR_LR=isinstance(lr, Tensor),
        ALIGNED=aligned,
        AXES=axes,
        ROWS=rows,
        HEIGHT=height,
        WIDTH=width,
    )


def _block(kind: str, columns: int, dtype: torch.dtype) -> tuple[int, int]:
    """Return the rows and columns of one turn."""
    if kind == "few rows":
        return 1, _BLOCK
    width = min(_WIDTH // dtype.itemsize, _BLOCK)
    if kind == "few columns":
        width = min(width, 1 << max(columns - 1, 0).bit_length())
    return _BLOCK // width, width


def _replace(matrices: list[_Matrix], scratch: Tensor, like: Tensor) -> None:
    """Replace the accumulators by the maxima of their rows and of the columns that they cover."""
    accumulators = [each for matrix in matrices for each in matrix.cover]
    axes = [axis for matrix in matrices for axis in range(len(matrix.cover))]
    sources = [
        (matrix.place + begin, size, stride, count)
        for matrix in matrices
        for size, stride, count, begin in matrix.layout.axes
    ]
    targets = accumulators
    if is_sharded(like):
        sizes = [size for _, size, *_ in sources]
        targets = [*scratch.new_empty(sum(sizes), dtype=torch.float32).split(sizes)]
    table = _columns(
        [(target.data_ptr(), *source) for target, source in zip(targets, sources, strict=True)],
        scratch.device,
    )
    programs = [
        -(-size // (_COPIED if count == size else _FOLDED)) for _, size, _, count in sources
    ]
    cut = chunks(programs, 1, scratch.device)
    launch(
        "sm3_kernels.replace",
        cut.count,
        *(table, cut.owners, cut.places, len(sources), scratch),
        reads=[scratch],
        writes=targets,
        COPIED=_COPIED,
        FOLDED=_FOLDED,
    )
    if is_sharded(like):
        _join(targets, axes, like)
        shaped = [
            target.view(accumulator.shape)
            for target, accumulator in zip(targets, accumulators, strict=True)
        ]
        torch._foreach_copy_(accumulators, shaped)


def _join(maxima: list[Tensor], axes: list[int], like: Tensor) -> None:
    """Take the largest of the ranks' maxima of each axis that all of them have whole."""
    for dimension, sharded in enumerate(sharded_axes(like)):
        shared = [each for each, axis in zip(maxima, axes, strict=True) if axis != sharded]
        if sharded is not None and shared:
            joined = largest_over(torch.cat(shared), like, dimension)
            torch._foreach_copy_(shared, joined.split([each.numel() for each in shared]))


def _columns(rows: Sequence[Sequence[int]], device: torch.device) -> Tensor:
    """Return a table with a column for each of these rows."""
    return on_device(tuple(chain.from_iterable(zip(*rows, strict=True))), torch.int64, device)
