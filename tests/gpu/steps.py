"""Steps over many small tensors, on which the device has almost no work: Python's cost."""

import time
from typing import Any

import torch
from optprof import optimizers
from place import PLACE

# Names of the catalogue, torch's too: the estimate needs one rule for all.
WAYS: tuple[tuple[str, Any], ...] = (
    *(("adamw", way) for way in ("loop", "foreach", "fused")),
    *(("sgd", way) for way in ("loop", "foreach", "fused")),
    *((name, way) for name in ("sgd-sai", "sm3", "lamb", "lamb16") for way in ("loop", "foreach")),
    ("adafactor", "foreach"),
)
COUNTS = (1, 16, 128)
WARM_UP, SAMPLES = 2, 9


def small_steps(say: Any) -> None:
    """Note the seconds of a step over small tensors, for the host alone and with a wait."""
    for name, way in WAYS:
        say.attempt(f"step {name} {way}", _by_count, name, way)


def _by_count(name: str, way: Any) -> dict[str, dict[str, list[float]]]:
    return {str(count): _times(name, way, count) for count in COUNTS}


def _times(name: str, way: Any, count: int) -> dict[str, list[float]]:
    shapes = [(8, 8) if index % 2 == 0 else (8,) for index in range(count)]
    parameters = [torch.nn.Parameter(torch.ones(shape, device=PLACE.device)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    optimizer = optimizers.create(name, parameters, implementation=way)
    seconds: dict[str, list[float]] = {"host": [], "waited": []}
    samples = SAMPLES if PLACE.device == "cuda" else 1
    for sample in range(WARM_UP + samples):
        torch.cuda.synchronize()
        start = time.perf_counter()
        optimizer.step()
        launched = time.perf_counter()
        torch.cuda.synchronize()
        if sample >= WARM_UP:
            seconds["host"].append(launched - start)
            seconds["waited"].append(time.perf_counter() - start)
    return seconds
