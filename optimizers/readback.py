"""What the host knows of a scalar on a device, without waiting for the device."""

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils.weak import WeakTensorKeyDictionary

# Copies on the host by the scalar they were made of; 0 until they arrive.
_copies = WeakTensorKeyDictionary()


def may_be_zero(scalar: Tensor, *, wait: bool = False) -> bool:
    """False where the host has seen a scalar that leaves 0 but once and for ever; True where it is
    0 or its value is still on the way.

    With `wait` the answer is exact, which ranks that must decide alike need. Of a tensor without
    data it says False.
    """
    if torch.compiler.is_compiling():
        return True
    if scalar.is_meta or isinstance(scalar, FakeTensor):
        return False
    if scalar.is_cpu:
        return scalar.item() == 0
    copy = _copies.get(scalar)
    if copy is None or copy.item() == 0:
        copy = torch.zeros_like(scalar, device="cpu", pin_memory=scalar.is_cuda)
        copy.copy_(scalar, non_blocking=not wait and scalar.is_cuda)
        _copies[scalar] = copy
    return copy.item() == 0
