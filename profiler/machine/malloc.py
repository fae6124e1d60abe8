"""Let the C library keep freed memory, so that steps do not pay for new pages.

glibc maps each large temporary, and unmaps it when it is freed. The kernel then provides, and
clears, the same pages in every step.
"""

import ctypes
import platform

# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -4, -8

_keeps = False


def keep_freed_memory() -> bool:
    """Let this process keep freed memory from now on; return False, unchanged, without glibc."""
    global _keeps
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    # No separate mappings, no trimming of the heap's end, and one heap for all threads.
    _keeps = all(
        mallopt(option, value) == 1
        for option, value in ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    )
    return _keeps


def keeps_freed_memory() -> bool:
    """Return whether this process keeps freed memory."""
    return _keeps
