"""How many launches a multi-tensor kernel takes on CUDA: each is handed so many tensors, in so many
chunks, at most.

The values of ATen/native/cuda/MultiTensorApply.cuh in torch 2.13 built for CUDA 13. Builds for CUDA
12 and for ROCm take a seventh of the tensors and of the blocks, so they launch up to seven times as
often.
"""

from collections.abc import Iterable

CHUNK_ELEMENTS = 65_536
MOST_BLOCKS = 2_240
# By the number of lists that the kernel walks, from one to five.
MOST_TENSORS = (770, 448, 336, 252, 210)
MOST_TENSORS_WITH_SCALARS = (672, 448, 336, 252, 210)


def launches(sizes: Iterable[int], *, lists: int, scalars: bool = False) -> int:
    """Launches over tensors of these numbers of elements, each taken from `lists` lists at once;
    `scalars` hands over a number for each.
    """
    most_tensors = (MOST_TENSORS_WITH_SCALARS if scalars else MOST_TENSORS)[
        min(lists, len(MOST_TENSORS)) - 1
    ]
    count = tensors = blocks = 0
    for size in sizes:
        if not size:
            continue
        tensors += 1
        filled, blocks = divmod(blocks + -(-size // CHUNK_ELEMENTS), MOST_BLOCKS)
        if filled:
            # What is left of this tensor is the first that the next launch takes.
            count, tensors = count + filled, min(blocks, 1)
        if tensors == most_tensors:
            count, tensors, blocks = count + 1, 0, 0
    return count + (blocks > 0)
