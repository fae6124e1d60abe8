"""Models and optimizers that torch.compile would compile are refused with their line."""

import inspect
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import nn

from optprof.profiler import simulate
from optprof.profiler.records.places import short_name
from optprof.profiler.tracing.untraceable import UntraceableError
from optprof.scenarios import Scenario


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x).relu()


class Net(nn.Module):
    """Two blocks and a final function."""

    def __init__(self, end: Callable[[torch.Tensor], torch.Tensor] = torch.sin) -> None:
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block())
        self.end = end

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.end(self.blocks(x)).mean()


# Not inductor, torch's default, which takes seconds to load.
compile_eagerly: Any = partial(torch.compile, backend="eager")


@compile_eagerly
def sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


@partial(compile_eagerly, fullgraph=True)
def whole_sine(x: torch.Tensor) -> torch.Tensor:
    return x.sin()


def tangent(x: torch.Tensor) -> torch.Tensor:
    return x.tan()


plain_tangent: Any = torch.compiler.disable(tangent)


def late_sine(x: torch.Tensor) -> torch.Tensor:
    return compile_eagerly(torch.sin)(x)


def eager_sine(x: torch.Tensor) -> torch.Tensor:
    with torch.compiler.set_stance("force_eager"):
        return sine(x)


def _batch() -> dict[str, torch.Tensor]:
    return {"x": torch.randn(4, 8)}


def top() -> Any:
    return compile_eagerly(Net()), _batch()


def part() -> Any:
    model = Net()
    model.blocks[1] = compile_eagerly(model.blocks[1])
    return model, _batch()


def in_place() -> Any:
    model = Net()
    model.blocks[1].compile(fullgraph=True, backend="eager")
    return model, _batch()


def function() -> Any:
    return Net(sine), _batch()


def whole() -> Any:
    return Net(whole_sine), _batch()


def late() -> Any:
    return Net(late_sine), _batch()


def plain() -> Any:
    return Net(plain_tangent), _batch()


def eager() -> Any:
    return Net(eager_sine), _batch()


def _line(function: Any) -> int:
    return inspect.unwrap(function).__code__.co_firstlineno


@pytest.mark.parametrize(
    ("model", "name", "line"),
    [
        ("top", "Net", _line(Net.forward)),
        ("part", "Block", _line(Block.forward)),
        ("in_place", "Block", _line(Block.forward)),
        ("function", "sine", _line(sine)),
        ("whole", "whole_sine", _line(whole_sine)),
    ],
)
def test_compiled_code_is_named_with_its_line(model: str, name: str, line: int):
    with pytest.raises(UntraceableError) as error:
        simulate(Scenario(model=f"{__name__}:{model}"))
    assert f"{short_name(__file__)}, line {line}, {name} is compiled by torch.compile" in str(
        error.value
    )
    assert str(error.value).endswith("leave torch.compile out, or use --device cpu or cuda")


def of_torch() -> Any:
    model = Net()
    model.blocks = compile_eagerly(nn.Sequential(nn.Linear(8, 8), nn.GELU()))
    return model, _batch()


def test_torch_s_own_code_is_named_with_the_line_that_calls_it():
    with pytest.raises(
        UntraceableError, match=rf"line {_line(Net.forward) + 1}, Sequential is compiled"
    ):
        simulate(Scenario(model=f"{__name__}:of_torch"))
    with pytest.raises(UntraceableError, match=rf"line {_line(late_sine) + 1}, .* is compiled"):
        simulate(Scenario(model=f"{__name__}:late"))


@pytest.mark.parametrize("model", ["plain", "eager"])
def test_code_excluded_from_the_compiler_is_traced(model: str):
    assert simulate(Scenario(model=f"{__name__}:{model}")).outcome == "ok"


def test_a_refused_trace_leaves_torch_compile_unchanged():
    with pytest.raises(UntraceableError):
        simulate(Scenario(model=f"{__name__}:function"))
    calls = []

    def count(graph: Any, inputs: Any) -> Any:
        del inputs
        calls.append(graph)
        return graph.forward

    torch.compile(tangent, backend=count)(torch.ones(3))
    assert len(calls) == 1


def test_an_optimizer_that_compiles_its_updates_is_refused():
    scenario = Scenario(model=f"{__name__}:plain", optimizer="sm3", implementation="compiled")
    with pytest.raises(ValueError, match="a compiled step of sm3 cannot be simulated"):
        simulate(scenario)
