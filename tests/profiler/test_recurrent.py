"""Recurrent layers as CUDA runs them, compared by hand, with a real CPU and with published sizes.

Sizes from cuDNN: issue 2895 of pytorch/pytorch (Tesla P100: four layers of 320, 123 inputs
and 25,000 tokens, which both reserves imply), issue 172 of SeanNaren/deepspeech.pytorch (a GRU of
800 in two directions, float32) and pull request 30889 of tensorflow/tensorflow. Offsets of weights:
issue 57632 of pytorch/pytorch.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from optprof.profiler import simulate
from optprof.profiler.simulating.batches import StreamCache
from optprof.profiler.simulating.training import trace_model
from optprof.profiler.tracing.autocast import cuda_autocast
from optprof.profiler.tracing.kernel_memory import sized_for
from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.recurrent import SPACE
from optprof.profiler.tracing.recurrent_layers import (
    Layers,
    Mode,
    flatten_parameters,
    reserve,
    workspace,
)
from optprof.profiler.tracing.stream import Segment
from optprof.profiler.tracing.trace import Recorder
from optprof.scenarios import Scenario

STEPS, BATCH, INPUTS, HIDDEN = 5, 3, 6, 8


def factory(
    kind: str, batch_size: int = 2, dropout: float = 0.0
) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    """Return a model of two layers and its batch, as a user's `module:factory` does."""
    return Net(getattr(nn, kind)(INPUTS, HIDDEN, 2, batch_first=True, dropout=dropout)), {
        "x": torch.randn(batch_size, STEPS, INPUTS)
    }


def lstm(batch_size: int = 2) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return factory("LSTM", batch_size)


def dropping(batch_size: int = 2) -> tuple[nn.Module, dict[str, torch.Tensor]]:
    return factory("LSTM", batch_size, dropout=0.5)


class Net(nn.Module):
    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)[0].square().mean()


class Trace:
    """Return the trace of a layer's forward and backward pass over inputs of this shape."""

    def __init__(
        self, layer: nn.Module, dtype: torch.dtype = torch.float32, amp: bool = False
    ) -> None:
        self.layer = layer.to("meta", dtype)
        self.recorder = Recorder(layer, workspaces=())
        with self.recorder.phase("build"):
            x = torch.empty(STEPS, BATCH, INPUTS, device="meta", dtype=dtype)
            self.recorder.allocate(x, "input")
            for parameter in layer.parameters():
                self.recorder.allocate(parameter, "parameter")
            if isinstance(layer, nn.RNNBase):
                flatten_parameters(layer)
        with cuda_kernels(), cuda_autocast():
            with (
                self.recorder.phase("forward", "activation"),
                torch.autocast("cuda", torch.bfloat16, enabled=amp),
            ):
                self.output = layer(x)
            with self.recorder.phase("backward"):
                gradient = torch.empty_like(self.output[0])
                self.output[0].backward(gradient)

    def bytes(self, phase: int, *, optional: bool = False) -> list[int]:
        """Return the bytes of each event of a phase, negative for a free."""
        segments, allocations = sized_for(
            self.recorder.segments, self.recorder.allocations, None, optional=optional
        )
        nbytes = allocations.nbytes
        return [
            nbytes[event] if event >= 0 else -nbytes[~event] for event in segments[phase].events
        ]


def layers(mode: Mode, inputs: int, hidden: int, count: int, directions: int = 1) -> Layers:
    return Layers(
        mode=mode, inputs=inputs, hidden=hidden, projection=0, count=count, directions=directions
    )


@pytest.mark.parametrize(
    ("stack", "steps", "batch", "seen"),
    [
        (layers("lstm", 123, 320, 4), 500, 50, 736_000_000),
        (layers("gru", 123, 320, 4), 500, 50, 864_000_000),
        (layers("gru", 672, 800, 1, 2), 326, 64, 801_177_600),
    ],
)
def test_published_reserves_of_cudnn_lie_within_the_range(
    stack: Layers, steps: int, batch: int, seen: int
):
    least, most = reserve(stack, steps, batch, steps * batch, 4)
    assert least <= seen <= most < 1.5 * seen
    assert seen < 1.6 * least


@pytest.mark.parametrize(
    ("stack", "steps", "batch", "seen"),
    [
        (layers("relu", 512, 512, 2), 20, 64, 21_496_576),
        (layers("gru", 672, 800, 1, 2), 326, 64, 313_344_000),
        (layers("gru", 800, 800, 1, 2), 326, 64, 315_801_600),
        (layers("lstm", 123, 320, 4), 500, 50, 17_730_560),
        (layers("gru", 123, 320, 4), 500, 50, 13_169_920),
    ],
)
def test_published_workspaces_are_not_above_the_range(
    stack: Layers, steps: int, batch: int, seen: int
):
    least, most = workspace(stack, steps, batch, 4)
    assert least == 0
    assert seen <= most


