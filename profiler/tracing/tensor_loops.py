"""The dimensions of a reduction as TensorIterator leaves them: sorted by strides, joined, cut.

TensorIteratorBase::build, reorder_dimensions, coalesce_dimensions and with_32bit_indexing in
ATen/native/TensorIterator.cpp.
"""

from collections.abc import Iterator, Sequence
from math import prod
from typing import NamedTuple

_LARGEST_INT = 2**31 - 1


class Loop(NamedTuple):
    """Dimensions, the fastest first, with byte strides; `outputs` is 0 where they are reduced."""

    shape: tuple[int, ...]
    outputs: tuple[int, ...]
    inputs: tuple[int, ...]

    @property
    def reduced(self) -> int:
        """Dimensions that are reduced; they come first."""
        return sum(stride == 0 for stride in self.outputs)

    @property
    def num_outputs(self) -> int:
        """Numbers that come out."""
        return prod(size for size, stride in zip(self.shape, self.outputs, strict=True) if stride)

    @property
    def fits_int(self) -> bool:
        """True where 32 bits hold every number of elements and every offset in bytes."""
        reach = max(self._reach(self.outputs), self._reach(self.inputs))
        return prod(self.shape) <= _LARGEST_INT and reach <= _LARGEST_INT

    def _reach(self, strides: Sequence[int]) -> int:
        return 1 + sum(
            (size - 1) * stride for size, stride in zip(self.shape, strides, strict=True)
        )

    def halves(self) -> "tuple[Loop, Loop]":
        """The loop cut in two along the dimension that reaches furthest."""
        reach = [(size - 1) * max(strides) for size, *strides in zip(*self, strict=True)]
        # The first of equals, counted from the slowest.
        place = max(range(len(reach)), key=lambda place: (reach[place], place))
        low = self.shape[place] // 2
        shapes = [
            (*self.shape[:place], size, *self.shape[place + 1 :])
            for size in (low, self.shape[place] - low)
        ]
        return self._replace(shape=shapes[0]), self._replace(shape=shapes[1])


def pieces(loop: Loop) -> Iterator[Loop]:
    """The loop in parts that 32 bits can index."""
    if loop.fits_int:
        yield loop
    else:
        for half in loop.halves():
            yield from pieces(half)


def reduction_loop(
    shape: tuple[int, ...], strides: tuple[int, ...], dims: tuple[int, ...], item: int, output: int
) -> Loop:
    """The dimensions of a reduction over `dims`; `item` and `output` are bytes of a number in and
    out.
    """
    kept = [1 if place in dims else size for place, size in enumerate(shape)]
    out = [0 if place in dims else output * prod(kept[place + 1 :]) for place in range(len(shape))]
    inputs = [stride * item for stride in strides]
    order = _sorted(list(range(len(shape)))[::-1], shape, out, inputs)
    joined: list[list[int]] = []
    for place in order:
        size, written, stride = shape[place], out[place], inputs[place]
        if not joined:
            joined.append([size, written, stride])
            continue
        last = joined[-1]
        if 1 in (last[0], size) or (last[0] * last[1], last[0] * last[2]) == (written, stride):
            if last[0] == 1:
                last[1:] = written, stride
            last[0] *= size
        else:
            joined.append([size, written, stride])
    return Loop(*zip(*joined, strict=True)) if joined else Loop((), (), ())


def _sorted(
    order: list[int], shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]
) -> list[int]:
    """reorder_dimensions: an insertion sort that leaves ambiguous neighbours in place."""
    for first in range(1, len(order)):
        moving = first
        for place in range(first - 1, -1, -1):
            found = _compare(order[place], order[moving], shape, outputs, inputs)
            if found > 0:
                order[place], order[moving] = order[moving], order[place]
                moving = place
            elif found < 0:
                break
    return order


def _compare(
    low: int, high: int, shape: Sequence[int], outputs: Sequence[int], inputs: Sequence[int]
) -> int:
    """Return a positive number to swap two dimensions, a negative one to stop, 0 if nothing
    decides.
    """
    if (outputs[low] == 0) != (outputs[high] == 0):
        return 1 if outputs[high] == 0 else -1
    for strides in (outputs, inputs):
        if not strides[low] or not strides[high]:
            continue
        if strides[low] != strides[high]:
            return -1 if strides[low] < strides[high] else 1
        if shape[low] > shape[high]:
            return 1
    return 0
