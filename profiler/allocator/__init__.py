"""The CUDA caching allocator of PyTorch as a model, without torch: settings, segments, blocks, and
a device that runs out.
"""
