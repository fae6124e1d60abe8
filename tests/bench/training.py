"""Train a GPT on letters and an MLP on handwritten digits with our optimizers and AdamW.

The learning rates are below. Run `python tests/bench/training.py` to draw the curves into
docs/images/training.png; tests/optimizers/test_training.py checks the targets.
"""

import math
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

from optprof import optimizers
from optprof.optimizers.schedules import WarmUpAndDecay
from optprof.reports.style import INK, LINE, MUTED, PAPER, Mark, marks

ROOT = Path(__file__).parents[2]
TEXT = ROOT / "scenarios" / "data" / "genesis.txt"
PICTURE = ROOT / "docs" / "images" / "training.png"


@dataclass(frozen=True, kw_only=True)
class Run:
    """A training run: the loss of every step, and the final loss on all data."""

    losses: tuple[float, ...] = field(repr=False)
    final: float


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model, its batches, and all data to judge it.

    `decay` is the share of the steps in which the learning rate goes to 0.
    """

    build: Callable[[], nn.Module]
    batches: Callable[[], Iterator[tuple[Tensor, Tensor]]]
    everything: Callable[[], tuple[Tensor, Tensor]]
    steps: int
    decay: float = 0.1
    label_smoothing: float = 0.0


# The best of a few attempts each. AdamW had eight on each task, from 1e-3 to 2e-2 on the text and
# to 0.2 on the digits.
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
    """Causal attention and two linear layers."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mixing = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, hidden: Tensor) -> Tensor:
        """Return a hidden state of the same shape, (batch, length, width)."""
        batch, length, width = hidden.shape
        split = self.attention(self.before(hidden)).view(
            batch, length, 3, self.heads, width // self.heads
        )
        query, key, value = split.permute(2, 0, 3, 1, 4)
        attended = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
        hidden = hidden + self.mixing(attended.transpose(1, 2).reshape(batch, length, width))
        return hidden + self.down(functional.gelu(self.up(self.between(hidden))))


class GPT(nn.Module):
    """A decoder over letters: (batch, length) of letters to (batch x length, letters) of logits."""

    def __init__(
        self, letters: int, context: int, width: int = 32, heads: int = 2, layers: int = 2
    ) -> None:
        super().__init__()
        self.letters, self.places = nn.Embedding(letters, width), nn.Embedding(context, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, letters, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Embedding):
                # GPT-2's 0.02 at width 768, scaled to this width.
                nn.init.normal_(module.weight, std=0.1)

    def forward(self, letters: Tensor) -> Tensor:
        """Return the logits of the letter that follows each letter."""
        hidden = self.letters(letters) + self.places.weight[: letters.shape[1]]
        return self.head(self.norm(self.blocks(hidden))).flatten(0, 1)


def gpt(context: int = 32, batch: int = 32, steps: int = 500) -> Task:
    """Return the task to learn Genesis letter by letter."""
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

    return Task(
        build=lambda: GPT(len(alphabet), context),
        batches=batches,
        everything=everything,
        steps=steps,
    )


def digits(width: int = 16, batch: int = 64, steps: int = 400) -> Task:
    """Return the task to learn scikit-learn's 1,797 digits of 8 x 8 pixels, with smoothed labels.

    Without smoothing, the loss on so few goes to 0, and so does 5 % of it.
    """
    from sklearn.datasets import load_digits

    dataset: Any = load_digits(return_X_y=True)
    pixels, labels = torch.tensor(dataset[0] / 16.0, dtype=torch.float32), torch.tensor(dataset[1])

    def batches() -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            chosen = torch.randint(len(labels), (batch,))
            yield pixels[chosen], labels[chosen]

    def build() -> nn.Module:
        return nn.Sequential(
            nn.Linear(64, width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, 10),
        )

    return Task(
        build=build,
        batches=batches,
        everything=lambda: (pixels, labels),
        steps=steps,
        decay=0.5,
        label_smoothing=0.1,
    )


TASKS = {"gpt": gpt, "digits": digits}
TITLES = {
    "gpt": "GPT, 2 layers of width 32, on Genesis by letters",
    "digits": "MLP, 64-16-16-10, on scikit-learn's digits",
}
WINDOW = 20
TICKS = (0.5, 0.6, 0.8, 1, 1.2, 1.5, 2, 2.5, 3, 4)


