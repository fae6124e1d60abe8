"""Recurrent layers and cells as CUDA runs them, which torch runs step by step on meta tensors.

cuDNN runs a stack of layers as one operation; what it keeps for the backward pass and takes while
it runs are ranges (recurrent_layers.py). Cells run fused kernels. From aten/src/ATen/native of
torch 2.13: cudnn/RNN.cpp, RNN.cpp and cuda/RNN.cu.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import torch

from .recurrent_layers import (
    MODE_NUMBERS,
    MODES,
    Layers,
    Mode,
    Tensors,
    Weights,
    reserve,
    workspace,
)
from .values import value_of

aten = torch.ops.aten
# use_cudnn in native/RNN.cpp. cuDNN takes bfloat16 since 9.13, the version of torch 2.13.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
# Random states that all dropout in cuDNN shares: "slightly over 2MB", says RNN.cpp. States of 48
# bytes for each thread that an H100 holds at once take 13 MB.
_MOST_DROPOUT_STATE = 16 << 20
# Numbers that a fused GRU cell keeps for each of the hidden state: GRU_WORKSPACE_MULTIPLIER.
_KEPT_BY_GRU = 5

_library = torch.library.Library("optprof", "FRAGMENT")
_library.define("space(int least, int most) -> Tensor")


def _space(least: int, most: int) -> torch.Tensor:
    del least
    return torch.empty(most, dtype=torch.uint8, device="meta")


_library.impl("space", _space, "CompositeExplicitAutograd")
SPACE = torch.ops.optprof.space.default
"""The operation that allocates between two sizes; a recorder makes a range of it."""


def substitutes() -> Iterator[tuple[str, Callable[..., Any], str]]:
    """Yield names of operations, what replaces them on meta tensors, and its dispatch key."""
    dropout_state = cache(partial(SPACE, 0, _MOST_DROPOUT_STATE))
    for name, mode in MODES.items():
        for overload in ("input", "data"):
            operation = getattr(getattr(aten, name), overload)
            by_steps = partial(operation._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)
            run = partial(_run_layers, mode, overload == "data", dropout_state, by_steps)
            yield f"{name}.{overload}", run, "AutogradMeta"
    yield "lstm_cell", _lstm_cell, "AutogradMeta"
    yield "gru_cell", _gru_cell, "AutogradMeta"
    yield "_thnn_fused_gru_cell", _fused_gru_cell, "Meta"
    yield "_thnn_fused_gru_cell_backward", _fused_gru_cell_backward, "Meta"


def _run_layers(
    mode: Mode,
    is_packed: bool,
    dropout_state: Callable[[], torch.Tensor],
    by_steps: Callable[..., Any],
    tensor: torch.Tensor,
    *arguments: Any,
) -> tuple[torch.Tensor, ...]:
    """Run padded or packed sequences: _cudnn_impl. Without cuDNN, torch runs them `by_steps`."""
    if not torch.backends.cudnn.enabled or tensor.dtype not in _DTYPES or not tensor.numel():
        return by_steps(tensor, *arguments)
    batch_sizes: list[int] = []
    if is_packed:
        # Batch sizes live on the host.
        batch_sizes, arguments = arguments[0].tolist(), (*arguments[1:], False)
    states, weights, has_biases, count, dropout, train, bidirectional, batch_first = arguments
    hx, cx = states if mode == "lstm" else (states, None)
    hidden = (hx if cx is None else cx).size(2)
    projection = hx.size(2) if hx.size(2) != hidden else 0
    number = MODE_NUMBERS.index(mode)
    layers = Layers.of(tensor.size(-1), number, hidden, projection, count, bidirectional)
    layout = Weights.of(layers, has_biases=has_biases)
    outputs = aten._cudnn_rnn(
        tensor, weights, layout.stride, layout.buffer_of(weights), hx, cx,
        number, hidden, projection, count, batch_first, dropout, train, bidirectional, batch_sizes,
        # get_dropout_state
        dropout_state() if train and dropout > 0 else None,
    )  # fmt: skip
    return outputs[:3] if mode == "lstm" else outputs[:2]


@dataclass(frozen=True, kw_only=True)
class _RecurrentCall:
    """A call of cuDNN's recurrent layers without its tensors."""

    layers: Layers
    batch_first: bool
    batch_sizes: Sequence[int]
    trains: bool

    @classmethod
    def of(cls, tensor: torch.Tensor, settings: Sequence[Any]) -> "_RecurrentCall":
        """Return the call with the settings of an operation, which follow its tensors."""
        mode, hidden, projection, count, batch_first, _, trains, bidirectional, sizes, *_ = settings
        return cls(
            layers=Layers.of(tensor.size(-1), mode, hidden, projection, count, bidirectional),
            batch_first=batch_first and not sizes,
            batch_sizes=sizes,
            trains=trains,
        )

    def in_steps(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the tensor with the time step as its first axis."""
        return tensor.transpose(0, 1) if self.batch_first else tensor

    def sizes(self, tensor: torch.Tensor) -> tuple[int, int, int]:
        """Return the numbers of time steps, of sequences, and of tokens in all sequences."""
        if self.batch_sizes:
            return len(self.batch_sizes), self.batch_sizes[0], tensor.size(0)
        steps, batch = self.in_steps(tensor).shape[:2]
        return steps, batch, steps * batch

    def workspace(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return the memory that a kernel takes while it runs."""
        steps, batch, _ = self.sizes(tensor)
        return SPACE(*workspace(self.layers, steps, batch, tensor.element_size()))


def _cudnn_rnn(
    tensor: torch.Tensor,
    weights: Tensors,
    stride: int,
    buffer: torch.Tensor | None,
    hx: torch.Tensor,
    cx: torch.Tensor | None,
    *settings: Any,
) -> tuple[torch.Tensor, ...]:
    """Make the requests of _cudnn_rnn in native/cudnn/RNN.cpp, in their order."""
    del weights, stride
    call = _RecurrentCall.of(tensor, settings)
    layers = call.layers
    steps, batch, tokens = call.sizes(tensor)
    copied = call.in_steps(tensor).contiguous()
    leading = (tokens,) if call.batch_sizes else (steps, batch)
    output = tensor.new_empty((*leading, layers.outputs))
    stacked = layers.count * layers.directions
    hy = hx.new_empty((stacked, batch, layers.fed_back))
    cy = hx.new_empty(0) if cx is None else cx.new_empty((stacked, batch, layers.hidden))
    if buffer is None:
        buffer = copied.new_empty(Weights.of(layers, has_biases=True).numel)
    space = call.workspace(tensor)
    kept = (
        SPACE(*reserve(layers, steps, batch, tokens, tensor.element_size()))
        if call.trains
        else tensor.new_empty(0, dtype=torch.uint8)
    )
    # C++ frees the last one first.
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
    *settings: Any,
) -> tuple[Any, ...]:
    """Make the requests of _cudnn_rnn_backward: first the input's gradients, then the weights'."""
    output_mask = settings[-1]
    if grad_output is None and grad_hy is None and grad_cy is None:
        return None, None, None, [None] * len(weights)
    call = _RecurrentCall.of(tensor, settings)
    if grad_output is None:
        grad_output = torch.zeros_like(output, memory_format=torch.contiguous_format)
    grad_hy = torch.zeros_like(hx) if grad_hy is None else grad_hy
    grad_cy = torch.zeros_like(cx) if grad_cy is None and cx is not None else grad_cy
    gradients = _input_gradients(call, tensor, hx, cx, grad_output, grad_hy, grad_cy)
    if not output_mask[3]:
        return *gradients, []
    return *gradients, _weight_gradients(call, tensor, weights, stride, buffer)


