"""Time the optimizer's step on all of gpt2 and on slices of it, in turns in one process.

The slices are those that `optprof profile` takes of a model that does not fit. The target: medians
within 15 %.
"""

import time
from collections.abc import Callable
from statistics import median

import torch

from optprof import optimizers
from optprof.profiler.machine.malloc import keep_freed_memory
from optprof.profiler.measuring.measurement import SLICE_BUDGET
from optprof.profiler.measuring.slices import take_slices
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

ROUNDS = 15
BYTES_PER_PARAMETER = {"adamw": 16.0, "sgd-sai": 12.0, "sm3": 8.01, "lamb16": 10.0}


def steps(name: str, shapes: list[torch.Size]) -> Callable[[], object]:
    """Return the step of an optimizer over parameters of these shapes, with its state allocated."""
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer = optimizers.create(name, parameters, implementation="loop")
    optimizer.step()
    return optimizer.step


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def main() -> None:
    """Print medians of the whole model and of the scaled slices, and their deviation."""
    keep_freed_memory()
    model = build(Scenario(model="gpt2", workload="state"), "meta").model
    for name, nbytes in BYTES_PER_PARAMETER.items():
        parts = take_slices(model, bytes_per_parameter=nbytes, budget=SLICE_BUDGET)
        whole = steps(name, [p.shape for p in model.parameters()])
        of_parts = [
            (steps(name, [shape for shape, _ in part.tensors]), part.scale) for part in parts
        ]
        rounds = [
            (seconds(whole), sum(seconds(step) * scale for step, scale in of_parts))
            for _ in range(ROUNDS)
        ]
        real, scaled = (median(column) for column in zip(*rounds, strict=True))
        share = sum(part.count for part in parts) / 124_439_808
        print(
            f"{name:<8} whole {real * 1e3:6.0f} ms, from {share:.0%} of it {scaled * 1e3:6.0f} ms"
            f" ({scaled / real - 1:+.1%})",
            flush=True,
        )


if __name__ == "__main__":
    main()
