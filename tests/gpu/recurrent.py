"""Recurrent layers: what cuDNN keeps for the backward pass and takes while it runs.

cuDNN is closed; the simulator has ranges for both, which are noted with the measurements.
"""

from itertools import product
from typing import Any

import torch
from attention import DTYPES
from footprint import peak
from optprof.profiler.tracing.recurrent_layers import Layers, Mode, reserve, workspace
from place import PLACE
from torch import nn

KINDS: dict[Mode, Any] = {"lstm": nn.LSTM, "gru": nn.GRU, "tanh": nn.RNN}
# Inputs, hidden size, layers, directions, time steps, batch.
SHAPES = (
    (256, 256, 1, 1, 32, 8),
    (512, 1024, 2, 1, 64, 16),
    (512, 512, 2, 2, 128, 32),
    (80, 768, 4, 2, 200, 4),
)


def table(say: Any) -> None:
    """Note the bytes of each kind of layer, shape and dtype."""
    shapes = SHAPES if PLACE.device == "cuda" else SHAPES[:1]
    dtypes = DTYPES if PLACE.device == "cuda" else ("fp32",)
    for mode, shape, dtype in product(KINDS, shapes, dtypes):
        say.attempt(f"{mode} {'x'.join(map(str, shape))} {dtype}", _bytes, mode, shape, dtype)


def _bytes(mode: Mode, shape: tuple[int, ...], dtype: str) -> dict[str, Any]:
    inputs, hidden, count, directions, steps, batch = shape
    options: dict[str, Any] = {"device": PLACE.device, "dtype": DTYPES[dtype]}
    module = KINDS[mode](inputs, hidden, count, bidirectional=directions == 2, **options)
    x = torch.ones(steps, batch, inputs, requires_grad=True, **options)
    layers = Layers(
        mode=mode, inputs=inputs, hidden=hidden, projection=0, count=count, directions=directions
    )
    forward = peak(lambda: module(x))
    output, _ = module(x)
    # What cuDNN keeps is the only saved tensor of bytes.
    saved = [getattr(output.grad_fn, name) for name in dir(output.grad_fn) if "_saved_" in name]
    sizes = [each.numel() for each in saved if _is_bytes(each)]
    gradient = torch.ones_like(output)
    return {
        "reserve": sizes[0] if sizes else None,
        "reserve simulated": reserve(layers, steps, batch, steps * batch, x.element_size()),
        "workspace simulated": workspace(layers, steps, batch, x.element_size()),
        "forward": forward,
        "backward": peak(lambda: output.backward(gradient)),
    }


def _is_bytes(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.dtype == torch.uint8
