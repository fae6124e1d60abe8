"""The memory of a simulated device, which the pools of its allocator share."""


class DeviceMemory:
    """The memory of a device, and the bytes that the allocator has reserved of it.

    `total` is the size of the device, None for an unlimited one; `occupied` are bytes outside of
    the allocator, such as the CUDA context. `limit` is the most that the process may take, or None.
    `idle` counts the bytes of wholly free segments.
    """

    __slots__ = (
        "allocations",
        "idle",
        "limit",
        "occupied",
        "peak",
        "releases",
        "reserved",
        "total",
    )

    def __init__(self, total: int | None, occupied: int, limit: int | None) -> None:
        self.total = total
        self.occupied = occupied
        self.limit = limit
        self.reserved = 0
        self.idle = 0
        self.peak = 0
        self.allocations = 0
        self.releases = 0

    def take(self, nbytes: int) -> bool:
        """Reserve bytes; return False if the device does not have them."""
        if self.total is not None and self.reserved + self.occupied + nbytes > self.total:
            return False
        self.reserved += nbytes
        self.allocations += 1
        if self.reserved > self.peak:
            self.peak = self.reserved
        return True

    def release(self, nbytes: int) -> None:
        """Return bytes to the device."""
        self.reserved -= nbytes
        self.releases += 1
