"""A model of PyTorch's CUDA caching allocator, which works without torch."""
