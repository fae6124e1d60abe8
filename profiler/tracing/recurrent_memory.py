"""Memory that cuDNN's recurrent layers keep for the backward pass and take while they run, as
ranges.

cudnnGetRNNTempSpaceSizes is closed, and its answer changes with the algorithm and the version. The
lower end of what is kept is what the backward pass reads and no product of matrices could make
anew in its place. Upper ends are above all that others have printed of it, in float32 also where
tensors are of half precision: tests/profiler/test_recurrent.py names them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Mode = Literal["relu", "tanh", "lstm", "gru"]
_GATES = {"relu": 1, "tanh": 1, "lstm": 4, "gru": 3}
# Numbers for each of the hidden state and time step. LSTM: the gates and the cell. GRU: the gates
# and the hidden part of the new one; it was seen to keep six. The others: their output, which
# torch hands to the backward pass for the last layer.
_LEAST_KEPT = {"relu": 0, "tanh": 0, "lstm": 5, "gru": 4}
_SEEN_KEPT = {"relu": 1, "tanh": 1, "lstm": 5, "gru": 6}
# A layer's output, and a copy of it behind dropout.
_OUTPUTS = 2
# Hidden states of one time step that a workspace holds for each layer and direction: 44 were seen.
_STATES = 56
# Addresses and lengths; 768 bytes were seen.
_OFFSETS = 64 << 10


@dataclass(frozen=True, kw_only=True)
class Layers:
    """A stack of recurrent layers; `projection` is 0 without one."""

    mode: Mode
    inputs: int
    hidden: int
    projection: int
    count: int
    directions: int

    @property
    def fed_back(self) -> int:
        """Numbers that a time step hands to the next as its output."""
        return self.projection or self.hidden

    @property
    def outputs(self) -> int:
        """Numbers of the output in each time step."""
        return self.directions * self.fed_back

    @property
    def matrices(self) -> int:
        """Numbers in all matrices."""
        return sum(rows * columns for shapes, _ in self.weights() for rows, columns in shapes)

    def weights(self) -> Iterator[tuple[list[tuple[int, int]], int]]:
        """Each layer's and direction's matrices, and the size of each of its two biases."""
        gates = _GATES[self.mode] * self.hidden
        for layer in range(self.count):
            for _ in range(self.directions):
                matrices = [(gates, self.outputs if layer else self.inputs), (gates, self.fed_back)]
                yield matrices + [(self.projection, self.hidden)] * (self.projection > 0), gates


def reserve(layers: Layers, steps: int, batch: int, tokens: int, item: int) -> tuple[int, int]:
    """Bytes that are kept at least and at most; `tokens` of packed sequences are fewer than steps x
    batch.
    """
    stacked = layers.count * layers.directions * layers.hidden
    inner = (layers.count - 1) * layers.outputs
    least = item * tokens * (_LEAST_KEPT[layers.mode] * stacked + inner)
    numbers = _SEEN_KEPT[layers.mode] + _OUTPUTS + (layers.projection > 0)
    return least, max(4, item) * steps * batch * numbers * stacked + _OFFSETS


def workspace(layers: Layers, steps: int, batch: int, item: int) -> tuple[int, int]:
    """Bytes from none to the most.

    The weights laid out anew; inputs, outputs and their gradients without padding; two gradients
    of the outputs for all time steps, seen where there are two directions; states.
    """
    stacked = layers.count * layers.directions * layers.hidden
    copies = 2 * (layers.inputs + layers.outputs) + 2 * layers.directions * layers.hidden
    numbers = layers.matrices + steps * batch * copies + _STATES * batch * stacked
    return 0, max(4, item) * numbers + _OFFSETS
