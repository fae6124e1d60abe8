"""Time the simulation of a training step, against torch's MemTracker, in one run.

MemTracker gives the live tensor bytes of one optimizer; optprof gives those and the bytes of CUDA's
allocator. The target: 12 times as fast for each optimizer. Run `python tests/bench/simulator.py
[MODEL]`; MemTracker takes minutes on gpt2-xl.
"""

import resource
import sys
import time
from collections.abc import Callable

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed._tools.mem_tracker import MemTracker

from optprof import optimizers
from optprof.profiler import simulate
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

OPTIMIZERS = ("adamw", "sm3", "sgd-sai", "lamb16")


def seconds(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def track(model: str, optimizer_name: str) -> None:
    """Run two training steps under MemTracker, on fake tensors, as its documentation shows."""
    with FakeTensorMode():
        workpiece = build(Scenario(model=model), "cpu")
        batch = {name: torch.zeros_like(value) for name, value in workpiece.batch.items()}
        optimizer = optimizers.create(
            optimizer_name, workpiece.model.parameters(), implementation="loop"
        )
        tracker = MemTracker()
        tracker.track_external(workpiece.model, optimizer)
        with tracker:
            for _ in range(2):
                workpiece.loss(batch).backward()
                optimizer.step()
                optimizer.zero_grad()
                tracker.reset_mod_stats()


def print_layers() -> None:
    """Print the simulation's time by the layers of a model; the time per layer stays constant."""
    for layers in (12, 24, 48, 96):
        taken = seconds(
            lambda layers=layers: simulate(
                Scenario(model="gpt2-xl", optimizer="adamw", config={"n_layer": layers})
            )
        )
        print(
            f"gpt2-xl with {layers} layers, adamw: {taken:6.2f} s, {1000 * taken / layers:5.1f} ms"
            " a layer",
            flush=True,
        )


def main() -> None:
    """Print seconds for each optimizer and the ratios."""
    model = sys.argv[1] if len(sys.argv) > 1 else "gpt2-xl"
    # Load transformers for both sides.
    build(Scenario(model="gpt2"), "meta")
    print(f"{model}, two training steps, seconds")
    for name in OPTIMIZERS:
        ours = seconds(lambda name=name: simulate(Scenario(model=model, optimizer=name)))
        print(f"{name:<10} optprof {ours:7.2f}", flush=True)
    ours = seconds(
        lambda: [simulate(Scenario(model=model, optimizer=name, seed=1)) for name in OPTIMIZERS]
    ) / len(OPTIMIZERS)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(
        f"mean of the four, the model traced once: {ours:.2f} s an optimizer; this process so far"
        f" {peak:.2f} GiB",
        flush=True,
    )
    print_layers()
    for name in OPTIMIZERS:
        theirs = seconds(lambda name=name: track(model, name))
        print(f"{name:<10} MemTracker {theirs:7.2f}   ratio {theirs / ours:6.1f}", flush=True)


if __name__ == "__main__":
    main()
