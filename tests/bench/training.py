"""Our optimizers train: a GPT that reads letters and an MLP on handwritten digits, each beside AdamW, from learning rates written here.

Run `python tests/bench/training.py` to draw the curves into docs/images/training.png; tests/optimizers/test_training.py asks for the marks.
"""

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import mean
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim.lr_scheduler import LambdaLR

import optimizers
from optimizers.schedules import WarmUpAndDecay

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "tests" / "data" / "genesis.txt"
PICTURE = ROOT / "docs" / "images" / "training.png"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training as it went: the loss of every step, and the loss on all data at its end."""

    losses: tuple[float, ...] = field(repr=False)
    final: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, batches to train it and all data to judge it; `decay` is the share of the steps in which the learning rate goes to 0."""

    build: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    everything: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    decay: float = 0.1
    label_smoothing: float = 0.0


# The best of a few tries each; AdamW's were eight on each task, from 1e-3 to 2e-2 on the text and to 0.2 on the digits.
SPECS = {
    "gpt": {
        "adamw": "adamw:lr=1e-2",
        "lamb": "lamb:lr=1.3e-2",
        "lamb16": "lamb16:lr=1.2e-2",
        "sgd-sai": "sgd-sai:lr=5e-2,momentum=0.75,weight_decay=0",
        "sm3": "sm3:lr=0.13,momentum=0.5",
    },
    "digits": {
        "adamw": "adamw:lr=0.15",
        "lamb": "lamb:lr=2e-2",
        "lamb16": "lamb16:lr=5e-2",
        "sgd-sai": "sgd-sai:lr=0.12,weight_decay=0",
        "sm3": "sm3:lr=5e-2,momentum=0.9,beta=0.95",
    },
}
SEEDS = {"gpt": (0, 1), "digits": (0, 1, 2)}


class Block(nn.Module):
    """Attention to what came before, and two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mixing = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Another hidden state of the same shape, (batch, length, width)."""
        batch, length, width = hidden.shape
        split = self.attention(self.before(hidden)).view(batch, length, 3, self.heads, width // self.heads)
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.mixing(attended.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down(functional.gelu(self.up(self.between(hidden))))


class GPT(nn.Module):
    """A decoder over letters: (batch, length) of letters to (batch x length, letters) of logits."""

    def __init__(self, letters: int, context: int, width: int = 32, heads: int = 2, layers: int = 2) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                nn.init.normal_(module.weight, std=0.1)  # GPT-2's 0.02 at width 768, for this width

    def forward(self, letters: Tensor) -> Tensor:
        """Logits of the letter that follows each letter."""
        hidden = self.letters(letters) + self.places.weight[: letters.shape[1]]
        return self.head(self.norm(self.blocks(hidden))).flatten(0, 1)


def gpt(context: int = 32, batch: int = 32, steps: int = 500) -> Task:
    """Genesis, letter by letter."""
    text = TEXT.read_text()
    alphabet = sorted(set(text))
    data = torch.tensor([alphabet.index(letter) for letter in text])
    windows = data.unfold(0, context + 1, 1)

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = windows[torch.randint(len(windows), (batch,))]
            yield chosen[:, :-1], chosen[:, 1:].flatten()

    def everything() -> tuple[Tensor, Tensor]:
        apart = windows[::context]
        return apart[:, :-1], apart[:, 1:].flatten()

    return Task(build=lambda: GPT(len(alphabet), context), batches=batches, everything=everything, steps=steps)


def digits(width: int = 16, batch: int = 64, steps: int = 400) -> Task:
    """scikit-learn's 1,797 digits of 8 x 8 pixels, with smoothed labels: without, the loss on so few goes to 0 and 5 % of it too."""
    from sklearn.datasets import load_digits

    found: Any = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(found[0] / 16.0, dtype=torch.float32), torch.tensor(found[1])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = torch.randint(len(labels), (batch,))
            yield pixels[chosen], labels[chosen]

    def build() -> nn.Module:
        return nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10))

    return Task(build=build, batches=batches, everything=lambda: (pixels, labels), steps=steps, decay=0.5, label_smoothing=0.1)


TASKS = {"gpt": gpt, "digits": digits}
TITLES = {"gpt": "GPT, 2 layers of width 32, on Genesis by letters", "digits": "MLP, 64-16-16-10, on scikit-learn's digits"}
WINDOW = 20


def train(task: Task, spec: str, *, seed: int = 0) -> Run:
    """Train a fresh model; every optimizer finds the same weights, the same batches and the schedule that SM3's authors advise."""
    torch.manual_seed(seed)
    model = task.build()
    optimizer = optimizers.create(spec, model.parameters())
    scheduler = LambdaLR(optimizer, WarmUpAndDecay(warm_up_steps=task.steps // 10, total_steps=task.steps, fraction=task.decay))
    batches, losses = task.batches(), []
    for _ in range(task.steps):
        inputs, targets = next(batches)
        loss = functional.cross_entropy(model(inputs), targets, label_smoothing=task.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    with torch.no_grad():
        inputs, targets = task.everything()
        final = functional.cross_entropy(model(inputs), targets, label_smoothing=task.label_smoothing).item()
    return Run(losses=tuple(losses), final=final)


def draw(path: Path) -> None:
    """Draw the losses of every run, smoothed, one plot a task."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, plots = pyplot.subplots(1, len(TASKS), figsize=(11, 4), layout="constrained")
    for plot, (name, make) in zip(plots, TASKS.items(), strict=True):
        task = make()
        for optimizer, spec in SPECS[name].items():
            runs = [train(task, spec, seed=seed) for seed in SEEDS[name]]
            losses = torch.tensor([run.losses for run in runs]).mean(0)
            final = mean(run.final for run in runs)
            smooth = losses.unfold(0, WINDOW, 1).mean(1)
            label = f"{spec}: {final:.4f}"
            plot.plot(range(WINDOW, task.steps + 1), smooth, label=label, color="black" if optimizer == "adamw" else None, linewidth=1.2)
            print(f"{name:<8}{spec:<48}{final:.4f}", flush=True)
        plot.set(yscale="log", xlabel="step", ylabel=f"loss, mean of {WINDOW} steps", title=TITLES[name])
        plot.grid(alpha=0.3)
        plot.legend(fontsize=7, title="loss on all data at the end", title_fontsize=7)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120, metadata={"Software": None})


def main() -> None:
    """Train everything and draw it."""
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw(path)
    print(f"drawn into {path}")


if __name__ == "__main__":
    main()
