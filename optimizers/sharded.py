"""Reductions of tensors that are sharded over ranks (DTensor): to one number, and along an axis.

Elementwise operations need no help here: a DTensor runs them shard by shard. Reductions combine the
ranks' results themselves, because torch's refuse or replicate some shards of a mesh of two
dimensions (FSDP2 with tensor parallelism).
"""

from collections.abc import Callable
from math import prod
from typing import Any

import torch
from torch import Tensor


def local(tensor: Tensor) -> Tensor:
    """Return this rank's shard, in the same memory; a tensor that is not sharded unchanged."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # pyright: ignore[reportAttributeAccessIssue]


def first_element(tensor: Any) -> int:
    """Return the flat index, in the whole tensor, of this rank's first element.

    The elements of whole rows follow each other from there.
    """
    if not is_sharded(tensor):
        return 0
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    _, offsets = compute_local_shape_and_global_offset(
        tensor.shape, tensor.device_mesh, tensor.placements
    )
    return sum(offset * prod(tensor.shape[axis + 1 :]) for axis, offset in enumerate(offsets))


def over_ranks(number: Tensor, like: Any, combine: Callable[..., Tensor]) -> Tensor:
    """Combine the ranks' numbers of their shards of `like` by torch.sum or torch.amax.

    Every rank gets the result. If `like` is not sharded, the number is returned unchanged.
    """
    if not is_sharded(like):
        return number
    from torch.distributed.tensor import DTensor, Partial, Replicate

    share = Partial("sum" if combine is torch.sum else "max")
    parts = [
        placement if isinstance(placement, Replicate) else share for placement in like.placements
    ]
    return DTensor.from_local(number, like.device_mesh, parts, run_check=False).full_tensor()


def largest_over(numbers: Tensor, like: Any, dimension: int) -> Tensor:
    """Return the largest of the ranks' numbers along one dimension of the mesh of `like`."""
    from torch.distributed.tensor import DTensor, Partial, Replicate

    parts = [
        Partial("max") if each == dimension else Replicate()
        for each in range(like.device_mesh.ndim)
    ]
    return DTensor.from_local(numbers, like.device_mesh, parts, run_check=False).full_tensor()


def sharded_axes(tensor: Any) -> list[int | None]:
    """Return the axis that each dimension of the mesh shards, None for one that replicates."""
    return [getattr(placement, "dim", None) for placement in tensor.placements]


def along(like: Any, axis: int) -> tuple[Any, ...]:
    """Return the placements that shard one axis as `like` does, and no other."""
    from torch.distributed.tensor import Replicate

    return tuple(
        placement if sharded == axis else Replicate()
        for placement, sharded in zip(like.placements, sharded_axes(like), strict=True)
    )


def joined_along(part: Tensor, like: Any, axis: int) -> Tensor:
    """Return this rank's part of a tensor along one axis of `like` as a whole, sharded along it.

    If `like` is not sharded, the part is the whole.
    """
    if not is_sharded(like):
        return part
    from torch.distributed.tensor import DTensor

    shape = torch.Size(size if each == axis else 1 for each, size in enumerate(like.shape))
    stride = tuple(prod(shape[each + 1 :]) for each in range(len(shape)))
    return DTensor.from_local(
        part, like.device_mesh, along(like, axis), run_check=False, shape=shape, stride=stride
    )


def sharding(tensor: Any) -> tuple[Any, ...]:
    """Return the mesh and the placements of a sharded tensor, nothing for any other."""
    return (tensor.device_mesh, tensor.placements) if is_sharded(tensor) else ()


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, without importing torch.distributed."""
    return hasattr(tensor, "full_tensor")


def placed_like(tensor: Any, other: Any) -> Tensor:
    """Return a sharded tensor redistributed as another is, any other tensor unchanged."""
    if not is_sharded(tensor) or sharding(tensor) == sharding(other):
        return tensor
    return tensor.redistribute(placements=other.placements)


def largest_along(square: Tensor, axis: int, like: Any = None) -> Tensor:
    """Return the maximum over all axes except one, which keep a size of 1.

    If `like` is sharded, `square` is this rank's part of a tensor that is sharded alike, and so is
    the result, along that axis; the maximum is taken over all ranks.
    """
    others = [other for other in range(square.dim()) if other != axis]
    if not others:
        return square
    if not is_sharded(like):
        return square.amax(others, keepdim=True)
    # A rank without rows contributes 0, the least that a square can be; amax would fail.
    shape = [size if other == axis else 1 for other, size in enumerate(square.shape)]
    largest = square.amax(others, keepdim=True) if square.numel() else square.new_zeros(shape)
    for dimension, sharded in enumerate(sharded_axes(like)):
        if sharded not in (None, axis):
            largest = largest_over(largest, like, dimension)
    return largest