def test_the_weights_of_an_lstm_have_the_offsets_that_a_gpu_showed():
    layer = nn.LSTM(512, 100, device="meta")
    flatten_parameters(layer)
    places = [
        (weight.untyped_storage().nbytes() // 4, weight.storage_offset())
        for weight in layer.parameters()
    ]
    assert places == [(245_600, 0), (245_600, 204_800), (245_600, 244_800), (245_600, 245_200)]
    assert len({weight.untyped_storage()._cdata for weight in layer.parameters()}) == 1


def test_an_lstm_makes_torch_s_requests_in_their_order():
    trace = Trace(nn.LSTM(INPUTS, HIDDEN, 2))
    state, output = 4 * 2 * BATCH * HIDDEN, 4 * STEPS * BATCH * HIDDEN
    # Four gates and the cell of both layers, and the outputs of the first.
    reserve = 4 * STEPS * BATCH * HIDDEN * (2 * 5 + 1)
    gradient = 4 * STEPS * BATCH * INPUTS
    weights = 4 * 4 * HIDDEN * (INPUTS + 3 * HIDDEN + 4)
    # Two states of zeros, then the outputs; the test keeps hy and cy.
    assert trace.bytes(1) == [state, state, output, state, state, reserve]
    # The gradient of the output; zeros for those of hy and cy; gradients of the input, of both
    # states and of all weights. Then the zeros are freed, the three gradients, the states of the
    # forward pass, and the reserve.
    begins = [output, state, state, gradient, state, state, weights]
    assert trace.bytes(2) == [
        *begins,
        -state,
        -state,
        -gradient,
        -state,
        -state,
        -state,
        -state,
        -reserve,
    ]


def test_gradients_share_one_buffer_as_the_weights_do():
    layer = Trace(nn.GRU(INPUTS, HIDDEN, 2, bidirectional=True)).layer
    gradients = [weight.grad for weight in layer.parameters() if weight.grad is not None]
    assert len(gradients) == 16
    assert len({gradient.untyped_storage()._cdata for gradient in gradients}) == 1
    assert [gradient.storage_offset() for gradient in gradients] == [
        weight.storage_offset() for weight in layer.parameters()
    ]


def test_without_biases_each_gradient_is_a_copy_but_the_buffer_has_room_for_biases():
    layer = Trace(nn.RNN(INPUTS, HIDDEN, bias=False)).layer
    weights = list(layer.parameters())
    assert weights[0].untyped_storage().nbytes() == 4 * (HIDDEN * (INPUTS + HIDDEN) + 2 * HIDDEN)
    assert (
        len({weight.grad.untyped_storage()._cdata for weight in weights if weight.grad is not None})
        == 2
    )


def test_bfloat16_weights_are_copied_together_at_every_call():
    trace = Trace(nn.LSTM(INPUTS, HIDDEN), torch.bfloat16)
    weights = 2 * 4 * HIDDEN * (INPUTS + HIDDEN + 2)
    assert trace.bytes(1).count(weights) == 1
    assert -weights in trace.bytes(2)


def test_autocast_makes_one_buffer_of_float16_weights_and_float32_gradients():
    trace = Trace(nn.LSTM(INPUTS, HIDDEN), amp=True)
    assert trace.output[0].dtype == torch.float16
    assert trace.bytes(1).count(2 * 4 * HIDDEN * (INPUTS + HIDDEN + 2)) == 1
    gradients = [weight.grad for weight in trace.layer.parameters() if weight.grad is not None]
    assert {gradient.dtype for gradient in gradients} == {torch.float32}
    assert len({gradient.untyped_storage()._cdata for gradient in gradients}) == 4


def test_a_layer_that_does_not_train_keeps_nothing():
    layer, recorder = nn.GRU(INPUTS, HIDDEN, device="meta").eval(), Recorder(workspaces=())
    with cuda_kernels(), recorder.phase("forward"), torch.no_grad():
        output, _ = layer(torch.empty(STEPS, BATCH, INPUTS, device="meta"))
    spaces = [source for source in recorder.allocations.sources if source.op == SPACE._schema.name]
    assert output.shape == (STEPS, BATCH, HIDDEN)
    assert len(spaces) == 1


def test_all_dropout_shares_one_state_of_random_numbers():
    trace = trace_model(Scenario(model=f"{__name__}:dropping", steps=2))
    states = [
        request
        for request in trace.allocations.requests.values()
        if request.optional and request.numbers == (16 << 20,)
    ]
    assert len(states) == 1


def test_an_lstm_cell_is_two_products_and_one_kernel():
    trace = Trace(Cell(nn.LSTMCell(INPUTS, HIDDEN)))
    gates, state = 4 * BATCH * 4 * HIDDEN, 4 * BATCH * HIDDEN
    forward = [size for size in trace.bytes(1) if size != 32 << 20]
    # Both states share one tensor of zeros; the products are kept for the second derivative.
    assert forward == [state, gates, gates, state, state, gates]


def test_a_gru_cell_keeps_five_numbers_for_each_of_its_state():
    trace = Trace(Cell(nn.GRUCell(INPUTS, HIDDEN)))
    gates, state = 4 * BATCH * 3 * HIDDEN, 4 * BATCH * HIDDEN
    forward = [size for size in trace.bytes(1) if size != 32 << 20]
    assert forward == [state, gates, gates, state, 5 * state]
    assert trace.bytes(2).count(gates) == 2


class Cell(nn.Module):
    """A model that runs one time step of a cell."""

    def __init__(self, cell: nn.Module) -> None:
        super().__init__()
        self.cell = cell

    def forward(self, x: torch.Tensor) -> Any:
        outputs = self.cell(x[0])
        return outputs if isinstance(outputs, tuple) else (outputs,)


def test_packing_and_padding_take_as_much_as_on_the_cpu(
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    lengths, results = torch.tensor([5, 3, 3]), []

    def run(x: torch.Tensor) -> None:
        packed = nn.utils.rnn.pack_padded_sequence(x, lengths)
        padded, _ = nn.utils.rnn.pad_packed_sequence(packed)
        results.append(padded)

    recorder, x = Recorder(), torch.empty(STEPS, BATCH, INPUTS, device="meta")
    with recorder.phase("build"):
        recorder.allocate(x, "input")
    with recorder.phase("forward"):
        run(x)
    nbytes = recorder.allocations.nbytes
    recorded = [
        nbytes[event] if event >= 0 else -nbytes[~event] for event in recorder.segments[1].events
    ]
    # Lengths and batch sizes stay on the host.
    padded = torch.empty(STEPS, BATCH, INPUTS)
    real = cpu_events(lambda: run(padded))
    assert recorded == [size for size in real if abs(size) > 8 * STEPS]


def test_packed_sequences_run_as_one_operation_over_their_tokens():
    layer, recorder = nn.LSTM(INPUTS, HIDDEN, device="meta"), Recorder(workspaces=())
    packed = nn.utils.rnn.PackedSequence(
        torch.empty(11, INPUTS, device="meta"), torch.tensor([3, 3, 3, 1, 1])
    )
    with cuda_kernels(), recorder.phase("forward"):
        output, (hy, _) = layer(packed)
    assert output.data.shape == (11, HIDDEN)
    assert hy.shape == (1, 3, HIDDEN)
    least = [
        request.least
        for request in recorder.allocations.requests.values()
        if request.optional and request.least
    ]
    assert least == [4 * 11 * 5 * HIDDEN]


def test_the_peak_of_a_recurrent_model_is_a_range():
    memory = simulate(Scenario(model=f"{__name__}:lstm", optimizer="adamw")).memory
    assert memory is not None
    assert memory.peak_allocated is not None
    assert memory.peak_allocated_upper is not None
    assert memory.peak_allocated_upper > memory.peak_allocated
    # Both layers' weights and the two biases of each.
    assert memory.parameters == memory.gradients == 4 * 4 * HIDDEN * (INPUTS + 3 * HIDDEN + 4)
    assert memory.optimizer_state == 2 * memory.parameters + 4 * 8


def test_without_cudnn_a_trace_runs_step_by_step_and_has_an_exact_peak():
    with torch.backends.cudnn.flags(enabled=False):
        memory = simulate(Scenario(model=f"{__name__}:lstm", optimizer="sgd", seed=1)).memory
    assert memory is not None
    assert memory.peak_allocated_upper is None


def test_the_range_at_any_batch_is_that_of_a_trace():
    def of(streams: StreamCache, batch: int) -> tuple[list[Segment], list[int]]:
        stream = streams.of(Scenario(model=f"{__name__}:lstm", optimizer="sgd", batch_size=batch))
        return stream.segments, stream.allocations.nbytes

    streams = StreamCache()
    for batch in (1, 2, 3, 7):
        of(streams, batch)
    assert of(streams, 12) == of(StreamCache(), 12)
