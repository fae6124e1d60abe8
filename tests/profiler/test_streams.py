"""The recorded stream of whole training steps, compared with torch.profiler on real ones.

The real steps run on the CPU without a dispatch mode, which would change autograd's behaviour.
"""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.utils.checkpoint
from torch import nn
from torch.nn import functional

from optprof.profiler.measuring.live_tensors import LiveTensors
from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.values import with_value


class Branches(nn.Module):
    """Tensors with two, three and four consumers, by addition and by reuse."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x)
        y = x + self.second(x).tanh() * x.sigmoid()
        return (y * y.exp() + torch.cat([y, x], -1)[..., :24] / (1 + x.abs())).mean()


class Gathered(nn.Module):
    """A cross entropy written with gather."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(24, 50)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        logits = self.head(x)
        logits = logits - logits.max(-1, keepdim=True).values
        return (logits.exp().sum(-1).log() - logits.gather(-1, labels[..., None])[..., 0]).mean()


class Indexed(nn.Module):
    """An embedding by indexing; rows selected by index_select and by a list."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(50, 24))

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        x = self.table[labels]
        return (x.index_select(1, labels[0] % 4).sum() + x[:, labels[:, 0] % 8].exp().sum()) / 7


class Selected(nn.Module):
    """Maxima, minima, the largest of a row and a running maximum."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        parts = (x.max(-1).values, x.min(1).values, x.topk(3).values)
        return torch.stack([part.sum() for part in (*parts, x.cummax(1).values)]).sum()


class Scattered(nn.Module):
    """Rows scattered and added to others, as experts' outputs are."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.layer(x)
        places = (labels % 8)[..., None].expand(-1, -1, 24)
        sums = torch.zeros_like(x).scatter_add(1, places, x)
        rows = torch.zeros(50, 24, dtype=x.dtype, device=x.device)
        return sums.tanh().sum() + rows.index_add(0, labels.flatten(), x.flatten(0, 1)).exp().sum()


class InPlaceNetwork(nn.Module):
    """Operations in place on activations and on a slice of one."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(24, 24) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            x = functional.gelu(layer(x)).add_(x)
        x = x * 2
        x[:, 1:3].mul_(0.5)
        return x.masked_fill_(x > 3, 0.0).square().mean()


class Views(nn.Module):
    """Attention by hand: one product split into three, heads by views, a mask by expansion."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(24, 72), nn.Linear(24, 24, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (t.unflatten(-1, (3, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mask = torch.ones(x.size(1), x.size(1), dtype=torch.bool, device=x.device).tril()
        scores = (q @ k.mT / 8**0.5).masked_fill(~mask, -1e9)
        y = torch.einsum("bhqk,bhkd->bhqd", scores.softmax(-1), v).transpose(1, 2).flatten(2)
        return functional.pad(self.out(y) + x, (1, 1)).logsumexp(-1).sum()


class Checkpointed(nn.Module):
    """Residual blocks that are recomputed in the backward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Sequential(nn.Linear(24, 24), nn.GELU()) for _ in range(3)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.layers:
            y = torch.utils.checkpoint.checkpoint(
                lambda z, f=layer: z + f(z), x, use_reentrant=False
            )
            assert isinstance(y, torch.Tensor)
            x = y * x
        return x.square().mean()


class Tied(nn.Module):
    """One weight for the embedding and the head."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(50, 24), nn.Linear(24, 50, bias=False)
        self.head.weight = self.embedding.weight

    def forward(self, labels: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(
            self.head(self.embedding(labels)).flatten(0, 1), labels.flatten()
        )


class Chosen(nn.Module):
    """Several weighted labels for each sample, with clamped values."""

    weight: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 24)
        self.register_buffer("weight", torch.rand(24))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.layer(x).clamp(-x.abs(), x.abs())
        targets = (x > 0).to(x.dtype)
        loss = functional.binary_cross_entropy_with_logits
        return loss(logits, targets, pos_weight=self.weight) + loss(logits * 2, targets)


class Swapped(nn.Module):
    """Layers over a transposed batch, as in nn.MultiheadAttention, or a sliced one."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(24, 2, batch_first=True)
        self.layer = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, _ = self.attention(x, x, x)
        return self.layer((x + y)[:, 1:]).square().mean()


