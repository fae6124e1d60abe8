"""A model of PyTorch's CUDA caching allocator, which works without torch.

    from optprof.profiler.allocator import CachingAllocator

docs/allocator.md explains the rules and has examples.
"""

from .blocks import Block, Lane
from .caching import CachingAllocator
from .out_of_memory import OutOfMemoryError
from .settings import AllocatorSettings
from .state import BlockState, SegmentState

__all__ = [
    "AllocatorSettings",
    "Block",
    "BlockState",
    "CachingAllocator",
    "Lane",
    "OutOfMemoryError",
    "SegmentState",
]
