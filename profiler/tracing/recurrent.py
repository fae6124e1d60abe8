"""cuDNN's recurrent layers on meta tensors: one operation, which torch takes apart there step by step.

After native/cudnn/RNN.cpp, native/RNN.cpp and native/cuda/RNN.cu in aten/src/ATen of torch 2.13.
cuDNN's code is closed: what it keeps for the backward pass and takes while it runs are ranges
(recurrent_memory.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

from .recurrent_memory import Layers, Mode, reserve, workspace
from .values import value_of

aten = torch.ops.aten
Tensors = Sequence[torch.Tensor]
# cudnnRNNMode_t, by what torch calls the operation.
_MODES: Mapping[str, Mode] = {"rnn_relu": "relu", "rnn_tanh": "tanh", "lstm": "lstm", "gru": "gru"}
_NUMBERS = tuple(_MODES.values())
# use_cudnn in native/RNN.cpp; cuDNN has taken bfloat16 since 9.13, which torch 2.13 comes with.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# CUDNN_TENSOR_DTYPES in torch/backends/cudnn: bfloat16 weights are laid together at every call.
_FLATTENED = (torch.float64, torch.float32, torch.float16)
# The random numbers' state of all dropout in cuDNN; "slightly over 2MB", says RNN.cpp. A state of
# 48 bytes for each thread that an H100 holds at once takes 13 MB.
_MOST_STATE = 16 << 20

_library = torch.library.Library("optprof", "FRAGMENT")
_library.define("space(int least, int most) -> Tensor")


def _space(least: int, most: int) -> torch.Tensor:
    del least
    return torch.empty(most, dtype=torch.uint8, device="meta")


_library.impl("space", _space, "CompositeExplicitAutograd")
SPACE = torch.ops.optprof.space.default
"""The operation that takes memory of a size between two, of which a recorder makes a range."""


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
        """The tensors in a buffer; none of them is a view to autograd, as get_parameters makes them."""
        return [_within(buffer, offset, shape) for offset, shape in zip(self.offsets, self.shapes, strict=True)]

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
    own = all(isinstance(weight, nn.Parameter) for weight in weights) and len(set(map(id, weights))) == len(weights)
    if not own or len(dtypes) > 1 or dtypes.isdisjoint(_FLATTENED) or not torch.backends.cudnn.enabled:
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
    weights: Tensors, stride: int, inputs: int, mode: int, hidden: int, projection: int, count: int, bidirectional: bool
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Return the weights in float16 and the buffer that they lie in: copy_weights_to_flat_buf_views."""
    layers = Layers(mode=_NUMBERS[mode], inputs=inputs, hidden=hidden, projection=projection, count=count, directions=1 + bidirectional)
    layout = Weights.of(layers, has_biases=stride >= 4)
    buffer = torch.zeros(layout.numel, dtype=torch.float16, device="meta")
    views = layout.views(buffer)
    return [view.copy_(weight) for view, weight in zip(views, weights, strict=True)], buffer


def _mode_of(module: nn.RNNBase) -> Mode:
    return _MODES[module.mode.lower()]


@dataclass(kw_only=True)
class _Dropout:
    """The state of random numbers that all layers with dropout share, from the first on."""

    state: torch.Tensor | None = None

    def of(self, dropout: float, train: bool) -> torch.Tensor | None:
        """The state where one is needed: get_dropout_state."""
        if self.state is None and train and dropout > 0:
            self.state = SPACE(0, _MOST_STATE)
        return self.state