class Losses(nn.Module):
    """Losses that are first computed for each element."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(24, 24)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y, target = functional.mish(self.layer(x)), x.sigmoid()
        losses = [
            functional.mse_loss,
            functional.smooth_l1_loss,
            functional.huber_loss,
            functional.soft_margin_loss,
        ]
        total = sum(loss(y, target) + loss(y, target, reduction="sum") for loss in losses)
        total = total + torch.cdist(y.flatten(0, 1), target.flatten(0, 1)).mean()
        likelihood = functional.binary_cross_entropy(y.sigmoid(), target)
        return total + likelihood + functional.mse_loss(y, target, reduction="none").exp().mean()


class Regression(nn.Module):
    """A perceptron whose loss keeps as much memory as its output."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(24, 48), nn.ReLU(), nn.Linear(48, 48), nn.ReLU(), nn.Linear(48, 24)
        )

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(self.layers(x), y)


class Autoencoder(nn.Module):
    """Convolutions that encode and decode their input."""

    def __init__(self) -> None:
        super().__init__()
        self.down = nn.Sequential(
            nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 16, 3, 2, 1), nn.ReLU()
        )
        self.up = nn.Sequential(
            nn.Upsample(scale_factor=4.0),
            nn.Conv2d(16, 8, 3, 1, 1),
            nn.ReLU(),
            nn.Conv2d(8, 1, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.mse_loss(self.up(self.down(x[:, None])), x[:, None])


class Folded(nn.Module):
    """An image that is unfolded into patches and folded again, which keeps the patches' memory."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 9)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        patches = self.layer(functional.unfold(x[:, None], 3, padding=1).mT).mT
        return functional.fold(patches, (8, 24), 3, padding=1).square().mean()


def transformer(name: str) -> nn.Module:
    """Return a model of transformers with two layers."""
    import transformers

    sizes: dict[str, dict[str, Any]] = {
        "gpt2": {"n_layer": 2, "n_embd": 64, "n_head": 2, "vocab_size": 50, "n_positions": 32},
        "llama": {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
        },
        "vit": {
            "num_hidden_layers": 2,
            "hidden_size": 64,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        "resnet": {"embedding_size": 16, "hidden_sizes": [32, 64], "depths": [1, 2]},
    }
    plain = {
        "gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        "llama": {"intermediate_size": 96, "vocab_size": 50},
        "vit": {"intermediate_size": 96},
        "resnet": {"layer_type": "bottleneck"},
    }
    config = transformers.AutoConfig.for_model(name, **sizes[name], **plain[name])
    language = name in ("gpt2", "llama")
    auto = (
        transformers.AutoModelForCausalLM
        if language
        else transformers.AutoModelForImageClassification
    )
    attention = {} if name == "resnet" else {"attn_implementation": "eager"}
    return auto.from_config(config, **attention).train()


def transformer_batch(name: str) -> dict[str, torch.Tensor]:
    tokens = (torch.arange(32, device="cpu") * 7 % 50).view(2, 16)
    if name in ("gpt2", "llama"):
        return {"input_ids": tokens, "labels": tokens.clone()}
    return {
        "pixel_values": torch.randn(4, 3, 32, 32),
        "labels": torch.tensor([0, 1, 0, 1], device="cpu"),
    }


def batch_of(module: type[nn.Module]) -> dict[str, torch.Tensor]:
    labels = (torch.arange(32, device="cpu") * 7 % 50).view(4, 8)
    names = module.forward.__code__.co_varnames[: module.forward.__code__.co_argcount]
    return {name: labels if name == "labels" else torch.randn(4, 8, 24) for name in names[1:]}


def train(model: nn.Module, batch: dict[str, torch.Tensor], steps: int, set_to_none: bool) -> None:
    """Run forward and backward passes; two gradients are accumulated before they are dropped."""
    for step in range(steps):
        output = model(**batch)
        loss = output if isinstance(output, torch.Tensor) else output.loss
        (loss / 2).backward()
        del output, loss
        if step % 2:
            model.zero_grad(set_to_none)


def recorded(model: nn.Module, batch: dict[str, torch.Tensor], set_to_none: bool) -> list[int]:
    """Return the bytes of each event of two accumulated steps on meta tensors."""
    recorder = Recorder()
    with recorder.phase("build"):
        for tensor in (*model.parameters(), *model.buffers()):
            recorder.allocate(tensor, "parameter")
            if tensor.grad is not None:
                recorder.allocate(tensor.grad, "gradient")
        batch = {
            name: with_value(value) if value.device.type == "cpu" else value
            for name, value in batch.items()
        }
        for tensor in batch.values():
            recorder.allocate(tensor, "input")
    recorder.segments.clear()
    with cuda_kernels(), recorder.phase("forward"):
        train(model, batch, 4, set_to_none)
    nbytes = recorder.allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in recorder.segments
        for event in segment.events
    ]


def of_tensors(stream: list[int]) -> list[int]:
    """Return the stream without the host's random state and scalars, which are CPU tensors."""
    random_state = torch.get_rng_state().nbytes
    return [nbytes for nbytes in stream if abs(nbytes) > 8 and abs(nbytes) != random_state]


MODULES = (
    *(
        Branches,
        Gathered,
        Indexed,
        Selected,
        Scattered,
        InPlaceNetwork,
        Views,
        Checkpointed,
        Tied,
        Chosen,
        Swapped,
        Losses,
    ),
    *(Regression, Folded),
)


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize(
    "name", [*(module.__name__ for module in MODULES), "gpt2", "llama", "vit", "resnet"]
)
def test_the_recorded_events_equal_those_of_a_real_step(
    name: str, set_to_none: bool, cpu_events: Callable[[Callable[[], object]], list[int]]
):
    own = {module.__name__: module for module in MODULES}

    def build() -> tuple[nn.Module, dict[str, torch.Tensor]]:
        return (
            (own[name](), batch_of(own[name]))
            if name in own
            else (transformer(name), transformer_batch(name))
        )

    model, batch = build()
    train(model, batch, 2, set_to_none)
    real = cpu_events(lambda: train(model, batch, 4, set_to_none))
    with torch.device("meta"):
        model, batch = build()
    if not set_to_none:
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
    assert of_tensors(recorded(model, batch, set_to_none)) == of_tensors(real)


@pytest.mark.parametrize("module", [Regression, Autoencoder])
def test_a_squared_error_peaks_as_it_does_on_the_cpu(
    module: type[nn.Module], cpu_events: Callable[[Callable[[], object]], list[int]]
):
    model, batch = module(), batch_of(module)
    train(model, batch, 2, True)
    real = cpu_events(lambda: train(model, batch, 4, True))
    with torch.device("meta"):
        model, batch = module(), batch_of(module)
    peak = max(accumulate(recorded(model, batch, True)))
    assert peak == pytest.approx(max(accumulate(of_tensors(real))), rel=0.005)


class Reused(nn.Module):
    """A tensor whose gradients are summed at the peak."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4096))

    def forward(self) -> torch.Tensor:
        x = self.weight.exp()
        return (x * 2).sum() + (x * 3).sum()


def test_a_watched_step_holds_as_much_as_an_unwatched_one(
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    model = Reused()
    train(model, {}, 2, set_to_none=True)
    peak = model.weight.nbytes + max(
        accumulate(cpu_events(lambda: train(model, {}, 1, set_to_none=True)))
    )
    model.zero_grad()
    live = LiveTensors()
    with live.watching():
        live.begin(model, {}, torch.optim.SGD(model.parameters()))
        with live.phase("forward"):
            train(model, {}, 1, set_to_none=True)
    assert live.levels()["forward"]["tensors"].peak == pytest.approx(peak, abs=64)
