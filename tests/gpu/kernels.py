"""Kernels: an optimizer's step alone, on the parameters of a model and random gradients.

The samples are raw seconds, which kernel_marks.py reads. The copy bandwidth is measured in the same
process, just before.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from optprof import optimizers
from optprof.scenarios import Scenario, workpiece
from place import PLACE
from speeds import AHEAD_CYCLES, MIB, device_seconds
from torch.autograd import DeviceType  # pyright: ignore[reportPrivateImportUsage]

COPY_BYTES = 1024 * MIB
WARM_UP, SAMPLES = 3, 15
# Seconds of samples after which no further round begins.
SECONDS = 3.0
# The times that one pass over memory, or two where a norm must come first, reads or writes the
# parameters, the gradients and each state. SM3's accumulators are too small to count.
PASSES: dict[str, tuple[int, int, dict[str, int]]] = {
    "sm3": (2, 1, {}),
    "sgd-sai": (2, 1, {"momentum_buffer": 2}),
    "sgd": (2, 1, {"momentum_buffer": 2}),
    "adamw": (2, 1, {"exp_avg": 2, "exp_avg_sq": 2}),
    "lamb16": (3, 2, {"exp_avg": 3, "exp_avg_sq": 3}),
    "lamb": (3, 1, {"exp_avg": 3, "exp_avg_sq": 3}),
}


@dataclass(kw_only=True)
class Way:
    """An optimizer with one implementation, and its samples."""

    optimizer: torch.optim.Optimizer
    nbytes: int = 0
    warm_up: list[float] = field(default_factory=list)
    step: list[float] = field(default_factory=list)
    device: list[float] = field(default_factory=list)
    host: list[float] = field(default_factory=list)


def steps(say: Any, scenario: dict[str, Any], ways: Sequence[tuple[str, Any]]) -> None:
    """Time the steps of some optimizers and implementations in turn; each may fail alone."""
    say.attempt("copy", copy)
    parameters = _parameters(PLACE.prepare(Scenario(**scenario)))
    made: dict[str, Way] = {}

    def make(name: str, implementation: Any) -> dict[str, int]:
        optimizer = optimizers.create(name, parameters, implementation=implementation)
        way = Way(optimizer=optimizer)
        for _ in range(WARM_UP):
            way.warm_up.append(_waited(optimizer))
        way.nbytes = needed_bytes(name, optimizer)
        made[f"{name} {implementation}"] = way
        return {"parameters": sum(each.numel() for each in parameters), "tensors": len(parameters)}

    for name, implementation in ways:
        say.attempt(f"{name} {implementation}: size", make, name, implementation)
    # Samples before a failure are noted too.
    say.attempt("rounds", _sample, made)
    for label, way in made.items():
        samples = {key: value for key, value in vars(way).items() if key != "optimizer"}
        say(f"{label}: times", samples)
        # The profiler slows down what follows it.
        say.attempt(f"{label}: temporaries", _temporaries, way.optimizer)
    for label, way in made.items():
        say.attempt(f"{label}: launches", _launches, way.optimizer)


def copy() -> dict[str, Any]:
    """Return the bytes that a copy reads and writes, and seconds per copy."""
    nbytes = COPY_BYTES if PLACE.device == "cuda" else MIB
    source, target = (torch.ones(nbytes // 4, device=PLACE.device) for _ in range(2))
    inner = 5 if PLACE.device == "cuda" else 1
    return {
        "bytes": 2 * nbytes,
        "seconds": device_seconds(lambda: target.copy_(source), inner),
    }


def needed_bytes(name: str, optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes that a step must move, by the dtypes of its tensors."""
    of_parameter, of_gradient, of_state = PASSES[name]
    total = 0
    for parameter, state in optimizer.state.items():
        assert parameter.grad is not None
        total += of_parameter * parameter.nbytes + of_gradient * parameter.grad.nbytes
        total += sum(times * state[key].nbytes for key, times in of_state.items())
    return total


def _parameters(scenario: Scenario) -> list[torch.nn.Parameter]:
    """Return random parameters and gradients in the shapes of a model."""
    torch.manual_seed(0)
    parameters = []
    for like in workpiece.build(scenario, "meta").model.parameters():
        drawn = torch.empty(like.shape, dtype=like.dtype, device=PLACE.device).normal_(std=0.02)
        parameter = torch.nn.Parameter(drawn)
        parameter.grad = torch.empty_like(drawn).normal_(std=1e-3)
        parameters.append(parameter)
    return parameters


def _sample(made: dict[str, Way]) -> int:
    """Take samples in turn, so that a change of the device's clock reaches all ways alike.

    Return the number of rounds.
    """
    samples = SAMPLES if PLACE.device == "cuda" else 1
    end = time.monotonic() + SECONDS
    rounds = 0
    while rounds < samples and time.monotonic() < end:
        for way in made.values():
            torch.cuda.synchronize()
            way.step.append(_between_events(way.optimizer.step))
            way.device.append(_between_events(way.optimizer.step, ahead=True))
            start = time.perf_counter()
            way.optimizer.step()
            way.host.append(time.perf_counter() - start)
        rounds += 1
    torch.cuda.synchronize()
    return rounds


def _between_events(run: Callable[[], Any], *, ahead: bool = False) -> float:
    """Return the device's seconds; with `ahead` the host launches while the device is busy."""
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    if ahead:
        torch.cuda._sleep(AHEAD_CYCLES)
    start.record()
    run()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / 1000


def _waited(optimizer: torch.optim.Optimizer) -> float:
    """Return the host's seconds for a step that has ended on the device."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    optimizer.step()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _temporaries(optimizer: torch.optim.Optimizer) -> int:
    """Return the most bytes that a step holds in addition to those before it."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _launches(optimizer: torch.optim.Optimizer) -> dict[str, int]:
    """Return the number of kernels of a step, and of its copies and fills."""
    from torch.profiler import ProfilerActivity, profile

    cuda = PLACE.device == "cuda"
    with profile(activities=[ProfilerActivity.CUDA if cuda else ProfilerActivity.CPU]) as profiler:
        optimizer.step()
        torch.cuda.synchronize()
    kind = DeviceType.CUDA if cuda else DeviceType.CPU
    names = [event.name for event in profiler.events() or () if event.device_type == kind]
    copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
    return {"kernels": len(names) - copies, "copies": copies}
