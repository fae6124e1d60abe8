"""Layouts of tensors, with which a second recording adopts them under their allocation numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from optprof.optimizers.sharded import is_sharded

from ..tracing.layouts import data_of, made
from ..tracing.trace import Recorder
from ..tracing.values import entries_of, remember_entries


@dataclass(frozen=True, kw_only=True)
class TensorLayout:
    """A tensor's shape, and its place in the allocation `number` of `nbytes`.

    The number is negative for a tensor on the host. For a DTensor, the layout is that of this
    rank's part, and `whole` has the whole tensor's mesh, placements, shape and strides.
    """

    number: int
    nbytes: int
    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    whole: tuple[Any, Any, torch.Size, tuple[int, ...]] | None = None

    @classmethod
    def of(cls, tensor: torch.Tensor, recorder: Recorder) -> "TensorLayout":
        """Return the layout of a recorded tensor, or of one on the host."""
        part = own_part(tensor)
        storage = part.untyped_storage()
        return cls(
            number=recorder.number(part) if recorder.holds(part) else -storage._cdata,
            nbytes=storage.nbytes(),
            dtype=part.dtype,
            shape=tuple(part.shape),
            stride=part.stride(),
            offset=int(part.storage_offset()),
            whole=_whole(tensor),
        )

    @property
    def parts(self) -> tuple["TensorLayout", ...]:
        """The layouts of the tensors with the data: this one."""
        return (self,)

    @property
    def is_on_host(self) -> bool:
        """Return whether the tensor is on the host."""
        return self.number < 0

    def renumbered(self, numbers: Mapping[int, int]) -> "TensorLayout":
        """Return the layout with the allocation's new number."""
        return self if self.is_on_host else replace(self, number=numbers[self.number])


@dataclass(frozen=True, kw_only=True)
class SparseLayout:
    """The layouts of a sparse tensor's indices and values.

    `entries` are the values of the indices as bytes of the host, or None if they are unknown. The
    indices are `lent` if they belong to the batch: they outlive the gradient.
    """

    indices: TensorLayout
    values: TensorLayout
    shape: tuple[int, ...]
    coalesced: bool
    entries: bytes | None
    lent: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, recorder: Recorder) -> "SparseLayout":
        """Return the layout of a recorded tensor."""
        entries = entries_of(tensor)
        indices, values = (TensorLayout.of(part, recorder) for part in data_of(tensor))
        return cls(
            indices=indices,
            values=values,
            shape=tuple(tensor.shape),
            coalesced=tensor.is_coalesced(),
            entries=None if entries is None else entries.contiguous().numpy().tobytes(),
            lent=recorder.allocations.categories[indices.number] == "input",
        )

    @property
    def parts(self) -> tuple[TensorLayout, ...]:
        """The layouts of the tensors with the data."""
        return self.indices, self.values

    def renumbered(self, numbers: Mapping[int, int]) -> "SparseLayout":
        """Return the layout with the allocations' new numbers."""
        return replace(
            self, indices=self.indices.renumbered(numbers), values=self.values.renumbered(numbers)
        )


Layout = TensorLayout | SparseLayout


def own_part(tensor: Any) -> torch.Tensor:
    """Return this rank's part of a DTensor, without a gradient's history; others unchanged."""
    return tensor._local_tensor if is_sharded(tensor) else tensor


def _whole(tensor: Any) -> tuple[Any, Any, torch.Size, tuple[int, ...]] | None:
    if not is_sharded(tensor):
        return None
    return tensor.device_mesh, tensor.placements, tensor.shape, tensor.stride()


def layout_of(gradient: torch.Tensor, recorder: Recorder) -> Layout:
    """Return the layout of a recorded tensor, sparse or not."""
    return (SparseLayout if gradient.is_sparse else TensorLayout).of(gradient, recorder)


def adopted(
    recorder: Recorder, layout: Layout, storages: dict[int, torch.UntypedStorage]
) -> torch.Tensor:
    """Return a meta tensor with the layout, adopted by the recorder.

    Tensors that shared an allocation share a storage; `storages` keeps these by allocation number.
    """
    if isinstance(layout, TensorLayout):
        return _adopt(recorder, layout, storages)
    recorder.expect_sparse()
    indices, values = (
        _adopt(recorder, layout.indices, storages, freed=not layout.lent),
        _adopt(recorder, layout.values, storages),
    )
    gradient = made(indices, values, layout.shape, coalesced=layout.coalesced)
    if layout.entries is not None:
        entries = (
            torch.frombuffer(bytearray(layout.entries), dtype=torch.int64)
            if layout.entries
            else torch.empty(0, dtype=torch.int64)
        )
        remember_entries(gradient, entries.view(layout.indices.shape))
    return gradient


def _adopt(
    recorder: Recorder,
    layout: TensorLayout,
    storages: dict[int, torch.UntypedStorage],
    *,
    freed: bool = True,
) -> torch.Tensor:
    if layout.number not in storages:
        storages[layout.number] = torch.empty(
            layout.nbytes, dtype=torch.uint8, device="meta"
        ).untyped_storage()
    tensor = torch.empty(0, dtype=layout.dtype, device="meta")
    tensor.set_(storages[layout.number], layout.offset, layout.shape, layout.stride)
    if layout.is_on_host:
        recorder.keep_on_host(tensor)
    else:
        recorder.adopt(tensor, layout.number, freed=freed)
    if layout.whole is None:
        return tensor
    from torch.distributed.tensor import DTensor

    mesh, placements, shape, stride = layout.whole
    return DTensor.from_local(tensor, mesh, placements, run_check=False, shape=shape, stride=stride)
