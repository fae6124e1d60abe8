"""Stacks of cuDNN's recurrent layers: the layout of their weights, and bounds of their memory.

cudnnGetRNNTempSpaceSizes is closed source, and its answer changes with the algorithm and the
version, so what the layers keep and take is a range. The lower bound of what they keep is what the
backward pass reads and cannot recompute by matrix products. Upper bounds lie above all published
sizes, which tests/profiler/test_recurrent.py names; they count in float32 for tensors of half
precision too.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

Tensors = Sequence[torch.Tensor]
Mode = Literal["relu", "tanh", "lstm", "gru"]
# cudnnRNNMode_t, by torch's names of the operations.
MODES: Mapping[str, Mode] = {"rnn_relu": "relu", "rnn_tanh": "tanh", "lstm": "lstm", "gru": "gru"}
MODE_NUMBERS = tuple(MODES.values())
_GATES = {"relu": 1, "tanh": 1, "lstm": 4, "gru": 3}
# Numbers kept for each of the hidden state and time step. LSTM: the gates and the cell. GRU: the
# gates and the hidden part of the new one; a recording shows six. The others: their output, which
# torch itself passes to the backward pass for the last layer.
_LEAST_KEPT = {"relu": 0, "tanh": 0, "lstm": 5, "gru": 4}
_SEEN_KEPT = {"relu": 1, "tanh": 1, "lstm": 5, "gru": 6}
# A layer's output, and a copy of it after dropout.
_OUTPUTS = 2
# Hidden states of one time step in a workspace, for each layer and direction; a recording shows 44.
_STATES = 56
# Addresses and lengths; a recording shows 768 bytes.
_OFFSETS = 64 << 10
# CUDNN_TENSOR_DTYPES in torch/backends/cudnn: bfloat16 weights are copied together at every call.
_FLATTENED = (torch.float64, torch.float32, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A stack of recurrent layers; `projection` is 0 without one."""

    mode: Mode
    inputs: int
    hidden: int
    projection: int
    count: int
    directions: int

    @classmethod
    def of(
        cls, inputs: int, mode: int, hidden: int, projection: int, count: int, bidirectional: bool
    ) -> "Layers":
        """Return the stack that these arguments of an operation describe."""
        return cls(
            mode=MODE_NUMBERS[mode],
            inputs=inputs,
            hidden=hidden,
            projection=projection,
            count=count,
            directions=1 + bidirectional,
        )

    @property
    def fed_back(self) -> int:
        """Numbers that a time step passes to the next as its output."""
        return self.projection or self.hidden

    @property
    def outputs(self) -> int:
        """Numbers of the output in each time step."""
        return self.directions * self.fed_back

    @property
    def stacked(self) -> int:
        """Numbers of the hidden state of all layers and directions."""
        return self.count * self.directions * self.hidden

    @property
    def matrices(self) -> int:
        """Numbers in all matrices."""
        return sum(rows * columns for shapes, _ in self.weights() for rows, columns in shapes)

    def weights(self) -> Iterator[tuple[list[tuple[int, int]], int]]:
        """Yield the matrices of each layer and direction, and the size of its two biases."""
        gates = _GATES[self.mode] * self.hidden
        for layer in range(self.count):
            for _ in range(self.directions):
                matrices = [(gates, self.outputs if layer else self.inputs), (gates, self.fed_back)]
                yield matrices + [(self.projection, self.hidden)] * (self.projection > 0), gates


def reserve(layers: Layers, steps: int, batch: int, tokens: int, item: int) -> tuple[int, int]:
    """Return the least and the most bytes that are kept for the backward pass.

    Packed sequences have fewer `tokens` than steps x batch.
    """
    inner = (layers.count - 1) * layers.outputs
    least = item * tokens * (_LEAST_KEPT[layers.mode] * layers.stacked + inner)
    numbers = _SEEN_KEPT[layers.mode] + _OUTPUTS + (layers.projection > 0)
    return least, max(4, item) * steps * batch * numbers * layers.stacked + _OFFSETS


def workspace(layers: Layers, steps: int, batch: int, item: int) -> tuple[int, int]:
    """Return the least and the most bytes that a kernel takes while it runs; the least are none.

    The most are copies of the weights; inputs, outputs and their gradients without padding; two
    gradients of the outputs for all time steps, as recorded with two directions; and states.
    """
    copies = 2 * (layers.inputs + layers.outputs) + 2 * layers.directions * layers.hidden
    numbers = layers.matrices + steps * batch * copies + _STATES * batch * layers.stacked
    return 0, max(4, item) * numbers + _OFFSETS


@dataclass(frozen=True, kw_only=True)
class Weights:
    """The layout of a stack's tensors in cuDNN's one buffer: all matrices, then all biases.

    `shapes` and `offsets` have the order of nn.RNNBase._flat_weights; `stride` counts the tensors
    of one layer and direction.
    """

    shapes: tuple[tuple[int, ...], ...]
    offsets: tuple[int, ...]
    numel: int
    stride: int

    @classmethod
    def of(cls, layers: Layers, *, has_biases: bool) -> "Weights":
        """Return the layout; cuDNN has room for biases even if the model has none."""
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
        """Return the tensors in a buffer; autograd sees no views: get_parameters."""
        return [
            _within(buffer, offset, shape)
            for offset, shape in zip(self.offsets, self.shapes, strict=True)
        ]

    def buffer_of(self, weights: Tensors) -> torch.Tensor | None:
        """Return the buffer that holds the weights, or None if none does: try_get_weight_buf."""
        storage = weights[0].untyped_storage()
        is_large = storage.nbytes() // weights[0].element_size() >= self.numel
        is_laid_out = all(
            weight.untyped_storage()._cdata == storage._cdata and weight.storage_offset() == offset
            for weight, offset in zip(weights, self.offsets, strict=True)
        )
        if not is_large or not is_laid_out:
            return None
        return _within(weights[0].detach(), 0, (self.numel,))


def _within(buffer: Any, offset: int, shape: tuple[int, ...]) -> torch.Tensor:
    return buffer.new_empty(0).set_(buffer.untyped_storage(), offset, shape)


def flatten_parameters(module: nn.RNNBase) -> None:
    """Move a module's weights into one buffer, as nn.RNNBase.flatten_parameters does on CUDA."""
    weights = [getattr(module, name) for names in module._all_weights for name in names]
    dtypes = {weight.dtype for weight in weights}
    are_parameters = all(isinstance(weight, nn.Parameter) for weight in weights)
    if (
        not are_parameters
        or len(set(map(id, weights))) < len(weights)
        or len(dtypes) > 1
        or dtypes.isdisjoint(_FLATTENED)
        or not torch.backends.cudnn.enabled
    ):
        return
    layers = Layers(
        mode=MODES[module.mode.lower()],
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
    weights: Tensors, stride: int, layers: Layers
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return float16 weights and the buffer that holds them: copy_weights_to_flat_buf_views."""
    layout = Weights.of(layers, has_biases=stride >= 4)
    buffer = torch.zeros(layout.numel, dtype=torch.float16, device="meta")
    views = layout.views(buffer)
    return [view.copy_(weight) for view, weight in zip(views, weights, strict=True)], buffer
