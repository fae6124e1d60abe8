"""Traces of what a program would allocate on a device, on meta tensors with CUDA's kernels."""
