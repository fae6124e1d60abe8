"""Time our steps against their originals on GPT-2 small in float32 on this CPU.

All run in turns in one process. The targets: sgd-sai 1.2 times as fast as sgd_sai 1.0.3, sm3 5
times as torch-SM3 0.1.0, lamb 4 and lamb16 8 times as their originals, each in its fastest
implementation. The bandwidth floor is the time in which this machine copies the bytes that a step
must move; its share of the step is to be 0.8, 0.5, 0.4 and 0.25. The originals of LAMB and LAMB16
are in no package index; plain transcriptions of their order of operations stand in for them.

Our fused steps also take turns with torch's fused AdamW, of whose time they may take 0.75, 0.5,
1.45 and 0.95. A kernel is to compile within 3 s.

Run `python tests/bench/steps.py [ROUNDS] [NAME ...]`; `pip install --group parity` first.
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
from optprof.optimizers import kernels

COPIED_BYTES = 2**28
# The seconds in which a kernel is to compile.
COMPILING = 3.0


@dataclass(frozen=True, kw_only=True)
class Contest:
    """One of our optimizers, its original, and the targets."""

    spec: str
    original: str
    make_original: Callable[[list[Parameter]], Any]
    # Bytes per parameter that a step must move.
    traffic: int
    times_faster: float
    share_of_floor: float
    # The most that our fused step may take of the time of torch's fused AdamW.
    share_of_adamw: float
    # The original as measured on a machine of two threads that copies at 58.5 GB/s.
    reference: str


class PlainLAMB(Optimizer):
    """LAMB in cybertronai's order: an operation per tensor, with a trust ratio read by the host."""

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
    """LAMB16 in vxst's order: moments decoded, updated, normed, clipped and cast in new tensors."""

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
    """Return the original SGD-SaI."""
    from sgd_sai import SGD_sai  # pyright: ignore[reportMissingImports]

    return SGD_sai(params, lr=1e-3)


def torch_sm3(params: list[Parameter]) -> Any:
    """Return the original SM3."""
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
        share_of_adamw=0.75,
        reference="74.4 ms, share 0.57",
    ),
    Contest(
        spec="sm3",
        original="torch-SM3 0.1.0",
        make_original=torch_sm3,
        traffic=12,
        times_faster=5,
        share_of_floor=0.5,
        share_of_adamw=0.5,
        reference="427 ms, share 0.06",
    ),
    Contest(
        spec="lamb:preset=cybertronai",
        original="LAMB, transcribed",
        make_original=PlainLAMB,
        traffic=40,
        times_faster=4,
        share_of_floor=0.4,
        share_of_adamw=1.45,
        reference="577 ms, share 0.15",
    ),
    Contest(
        spec="lamb16",
        original="LAMB16, transcribed",
        make_original=PlainLAMB16,
        traffic=26,
        times_faster=8,
        share_of_floor=0.25,
        share_of_adamw=0.95,
        reference="2917 ms, share 0.02",
    ),
)


