"""Simulate small random models with random optimizers, and compare with real steps on the CPU."""

import gc
import random
import sys
from pathlib import Path
from typing import Any

import torch
from breadth import as_on_the_cpu, measured, simulated
from torch import Tensor, nn
from torch.nn import functional

from optprof.scenarios import Scenario

from .row import Row

COUNT = 100
OPTIMIZERS = ("adamw", "adam", "sgd", "sm3", "sgd-sai", "lamb", "lamb16", "adagrad", "rmsprop")
# The largest relative deviation of a peak.
CLOSE = 0.01
BATCH, LENGTH, WORDS, CHANNELS, SIDE = 3, 12, 40, 3, 16


def run(chance: random.Random, count: int) -> Row:
    """Simulate and run so many models."""
    row = Row(title="models held to real CPU runs").looks_for(
        "wrong state", "wrong peaks", "not simulated"
    )
    sys.path.append(str(Path(__file__).parent.parent))
    worst, exact = 0.0, 0
    for _ in range(count):
        seed, optimizer = chance.randrange(2**31), chance.choice(OPTIMIZERS)
        scenario = Scenario(
            model="attacks.models:made",
            config={"seed": seed},
            optimizer=optimizer,
            implementation="loop",
        )
        what = f"seed {seed} with {optimizer}"
        row.tried += 1
        try:
            simulated(scenario)
            with as_on_the_cpu():
                ours, operations = simulated(scenario)
        except Exception as error:  # Any exception is the fault.
            row.fault("not simulated", f"{what}: {error!r}")
            continue
        gc.collect()
        real = measured(scenario, operations)
        if (ours.parameters, ours.state) != (real.parameters, real.state):
            row.fault("wrong state", f"{what}: {ours.state} bytes, really {real.state}")
        off = (ours.peak - real.peak) / real.peak
        exact += off == 0
        worst = max(worst, abs(off))
        if abs(off) > CLOSE:
            row.fault("wrong peaks", f"{what}: {100 * off:+.2f} %: {_shown(seed)}")
    row.notes |= {"peaks to the byte": exact, "worst": f"{100 * worst:.2f} %"}
    return row


def made(seed: int = 0) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return the model of a seed and its batch, for a scenario."""
    chance = random.Random(seed)
    kind = chance.choice(("vectors", "words", "words", "images"))
    draw = torch.Generator().manual_seed(seed)
    if kind == "words":
        inputs = torch.randint(0, WORDS, (BATCH, LENGTH), generator=draw)
    elif kind == "images":
        inputs = torch.randn(BATCH, CHANNELS, SIDE, SIDE, generator=draw)
    else:
        inputs = torch.randn(BATCH, LENGTH, 24, generator=draw)
    return Made(kind, chance), {"inputs": inputs}


class Made(nn.Module):
    """A body of random blocks, and a loss."""

    def __init__(self, kind: str, chance: random.Random) -> None:
        super().__init__()
        self.kind, width = kind, chance.choice((8, 16, 24, 40))
        self.loss = chance.choice(("mean", "mse", "smooth_l1", "huber", "cross_entropy"))
        blocks: list[nn.Module] = []
        if kind == "words":
            blocks = [nn.Embedding(WORDS, width), *self._sequence(width, chance)]
        elif kind == "images":
            blocks = [nn.Conv2d(CHANNELS, width, 3, padding=1), *self._image(width, chance)]
        else:
            blocks = [nn.Linear(24, width), *self._sequence(width, chance)]
        # A wide head puts the peak into the loss.
        classes = WORDS if self.kind == "words" else chance.choice((4, WORDS, 10 * WORDS))
        self.body, self.head = nn.Sequential(*blocks), nn.Linear(width, classes)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.body(inputs)
        if self.kind == "images":
            hidden = hidden.flatten(2).transpose(1, 2)
        logits = self.head(hidden)
        if self.loss == "mean":
            return logits.square().mean()
        if self.loss == "cross_entropy":
            labels = (
                inputs
                if self.kind == "words"
                else torch.zeros(logits.shape[:-1], dtype=torch.long, device=logits.device)
            )
            return functional.cross_entropy(logits.flatten(0, 1), labels.flatten())
        losses = {
            "mse": functional.mse_loss,
            "smooth_l1": functional.smooth_l1_loss,
            "huber": functional.huber_loss,
        }
        return losses[self.loss](logits, torch.ones_like(logits))

    def _sequence(self, width: int, chance: random.Random) -> list[nn.Module]:
        makers: list[Any] = [
            lambda: nn.Linear(width, width, bias=chance.random() < 0.5),
            lambda: nn.LayerNorm(width),
            lambda: nn.RMSNorm(width),
            lambda: Residual(width, chance),
            lambda: Attention(width, chance),
            lambda: _activation(chance),
            lambda: nn.Dropout(0.1),
        ]
        return [chance.choice(makers)() for _ in range(chance.randint(1, 7))]

    def _image(self, width: int, chance: random.Random) -> list[nn.Module]:
        makers: list[Any] = [
            lambda: nn.Conv2d(width, width, chance.choice((1, 3)), padding="same"),
            lambda: nn.BatchNorm2d(width),
            lambda: nn.GroupNorm(chance.choice((1, 2, 4)), width),
            lambda: nn.MaxPool2d(2, stride=1, padding=1),
            lambda: _activation(chance),
            lambda: nn.Conv2d(width, width, 3, padding=1, groups=width),
        ]
        return [chance.choice(makers)() for _ in range(chance.randint(1, 6))]


class Residual(nn.Module):
    """A feed-forward block added to its input."""

    def __init__(self, width: int, chance: random.Random) -> None:
        super().__init__()
        inner = width * chance.choice((1, 2, 4))
        self.up, self.down = nn.Linear(width, inner), nn.Linear(inner, width)
        self.between = _activation(chance)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.between(self.up(x)))


class Attention(nn.Module):
    """Attention in single operations, so that the CPU's fused kernel is not used."""

    def __init__(self, width: int, chance: random.Random) -> None:
        super().__init__()
        self.heads = chance.choice((1, 2, 4))
        self.take, self.give = nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        parts = self.take(x).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4)
        weights = (query @ key.transpose(-1, -2) / (width // self.heads) ** 0.5).softmax(-1)
        return self.give((weights @ value).transpose(1, 2).reshape(batch, length, width))


def _activation(chance: random.Random) -> nn.Module:
    return chance.choice((nn.ReLU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.ELU, nn.Softplus))()


def _shown(seed: int) -> str:
    model = made(seed)[0]
    assert isinstance(model, Made)
    return f"{model.loss} of {[type(block).__name__ for block in model.body]}"
