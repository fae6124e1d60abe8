"""The decoder of training steps that others recorded on GPUs, and its optimizer, written by hand.

It is the model of Stanford's CS336 course (github.com/stanford-cs336/assignment2-systems) as two of
its students ran it: linear layers without bias as einsum, RMSNorm in float32, rotary positions of
interleaved pairs, attention with its own mask and softmax, SwiGLU, an untied head and its own cross
entropy. Lifetimes follow their code: the logits and the loss of a step live until the next step has
new ones.
"""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


class Projection(nn.Module):
    """A matrix product with a weight, through einsum."""

    def __init__(self, width: int, outputs: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, width))

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("...i,oi->...o", x, self.weight)


class Norm(nn.Module):
    """RMSNorm in float32 for any input dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        dtype = x.dtype
        x = x.to(torch.float32)
        scale = torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5)
        x = x * scale
        return (self.weight * x).to(dtype)


class Rotation(nn.Module):
    """Rotary positions: adjacent pairs rotated by angles from a table of all positions."""

    table: Tensor

    def __init__(self, positions: int, width: int) -> None:
        super().__init__()
        # Cosines and sines of the half of the width; their values do not matter here.
        self.register_buffer("table", torch.empty(2, positions, width // 2), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        first, second = x.unflatten(-1, (-1, 2)).movedim(-1, 0).unbind(0)
        cos, sin = self.table[:, : x.size(-2), :].unbind(0)
        turned = cos * first - sin * second
        other = sin * first + cos * second
        return torch.cat((turned, other), dim=-1)


def softmax(x: Tensor) -> Tensor:
    """Return the softmax over the last dimension."""
    shifted = x - torch.max(x, dim=-1, keepdim=True)[0]
    powers = torch.exp(shifted)
    return powers / torch.sum(powers, dim=-1, keepdim=True)


def attend(query: Tensor, key: Tensor, value: Tensor, mask: Tensor) -> Tensor:
    """Return attention, with the scores as a tensor."""
    scores = torch.einsum("...qd,...kd->...qk", query, key) / math.sqrt(key.shape[-1])
    scores = torch.where(mask, scores, float("-inf"))
    weights = softmax(scores)
    return torch.einsum("...qk,...kd->...qd", weights, value)


class Attention(nn.Module):
    """Causal attention of several heads."""

    def __init__(self, width: int, heads: int, rotation: Rotation) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (
            Projection(width, width),
            Projection(width, width),
            Projection(width, width),
        )
        self.output = Projection(width, width)
        self.rotation = rotation

    def forward(self, x: Tensor) -> Tensor:
        length = x.size(-2)
        query, key, value = self.query(x), self.key(x), self.value(x)
        query, key, value = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2) for part in (query, key, value)
        )
        query = self.rotation(query)
        key = self.rotation(key)
        positions = torch.arange(length, device=x.device)
        mask = positions[:, None] >= positions[None, :]
        mask = mask[None, ...]
        output = attend(query, key, value, mask)
        output = output.transpose(-3, -2).flatten(-2).contiguous()
        return self.output(output)


class FeedForward(nn.Module):
    """SwiGLU."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.gate, self.down, self.up = (
            Projection(width, inner),
            Projection(inner, width),
            Projection(width, inner),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.down(silu(self.gate(x)) * self.up(x))


def silu(x: Tensor) -> Tensor:
    """Return x times its sigmoid."""
    return x * torch.sigmoid(x)


class Layer(nn.Module):
    """Attention and a feed-forward network, each after a norm and with a residual."""

    def __init__(self, width: int, heads: int, inner: int, rotation: Rotation) -> None:
        super().__init__()
        self.attention = Attention(width, heads, rotation)
        self.network = FeedForward(width, inner)
        self.before_attention, self.before_network = Norm(width), Norm(width)

    def forward(self, x: Tensor) -> Tensor:
        attended = self.attention(self.before_attention(x))
        middle = x + attended
        passed = self.network(self.before_network(middle))
        result = middle + passed
        return result  # noqa: RET504 - both sums are variables until the layer returns


