"""cuDNN's recurrent layers on meta tensors: one operation, which torch takes apart there step by
step.

After native/cudnn/RNN.cpp, native/RNN.cpp and native/cuda/RNN.cu in aten/src/ATen of torch 2.13.
cuDNN's code is closed: what it keeps for the backward pass and takes while it runs are ranges
(recurrent_memory.py).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from .recurrent_cells import CELLS
from .recurrent_memory import Layers, Mode, reserve, workspace
from .recurrent_weights import MODES, NUMBERS, Tensors, Weights
from .values import value_of

aten = torch.ops.aten
# use_cudnn in native/RNN.cpp; cuDNN has taken bfloat16 since 9.13, which torch 2.13 comes with.
_DTYPES = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
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
    for name, mode in MODES.items():
        for overload, run in (("input", _padded), ("data", _packed)):
            own = getattr(getattr(aten, name), overload)
            steps = partial(own._op_dk, torch._C.DispatchKey.CompositeImplicitAutograd)
            yield f"{name}.{overload}", partial(run, mode, dropout, steps), "AutogradMeta"
    yield from CELLS


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
        return steps(
            tensor, hidden, weights, has_biases, count, dropout, train, bidirectional, batch_first
        )
    states = hidden if mode == "lstm" else [hidden]
    state = dropout_state.of(dropout, train)
    return _run(
        mode,
        tensor,
        states,
        weights,
        has_biases,
        count,
        dropout,
        train,
        bidirectional,
        batch_first,
        [],
        state,
    )


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
        return steps(
            tensor, batch_sizes, hidden, weights, has_biases, count, dropout, train, bidirectional
        )
    states = hidden if mode == "lstm" else [hidden]
    state = dropout_state.of(dropout, train)
    sizes = batch_sizes.tolist()
    return _run(
        mode,
        tensor,
        states,
        weights,
        has_biases,
        count,
        dropout,
        train,
        bidirectional,
        False,
        sizes,
        state,
    )


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
    layers = Layers(
        mode=mode,
        inputs=tensor.size(-1),
        hidden=hidden,
        projection=projection,
        count=count,
        directions=1 + bidirectional,
    )
    layout = Weights.of(layers, has_biases=has_biases)
    found = aten._cudnn_rnn(
        tensor,
        weights,
        layout.stride,
        layout.buffer_of(weights),
        hx,
        cx,
        NUMBERS.index(mode),
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
            mode=NUMBERS[mode],
            inputs=tensor.size(-1),
            hidden=hidden,
            projection=projection,
            count=count,
            directions=1 + bidirectional,
        )
        return cls(
            layers=layers, batch_first=batch_first and not batch_sizes, batch_sizes=batch_sizes
        )

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
    call = _Call.of(
        tensor, mode, hidden, projection, count, batch_first, bidirectional, batch_sizes
    )
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
    kept = (
        SPACE(*reserve(layers, steps, batch, tokens, tensor.element_size()))
        if train
        else tensor.new_empty(0, dtype=torch.uint8)
    )
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
    call = _Call.of(
        tensor, mode, hidden, projection, count, batch_first, bidirectional, batch_sizes
    )
    grad_output = (
        torch.zeros_like(output, memory_format=torch.contiguous_format)
        if grad_output is None
        else grad_output
    )
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


def _weight_gradients(
    call: _Call, tensor: torch.Tensor, weights: Tensors, stride: int, buffer: torch.Tensor
) -> list[torch.Tensor]:
    """Gradients that lie in one buffer as the weights do, or copies where the model has no
    biases.
    """
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
    return own(
        torch._C.DispatchKey.CompositeExplicitAutograd,
        tensor,
        lengths if known is None else known,
        batch_first,
    )


PARTS: Mapping[Any, Callable[..., Any]] = {
    aten._cudnn_rnn.default: _cudnn_rnn,
    aten._cudnn_rnn_backward.default: _cudnn_rnn_backward,
    aten._pack_padded_sequence.default: _pack,
}