def shapes(
    width: int = 768, layers: int = 12, vocabulary: int = 50257, context: int = 1024
) -> list[tuple[int, ...]]:
    """Return the shapes of GPT-2 small's 148 parameters: 124,439,808 numbers."""
    norm = [(width,), (width,)]
    attention = [(width, 3 * width), (3 * width,), (width, width), (width,)]
    mlp = [(width, 4 * width), (4 * width,), (4 * width, width), (width,)]
    return [(vocabulary, width), (context, width), *(norm + attention + norm + mlp) * layers, *norm]


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def contend(
    contest: Contest, params: list[Parameter], rounds: int
) -> tuple[dict[str, list[float]], dict[str, float]]:
    """Return the seconds of steps, original and copy, taken in turns, and of each first step."""
    ours: dict[str, Optimizer] = {}
    for way in optimizers.implementations(contest.spec):
        ours[way] = optimizers.create(contest.spec, params, implementation=way, lr=1e-5)
        # All implementations keep the same state, which is allocated once.
        ours[way].state = next(iter(ours.values())).state
    original = contest.make_original(params)
    for group in original.param_groups:
        group["lr"] = 1e-5
    source, target = torch.ones(COPIED_BYTES // 4), torch.ones(COPIED_BYTES // 4)
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
    """Print a contest, and return whether its targets are met."""
    times = {name: median(samples) for name, samples in taken.items()}
    # A copy reads and writes.
    speed = 2 * COPIED_BYTES / times.pop("copy")
    floor = contest.traffic * count / speed
    best = min((name for name in times if name != "original"), key=times.__getitem__)
    print(f"\n{contest.spec} and {contest.original} (reference: {contest.reference})")
    print(
        f"  copies at {speed / 1e9:.1f} GB/s: {contest.traffic} bytes a parameter take"
        f" {floor * 1e3:.1f} ms"
    )
    for name, step_seconds in times.items():
        ratio, spread = (
            times["original"] / step_seconds,
            f"({min(taken[name]) * 1e3:.1f} to {max(taken[name]) * 1e3:.1f})",
        )
        compiling = (
            f", first step with compiling {first[name]:.1f} s"
            if name in ("compiled", "fused")
            else ""
        )
        print(
            f"  {name:<9}{step_seconds * 1e3:8.1f} ms {spread}  {ratio:5.2f} x  share of the floor"
            f" {floor / step_seconds:.2f}{compiling}"
        )
    ratio, share = times["original"] / times[best], floor / times[best]
    met = ratio >= contest.times_faster, share >= contest.share_of_floor
    verdicts = ["met" if each else "MISSED" for each in met]
    targets = (
        f"{ratio:.2f} x (target {contest.times_faster}: {verdicts[0]}), share {share:.2f} (target"
        f" {contest.share_of_floor}: {verdicts[1]})"
    )
    print(f"  best: {best}, {targets}", flush=True)
    return all(met)


def compare_fused(contests: list[Contest], params: list[Parameter], rounds: int) -> bool:
    """Print our fused steps as shares of torch's fused AdamW; return whether targets are met."""
    compiling: dict[str, float] = {}
    steps: dict[str, Callable[[], object]] = {
        "adamw": torch.optim.AdamW(params, lr=1e-5, fused=True).step
    }
    for contest in contests:
        small = Parameter(torch.ones(1))
        small.grad = torch.ones(1)
        first = optimizers.create(contest.spec, [small], implementation="fused").step
        compiling[contest.spec] = seconds(first) - seconds(first)
        ours = optimizers.create(contest.spec, params, implementation="fused", lr=1e-5)
        steps[contest.spec] = ours.step
    for step in steps.values():
        step()
    taken: dict[str, list[float]] = {name: [] for name in steps}
    for _ in range(rounds):
        for name, step in steps.items():
            taken[name].append(seconds(step))
    adamw = taken["adamw"]
    print(
        f"torch's fused AdamW takes {median(adamw) * 1e3:.1f} ms"
        f" ({min(adamw) * 1e3:.1f} to {max(adamw) * 1e3:.1f}); our fused steps as shares of it:"
    )
    met: list[bool] = []
    for contest in contests:
        times = taken[contest.spec]
        # Of one round, because the speed of a shared machine drifts.
        share = median(time / of_adamw for time, of_adamw in zip(times, adamw, strict=True))
        compiled_in = compiling[contest.spec]
        met += [share <= contest.share_of_adamw, compiled_in <= COMPILING]
        verdicts = ["met" if each else "MISSED" for each in met[-2:]]
        print(
            f"  {contest.spec:<26}{median(times) * 1e3:8.1f} ms ({min(times) * 1e3:.1f} to"
            f" {max(times) * 1e3:.1f})  {share:.2f} (target {contest.share_of_adamw}:"
            f" {verdicts[0]})  compiled in {compiled_in:.1f} s (target {COMPILING}: {verdicts[1]})",
            flush=True,
        )
    return all(met)


def main() -> None:
    """Print every contest and this process's peak memory.

    Exit with 1 if a target is missed, with 2 for an unknown name.
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
    # With an earlier run's compiled code in the cache, the first step would be too short.
    with tempfile.TemporaryDirectory() as cache:
        os.environ.update(TORCHINDUCTOR_CACHE_DIR=cache, TORCH_EXTENSIONS_DIR=f"{cache}/first")
        met.append(
            compare_fused([contests[name] for name in contests if name in chosen], params, rounds)
        )
        gc.collect()
        kernels._library.cache_clear()
        os.environ["TORCH_EXTENSIONS_DIR"] = cache
        for contest in (contests[name] for name in contests if name in chosen):
            met.append(report(contest, count, *contend(contest, params, rounds)))
            gc.collect()
    print(
        f"\nthe most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB"
    )
    sys.exit(0 if all(met) else 1)


if __name__ == "__main__":
    main()
