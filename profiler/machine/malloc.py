"""The C library's memory, kept once it was taken: without this a step pays for the pages of its
temporaries again and again.

glibc maps a large temporary and gives it back when it is freed, so that the kernel hands out, and
clears, the same pages in every step.
"""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_keeps = False


def keep_freed_memory() -> bool:
    """Let this process keep what it frees, for good; False where the C library is not glibc and
    nothing was changed.
    """
    global _keeps
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # Nothing is mapped by itself, nothing at the end of the heap is given back, and all threads
    # share that heap.
    _keeps = all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    )
    return _keeps


def keeps_freed_memory() -> bool:
    """Whether this process was told to keep what it frees."""
    return _keeps