def train(task: Task, spec: str, *, seed: int = 0) -> Run:
    """Train a fresh model with the schedule that SM3's authors advise.

    Every optimizer gets the same initial weights and the same batches.
    """
    torch.manual_seed(seed)
    model = task.build()
    # With tensors this small the number of operations decides the time, and foreach has the fewest.
    optimizer = optimizers.create(spec, model.parameters(), implementation="foreach")
    scheduler = LambdaLR(
        optimizer,
        WarmUpAndDecay(warm_up_steps=task.steps // 10, total_steps=task.steps, fraction=task.decay),
    )
    batches, losses = task.batches(), []
    for _ in range(task.steps):
        inputs, targets = next(batches)
        loss = functional.cross_entropy(
            model(inputs), targets, label_smoothing=task.label_smoothing
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        losses.append(loss.item())
    with torch.no_grad():
        inputs, targets = task.everything()
        final = functional.cross_entropy(
            model(inputs), targets, label_smoothing=task.label_smoothing
        ).item()
    return Run(losses=tuple(losses), final=final)


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The runs of one optimizer on one task, one per seed."""

    optimizer: str
    spec: str
    runs: tuple[Run, ...]

    @property
    def final(self) -> float:
        """Return the final loss on all data, the mean of the runs."""
        return mean(run.final for run in self.runs)

    @property
    def smooth(self) -> list[float]:
        """Return the mean loss of every WINDOW consecutive steps, from step WINDOW on."""
        return (
            torch.tensor([run.losses for run in self.runs])
            .mean(0)
            .unfold(0, WINDOW, 1)
            .mean(1)
            .tolist()
        )


def train_all(name: str) -> list[Curve]:
    """Train with every optimizer on one task, and print each result."""
    task, curves = TASKS[name](), []
    for optimizer, spec in SPECS[name].items():
        curve = Curve(
            optimizer=optimizer,
            spec=spec,
            runs=tuple(train(task, spec, seed=seed) for seed in SEEDS[name]),
        )
        print(f"{name:<8}{spec:<48}{curve.final:.4f}", flush=True)
        curves.append(curve)
    return curves


def draw(curves_by_task: dict[str, list[Curve]], path: Path) -> None:
    """Draw the losses of each task in a plot, in the colours of the optimizers in reports."""
    from matplotlib import pyplot

    from optprof.reports.pictures.drawing.figure import settings

    with settings():
        figure, plots = pyplot.subplots(
            1, len(curves_by_task), figsize=(11, 4.2), layout="constrained", facecolor=PAPER.light
        )
        for plot, (name, curves) in zip(plots, curves_by_task.items(), strict=True):
            _draw_task(plot, name, curves)
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Software": None})
        pyplot.close(figure)


def _draw_task(plot: Any, name: str, curves: list[Curve]) -> None:
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    worn = marks(curve.optimizer for curve in curves)
    steps = range(WINDOW, WINDOW + len(curves[0].smooth))
    for curve in curves:
        colour, shape = worn[curve.optimizer].colour.light, worn[curve.optimizer].shape
        plot.plot(
            steps,
            curve.smooth,
            color=colour,
            linewidth=1.5,
            marker=shape,
            markersize=5,
            markevery=(40, 80),
            markeredgecolor="white",
        )
    plot.set_yscale("log")
    low, high = (
        min(min(curve.smooth) for curve in curves),
        max(max(curve.smooth) for curve in curves),
    )
    plot.set(xlim=(0, steps[-1]), ylim=(low / 1.04, high * 1.04))
    plot.yaxis.set_major_locator(FixedLocator([tick for tick in TICKS if low <= tick <= high]))
    plot.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    plot.yaxis.set_minor_locator(NullLocator())
    _label_lines(plot, curves, worn)
    plot.set_title(TITLES[name], loc="left", color=INK.light, fontsize=11)
    plot.set_xlabel("step", color=MUTED.light)
    plot.set_ylabel(f"loss, mean of {WINDOW} steps", color=MUTED.light)
    plot.grid(axis="y", color=LINE.light, linewidth=0.7)
    plot.tick_params(colors=MUTED.light, length=0)
    plot.spines[["top", "right", "left"]].set_visible(False)
    plot.spines["bottom"].set_color(LINE.light)


def _label_lines(plot: Any, curves: list[Curve], worn: dict[str, Mark]) -> None:
    """Write each line's name and final loss at its end, moved apart if they would overlap."""
    low, high = (math.log(limit) for limit in plot.get_ylim())
    ends = [(math.log(curve.smooth[-1]) - low) / (high - low) for curve in curves]
    places = spaced(ends, 0.062)
    plot.text(
        1.045,
        max(places) + 0.07,
        "loss on all\ndata, at the end",
        transform=plot.transAxes,
        color=MUTED.light,
        fontsize=8.5,
    )
    for curve, end, place in zip(curves, ends, places, strict=True):
        colour = worn[curve.optimizer].colour.light
        plot.annotate(
            "",
            (1, end),
            (1.035, place),
            "axes fraction",
            "axes fraction",
            {"arrowstyle": "-", "color": colour, "linewidth": 0.8},
        )
        text = f"{curve.optimizer}  {curve.final:.4f}"
        plot.annotate(
            text,
            (1.045, place),
            xycoords="axes fraction",
            va="center",
            color=colour,
            fontsize=9.5,
            annotation_clip=False,
        )


def spaced(centres: list[float], size: float) -> list[float]:
    """Return places from 0 to 1 that are at least `size` apart, in the order of the centres."""
    order = sorted(range(len(centres)), key=lambda number: centres[number])
    places = list(centres)
    edge = 0.0
    for number in order:
        places[number] = max(places[number], edge + size / 2)
        edge = places[number] + size / 2
    edge = 1.0
    for number in reversed(order):
        places[number] = min(places[number], edge - size / 2)
        edge = places[number] - size / 2
    return places


def main() -> None:
    """Train everything and draw it."""
    torch.set_num_threads(1)
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else PICTURE
    draw({name: train_all(name) for name in TASKS}, path)
    print(f"drawn into {path}")


if __name__ == "__main__":
    main()
