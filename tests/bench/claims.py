"""Test the originals' claims on the real data: LAMB16 on MNIST, SGD-SaI's grid on CIFAR-10.

    python tests/bench/claims.py mnist FOLDER
        99.2 % of the test images after 10 epochs of batches of 1024, without augmentation
    python tests/bench/claims.py cifar10 FOLDER
        the best of a grid of learning rates and weight decays for ResNet-18, for each optimizer

Accuracies are those after the last epoch, because the best epoch would be chosen by the test
images. FOLDER has the data as published, MNIST as its four idx-ubyte files (.gz or not), CIFAR-10
as its binary version; neither is unpickled. If data is missing, one line says what to download.
Both take `--epochs N` and `--device cuda`.
"""

import argparse
import gzip
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from optprof import optimizers

MNIST = {
    "train": ("train-images-idx3-ubyte", "train-labels-idx1-ubyte"),
    "test": ("t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"),
}
CIFAR10 = {
    "train": tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
    "test": ("test_batch.bin",),
}
GRID = {
    "adamw": ([1e-4, 3e-4, 1e-3, 3e-3], [1e-4, 1e-2]),
    "sgd": ([1e-2, 3e-2, 1e-1, 3e-1], [1e-4, 5e-4]),
    "sgd-sai": ([1e-4, 1e-3, 3e-3, 1e-2], [1e-4, 1e-2]),
}


@dataclass(frozen=True, kw_only=True)
class Images:
    """Normalised images (n, channels, height, width) and labels, for training and for the test."""

    train: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    def to(self, device: str) -> "Images":
        """Return the same images on a device."""
        (train, train_labels), (test, test_labels) = self.train, self.test
        return Images(
            train=(train.to(device), train_labels.to(device)),
            test=(test.to(device), test_labels.to(device)),
        )


def read_idx(content: bytes) -> Tensor:
    """Return an idx file of unsigned bytes as a tensor; raise ValueError for any other content."""
    try:
        zeros, kind, axes = struct.unpack(">HBB", content[:4])
        shape = struct.unpack(f">{axes}I", content[4 : 4 + 4 * axes])
    except struct.error as error:
        raise ValueError(f"not an idx file: it ends after {len(content)} bytes") from error
    data = torch.frombuffer(bytearray(content[4 + 4 * axes :]), dtype=torch.uint8)
    if zeros or kind != 8 or data.numel() != torch.Size(shape).numel():
        raise ValueError(
            f"not an idx file of unsigned bytes: type {kind}, shape {shape}, {data.numel()} bytes"
        )
    return data.view(shape)


def read_mnist(folder: Path) -> Images:
    """Return the 70,000 digits of 28 x 28 pixels; FileNotFoundError says what to download."""

    def part(names: tuple[str, str]) -> tuple[Tensor, Tensor]:
        images, labels = (
            read_idx(_content(_find(folder, name, "the four MNIST files, such as")))
            for name in names
        )
        return (images[:, None].float() / 255 - 0.1307) / 0.3081, labels.long()

    return Images(train=part(MNIST["train"]), test=part(MNIST["test"]))


def read_cifar10(folder: Path) -> Images:
    """Return the 60,000 images of 3 x 32 x 32 pixels; FileNotFoundError says what to download."""
    mean, deviation = (
        torch.tensor([0.4914, 0.4822, 0.4465]).view(3, 1, 1),
        torch.tensor([0.2470, 0.2435, 0.2616]).view(3, 1, 1),
    )

    def part(names: tuple[str, ...]) -> tuple[Tensor, Tensor]:
        content = b"".join(
            _content(_find(folder, name, "cifar-10-binary.tar.gz, unpacked, with"))
            for name in names
        )
        if not content or len(content) % (1 + 3 * 32 * 32):
            raise ValueError(
                f"{', '.join(names)} hold {len(content)} bytes, not whole pictures of"
                f" {1 + 3 * 32 * 32}"
            )
        rows = torch.frombuffer(bytearray(content), dtype=torch.uint8).view(-1, 1 + 3 * 32 * 32)
        return (rows[:, 1:].reshape(-1, 3, 32, 32).float() / 255 - mean) / deviation, rows[
            :, 0
        ].long()

    return Images(train=part(CIFAR10["train"]), test=part(CIFAR10["test"]))


def _find(folder: Path, name: str, download: str) -> Path:
    for path in (
        folder / name,
        folder / f"{name}.gz",
        *folder.rglob(name),
        *folder.rglob(f"{name}.gz"),
    ):
        if path.is_file():
            return path
    raise FileNotFoundError(f"download {download} {name}, into {folder}")


def _content(path: Path) -> bytes:
    try:
        return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path} is no whole gzip file: {error}") from error