def substitutes() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Names of operations, what runs in their place on meta tensors, and its dispatch key."""
    dropout = _Dropout()
    for name, mode in _MODES.items():
        for overload, run in (("input", _padded), ("data", _packed)):
            own = getattr(getattr(aten, name), overload)
            steps = partial(own._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)
            yield f"{name}.{overload}", partial(run, mode, dropout, steps), "AutogradMeta"
    yield "lstm_cell", _lstm_cell, "AutogradMeta"
    yield "gru_cell", _gru_cell, "AutogradMeta"
    yield "_thnn_fused_gru_cell", _fused_gru_cell, "Meta"
    yield "_thnn_fused_gru_cell_backward", _fused_gru_cell_backward, "Meta"


def _padded(
    mode: Mode,
    dropout_state: _Dropout,
    steps: Callable[..., Any],
    tensor: torch.Tensor,
    hidden: Any,
    weights: Tensors,
    has_biases: bool,
    count: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[torch.Tensor, ...]:
    """Run sequences of one length: _cudnn_impl; `steps` is torch's way without cuDNN."""
    if not _uses_cudnn(tensor):
        return steps(tensor, hidden, weights, has_biases, count, dropout, train, bidirectional, batch_first)
    states = hidden if mode == "lstm" else [hidden]
    state = dropout_state.of(dropout, train)
    return _run(mode, tensor, states, weights, has_biases, count, dropout, train, bidirectional, batch_first, [], state)


def _packed(
    mode: Mode,
    dropout_state: _Dropout,
    steps: Callable[..., Any],
    tensor: torch.Tensor,
    batch_sizes: torch.Tensor,
    hidden: Any,
    weights: Tensors,
    has_biases: bool,
    count: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
) -> tuple[torch.Tensor, ...]:
    """Run packed sequences; `batch_sizes` lies on the host."""
    if not _uses_cudnn(tensor):
        return steps(tensor, batch_sizes, hidden, weights, has_biases, count, dropout, train, bidirectional)
    states = hidden if mode == "lstm" else [hidden]
    state = dropout_state.of(dropout, train)
    sizes = batch_sizes.tolist()
    return _run(mode, tensor, states, weights, has_biases, count, dropout, train, bidirectional, False, sizes, state)


def _uses_cudnn(tensor: torch.Tensor) -> bool:
    return torch.backends.cudnn.enabled and tensor.dtype in _DTYPES and tensor.numel() > 0


