"""Run CUDA kernels on CPU tensors, in Triton's interpreter; tests/conftest.py switches it on."""

# pyright: reportMissingImports=false

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import numpy as np
import torch

from optprof.optimizers import fused


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
