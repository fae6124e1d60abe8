"""Recurrent cells, a step at a time, as CUDA's fused kernels run them."""

from collections.abc import Sequence
from typing import Any

import torch

aten = torch.ops.aten
# Numbers that the kernel keeps for each of the hidden state: GRU_WORKSPACE_MULTIPLIER.
_KEPT_BY_GRU = 5


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


CELLS: tuple[tuple[str, Any, str], ...] = (
    ("lstm_cell", _lstm_cell, "AutogradMeta"),
    ("gru_cell", _gru_cell, "AutogradMeta"),
    ("_thnn_fused_gru_cell", _fused_gru_cell, "Meta"),
    ("_thnn_fused_gru_cell_backward", _fused_gru_cell_backward, "Meta"),
)
"""Names of operations, what runs in their place on meta tensors, and its dispatch key."""
