"""Explain the peak and the events of a timeline by the sources of their blocks.

A source is a category, a module with its class, an operation and a line of Python.
"""

import re
from collections.abc import Mapping, Sequence

from ..records.timeline import BlockSource, PeakGroup
from ..tracing.sources import Source
from ..tracing.stream import Allocations, Segment

# A timeline keeps the largest groups of a peak; the others of each category become one group. A
# language model has about a hundred.
GROUPS = 400
# A number in the path of a module is that of a layer.
_NUMBER = re.compile(r"(?:(?<=[. ])|^)\d+(?=\.|$)")

Sum = tuple[int, int]


class BlockSources:
    """The sources of allocations; each is found once and has a number from 1 on."""

    def __init__(self, allocations: Allocations) -> None:
        self._allocations = allocations
        self._numbers: dict[BlockSource, int] = {}
        # By category and by the id of the Source, which lives as long as the allocations. Equal
        # sources nearly always are one object, and its hash would take longer than all else here.
        self._known: dict[tuple[str, int], tuple[int, str]] = {}
        self._paths: dict[str, tuple[str, str]] = {}

    @property
    def all(self) -> tuple[BlockSource, ...]:
        """Every source so far, in the order of their numbers."""
        return tuple(self._numbers)

    def of(self, allocation: int) -> tuple[int, str]:
        """Return the number of the source, and the numbers in the path of its module."""
        category = self._allocations.categories[allocation]
        source = self._allocations.sources[allocation]
        key = category, id(source)
        if key not in self._known:
            self._known[key] = self._find(category, source)
        return self._known[key]

    def number(self, source: BlockSource) -> int:
        """Return the number of a source."""
        return self._numbers.setdefault(source, len(self._numbers) + 1)

    def _find(self, category: str, source: Source) -> tuple[int, str]:
        module, op, line = source
        if module not in self._paths:
            self._paths[module] = _NUMBER.sub("*", module), ".".join(_NUMBER.findall(module))
        path, layers = self._paths[module]
        module_class = self._class_of(module, category)
        return self.number(BlockSource(category, module_class, path, op, line)), layers

    def _class_of(self, module: str, category: str) -> str:
        """Return the class of a module, or of the module that has the tensor of this path."""
        if category == "optimizer_state":
            # "exp_avg of layer.weight", or the key alone.
            module = module.partition(" of ")[2]
        if not module:
            return ""
        classes = self._allocations.classes
        return classes.get(module) or classes.get(module.rpartition(".")[0], "")


def peak_groups(
    live: Mapping[int, int],
    segments: Sequence[Segment],
    sources: BlockSources,
    block_bytes: Mapping[int, int],
) -> tuple[PeakGroup, ...]:
    """Return the groups of the blocks in use, the largest first.

    `live` has the place of the segment that requested each block.
    """
    sums: dict[tuple[int, str], Sum] = {}
    for allocation, place in live.items():
        key = sources.of(allocation)[0], segments[place].phase
        blocks, nbytes = sums.get(key, (0, 0))
        sums[key] = blocks + 1, nbytes + block_bytes[allocation]
    every = sources.all
    groups = [
        PeakGroup(source=every[number - 1], phase=phase, blocks=blocks, nbytes=nbytes)
        for (number, phase), (blocks, nbytes) in sums.items()
    ]
    groups.sort(key=lambda group: -group.nbytes)
    return (*groups[:GROUPS], *_rest(groups[GROUPS:], sources))


def _rest(groups: Sequence[PeakGroup], sources: BlockSources) -> list[PeakGroup]:
    """Return one group for each category of these groups."""
    sums: dict[str, Sum] = {}
    for group in groups:
        blocks, nbytes = sums.get(group.source.category, (0, 0))
        sums[group.source.category] = blocks + group.blocks, nbytes + group.nbytes
    rest = []
    for category, (blocks, nbytes) in sums.items():
        source = BlockSource(category, "", "", "", "")
        sources.number(source)
        rest.append(PeakGroup(source=source, phase="", blocks=blocks, nbytes=nbytes))
    return rest
