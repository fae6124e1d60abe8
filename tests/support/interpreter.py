"""Run CUDA kernels on CPU tensors, in Triton's interpreter; tests/conftest.py switches it on.

`descend` makes the steps that the kernels' tests compare with those of the loop in float64.
"""

# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import fused

# What two steps may differ by: each rounds a weight to nearest.
TOLERANCES = {torch.float32: 2e-6, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}


@contextmanager
def kernels_on_cpu() -> Iterator[None]:
    """Inside, fused steps on a CPU run the CUDA kernels, with bfloat16 rounded as on a GPU."""
    from triton.runtime import interpreter

    convert = _rounding(interpreter._convert_float)  # pyright: ignore[reportPrivateImportUsage]
    with (
        mock.patch.object(interpreter, "_convert_float", convert),
        mock.patch.dict(fused.KERNELS, {"cpu": "triton"}),
    ):
        yield


def _rounding(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the interpreter's conversion, which truncates, with bfloat16 rounded to nearest."""

    def convert(values: Any, source: Any, target: Any, mode: Any) -> Any:
        if (str(source), str(target)) != ("fp32", "bf16"):
            return original(values, source, target, mode)
        floats = np.frombuffer(values.tobytes(), np.float32).copy()
        bits = torch.from_numpy(floats).bfloat16().view(torch.int16).numpy().view(np.uint16)
        return bits.reshape(values.shape)

    return convert


def descend(
    make: Callable[[list[Parameter]], Any],
    shapes: list[Any],
    dtype: torch.dtype,
    compute: torch.dtype,
    offset: int = 0,
) -> tuple[Any, list[Parameter]]:
    """Return an optimizer after two steps, and its parameters.

    All numbers are first rounded to `dtype`. Each tensor is `offset` elements from the start of its
    memory.
    """
    generator = torch.Generator().manual_seed(0)

    def numbers(shape: Any) -> Tensor:
        drawn = torch.randn(shape, generator=generator).to(dtype).to(compute)
        room = torch.empty(offset + drawn.numel(), dtype=compute)
        return room[offset:].view(shape).copy_(drawn)

    params = [Parameter(numbers(shape)) for shape in shapes]
    optimizer = make(params)
    for _ in range(2):
        for param in params:
            param.grad = numbers(param.shape)
        optimizer.step()
    return optimizer, params
