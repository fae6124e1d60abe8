"""Compare random configurations of our optimizers with their loop, and the loop with float64."""

import random
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI

from .row import Row

COUNT = 2_000
STEPS = 4
SHAPES = ((), (1,), (7,), (64,), (3, 5), (16, 8), (1, 9), (4, 3, 2), (2, 3, 3, 3), (33, 17))
# Tolerance relative to the largest weight. A bfloat16 step may round an update the other way.
CLOSE = {torch.float64: 1e-9, torch.float32: 2e-5, torch.bfloat16: 2e-2}
TO_FLOAT64 = 1e-3

Make = Callable[..., Any]


def run(chance: random.Random, count: int) -> Row:
    """Take steps with so many configurations."""
    row = Row(title="optimizer configurations").looks_for("wrong steps", "refused")
    ways: dict[str, int] = dict.fromkeys(("foreach", "fused", "float64"), 0)
    for _ in range(count):
        factory, options = _configuration(chance)
        shapes = [chance.choice(SHAPES) for _ in range(chance.randint(1, 6))]
        dtype = chance.choice((torch.float32, torch.float32, torch.float64, torch.bfloat16))
        what = f"{factory.__name__} {options} {dtype} {shapes}"
        row.tried += 1
        try:
            _compare(row, ways, factory, options, shapes, dtype, chance.randrange(2**31), what)
        except Exception as error:  # Any exception is the fault.
            row.fault("refused", f"{what}: {error!r}")
    row.notes |= {
        f"held to {way}" if way == "float64" else way: number for way, number in ways.items()
    }
    return row


def _compare(
    row: Row,
    ways: dict[str, int],
    factory: Make,
    options: dict[str, Any],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    seed: int,
    what: str,
) -> None:
    loop = _steps(factory, {**options, "foreach": False}, shapes, dtype, seed)
    others = {"foreach": {"foreach": True}}
    if options.get("scale", "max") == "max" and dtype != torch.float64:
        others["fused"] = {"fused": True}
    for way, how in others.items():
        ways[way] += 1
        weights = _steps(factory, {**options, **how}, shapes, dtype, seed)
        if off := _furthest(loop, weights, CLOSE[dtype] if factory is not LAMB16 else 2e-2):
            row.fault("wrong steps", f"{way}: {what}: {off}")
    if dtype == torch.float32 and factory is not LAMB16:
        ways["float64"] += 1
        exact = _steps(factory, {**options, "foreach": False}, shapes, torch.float64, seed)
        if off := _furthest(loop, exact, TO_FLOAT64):
            row.fault("wrong steps", f"float64: {what}: {off}")


def _steps(
    factory: Make,
    options: dict[str, Any],
    shapes: list[tuple[int, ...]],
    dtype: torch.dtype,
    seed: int,
) -> list[Tensor]:
    """Return the weights after a few steps.

    Some gradients are zero or missing, some large or small.
    """
    draw, chance = torch.Generator().manual_seed(seed), random.Random(seed)
    weights = [Parameter(torch.randn(shape, generator=draw).to(dtype)) for shape in shapes]
    optimizer = factory(weights, **options)
    for _ in range(STEPS):
        for weight in weights:
            size = chance.choice((0.0, 1e-3, 1.0, 1.0, 1.0, 100.0))
            grad = torch.randn(weight.shape, generator=draw) * size
            # Rounded to bfloat16, every dtype gets the same gradient.
            weight.grad = None if chance.random() < 0.1 else grad.bfloat16().to(dtype)
        optimizer.step()
    return [weight.detach() for weight in weights]


def _furthest(one: list[Tensor], other: list[Tensor], close: float) -> str:
    """Describe a difference larger than `close` of the largest weight; empty if there is none."""
    for number, (first, second) in enumerate(zip(one, other, strict=True)):
        first, second = first.double(), second.double()
        if first.isfinite().all() != second.isfinite().all():
            return f"parameter {number} is finite in one alone"
        if not first.isfinite().all():
            continue
        apart = (first - second).abs().max().item()
        if apart > close * max(1.0, first.abs().max().item()):
            return f"parameter {number} by {apart:.3g}"
    return ""


def _configuration(chance: random.Random) -> tuple[Make, dict[str, Any]]:
    """Return one of our optimizers with random options."""
    factory = chance.choice((SGDSaI, SM3, LAMB, LAMB16))
    lr = 10 ** chance.uniform(-4, -1)
    options: dict[str, Any] = {"lr": chance.choice((lr, torch.tensor(lr)))}
    options["maximize"] = chance.random() < 0.2
    decay = chance.choice((0.0, 10 ** chance.uniform(-4, -0.5)))
    momentum = chance.choice((0.0, chance.uniform(0, 0.99)))
    betas = chance.uniform(0, 0.99), chance.uniform(0.5, 0.9999)
    if factory is SGDSaI:
        return factory, {**options, "momentum": momentum, "weight_decay": decay}
    if factory is SM3:
        beta = chance.choice((0.0, chance.uniform(0, 0.99)))
        return factory, {**options, "momentum": momentum, "beta": beta}
    options |= {"betas": betas, "weight_decay": decay}
    if factory is LAMB16:
        return factory, {**options, "scale": chance.choice(("max", "max", "upstream"))}
    options["preset"] = chance.choice(("paper", "nvidia", "cybertronai"))
    if chance.random() < 0.3:
        options["trust_clip"] = chance.uniform(0.5, 10)
    if chance.random() < 0.3:
        options["max_grad_norm"] = chance.uniform(0.1, 10)
    return factory, options
