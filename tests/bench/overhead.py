"""Time steps on gpt2 on this CPU in the harness and in a bare loop, in turns in one process.

The target: the harness makes a step less than 1 % longer, with its own work around the step. Two
numbers are printed. The observed one is the difference of medians, as uncertain as its interval on
a machine with other work. The other is the time of the harness around a step that does nothing.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from optprof import optimizers
from optprof.profiler.machine.malloc import keep_freed_memory
from optprof.profiler.measuring.harness import Harness
from optprof.profiler.records.confidence import median_interval
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

ROUNDS, EMPTY = 21, 20_000
NAMES = ("adamw", "sgd-sai", "sm3", "lamb16")


def gpt2_step(name: str) -> torch.optim.Optimizer:
    """Return an optimizer over tensors like gpt2's, with its state allocated."""
    model = build(Scenario(model="gpt2", workload="state"), "meta").model
    parameters = [torch.nn.Parameter(torch.randn(p.shape)) for p in model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = optimizers.create(name, parameters, implementation="loop")
    optimizer.step()
    return optimizer


def seconds_around(harness: Harness, run: Callable[[], object]) -> float:
    """Return the seconds of one sample with its phase and its bookkeeping."""
    start = time.perf_counter()
    with harness.phase("step"):
        run()
    harness.keep_sample()
    return time.perf_counter() - start


def bare_seconds(run: Callable[[], object]) -> float:
    """Return the seconds of the step alone."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def harness_seconds() -> float:
    """Return the seconds that the harness adds to a step, as the median of many empty steps."""
    harness = Harness("cpu")
    around = [seconds_around(harness, lambda: None) for _ in range(EMPTY)]
    bare = [bare_seconds(lambda: None) for _ in range(EMPTY)]
    return median(around) - median(bare)


def main() -> None:
    """Print each optimizer's step with and without the harness, and the harness's share of it."""
    keep_freed_memory()
    own = harness_seconds()
    for name in NAMES:
        step, harness = gpt2_step(name).step, Harness("cpu")
        rounds = [(bare_seconds(step), seconds_around(harness, step)) for _ in range(ROUNDS)]
        bare = median(bare for bare, _ in rounds)
        ratios = [around / alone - 1 for alone, around in rounds]
        interval = median_interval(ratios)
        assert interval is not None
        observed = (
            f"observed {median(ratios):+.1%} ({interval.lower:+.1%} to {interval.upper:+.1%})"
        )
        verdict = "ok" if own < 0.01 * bare else "over 1 %"
        print(
            f"{name:<8} step {bare * 1e3:6.0f} ms, harness {own * 1e6:.1f} us = {own / bare:.5%}"
            f" {verdict}; {observed}",
            flush=True,
        )


if __name__ == "__main__":
    main()