def _run(
    mode: Mode,
    tensor: torch.Tensor,
    states: Tensors,
    weights: Tensors,
    has_biases: bool,
    count: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
    batch_sizes: list[int],
    dropout_state: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    hx, cx = states[0], states[1] if mode == "lstm" else None
    hidden = hx.size(2) if cx is None else cx.size(2)
    projection = hx.size(2) if hx.size(2) != hidden else 0
    layers = Layers(mode=mode, inputs=tensor.size(-1), hidden=hidden, projection=projection, count=count, directions=1 + bidirectional)
    layout = Weights.of(layers, has_biases=has_biases)
    found = aten._cudnn_rnn(
        tensor,
        weights,
        layout.stride,
        layout.buffer_of(weights),
        hx,
        cx,
        _NUMBERS.index(mode),
        hidden,
        projection,
        count,
        batch_first,
        dropout,
        train,
        bidirectional,
        batch_sizes,
        dropout_state,
    )
    return found[:3] if mode == "lstm" else found[:2]


@dataclass(frozen=True, kw_only=True)
class _Call:
    """The numbers that cuDNN looks at, beside the tensors."""

    layers: Layers
    batch_first: bool
    batch_sizes: Sequence[int]

    @classmethod
    def of(
        cls,
        tensor: torch.Tensor,
        mode: int,
        hidden: int,
        projection: int,
        count: int,
        batch_first: bool,
        bidirectional: bool,
        batch_sizes: Sequence[int],
    ) -> "_Call":
        """Read off the arguments of an operation."""
        layers = Layers(
            mode=_NUMBERS[mode],
            inputs=tensor.size(-1),
            hidden=hidden,
            projection=projection,
            count=count,
            directions=1 + bidirectional,
        )
        return cls(layers=layers, batch_first=batch_first and not batch_sizes, batch_sizes=batch_sizes)

    def in_steps(self, tensor: torch.Tensor) -> torch.Tensor:
        """The tensor with the time step as its first axis."""
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def sizes(self, tensor: torch.Tensor) -> tuple[int, int, int]:
        """Time steps and sequences, and the tokens of all of them together."""
        if self.batch_sizes:
            return len(self.batch_sizes), self.batch_sizes[0], tensor.size(0)
        steps, batch = self.in_steps(tensor).shape[:2]
        return steps, batch, steps * batch

    def workspace(self, tensor: torch.Tensor) -> torch.Tensor:
        """Memory that a kernel takes while it runs."""
        steps, batch, _ = self.sizes(tensor)
        return SPACE(*workspace(self.layers, steps, batch, tensor.element_size()))


def _cudnn_rnn(
    tensor: torch.Tensor,
    weights: Tensors,
    stride: int,
    buffer: torch.Tensor | None,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    mode: int,
    hidden: int,
    projection: int,
    count: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: torch.Tensor | None,
) -> tuple[torch.Tensor, ...]:
    """The requests of _cudnn_rnn in native/cudnn/RNN.cpp, in their order."""
    del weights, stride, dropout, dropout_state
    call = _Call.of(tensor, mode, hidden, projection, count, batch_first, bidirectional, batch_sizes)
    layers = call.layers
    steps, batch, tokens = call.sizes(tensor)
    copied = call.in_steps(tensor).contiguous()
    leading = (tokens,) if batch_sizes else (steps, batch)
    output = tensor.new_empty((*leading, layers.outputs))
    hy = hx.new_empty((count * layers.directions, batch, layers.fed_back))
    cy = hx.new_empty(0) if cx is None else cx.new_empty((count * layers.directions, batch, hidden))
    if buffer is None:
        buffer = copied.new_empty(Weights.of(layers, has_biases=True).numel)
    space = call.workspace(tensor)
    kept = SPACE(*reserve(layers, steps, batch, tokens, tensor.element_size())) if train else tensor.new_empty(0, dtype=torch.uint8)
    # As C++ frees them, the last first.
    del space, copied
    return call.in_steps(output), hy, cy, kept, buffer


def _cudnn_rnn_backward(
    tensor: torch.Tensor,
    weights: Tensors,
    stride: int,
    buffer: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    output: torch.Tensor,
    grad_output: torch.Tensor | None,
    grad_hy: torch.Tensor | None,
    grad_cy: torch.Tensor | None,
    mode: int,
    hidden: int,
    projection: int,
    count: int,
    batch_first: bool,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_sizes: Sequence[int],
    dropout_state: torch.Tensor | None,
    kept: torch.Tensor,
    wanted: Sequence[bool],
) -> tuple[Any, ...]:
    """The requests of _cudnn_rnn_backward: gradients of the input first, then those of weights."""
    del dropout, train, dropout_state, kept
    if grad_output is None and grad_hy is None and grad_cy is None:
        return None, None, None, [None] * len(weights)
    call = _Call.of(tensor, mode, hidden, projection, count, batch_first, bidirectional, batch_sizes)
    grad_output = torch.zeros_like(output, memory_format=torch.contiguous_format) if grad_output is None else grad_output
    grad_hy = torch.zeros_like(hx) if grad_hy is None else grad_hy
    grad_cy = torch.zeros_like(cx) if grad_cy is None and cx is not None else grad_cy
    found = _input_gradients(call, tensor, hx, cx, grad_output, grad_hy, grad_cy)
    return *found, _weight_gradients(call, tensor, weights, stride, buffer) if wanted[3] else []


def _input_gradients(
    call: _Call,
    tensor: torch.Tensor,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    grad_output: torch.Tensor,
    grad_hy: torch.Tensor,
    grad_cy: torch.Tensor | None,
) -> tuple[torch.Tensor | None, ...]:
    copied = call.in_steps(tensor).contiguous()
    dy = call.in_steps(grad_output).contiguous()
    dx = torch.empty_like(call.in_steps(tensor), memory_format=torch.contiguous_format)
    dhy = grad_hy.contiguous()
    dcy = None if grad_cy is None else grad_cy.contiguous()
    dhx = torch.empty_like(hx)
    dcx = None if cx is None else torch.empty_like(cx)
    space = call.workspace(tensor)
    del space, dcy, dhy, dy, copied
    return call.in_steps(dx), dhx, dcx


def _weight_gradients(call: _Call, tensor: torch.Tensor, weights: Tensors, stride: int, buffer: torch.Tensor) -> list[torch.Tensor]:
    """Gradients that lie in one buffer as the weights do, or copies where the model has no biases."""
    copied = call.in_steps(tensor).contiguous()
    gradients = torch.zeros_like(buffer)
    space = call.workspace(tensor)
    has_biases = stride >= 4
    views = Weights.of(call.layers, has_biases=has_biases).views(gradients)
    if has_biases:
        views = [view.view(weight.shape) for view, weight in zip(views, weights, strict=True)]
    else:
        views = [torch.empty_like(weight) for weight in weights]
    del space, gradients, copied
    return views


def _pack(tensor: torch.Tensor, lengths: torch.Tensor, batch_first: bool) -> Any:
    """Pack sequences whose lengths the trace knows; CUDA asks for them on the host."""
    known = value_of(lengths)
    own = aten._pack_padded_sequence.default._op_dk
    return own(torch._C.DispatchKey.CompositeExplicitAutograd, tensor, lengths if known is None else known, batch_first)


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten._cudnn_rnn.default: _cudnn_rnn,
    aten._cudnn_rnn_backward.default: _cudnn_rnn_backward,
    aten._pack_padded_sequence.default: _pack,
}


