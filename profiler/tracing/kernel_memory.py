"""The memory that CUDA's kernels take for themselves, which no output of an operation shows.

Sizes are from ATen's CUDA sources, each named where it is used; docs/simulator.md lists what is
left out.
"""

from collections.abc import Sequence
from dataclasses import replace

from .attention_memory import ATTENTION
from .convolutions import CONVOLUTIONS
from .indexing import INDEXING
from .matrix_products import PRODUCTS
from .normalization import NORMS
from .reducing_operations import REDUCTIONS
from .requests import USUAL_DEVICE, KernelMemory, device_of
from .sorting import SORTING
from .stream import Allocations, Segment

KERNEL_MEMORY: dict[int, KernelMemory] = {
    # By identity: hashing an operation takes longer than looking its id up.
    id(operation): memory
    for table in (ATTENTION, CONVOLUTIONS, INDEXING, PRODUCTS, NORMS, REDUCTIONS, SORTING)
    for operation, memory in table.items()
}


def sized_for(
    segments: Sequence[Segment],
    allocations: Allocations,
    gpu: str | None,
    *,
    optional: bool = False,
) -> tuple[list[Segment], Allocations]:
    """Return the stream with the bytes of this GPU, without requests that its kernels do not make.

    Optional requests count at their largest with `optional`, else at their least.
    """
    device = device_of(gpu)
    nbytes = list(allocations.nbytes)
    for number, request in allocations.requests.items():
        if request.optional and not optional:
            nbytes[number] = request.least
        elif device != USUAL_DEVICE:
            nbytes[number] = request.nbytes(device)
    allocations = replace(allocations, nbytes=nbytes)
    absent = {number for number in allocations.requests if not nbytes[number]}
    absent |= {~number for number in absent}
    present = [
        replace(segment, events=[event for event in segment.events if event not in absent])
        for segment in segments
    ]
    return present, allocations
