"""Training without a device: what is traced, replayed through the allocator and read off it."""