def _lstm_cell(
    tensor: torch.Tensor,
    states: Tensors,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None,
    b_hh: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run LSTMCell in native/RNN.cpp as on CUDA: two products, then one kernel for the gates."""
    hx, cx = states
    of_input, of_hidden = torch.matmul(tensor, w_ih.t()), torch.matmul(hx, w_hh.t())
    hy, cy, _ = aten._thnn_fused_lstm_cell(of_input, of_hidden, cx, b_ih, b_hh)
    return hy, cy


def _gru_cell(
    tensor: torch.Tensor,
    hx: torch.Tensor,
    w_ih: torch.Tensor,
    w_hh: torch.Tensor,
    b_ih: torch.Tensor | None = None,
    b_hh: torch.Tensor | None = None,
) -> torch.Tensor:
    """Run GRUCell in native/RNN.cpp as on CUDA."""
    of_input, of_hidden = torch.matmul(tensor, w_ih.t()), torch.matmul(hx, w_hh.t())
    return aten._thnn_fused_gru_cell(of_input, of_hidden, hx, b_ih, b_hh)[0]


# Numbers that the kernel keeps for each of the hidden state: GRU_WORKSPACE_MULTIPLIER.
_KEPT_BY_GRU = 5


def _fused_gru_cell(
    of_input: torch.Tensor,
    of_hidden: torch.Tensor,
    hx: torch.Tensor,
    b_ih: torch.Tensor | None = None,
    b_hh: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the outputs of _thnn_fused_gru_cell_cuda."""
    del of_input, of_hidden, b_ih, b_hh
    hy = torch.empty_like(hx, memory_format=torch.contiguous_format)
    return hy, hx.new_empty((hx.size(0), hx.size(1) * _KEPT_BY_GRU))


def _fused_gru_cell_backward(grad_hy: torch.Tensor, kept: torch.Tensor, has_bias: bool) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of _thnn_fused_gru_cell_backward_cuda."""
    batch, gates = kept.size(0), kept.size(1) // _KEPT_BY_GRU * 3
    of_input, of_hidden = (kept.new_empty((batch, gates)) for _ in range(2))
    biases = [kept.new_empty(gates) if has_bias else None for _ in range(2)]
    return of_input, of_hidden, torch.empty_like(grad_hy, memory_format=torch.contiguous_format), *biases
