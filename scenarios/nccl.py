"""NCCL's memory on each GPU, as an estimated range with its sources; torch's allocator has none.

A communicator has channels, and a channel has a buffer for each connection over which it receives.
A GPU's links decide the number of channels, so the range is wide. People measured 544 and 688 MiB
for groups of two and of more A100s with NVLink (https://github.com/NVIDIA/nccl/issues/964), and
about 0.65 GiB for each communicator after the first on MI250X with RCCL
(https://github.com/Lumi-supercomputer/LUMI-AI-Guide/issues/111).
"""

from .parallel import read_parallel

# DEFAULT_LL_BUFFSIZE, DEFAULT_LL128_BUFFSIZE and DEFAULT_BUFFSIZE of NCCL 2.30, src/init.cc: one
# buffer for each protocol. The environment's NCCL_BUFFSIZE replaces the last.
_LOW_LATENCY = 8 * 512 * 8 * 16
_LOW_LATENCY_128 = 120 * 640 * 8 * 8
_SIMPLE = 4 << 20
# Of one connection: 9.19 MiB.
CONNECTION_BYTES = _LOW_LATENCY + _LOW_LATENCY_128 + _SIMPLE
# The driver gives whole units of 2 MiB: 10,485,760 bytes were seen for a connection on H100s
# (https://github.com/NVIDIA/nccl/issues/1685).
_UNIT = 2 << 20
# Each ring counts twice in src/graph/connect.cc, so two channels are the fewest. 32 were seen on
# eight H100s (the same issue); more need NCCL_MIN_NCHANNELS or NCCL_MIN_CTAS.
FEWEST_CHANNELS, MOST_CHANNELS = 2, 32
# A ring receives from one neighbour, and a tree from a parent and up to two children. 688 MiB in
# the 24 channels of an A100 are three connections each.
FEWEST_CONNECTIONS, MOST_CONNECTIONS = 1, 3


def communicators(parallel: str | None, ranks: int) -> int:
    """Return the number of groups of several ranks that exchange data in a training step.

    torch makes a communicator at a group's first exchange, so the group of all ranks has none if
    the ranks of a two-dimensional mesh exchange along its axes alone.
    """
    if parallel is None:
        return 0
    way = read_parallel(parallel)
    sizes = ranks // way.tensor, way.tensor
    return sum(size > 1 for size in sizes)


def nccl_bytes(parallel: str | None, ranks: int) -> tuple[int, int] | None:
    """Return the estimated least and most bytes on each GPU; None if ranks exchange nothing."""
    count = communicators(parallel, ranks)
    if not count:
        return None
    least = FEWEST_CHANNELS * FEWEST_CONNECTIONS * CONNECTION_BYTES
    most = MOST_CHANNELS * MOST_CONNECTIONS * (-(-CONNECTION_BYTES // _UNIT) * _UNIT)
    return count * least, count * most
