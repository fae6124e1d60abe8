"""SM3's update on CUDA: one pass over memory, then a second launch replaces the accumulators.

Each tensor is taken as a matrix, whose rows are one axis and whose columns are the axes after it.
The first launch keeps the largest square of each row and of each column of that matrix in a
scratch tensor. The second one makes the accumulators from them. sm3.py has the rule.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from ..bucket import Bucket
from ..sharded import is_sharded, largest_over, local, sharded_axes
from .launching import ALIGNMENT, chunks, launch, on_device

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
class _Source:
    """An accumulator and the `count` maxima of the scratch tensor from which it is made.

    `stride` is that of its elements among the maxima.
    """

    accumulator: Tensor
    axis: int
    size: int
    stride: int
    count: int
    place: int


@dataclass(frozen=True, kw_only=True)
class _Matrix:
    """A local shard as the matrix that the kernel sees, and its accumulators by axis."""

    param: Tensor
    grad: Tensor
    buffer: Tensor
    cover: list[Tensor]

    @cached_property
    def row_axis(self) -> int:
        """The axis of the rows, or -1 for a vector, which is one row without an accumulator."""
        shape = self.param.shape
        if len(shape) < 2:
            return -1
        # An axis of one element before it is as good as a column's.
        return next((axis for axis, size in enumerate(shape[:-2]) if size != 1), len(shape) - 2)

    @cached_property
    def rows(self) -> int:
        return 1 if self.row_axis < 0 else self.param.shape[self.row_axis]

    @cached_property
    def columns(self) -> int:
        return prod(self.param.shape[self.row_axis + 1 :])

    def sources(self, place: int) -> list[_Source]:
        """Return the accumulators, given the place of the rows' maxima; the columns' follow."""
        shape = self.param.shape or (1,)
        return [
            _Source(
                accumulator=self.cover[axis],
                axis=axis,
                size=size,
                stride=prod(shape[axis + 1 :]) if axis > self.row_axis else self.columns,
                count=self.columns,
                place=place + self.rows,
            )
            if axis != self.row_axis
            else _Source(
                accumulator=self.cover[axis],
                axis=axis,
                size=size,
                stride=1,
                count=size,
                place=place,
            )
            for axis, size in enumerate(shape)
        ]

    def row(self, place: int, axes: int, unlimited: Tensor) -> tuple[int, ...]:
        """Return its numbers in the table of the first launch, padded to a count of axes."""
        columns = [source for source in self.sources(place) if source.axis != self.row_axis]
        tensors = (self.param, self.grad, self.buffer)
        return (
            *(tensor.data_ptr() for tensor in tensors),
            (unlimited if self.row_axis < 0 else self.cover[self.row_axis]).data_ptr(),
            *(self.rows, self.columns, place),
            *(
                number
                for source in columns
                for number in (source.accumulator.data_ptr(), source.size, source.stride)
            ),
            *((unlimited.data_ptr(), 1, 1) * (axes - len(columns))),
        )

    @cached_property
    def is_aligned(self) -> bool:
        return all(
            tensor.data_ptr() % ALIGNMENT == 0 for tensor in (self.param, self.grad, self.buffer)
        ) and not (self.columns * self.param.element_size() % ALIGNMENT)

    @cached_property
    def kind(self) -> tuple[str, bool]:
        """The matrices of one kind are updated by one launch."""
        if self.rows < _FEW_ROWS or self.columns >= _MANY_COLUMNS:
            return "few rows", self.is_aligned
        return "few columns" if self.columns < _FEW_COLUMNS else "tiles", self.is_aligned


def update(bucket: Bucket) -> None:
    """Update a bucket; all its tensors are contiguous."""
    momentum = bucket.options["momentum"]
    buffers = bucket.state("momentum_buffer") if momentum else bucket.params
    covers = [
        [local(state[f"accumulator_{axis}"]) for axis in range(max(param.dim(), 1))]
        for param, state in zip(bucket.params, bucket.states, strict=True)
    ]
    kinds: dict[tuple[str, bool], list[_Matrix]] = {}
    for param, grad, buffer, cover in zip(
        bucket.params, bucket.grads, buffers, covers, strict=True
    ):
        matrix = _Matrix(param=local(param), grad=local(grad), buffer=local(buffer), cover=cover)
        kinds.setdefault(matrix.kind, []).append(matrix)
    matrices = [matrix for alike in kinds.values() for matrix in alike]
    device = matrices[0].param.device
    places = [0]
    for matrix in matrices:
        places.append(places[-1] + matrix.rows + matrix.columns)
    scratch = torch.zeros(places[-1], dtype=torch.int32, device=device)
    begun = 0
    for (kind, aligned), alike in kinds.items():
        chosen = places[begun : begun + len(alike) + 1]
        _launch(kind, aligned, alike, chosen, scratch, bucket.options)
        begun += len(alike)
    _replace(matrices, places, scratch, bucket.params[0])


def _launch(
    kind: str,
    aligned: bool,
    matrices: list[_Matrix],
    places: list[int],
    scratch: Tensor,
    options: dict[str, Any],
) -> None:
    lr, momentum, beta = options["lr"], options["momentum"], options["beta"]
    device, dtype = matrices[0].param.device, matrices[0].param.dtype
    height, width = _block(kind, max(matrix.columns for matrix in matrices), dtype)
    rows = max(_TILE // width, height)
    # No other accumulator is larger. Its only element serves every index.
    unlimited = on_device((inf,), torch.float32, device)
    axes = max(max(matrix.param.dim() - 1, 1) for matrix in matrices)
    table = _columns(
        [
            matrix.row(place, axes, unlimited)
            for matrix, place in zip(matrices, places[:-1], strict=True)
        ],
        device,
    )
    cut = chunks(
        [-(-matrix.rows // rows) * -(-matrix.columns // width) for matrix in matrices], 1, device
    )
    launch(
        "sm3_kernels.update",
        cut.count,
        *(table, cut.owners, cut.places, len(matrices), scratch),
        *(lr if isinstance(lr, Tensor) else float(lr), 1.0 - momentum),
        *(float(beta) or 1.0, 1.0 - beta, float(options["eps"])),
        reads=[
            *(matrix.grad for matrix in matrices),
            *(accumulator for matrix in matrices for accumulator in matrix.cover),
        ],
        writes=[
            *(matrix.param for matrix in matrices),
            *(matrix.buffer for matrix in matrices if momentum),
            scratch[places[0] : places[-1]],
        ],
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


def _replace(matrices: list[_Matrix], places: list[int], scratch: Tensor, like: Tensor) -> None:
    """Replace the accumulators by the maxima of their rows and of the columns that they cover."""
    sources: list[_Source] = []
    for matrix, place in zip(matrices, places[:-1], strict=True):
        sources += matrix.sources(place)
    accumulators = [source.accumulator for source in sources]
    sizes = [source.size for source in sources]
    if is_sharded(like):
        new = torch.empty(sum(sizes), dtype=torch.float32, device=scratch.device)
        targets = [*new.split(sizes)]
    else:
        targets = accumulators
    table = _columns(
        [
            (target.data_ptr(), source.place, source.size, source.stride, source.count)
            for target, source in zip(targets, sources, strict=True)
        ],
        scratch.device,
    )
    programs = [
        -(-source.size // (_COPIED if source.count == source.size else _FOLDED))
        for source in sources
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
        _join(targets, [source.axis for source in sources], like)
        torch._foreach_copy_(  # pyright: ignore[reportPrivateImportUsage]
            accumulators,
            [
                target.view(accumulator.shape)
                for target, accumulator in zip(targets, accumulators, strict=True)
            ],
        )


def _join(maxima: list[Tensor], axes: list[int], like: Tensor) -> None:
    """Take the largest of the ranks' maxima of each axis that all of them have whole."""
    for dimension, sharded in enumerate(sharded_axes(like)):
        shared = [each for each, axis in zip(maxima, axes, strict=True) if axis != sharded]
        if sharded is not None and shared:
            joined = largest_over(torch.cat(shared), like, dimension)
            torch._foreach_copy_(shared, joined.split([each.numel() for each in shared]))  # pyright: ignore[reportPrivateImportUsage]


def _columns(rows: list[tuple[int, ...]], device: torch.device) -> Tensor:
    """Return a table with a column for each of these rows."""
    return on_device(tuple(chain.from_iterable(zip(*rows, strict=True))), torch.int64, device)
