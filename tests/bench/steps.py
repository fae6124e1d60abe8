"""One step of ours against one of their originals: GPT-2 small's parameters in float32 on this CPU,
all in turns in one process.

The marks: sgd-sai 1.2 times as fast as sgd_sai 1.0.3, sm3 5 times as torch-SM3 0.1.0, lamb 4 and
lamb16 8 times as their originals, each in the best of its ways; and of the bandwidth floor, the
time in which this machine copies the bytes that a step has to move at least, a share of 0.8, 0.5,
0.4 and 0.25. The originals of LAMB and LAMB16 are on no index; in their place stand plain
transcriptions of the order of operations that they are known by, written here. Run `python
tests/bench/steps.py [ROUNDS] [NAME ...]`; `pip install --group parity` first.
"""

import gc
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from optprof import optimizers

COPIED = 2**28  # bytes


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One of ours, its original, and what is asked of it."""

    spec: str
    original: str
    make_original: Callable[[list[Parameter]], Any]
    traffic: int  # bytes a parameter that a step moves at least
    times_faster: float
    share_of_floor: float
    # the original, as it was once measured on a machine of two threads that copies at 58.5 GB/s
    known: str


class PlainLAMB(Optimizer):
    """LAMB as cybertronai's is known to go: an operation a tensor at a time, the trust ratio read
    by the host.
    """

    def __init__(self, params: list[Parameter], lr: float = 1e-3) -> None:
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6})

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter."""
        for group, param, state in _with_state(self):
            beta1, beta2 = group["betas"]
            state.setdefault("exp_avg", torch.zeros_like(param))
            state.setdefault("exp_avg_sq", torch.zeros_like(param))
            mean, square = state["exp_avg"], state["exp_avg_sq"]
            mean.mul_(beta1).add_(param.grad, alpha=1 - beta1)
            square.mul_(beta2).addcmul_(param.grad, param.grad, value=1 - beta2)
            weight_norm = param.pow(2).sum().sqrt().clamp(0, 10)
            direction = mean / square.sqrt().add(group["eps"])
            norm = direction.pow(2).sum().sqrt()
            ratio = 1 if weight_norm == 0 or norm == 0 else weight_norm / norm
            state.update(weight_norm=weight_norm, adam_norm=norm, trust_ratio=ratio)
            param.add_(direction * ratio, alpha=-group["lr"])


class PlainLAMB16(Optimizer):
    """LAMB16 as vxst's is known to go: both moments decoded, updated, normed, clipped and cast, a
    new tensor at every turn.
    """

    def __init__(self, params: list[Parameter], lr: float = 1e-3) -> None:
        super().__init__(
            params, {"lr": lr, "betas": (0.9, 0.999), "eps": 1e-6, "trust_scale": 0.382}
        )

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Update every parameter."""
        for group, param, state in _with_state(self):
            (beta1, beta2), eps, count = group["betas"], group["eps"], param.numel()
            if not state:
                state.update(
                    mean=torch.zeros_like(param, dtype=torch.float8_e4m3fn),
                    square=torch.zeros_like(param, dtype=torch.float8_e5m2),
                )
                state.update(mean_scale=1.0, square_scale=1.0)
            mean = state["mean"].float() * state["mean_scale"] * beta1 + param.grad * (1 - beta1)
            square = state["square"].float() * state["square_scale"] * beta2 + param.grad**2 * (
                1 - beta2
            )
            mean_scale = mean.pow(2).clamp(0, 10).sum().sqrt() / count + eps
            square_scale = square.pow(2).clamp(0, 10).sum().sqrt() / count + eps
            state.update(mean_scale=mean_scale, square_scale=square_scale)
            state["mean"] = (mean / mean_scale).clamp(-15, 15).to(torch.float8_e4m3fn)
            state["square"] = (square.clamp(0, 10) / square_scale).to(torch.float8_e5m2)
            direction = mean / square.sqrt().add(eps)
            weight_norm = param.pow(2).clamp(eps, 1).sum().sqrt() / count
            norm = direction.pow(2).clamp(eps, 1).sum().sqrt() / count
            ratio = (
                (weight_norm / norm * (1e-3 / group["lr"])).pow(group["trust_scale"]).clamp(0, 2)
            )
            param.add_(direction * ratio * -group["lr"])


def _with_state(optimizer: Optimizer) -> Iterator[tuple[dict[str, Any], Any, dict[str, Any]]]:
    for group in optimizer.param_groups:
        for param in group["params"]:
            yield group, param, optimizer.state[param]


def sgd_sai(params: list[Parameter]) -> Any:
    """The original SGD-SaI, whose first step is quiet here."""
    from sgd_sai import SGD_sai  # pyright: ignore[reportMissingImports]

    return SGD_sai(params, lr=1e-3)


def torch_sm3(params: list[Parameter]) -> Any:
    """The original SM3."""
    from SM3 import SM3  # pyright: ignore[reportMissingImports]

    return SM3(params)


CONTESTS = (
    Contest(
        spec="sgd-sai",
        original="sgd_sai 1.0.3",
        make_original=sgd_sai,
        traffic=20,
        times_faster=1.2,
        share_of_floor=0.8,
        known="74.4 ms, share 0.57",
    ),
    Contest(
        spec="sm3",
        original="torch-SM3 0.1.0",
        make_original=torch_sm3,
        traffic=12,
        times_faster=5,
        share_of_floor=0.5,
        known="427 ms, share 0.06",
    ),
    Contest(
        spec="lamb:preset=cybertronai",
        original="LAMB, transcribed",
        make_original=PlainLAMB,
        traffic=40,
        times_faster=4,
        share_of_floor=0.4,
        known="577 ms, share 0.15",
    ),
    Contest(
        spec="lamb16",
        original="LAMB16, transcribed",
        make_original=PlainLAMB16,
        traffic=26,
        times_faster=8,
        share_of_floor=0.25,
        known="2917 ms, share 0.02",
    ),
)


def shapes(
    width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, ...]]:
    """GPT-2 small's 148 parameters: 124,439,808 numbers."""
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *(norm + attention + norm + mlp) * layers, *norm]