class Decoder(nn.Module):
    """The language model; `forward` returns the loss.

    It keeps the loss and the logits until the next call has new ones, but drops both before call
    number `forgets_at`.
    """

    def __init__(
        self,
        *,
        vocabulary: int,
        positions: int,
        width: int,
        layers: int,
        heads: int,
        inner: int,
        forgets_at: int,
    ) -> None:
        super().__init__()
        self.calls_to_forget = forgets_at
        self.embedding = nn.Parameter(torch.empty(vocabulary, width))
        rotation = self.rotation = Rotation(positions, width // heads)
        self.layers = nn.ModuleList(Layer(width, heads, inner, rotation) for _ in range(layers))
        self.norm = Norm(width)
        self.head = Projection(width, vocabulary)
        self.logits: Tensor | None = None
        self.loss: Tensor | None = None

    def forward(self, tokens: Tensor, targets: Tensor, **_unused: Tensor) -> Tensor:
        self.calls_to_forget -= 1
        if self.calls_to_forget == 0:
            self.logits = self.loss = None
        self.logits = self.predict(tokens)
        self.loss = cross_entropy(self.logits, targets)
        return self.loss

    def predict(self, tokens: Tensor) -> Tensor:
        """Return the logits."""
        embedded = self.embedding[tokens, :]
        x = embedded
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x)
        return self.head(x)


def log_softmax(x: Tensor) -> Tensor:
    """Return the logarithm of the softmax over the last dimension."""
    most = torch.max(x, dim=-1, keepdim=True)[0]
    x = x - most
    return x - torch.log(torch.sum(torch.exp(x), dim=-1, keepdim=True))


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean surprise at the targets."""
    surprise = -log_softmax(logits)
    return torch.mean(torch.gather(surprise, -1, targets.unsqueeze(-1)))


def training(
    batch_size: int,
    sequence_length: int,
    width: int = 1024,
    layers: int = 24,
    heads: int = 16,
    inner: int = 4096,
    vocabulary: int = 10_000,
    forgets_at: int = 0,
    earlier: int = 0,
) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the model and a batch, with the batches of `earlier` steps."""
    model = Decoder(
        vocabulary=vocabulary,
        positions=sequence_length,
        width=width,
        layers=layers,
        heads=heads,
        inner=inner,
        forgets_at=forgets_at,
    )
    batch = {}
    for name in ("tokens", "targets"):
        if earlier:
            batch[f"earlier_{name}"] = torch.zeros(
                earlier, batch_size, sequence_length, dtype=torch.long, device="cpu"
            )
        batch[name] = torch.zeros(batch_size, sequence_length, dtype=torch.long, device="cpu")
    return model, batch


class PlainAdamW(torch.optim.Optimizer):
    """AdamW from separate operations on each parameter; every step allocates new moments."""

    def __init__(self, params: Iterable[Any], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": 0.01})

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take a step."""
        del closure
        for group in self.param_groups:
            for p in group["params"]:
                grad = p.grad.data
                state = self.state[p]
                count = state.get("count", 1)
                rate = group["lr"] * (math.sqrt(1 - 0.999**count) / (1 - 0.9**count))
                p.data -= group["lr"] * group["weight_decay"] * p.data
                # The zeros are made at every step. The old moments live until those of the next
                # parameter replace them.
                old_mean = state.get("mean", torch.zeros_like(grad))
                old_square = state.get("square", torch.zeros_like(grad))
                mean = 0.9 * old_mean + (1 - 0.9) * grad
                square = 0.999 * old_square + (1 - 0.999) * torch.square(grad)
                p.data -= rate * mean / (torch.sqrt(square) + 1e-8)
                state["mean"] = mean
                state["square"] = square
                state["count"] = count + 1
