"""A timeline: what training steps hold from event to event, by category, thinned to a picture's
resolution and exact where it samples.

An event is an allocation or a free. The highest and the lowest moment of every stretch of events
are among the samples, so a curve through them has every summit and valley of the whole; the peak is
exact, with the largest blocks that stand at it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate


@dataclass(frozen=True, kw_only=True)
class HeldBlock:
    """A block at the peak: its bytes and those that were asked for, when (step 0 is before the
    first) and by whom.

    `module` is the path of a module or tensor of the model, `op` an operation such as
    "aten::addmm", `line` a line such as "file.py:12"; what is not known is "".
    """

    block_bytes: int
    requested_bytes: int
    category: str
    step: int
    phase: str
    module: str
    op: str
    line: str


@dataclass(frozen=True, kw_only=True)
class Stretch:
    """A phase of a step (counted from 1): how many events it has and how many samples stand for
    them.
    """

    step: int
    phase: str
    events: int
    samples: int


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """The first and the last of the `steps` that were traced, and the one that holds most where
    that is another.

    The samples of all phases stand one after another: `places` has the number of events of the
    phase that are done (0 at its beginning), `categories` the bytes of the blocks that each
    category holds then, `reserved` the bytes of all segments. `peak` is the number of the sample
    that holds most, and `largest` the largest blocks at that moment.
    """

    steps: int
    phases: tuple[Stretch, ...]
    places: tuple[int, ...]
    categories: Mapping[str, tuple[int, ...]]
    reserved: tuple[int, ...]
    peak: int
    largest: tuple[HeldBlock, ...]

    @cached_property
    def allocated(self) -> tuple[int, ...]:
        """Bytes of all blocks in use at each sample."""
        return tuple(map(sum, zip(*self.categories.values(), strict=True)))

    @property
    def fragmentation(self) -> tuple[int, ...]:
        """Bytes at each sample that the allocator has in hand and no tensor uses."""
        return tuple(
            reserved - allocated
            for reserved, allocated in zip(self.reserved, self.allocated, strict=True)
        )

    @property
    def peak_allocated(self) -> int:
        """The most bytes of blocks in use at any moment."""
        return self.allocated[self.peak]

    @property
    def peak_stretch(self) -> Stretch:
        """The phase that the peak falls in."""
        ends = accumulate(stretch.samples for stretch in self.phases)
        return next(
            stretch for stretch, end in zip(self.phases, ends, strict=True) if self.peak < end
        )