def batches(
    images: Tensor, labels: Tensor, size: int, augment: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield one epoch in random order, with CIFAR-10 flipped and shifted by up to 4 pixels."""
    for chosen in torch.randperm(len(labels), device=labels.device).split(size):
        batch = images[chosen]
        if augment:
            batch = torch.where(
                (torch.rand(len(batch), device=batch.device) < 0.5).view(-1, 1, 1, 1),
                batch.flip(3),
                batch,
            )
            down, right = torch.randint(9, (2,)).tolist()
            batch = functional.pad(batch, (4, 4, 4, 4))[:, :, down : down + 32, right : right + 32]
        yield batch, labels[chosen]


def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return the share of the images whose label the model predicts."""
    model.eval()
    with torch.no_grad():
        right = sum(
            (model(batch).argmax(1) == label).sum().item()
            for batch, label in zip(images.split(500), labels.split(500), strict=True)
        )
    model.train()
    return right / len(labels)


def train(
    model: nn.Module, data: Images, spec: str, *, epochs: int, batch: int, augment: bool
) -> list[float]:
    """Return the test accuracy after each epoch.

    With augmentation the learning rate follows a cosine down to 0.
    """
    optimizer = optimizers.create(spec, model.parameters())
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs) if augment else None
    accuracies: list[float] = []
    for epoch in range(epochs):
        for images, labels in batches(*data.train, batch, augment):
            optimizer.zero_grad()
            functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
        if scheduler:
            scheduler.step()
        accuracies.append(accuracy(model, *data.test))
        print(f"{spec:<48}epoch {epoch + 1:3}  {accuracies[-1]:.2%}", flush=True)
    return accuracies


def two_layers() -> nn.Module:
    """Return two convolutions and two linear layers, as in the seed's comparison on MNIST."""
    convolutions = (
        nn.Conv2d(1, 32, 3),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Dropout(0.25),
    )
    return nn.Sequential(
        *convolutions,
        nn.Flatten(),
        nn.Linear(9216, 128),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(128, 10),
    )


def resnet18() -> nn.Module:
    """Return ResNet-18 with a first layer for small images."""
    from transformers import ResNetConfig, ResNetForImageClassification

    layers: dict[str, Any] = {
        "embedding_size": 64,
        "hidden_sizes": [64, 128, 256, 512],
        "depths": [2, 2, 2, 2],
        "layer_type": "basic",
        "num_labels": 10,
    }
    network: Any = ResNetForImageClassification(ResNetConfig(**layers))
    network.resnet.embedder.embedder.convolution = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    network.resnet.embedder.pooler = nn.Identity()
    return _Logits(network)


class _Logits(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits


def mnist(data: Images, epochs: int, device: str) -> bool:
    """Train with Adam, LAMB and LAMB16; return whether LAMB16 reaches 99.2 %.

    The learning rate and weight decay are the seed's.
    """
    reached = {}
    for spec in (
        "adam:lr=0.001",
        "lamb:lr=0.02,weight_decay=0.01",
        "lamb16:lr=0.02,weight_decay=0.01",
    ):
        torch.manual_seed(0)
        reached[spec] = train(
            two_layers().to(device), data, spec, epochs=epochs, batch=1024, augment=False
        )[-1]
    print(f"LAMB16 {reached[spec]:.2%} after {epochs} epochs, claimed 99.2 % after 10")
    return reached[spec] >= 0.992


def cifar10(data: Images, epochs: int, device: str) -> bool:
    """Train on the grid; return whether SGD-SaI's best is the best of all."""
    best: dict[str, tuple[float, str]] = {}
    for name, (rates, decays) in GRID.items():
        for rate, decay in product(rates, decays):
            torch.manual_seed(0)
            spec = f"{name}:lr={rate},weight_decay={decay}"
            reached = train(
                resnet18().to(device), data, spec, epochs=epochs, batch=128, augment=True
            )[-1]
            best[name] = max(best.get(name, (0.0, "")), (reached, spec))
    for reached, spec in best.values():
        print(f"{reached:.2%} after {epochs} epochs  {spec}")
    return best["sgd-sai"][0] >= max(reached for reached, _ in best.values())


CLAIMS: dict[str, tuple[Callable[[Path], Images], Callable[[Images, int, str], bool], int]] = {
    "mnist": (read_mnist, mnist, 10),
    "cifar10": (read_cifar10, cifar10, 200),
}


def _at_least_one(text: str) -> int:
    if int(text) < 1:
        raise ValueError(text)
    return int(text)


def main() -> None:
    """Run a claim; exit with 1 if it does not hold, with 2 if data is missing."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("claim", choices=CLAIMS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--epochs", type=_at_least_one)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    read, run, epochs = CLAIMS[options.claim]
    try:
        data = read(options.folder)
    except (FileNotFoundError, ValueError) as error:
        print(f"claims: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if run(data.to(options.device), options.epochs or epochs, options.device) else 1)


if __name__ == "__main__":
    main()
