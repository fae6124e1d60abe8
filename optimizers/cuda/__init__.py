"""Fused updates on CUDA: Triton kernels that update many tensors in one launch.

A module of an optimizer's name has `update(bucket)`, the host's part; the kernels are next to it in
a module that ends in `_kernels`. Only a launch imports those, and with them Triton. On meta tensors
the host's part runs as it does on CUDA, and a launch only says which tensors it reads and writes.
"""
