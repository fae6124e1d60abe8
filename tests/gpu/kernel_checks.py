"""Kernel checks: fused steps against the loop, and the replays of a CUDA graph against steps."""

from collections.abc import Callable
from typing import Any

import torch
from optprof import optimizers
from place import PLACE

# Each number of axes, sizes that no chunk or vector divides, and one tensor of many chunks.
SHAPES = (
    (),
    (1,),
    (7,),
    (4099,),
    (1, 1),
    (3, 5),
    (127, 65),
    (1031, 517),
    (1, 2053),
    (2053, 1),
    (5, 3, 7),
    (64, 33, 17),
    (13, 3, 3, 3),
    (67, 31, 5, 3),
)
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
STEPS = 3
# SM3 and SGD-SaI count no steps.
COUNTS_STEPS = ("lamb", "lamb16")


def check(say: Any, specs: list[str], graph: str) -> None:
    """Compare the fused steps of some options with the loop's, then capture a step."""
    for spec in specs:
        for dtype in DTYPES:
            say.attempt(f"{spec} {dtype}: differences", differences, spec, DTYPES[dtype])
    say.attempt(f"{graph} fp32: replay", replay, graph)


def differences(spec: str, dtype: torch.dtype) -> dict[str, Any]:
    """Return the largest difference of weights after some steps, by shape.

    `moved` is the largest change of a weight by the loop, in the same steps.
    """
    start = _tensors(0, dtype)
    loop, fused = (_Twin(spec, start, way) for way in ("loop", "fused"))
    for number in range(1, STEPS + 1):
        for twin in (loop, fused):
            twin.give(_tensors(number, dtype))
            twin.optimizer.step()
    torch.cuda.synchronize()
    return {
        str(shape): {
            "difference": _largest(mine - its),
            "moved": _largest(its - was),
            "finite": bool(mine.isfinite().all()),
        }
        for shape, mine, its, was in zip(
            SHAPES, fused.values(), loop.values(), (each.double() for each in start), strict=True
        )
    }


def replay(spec: str) -> dict[str, Any]:
    """Return whether replays of a captured step leave the weights of as many eager steps."""
    name = spec.partition(":")[0]
    options = {"capturable": True} if name in COUNTS_STEPS else {}
    start = _tensors(0, torch.float32)
    eager, captured = (_Twin(spec, start, "fused", **options) for _ in range(2))
    for number in range(1, STEPS + 1):
        # The first step makes the state; a later one may use what the host has learned since.
        _step_both(eager, captured, number, captured.optimizer.step)
    before = _same(eager, captured)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured.optimizer.step()
    for number in range(STEPS + 1, 2 * STEPS + 1):
        _step_both(eager, captured, number, graph.replay)
    pairs = zip(eager.values(), captured.values(), strict=True)
    return {
        "same_before": before,
        "same": _same(eager, captured),
        "difference": max(_largest(one - other) for one, other in pairs),
    }


class _Twin:
    """Parameters that start with the same values, and their optimizer."""

    def __init__(self, spec: str, start: list[torch.Tensor], way: Any, **options: Any) -> None:
        self.parameters = [torch.nn.Parameter(each.clone()) for each in start]
        for parameter in self.parameters:
            parameter.grad = torch.zeros_like(parameter)
        self.optimizer = optimizers.create(spec, self.parameters, implementation=way, **options)

    def give(self, gradients: list[torch.Tensor]) -> None:
        """Copy gradients to the addresses that a graph reads."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            assert parameter.grad is not None
            parameter.grad.copy_(gradient)

    def values(self) -> list[torch.Tensor]:
        """Return the weights in float64."""
        return [parameter.detach().double() for parameter in self.parameters]


def _step_both(eager: _Twin, captured: _Twin, number: int, run: Callable[[], Any]) -> None:
    gradients = _tensors(number, torch.float32)
    eager.give(gradients)
    captured.give(gradients)
    eager.optimizer.step()
    run()
    torch.cuda.synchronize()


def _same(one: _Twin, other: _Twin) -> bool:
    pairs = zip(one.parameters, other.parameters, strict=True)
    return all(torch.equal(mine, its) for mine, its in pairs)


def _tensors(seed: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Return normal numbers in all shapes; the same seed gives the same ones on any device."""
    generator = torch.Generator().manual_seed(seed)
    drawn = (torch.randn(shape, generator=generator) for shape in SHAPES)
    return [each.to(device=PLACE.device, dtype=dtype) for each in drawn]


def _largest(tensor: torch.Tensor) -> float:
    return float(tensor.abs().max())
