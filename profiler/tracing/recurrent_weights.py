"""The weights of recurrent layers in the one buffer that cuDNN reads."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .recurrent_memory import Layers, Mode

Tensors = Sequence[torch.Tensor]
# cudnnRNNMode_t, by what torch calls the operation.
MODES: Mapping[str, Mode] = {"rnn_relu": "relu", "rnn_tanh": "tanh", "lstm": "lstm", "gru": "gru"}
NUMBERS = tuple(MODES.values())
# CUDNN_TENSOR_DTYPES in torch/backends/cudnn: bfloat16 weights are laid together at every call.
_FLATTENED = (torch.float64, torch.float32, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The tensors of a layer stack in cuDNN's buffer: matrices of all layers, then all biases.

    `shapes` and `offsets` come in the order of nn.RNNBase._flat_weights.
    """

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    numel: int
    stride: int

    @classmethod
    def of(cls, layers: Layers, *, has_biases: bool) -> "Weights":
        """The layout, whose biases are there for cuDNN even where a model has none."""
        shapes: list[tuple[int, ...]] = []
        offsets: list[int] = []
        end, biases_end = 0, layers.matrices
        for matrices, gates in layers.weights():
            for place, shape in enumerate(matrices):
                if place == 2:
                    # The projection comes last in torch's order.
                    continue
                shapes.append(shape)
                offsets.append(end)
                end += shape[0] * shape[1]
            for _ in range(2):
                if has_biases:
                    shapes.append((gates,))
                    offsets.append(biases_end)
                biases_end += gates
            for shape in matrices[2:]:
                shapes.append(shape)
                offsets.append(end)
                end += shape[0] * shape[1]
        stride = 2 * (1 + has_biases) + (layers.projection > 0)
        return cls(shapes=tuple(shapes), offsets=tuple(offsets), numel=biases_end, stride=stride)

    def views(self, buffer: torch.Tensor) -> list[torch.Tensor]:
        """The tensors in a buffer; none of them is a view to autograd, as get_parameters makes
        them.
        """
        return [
            _within(buffer, offset, shape)
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def buffer_of(self, weights: Tensors) -> torch.Tensor | None:
        """The buffer in which the weights lie; None where they do not: try_get_weight_buf."""
        storage = weights[0].untyped_storage()
        held = storage.nbytes() // weights[0].element_size() >= self.numel
        together = all(
            weight.untyped_storage()._cdata == storage._cdata and weight.storage_offset() == offset
            for weight, offset in zip(weights, self.offsets, strict=True)
        )
        if not held or not together:
            return None
        return _within(weights[0].detach(), 0, (self.numel,))


def _within(buffer: Any, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
    return buffer.new_empty(0).set_(buffer.untyped_storage(), offset, shape)


def flatten_parameters(module: nn.RNNBase) -> None:
    """Lay a module's weights into one buffer, as nn.RNNBase does by that name on CUDA alone."""
    weights = [getattr(module, name) for names in module._all_weights for name in names]
    dtypes = {weight.dtype for weight in weights}
    own = all(isinstance(weight, nn.Parameter) for weight in weights) and len(
        set(map(id, weights))
    ) == len(weights)
    if (
        not own
        or len(dtypes) > 1
        or dtypes.isdisjoint(_FLATTENED)
        or not torch.backends.cudnn.enabled
    ):
        return
    layers = Layers(
        mode=_mode_of(module),
        inputs=module.input_size,
        hidden=module.hidden_size,
        projection=module.proj_size,
        count=module.num_layers,
        directions=1 + module.bidirectional,
    )
    layout = Weights.of(layers, has_biases=module.bias)
    buffer = torch.zeros(layout.numel, dtype=weights[0].dtype, device="meta")
    for weight, view in zip(weights, layout.views(buffer), strict=True):
        weight.data = view


def halved(
    weights: Tensors,
    stride: int,
    inputs: int,
    mode: int,
    hidden: int,
    projection: int,
    count: int,
    bidirectional: bool,
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the weights in float16 and the buffer that they lie in:
    copy_weights_to_flat_buf_views.
    """
    layers = Layers(
        mode=NUMBERS[mode],
        inputs=inputs,
        hidden=hidden,
        projection=projection,
        count=count,
        directions=1 + bidirectional,
    )
    layout = Weights.of(layers, has_biases=stride >= 4)
    buffer = torch.zeros(layout.numel, dtype=torch.float16, device="meta")
    views = layout.views(buffer)
    return [view.copy_(weight) for view, weight in zip(views, weights, strict=True)], buffer


def _mode_of(module: nn.RNNBase) -> Mode:
    return MODES[module.mode.lower()]
