"""The compiled way: the numbers of the loop, from one compilation for each kind of tensor."""

from collections.abc import Iterator
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer

from optprof import optimizers
from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI, compiled

OURS = pytest.mark.parametrize("factory", [SGDSaI, SM3, LAMB, LAMB16])
# Kinds by rank, by whether a matrix is square, and, below a size, the plain loop.
SHAPES = [(256, 128), (160, 224), (128, 384), (192, 100), (20000,), (30000,), (7,), ()]

# Options as they may change from step to step.
CYCLED: list[Any] = [
    (
        SGDSaI,
        lambda x: {
            "lr": 1e-3 * x,
            "momentum": 0.8 + x / 100,
            "weight_decay": 0.01 * x,
            "eps": 1e-3 * x,
        },
    ),
    (
        SM3,
        lambda x: {
            "lr": 1e-2 * x,
            "momentum": 0.8 + x / 100,
            "beta": 0.9 + x / 200,
            "eps": 1e-2 * x,
        },
    ),
    (
        LAMB,
        lambda x: {
            "lr": 1e-3 * x,
            "betas": (0.8 + x / 100, 0.99 + x / 2000),
            "weight_decay": 0.01 * x,
            "eps": 1e-3 * x,
        },
    ),
    (LAMB, lambda x: {"max_weight_norm": 1.0 + x, "trust_clip": 1.0 + x}),
    (
        LAMB16,
        lambda x: {
            "lr": 1e-3 * x,
            "betas": (0.8 + x / 100, 0.99 + x / 2000),
            "weight_decay": 0.01 * x,
            "eps": 0.1 * x,
        },
    ),
    (LAMB16, lambda x: {"trust_scale": 0.3 + x / 100}),
]


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """Collect the graphs of torch.compile and run them uncompiled: compiling takes seconds."""
    made: list[Any] = []

    def keep(graph: Any, _: Any) -> Any:
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(compiled, "BACKEND", keep)
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def descend(
    factory: Any,
    steps: int = 4,
    shapes: Any = SHAPES,
    dtype: torch.dtype = torch.float32,
    **options: Any,
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    params = [Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]
    optimizer: Optimizer = factory(params, **options)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    for _ in range(steps):
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(dtype)
        optimizer.step()
        scheduler.step()
    return params


@pytest.mark.parametrize(
    ("factory", "options", "most"),
    [
        (SGDSaI, {}, 1),
        (SGDSaI, {"momentum": 0.0, "maximize": True}, 1),
        (SM3, {}, 2),
        (SM3, {"momentum": 0.9, "beta": 0.9}, 2),
        (LAMB, {"weight_decay": 0.1}, 1),
        (LAMB, {"preset": "cybertronai"}, 1),
        (LAMB, {"preset": "nvidia", "weight_decay": 0.1}, 1),
        (LAMB16, {"weight_decay": 0.1}, 1),
        (LAMB16, {"scale": "upstream"}, 1),
    ],
)
def test_one_graph_serves_all_tensors_of_a_kind_at_every_step(
    graphs: list[Any], factory: Any, options: dict[str, Any], most: int
) -> None:
    params = descend(factory, compiled=True, **options)
    assert 1 <= len(graphs) <= most
    for param, reference in zip(params, descend(factory, foreach=False, **options), strict=True):
        torch.testing.assert_close(param, reference, rtol=1e-5, atol=1e-5)
    # Another optimizer of the class shares them.
    count = len(graphs)
    descend(factory, compiled=True, **options)
    assert len(graphs) == count


@pytest.mark.parametrize(("factory", "cycled"), CYCLED)
def test_a_new_value_of_an_option_needs_no_compilation(
    graphs: list[Any], factory: Any, cycled: Any
) -> None:
    # torch gives up at the ninth; OneCycleLR gives momentum another one at every step.
    results = []
    for way in ({"compiled": True}, {"foreach": False}):
        torch.manual_seed(0)
        param = Parameter(torch.randn(128, 160))
        optimizer = factory([param], **way)
        for step in range(12):
            optimizer.param_groups[0].update(cycled(step + 1))
            param.grad = torch.randn(128, 160)
            optimizer.step()
        results.append(param)
    assert len(graphs) == 1
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_momentum_that_a_scheduler_cycles_is_followed(graphs: list[Any]) -> None:
    results = []
    for way in ({"compiled": True}, {"foreach": False}):
        torch.manual_seed(0)
        param = Parameter(torch.randn(128, 160))
        optimizer = SGDSaI([param], lr=1e-3, **way)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-3, total_steps=20)
        for _ in range(20):
            param.grad = torch.randn(128, 160)
            optimizer.step()
            scheduler.step()
        results.append(param)
    assert len(graphs) == 1
    torch.testing.assert_close(*results, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize(
    ("factory", "options"),
    [(SGDSaI, {"lr": 1e-3}), (SM3, {"momentum": 0.9}), (LAMB, {"lr": 0.1}), (LAMB16, {"lr": 0.1})],
)
def test_compiled_steps_give_the_numbers_of_the_loop_in_every_dtype(
    graphs: list[Any], factory: Any, options: dict[str, Any], dtype: torch.dtype
) -> None:
    shapes = [(256, 128)]
    (start,) = descend(factory, steps=0, shapes=shapes, dtype=dtype)
    (param,) = descend(factory, shapes=shapes, dtype=dtype, compiled=True, **options)
    (wanted,) = descend(factory, shapes=shapes, dtype=dtype, foreach=False, **options)
    assert len(graphs) == 1
    # A compiler rounds to half precision at other places.
    assert distance(param, wanted) <= 0.005 * distance(wanted, start)


def distance(one: Parameter, other: Parameter) -> float:
    return (one.double() - other.double()).abs().mean().item()


@OURS
def test_a_transposed_parameter_keeps_its_axes(graphs: list[Any], factory: Any) -> None:
    results = []
    for way in ({"foreach": False}, {"compiled": True}):
        torch.manual_seed(0)
        param = Parameter(torch.randn(100, 200).t())
        optimizer = factory([param], **way)
        for _ in range(3):
            param.grad = torch.randn(200, 100)
            optimizer.step()
        results.append(param)
    assert graphs
    torch.testing.assert_close(results[1], results[0], rtol=1e-5, atol=1e-5)


@OURS
def test_a_compiled_step_bumps_the_version_that_autograd_watches(
    graphs: list[Any], factory: Any
) -> None:
    param = Parameter(torch.ones(128, 160))
    param.grad = torch.ones_like(param)
    before = param._version
    factory([param], compiled=True).step()
    assert graphs
    assert param._version > before


@OURS
def test_compiled_and_foreach_exclude_each_other(factory: Any) -> None:
    with pytest.raises(ValueError, match="compiled=True and foreach=True"):
        factory([Parameter(torch.ones(1))], compiled=True, foreach=True)


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(("factory", "options"), CYCLED)
def test_compiled_steps_give_the_numbers_of_the_loop(factory: Any, options: Any) -> None:
    torch._dynamo.reset()
    shapes = [(256, 128), (160, 224)]
    # The second time with other numbers, for which the first compilation must serve.
    for chosen in (options(1), options(9)):
        params = descend(factory, shapes=shapes, compiled=True, **chosen)
        wanted = descend(factory, shapes=shapes, foreach=False, **chosen)
        apart = sum(
            int((param - reference).abs().gt(1e-5 + 1e-5 * reference.abs()).sum())
            for param, reference in zip(params, wanted, strict=True)
        )
        # Of LAMB16 a moment that lies a rounding of float32 from a threshold may be stored as
        # either neighbour.
        assert apart <= (10 if factory is LAMB16 else 0)


@pytest.mark.compiler
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(("factory", "tensors"), [(SGDSaI, 0), (SM3, 0.1), (LAMB, 1), (LAMB16, 0)])
def test_a_compiled_step_holds_few_temporaries(factory: Any, tensors: float) -> None:
    param = Parameter(torch.randn(512, 256))
    optimizer = factory([param], compiled=True)
    for _ in range(2):
        param.grad = torch.randn_like(param)
        optimizer.step()
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        optimizer.step()
    scalars = 4096
    assert peak_bytes(profile) <= tensors * param.nbytes + scalars


def peak_bytes(profile: Any) -> int:
    """Count the most bytes alive at once that torch's allocator gave."""
    changes = [
        event for event in profile.profiler.kineto_results.events() if event.name() == "[memory]"
    ]
    return max(
        accumulate(
            (event.nbytes() for event in sorted(changes, key=lambda event: event.start_ns())),
            initial=0,
        )
    )


def assert_compiled_as_a_whole(factory: Any, shapes: Any, fullgraph: bool) -> None:
    torch._dynamo.reset()
    results = []
    for whole in (False, True):
        torch.manual_seed(0)
        params = [Parameter(torch.randn(shape)) for shape in shapes]
        optimizer = factory(params)
        step = (
            torch.compile(optimizer.step, fullgraph=fullgraph, backend="eager")
            if whole
            else optimizer.step
        )
        for index in range(4):
            for param in params:
                # SGD-SaI's original has a defect: it takes its ratio at each compiled step.
                param.grad = torch.zeros_like(param) if index == 0 else torch.randn_like(param)
            step()
        results.append(params)
    for param, reference in zip(*results, strict=True):
        torch.testing.assert_close(param, reference)


@pytest.mark.parametrize(
    ("name", "way"),
    [
        pytest.param(name, way, marks=[pytest.mark.compiler] if way == "fused" else [])
        for name in optimizers.available("optprof")
        for way in optimizers.implementations(name)
        if way != "compiled"
    ],
)
def test_a_step_that_is_compiled_as_a_whole_has_no_break_and_the_same_numbers(
    name: str, way: Any
) -> None:
    assert_compiled_as_a_whole(
        lambda params: optimizers.create(name, params, implementation=way),
        [(4, 3), (5,), ()],
        fullgraph=True,
    )


@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "way"),
    [
        (name, way)
        for name in optimizers.available("torch")
        for way in optimizers.implementations(name)
    ],
)
def test_torch_s_own_steps_compiled_as_a_whole_have_the_same_numbers(name: str, way: Any) -> None:
    # Most of them break the graph themselves; Muon takes only matrices.
    shapes = [(4, 3), (5, 5)] if name == "muon" else [(4, 3), (5,), ()]
    assert_compiled_as_a_whole(
        lambda params: optimizers.create(name, params, implementation=way),
        shapes,
        fullgraph=False,
    )
