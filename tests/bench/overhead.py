"""What does the harness cost? Steps on gpt2 on this CPU, timed as `optprof profile` does and by a
bare loop, in turns in one process.

The mark: the step inside the harness takes less than 1 % longer, the harness's own work around it
included. Two numbers are printed. The difference of medians says what is seen; on a machine that
others use it is as uncertain as its interval. The harness alone, around a step that does nothing,
says what it adds to any step.
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
    """The optimizer over tensors as gpt2's, its state made."""
    model = build(Scenario(model="gpt2", workload="state"), "meta").model
    parameters = [torch.nn.Parameter(torch.randn(p.shape)) for p in model.parameters()]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = optimizers.create(name, parameters, implementation="loop")
    optimizer.step()
    return optimizer


def seconds_around(harness: Harness, run: Callable[[], object]) -> float:
    """The time of one sample, taken from outside: the phase, the step in it, and what keeps the
    sample.
    """
    start = time.perf_counter()
    with harness.phase("step"):
        run()
    harness.keep_sample()
    return time.perf_counter() - start


def bare_seconds(run: Callable[[], object]) -> float:
    """The time of the step alone."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def harness_seconds() -> float:
    """What the harness adds to one step, as the median of many around nothing."""
    harness = Harness("cpu")
    around = [seconds_around(harness, lambda: None) for _ in range(EMPTY)]
    bare = [bare_seconds(lambda: None) for _ in range(EMPTY)]
    return median(around) - median(bare)


def main() -> None:
    """Print, for each optimizer, the step with and without the harness, and the harness alone as a
    share of the step.
    """
    keep_freed_memory()
    own = harness_seconds()
    for name in NAMES:
        step, harness = gpt2_step(name).step, Harness("cpu")
        rounds = [(bare_seconds(step), seconds_around(harness, step)) for _ in range(ROUNDS)]
        bare = median(bare for bare, _ in rounds)
        ratios = [around / alone - 1 for alone, around in rounds]
        interval = median_interval(ratios)
        assert interval is not None
        seen = f"seen {median(ratios):+.1%} ({interval.lower:+.1%} to {interval.upper:+.1%})"
        mark = "ok" if own < 0.01 * bare else "over 1 %"
        print(
            f"{name:<8} step {bare * 1e3:6.0f} ms, harness {own * 1e6:.1f} us = {own / bare:.5%}"
            f" {mark}; {seen}",
            flush=True,
        )


if __name__ == "__main__":
    main()