def seconds(run: Callable[[], object]) -> float:
    """The time that it takes."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def contend(
    contest: Contest, params: list[Parameter], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Seconds of each step of each way, of the original and of a copy, taken in turns, and those of
    each one's first step.
    """
    ours: dict[str, Optimizer] = {}
    for way in optimizers.implementations(contest.spec):
        ours[way] = optimizers.create(contest.spec, params, implementation=way, lr=1e-5)
        # The ways keep the same state, which is held once.
        ours[way].state = next(iter(ours.values())).state
    original = contest.make_original(params)
    for group in original.param_groups:
        group["lr"] = 1e-5
    source, target = torch.ones(COPIED // 4), torch.ones(COPIED // 4)
    turns: dict[str, Callable[[], object]] = {
        name: optimizer.step for name, optimizer in ours.items()
    }
    turns |= {"original": original.step, "copy": lambda: target.copy_(source)}
    first = {name: seconds(turn) for name, turn in turns.items()}
    taken: dict[str, list[float]] = {name: [] for name in turns}
    for _ in range(rounds):
        for name, turn in turns.items():
            taken[name].append(seconds(turn))
    return taken, first


def report(
    contest: Contest, count: int, taken: dict[str, list[float]], first: dict[str, float]
) -> bool:
    """Print a contest; whether its marks are met."""
    times = {name: median(found) for name, found in taken.items()}
    # A copy reads and writes.
    speed = 2 * COPIED / times.pop("copy")
    floor = contest.traffic * count / speed
    best = min((name for name in times if name != "original"), key=times.__getitem__)
    print(f"\n{contest.spec} and {contest.original} (known: {contest.known})")
    print(
        f"  copies at {speed / 1e9:.1f} GB/s: {contest.traffic} bytes a parameter take"
        f" {floor * 1e3:.1f} ms"
    )
    for name, found in times.items():
        ratio, spread = (
            times["original"] / found,
            f"({min(taken[name]) * 1e3:.1f} to {max(taken[name]) * 1e3:.1f})",
        )
        compiling = (
            f", first step with compiling {first[name]:.1f} s"
            if name in ("compiled", "fused")
            else ""
        )
        print(
            f"  {name:<9}{found * 1e3:8.1f} ms {spread}  {ratio:5.2f} x  share of the floor"
            f" {floor / found:.2f}{compiling}"
        )
    ratio, share = times["original"] / times[best], floor / times[best]
    met = ratio >= contest.times_faster, share >= contest.share_of_floor
    told = ["met" if each else "MISSED" for each in met]
    marks = (
        f"{ratio:.2f} x (mark {contest.times_faster}: {told[0]}), share {share:.2f} (mark"
        f" {contest.share_of_floor}: {told[1]})"
    )
    print(f"  best: {best}, {marks}", flush=True)
    return all(met)


def main() -> None:
    """Print every contest and the most memory that this process held; status 1 where a mark is
    missed, 2 for a name that is none.
    """
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 7
    contests = {contest.spec.partition(":")[0]: contest for contest in CONTESTS}
    chosen = [name.partition(":")[0] for name in sys.argv[2:]] or list(contests)
    if unknown := set(chosen) - contests.keys():
        print(
            f"no contest of {', '.join(sorted(unknown))}; there are {', '.join(contests)}",
            file=sys.stderr,
        )
        sys.exit(2)
    missing = [
        name
        for name, module in (("sgd-sai", "sgd_sai"), ("sm3", "SM3"))
        if name in chosen and find_spec(module) is None
    ]
    if missing:
        sys.exit(
            f"the originals of {', '.join(missing)} are not installed; pip install --group parity"
        )
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape).mul_(0.02)) for shape in shapes()]
    for param in params:
        param.grad = torch.randn_like(param).mul_(1e-3)
    count = sum(map(Tensor.numel, params))
    print(f"{count:,} parameters, {torch.get_num_threads()} threads, torch {torch.__version__}")
    met: list[bool] = []
    # What an earlier run has compiled would be found there, and the first step be told too short.
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(TORCHINDUCTOR_CACHE_DIR=cache, TORCH_EXTENSIONS_DIR=cache)
        for contest in (contests[name] for name in contests if name in chosen):
            met.append(report(contest, count, *contend(contest, params, rounds)))
            gc.collect()
    print(
        f"\nthe most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
