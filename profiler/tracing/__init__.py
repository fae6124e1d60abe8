"""What a program would allocate on a device, traced on meta tensors with the kernels that CUDA
would pick.
"""
