"""The error of a simulated device that runs out of memory, with the figures of torch's message."""


class OutOfMemoryError(MemoryError):
    """The device cannot serve a request, even after all idle segments were released.

    `requested` are the bytes of the request, `tried` those of the segment that it needs. `total`,
    `free`, `allocated` and `reserved` describe the device at that moment. `limit` is the most that
    the process may take, None without `per_process_memory_fraction`.
    """

    def __init__(
        self,
        *,
        requested: int,
        tried: int,
        total: int,
        free: int,
        limit: int | None,
        allocated: int,
        reserved: int,
    ) -> None:
        self.requested, self.tried, self.total, self.free = requested, tried, total, free
        self.limit, self.allocated, self.reserved = limit, allocated, reserved
        allowed = "" if limit is None else f"{format_bytes(limit)} allowed; "
        super().__init__(
            f"tried to allocate {format_bytes(tried)}; the device has a total capacity of"
            f" {format_bytes(total)} of which {format_bytes(free)} is free;"
            f" {allowed}{format_bytes(allocated)} is allocated,"
            f" {format_bytes(reserved - allocated)} is reserved but unallocated"
        )


def format_bytes(nbytes: int) -> str:
    """Return bytes as torch's error messages write them: `1.46 GiB`."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if nbytes > 1 << shift:
            return f"{nbytes / (1 << shift):.2f} {unit}"
    return f"{nbytes} bytes"