def _input_gradients(
    call: _RecurrentCall,
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


def _weight_gradients(
    call: _RecurrentCall, tensor: torch.Tensor, weights: Tensors, stride: int, buffer: torch.Tensor
) -> list[torch.Tensor]:
    """Return gradients in one buffer as the weights are, or copies if the model has no biases."""
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
    """Pack sequences by their lengths, which CUDA takes from the host."""
    value = value_of(lengths)
    return aten._pack_padded_sequence.default._op_dk(
        torch._C.DispatchKey.CompositeExplicitAutograd,
        tensor,
        lengths if value is None else value,
        batch_first,
    )


def _lstm_cell(
    tensor: torch.Tensor,
    states: Sequence[torch.Tensor],
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


def _fused_gru_cell_backward(
    grad_hy: torch.Tensor, kept: torch.Tensor, has_bias: bool
) -> tuple[torch.Tensor | None, ...]:
    """Return the gradients of _thnn_fused_gru_cell_backward_cuda."""
    batch, gates = kept.size(0), kept.size(1) // _KEPT_BY_GRU * 3
    of_input, of_hidden = (kept.new_empty((batch, gates)) for _ in range(2))
    biases = [kept.new_empty(gates) if has_bias else None for _ in range(2)]
    return (
        of_input,
        of_hidden,
        torch.empty_like(grad_hy, memory_format=torch.contiguous_format),
        *biases,
    )


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten._cudnn_rnn.default: _cudnn_rnn,
    aten._cudnn_rnn_backward.default: _cudnn_rnn_backward,
    aten._pack_padded_sequence.default: _pack,
}
