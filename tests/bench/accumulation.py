"""Time a wrapper's draw on gpt2 on this CPU, next to the forward and backward pass before it.

The target: a draw without buffers takes less than 3 % of forward and backward. Both are timed in
turns in one process: a pass, then a draw of each wrapper on its gradients. No draw steps. The work
of the noise scale's hooks in a backward pass is done by hand, as part of its draw. The interval is
that of the median of the rounds' ratios. Run `python tests/bench/accumulation.py [ROUNDS]`.
"""

import sys
import time
from collections.abc import Callable
from statistics import median

import torch

from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import Accumulation, GradientNoiseScale, MetricHypothesisTest
from optprof.profiler.machine.malloc import keep_freed_memory
from optprof.profiler.records.confidence import median_interval
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

ROUNDS, WARM_UP, SEQUENCE_LENGTH = 11, 2, 256
TARGET = 0.03
SPECS = (
    "gnts:threshold=1e-9,max_draws=10000",
    "sbc:batch_size=10000,max_draws=10000",
    "mht:error=1e-9,max_draws=10000",
    "gns:tolerance=1e-9,max_draws=10000",
    "gns:tolerance=1e-9,max_draws=10000,estimator=mccandlish",
    "gnts:threshold=1e-9,max_draws=10000,buffered=true",
)


def seconds(run: Callable[[], object]) -> float:
    """Return the seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def draw(wrapper: Accumulation) -> None:
    """Draw once, and do the work of the noise scale's hook for each gradient."""
    if isinstance(wrapper, GradientNoiseScale) and not wrapper.buffered:
        for parameter in wrapper.param_groups[0]["params"]:
            wrapper._own_norms.see(id(parameter), parameter.grad)
    assert not wrapper.step(loss=10.0)


def main(rounds: int = ROUNDS) -> None:
    """Print the time of each wrapper's draw, and its share of forward and backward."""
    keep_freed_memory()
    workpiece = build(
        Scenario(model="gpt2", batch_size=1, sequence_length=SEQUENCE_LENGTH, device="cpu"), "cpu"
    )
    parameters = list(workpiece.model.parameters())
    wrappers = [accumulation.create(spec, torch.optim.SGD(parameters, lr=0.0)) for spec in SPECS]
    for wrapper in wrappers:
        if isinstance(wrapper, MetricHypothesisTest):
            # Without a running mean the first draw would step.
            wrapper.running_mean = 1.0
        if isinstance(wrapper, GradientNoiseScale):
            # The hooks of all wrappers would run in the pass.
            wrapper.close()
            wrapper._own_norms.watch = lambda params: None  # noqa: ARG005  # pyright: ignore[reportAttributeAccessIssue]
    passes, draws = [], [[] for _ in wrappers]
    for index in range(WARM_UP + rounds):
        taken = seconds(lambda: workpiece.loss(workpiece.batch).backward())
        grads = [parameter.grad for parameter in parameters]
        draw_seconds = [seconds(lambda wrapper=wrapper: draw(wrapper)) for wrapper in wrappers]
        # The last wrapper has buffers and moves gradients out of .grad, where the others need them.
        for parameter, grad in zip(parameters, grads, strict=True):
            parameter.grad = grad
        if index >= WARM_UP:
            passes.append(taken)
            for samples, sample in zip(draws, draw_seconds, strict=True):
                samples.append(sample)
    print(
        f"gpt2, 1 x {SEQUENCE_LENGTH} tokens: forward and backward {median(passes) * 1e3:.0f} ms,"
        f" {torch.get_num_threads()} threads"
    )
    for spec, samples in zip(SPECS, draws, strict=True):
        ratios = [draw_seconds / taken for draw_seconds, taken in zip(samples, passes, strict=True)]
        interval = median_interval(ratios)
        assert interval is not None
        share = median(ratios)
        name = " ".join(
            [spec.partition(":")[0], *(word for word in ("mccandlish", "buffered") if word in spec)]
        )
        text = f"{share:.2%} ({interval.lower:.2%} to {interval.upper:.2%})"
        print(
            f"{name:<15} draw {median(samples) * 1e3:6.1f} ms = {text} of it"
            f" {'ok' if share < TARGET else 'over 3 %'}",
            flush=True,
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
