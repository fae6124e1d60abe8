"""The scenario of a watched loop: its groups' options, its model inside wrappers."""

import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import optprof
from optprof.optimizers import LAMB, LAMB16, SM3
from optprof.optimizers.accumulation import GradientNormThreshold
from optprof.profiler.measuring.watching import Watch
from optprof.scenarios import Scenario


def net(kind: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4, bias=False), kind(), nn.Linear(4, 8, bias=False))


def scenario_of(optimizer: torch.optim.Optimizer, model: Any = None) -> Scenario:
    with Watch(optimizer, model=model) as watch:
        pass
    assert watch.records[0].watched is not None
    assert watch.records[0].watched.warnings == ()
    return watch.records[0].scenario


def in_groups(
    kind: Callable[..., torch.optim.Optimizer], model: nn.Sequential, **options: Any
) -> torch.optim.Optimizer:
    """Return an optimizer of two groups, the first with these options."""
    return kind([{"params": [model[0].weight], **options}, {"params": [model[2].weight]}])


class Together(TorchDispatchMode):
    """Records the longest list of tensors of an operation; our loop uses lists of one."""

    def __init__(self) -> None:
        super().__init__()
        self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.most = max(
            self.most,
            *(len(arg) for arg in args if "_foreach_" in str(func) and isinstance(arg, list)),
            0,
        )
        return func(*args, **(kwargs or {}))


Made = Callable[[nn.Sequential], torch.optim.Optimizer]
SGD = partial(torch.optim.SGD, lr=0.1)
MADE: dict[str, Made] = {
    "plain": lambda model: torch.optim.AdamW(model.parameters()),
    "amsgrad": lambda model: in_groups(torch.optim.AdamW, model, amsgrad=True),
    "foreach": lambda model: torch.optim.AdamW(
        [{"params": list(model.parameters()), "foreach": True}]
    ),
    "a foreach group": lambda model: in_groups(torch.optim.AdamW, model, foreach=True),
    "fused": lambda model: torch.optim.AdamW([{"params": list(model.parameters()), "fused": True}]),
    "momentum": lambda model: in_groups(SGD, model, momentum=0.9),
    "the other group": lambda model: SGD(
        [{"params": [model[2].weight], "momentum": 0.9}, {"params": [model[0].weight]}]
    ),
    "no momentum": lambda model: SGD(model.parameters()),
    "compiled": lambda model: LAMB(model.parameters(), compiled=True),
    "lamb": lambda model: LAMB(model.parameters()),
    "wrapped": lambda model: GradientNormThreshold(
        torch.optim.AdamW(model.parameters()), threshold=0.5
    ),
    "wrapped otherwise": lambda model: GradientNormThreshold(
        torch.optim.AdamW(model.parameters()), threshold=0.7
    ),
    "wrapped lamb": lambda model: GradientNormThreshold(LAMB(model.parameters()), threshold=0.5),
}


def test_optimizers_with_other_options_are_other_records(tmp_path: Path):
    for make in MADE.values():
        model = net()
        with optprof.watch(make(model), model=model, out=tmp_path):
            pass
    assert len(optprof.read_run(tmp_path).records) == len(MADE)


@pytest.mark.parametrize(
    ("made", "options", "implementation"),
    [
        ("plain", {"amsgrad": False, "lr": 1e-3, "betas": [0.9, 0.999]}, "loop"),
        # 4 x 4 elements with amsgrad, 4 x 8 without.
        ("amsgrad", {"amsgrad": [True, False], "lr": 1e-3, "elements": [16, 32]}, "loop"),
        ("foreach", {"amsgrad": False}, "foreach"),
        ("a foreach group", {"implementation": ["foreach", "loop"], "elements": [16, 32]}, "loop"),
        ("fused", {}, "fused"),
        ("momentum", {"momentum": [0.9, 0], "lr": 0.1}, "loop"),
        ("compiled", {}, "compiled"),
        ("wrapped", {"optimizer": "adamw", "target": 0.5, "buffered": False, "lr": 1e-3}, "loop"),
    ],
)
def test_options_are_those_of_the_groups(made: str, options: dict[str, Any], implementation: str):
    scenario = scenario_of(MADE[made](net()))
    assert {name: scenario.options[name] for name in options} == options
    assert scenario.implementation == implementation
    assert not scenario.options.keys() & {"foreach", "fused", "params"}


@pytest.mark.parametrize(
    ("make", "on_cuda"),
    [
        (torch.optim.AdamW, "foreach"),
        (SGD, "foreach"),
        (torch.optim.Adafactor, "loop"),
        (partial(torch.optim.AdamW, fused=False), "loop"),
        (partial(torch.optim.AdamW, foreach=False), "loop"),
        (partial(torch.optim.AdamW, lr=torch.tensor(0.1)), "loop"),
        (type("Mine", (torch.optim.AdamW,), {}), "foreach"),
        (LAMB, "foreach"),
        (SM3, "foreach"),
        (LAMB16, "foreach"),
        (partial(SM3, foreach=False), "loop"),
    ],
)
def test_an_implementation_left_open_is_the_one_that_torch_chooses(
    make: Callable[..., Any], on_cuda: str, monkeypatch: pytest.MonkeyPatch
):
    # Our foreach puts the two small weights together: they are not larger than the third.
    model = nn.Sequential(nn.Linear(4, 4, bias=False), *net().children())
    optimizer = make(model.parameters())
    assert scenario_of(optimizer).implementation == "loop"
    # As if the CPU were a device on which torch chooses foreach.
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"],
        "_get_foreach_kernels_supported_devices",
        lambda: ["cpu"],
    )
    assert scenario_of(optimizer).implementation == on_cuda
    model(torch.ones(1, 4)).sum().backward()
    with Together() as together:
        optimizer.step()
    assert (together.most > 1) == (on_cuda == "foreach")


@pytest.mark.parametrize(
    ("options", "on_cuda"),
    [
        ({"differentiable": True}, "loop"),
        ({"lr": torch.tensor(0.1), "capturable": True}, "foreach"),
    ],
)
def test_groups_that_the_cpu_cannot_step_have_an_implementation_too(
    options: dict[str, Any], on_cuda: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        sys.modules["torch.optim.optimizer"],
        "_get_foreach_kernels_supported_devices",
        lambda: ["cpu"],
    )
    assert scenario_of(torch.optim.AdamW(net().parameters(), **options)).implementation == on_cuda


SCHEDULERS: list[Callable[[Any], Any]] = [
    lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, gamma=0.5),
    lambda optimizer: torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step / 10),
    lambda optimizer: torch.optim.lr_scheduler.CyclicLR(
        optimizer, base_lr=0.1, max_lr=0.5, base_momentum=0.8, max_momentum=0.9
    ),
]


@pytest.mark.parametrize("schedule", SCHEDULERS)
@pytest.mark.parametrize("make", [partial(SGD, momentum=0.9), partial(torch.optim.AdamW, lr=0.1)])
@pytest.mark.filterwarnings("ignore:Detected call of")
def test_a_schedule_does_not_change_the_scenario(
    schedule: Callable[[Any], Any], make: Callable[..., Any]
):
    model = net()
    optimizer = make(model.parameters())
    before, scheduler = scenario_of(optimizer), schedule(optimizer)
    at_first = scenario_of(optimizer)
    for _ in range(3):
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] != 0.1
    assert before == at_first == scenario_of(optimizer)


class Odd(torch.optim.Optimizer):
    """An optimizer with options that are not JSON, and one that changes with each step."""

    def __init__(self, params: Iterable[Any], **options: Any) -> None:
        super().__init__(params, {"lr": 0.1, "k": 0, **options})


def test_options_that_are_not_plain_data_are_recorded_as_texts():
    options = {
        "tensor": torch.tensor(0.5),
        "number": np.float32(0.25),
        "endless": float("inf"),
        "large": 2**70,
        "function": max,
        "many": torch.ones(3),
        "nested": {"pair": (1, torch.tensor(2))},
        "thing": object(),
    }
    recorded = scenario_of(Odd(net().parameters(), **options)).options
    texts = {
        "tensor": 0.5,
        "number": 0.25,
        "endless": "inf",
        "large": str(2**70),
        "function": "max",
        "many": "Tensor",
    }
    assert {name: recorded[name] for name in texts} == texts
    assert (recorded["nested"], recorded["thing"]) == ({"pair": [1, 2]}, "object")


def test_a_group_s_counter_is_not_an_option():
    model = net()
    optimizer = Odd(model.parameters())
    before = scenario_of(optimizer)
    optimizer.param_groups[0]["k"] = 7
    assert scenario_of(optimizer) == before


def test_entries_of_a_group_that_are_not_defaults_are_options():
    """Without defaults, as Muon with an inner Adam is often written."""
    model = net()
    groups = [
        {"params": [model[0].weight], "use_muon": True},
        {"params": [model[2].weight], "use_muon": False},
    ]
    assert scenario_of(type("Mine", (torch.optim.Optimizer,), {})(groups, {})).options == {
        "use_muon": [True, False],
        "elements": [16, 32],
    }


class Wide(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(4, 4)


class Deep(Wide):
    pass


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "DataParallel": nn.DataParallel,
    "AveragedModel": torch.optim.swa_utils.AveragedModel,
    "OptimizedModule": lambda model: torch.compile(model, backend="eager"),
}


@pytest.mark.parametrize(
    "names", [[], *([name] for name in WRAPPERS), ["DataParallel", "OptimizedModule"]]
)
def test_a_wrapped_model_has_its_own_name_and_its_wrappers_are_recorded(names: list[str]):
    scenarios: list[Scenario] = []
    for model in (Wide(), Deep()):
        wrapped = model
        for name in reversed(names):
            wrapped = WRAPPERS[name](wrapped)
        scenarios.append(scenario_of(torch.optim.AdamW(model.parameters()), wrapped))
    assert [scenario.model for scenario in scenarios] == [f"{__name__}:Wide", f"{__name__}:Deep"]
    assert [scenario.config for scenario in scenarios] == [
        {"parameters": 20} | ({"wrapped_by": names} if names else {})
    ] * 2


def test_other_trained_parts_of_a_model_are_other_scenarios():
    whole, head, frozen = Wide(), Wide(), Wide()
    frozen.layer.weight.requires_grad_(False)
    configs = [
        scenario_of(torch.optim.AdamW(parameters), model).config
        for parameters, model in (
            (whole.parameters(), whole),
            ([head.layer.bias], head),
            (frozen.parameters(), frozen),
        )
    ]
    assert configs == [
        {"parameters": 20},
        {"parameters": 20, "trained": 4},
        {"parameters": 20, "trained": 4, "frozen": 16},
    ]


class Ranked(torch.optim.SGD):
    """An optimizer with options that are not in its groups."""

    def __init__(self, params: Iterable[nn.Parameter], rank: int, decay: float = 0.5) -> None:
        super().__init__(params, lr=0.1)
        self.rank, self._decay = rank, decay


def test_options_in_attributes_of_an_optimizer_are_part_of_the_scenario():
    by_optimizer = [
        scenario_of(Ranked(net().parameters(), **options)).options
        for options in ({"rank": 4}, {"rank": 8, "decay": 0.25})
    ]
    assert [(options["lr"], options["rank"], options["decay"]) for options in by_optimizer] == [
        (0.1, 4, 0.5),
        (0.1, 8, 0.25),
    ]


def test_a_class_that_torch_derives_from_the_user_s_has_the_user_s_name():
    model = nn.utils.parametrizations.orthogonal(nn.Linear(4, 4))
    assert type(model).__name__ == "ParametrizedLinear"
    assert (
        scenario_of(torch.optim.AdamW(model.parameters()), model).model
        == "torch.nn.modules.linear:Linear"
    )


def test_containers_with_other_layers_are_other_models():
    configs = [
        scenario_of(torch.optim.AdamW(model.parameters()), model)
        for model in (net(), net(nn.Tanh), net(nn.Tanh))
    ]
    assert configs[0] != configs[1] == configs[2]


@pytest.mark.filterwarnings("ignore:Complex modules")
@pytest.mark.parametrize(
    ("dtypes", "common"),
    [
        ((torch.float16, torch.float16), "fp16"),
        ((torch.float64, torch.float64), "fp64"),
        ((torch.complex64, torch.complex64), None),
        ((torch.bfloat16, torch.float32), None),
    ],
)
def test_a_model_of_mixed_dtypes_has_no_dtype_and_lists_them(
    dtypes: tuple[torch.dtype, torch.dtype], common: str | None
):
    model = net()
    model[0].to(dtypes[0])
    model[2].to(dtypes[1])
    optimizer = SGD(model.parameters())
    with Watch(optimizer, model=model) as watch:
        for parameter in model.parameters():
            parameter.grad = torch.ones_like(parameter)
        optimizer.step()
    memory = watch.records[0].memory
    assert memory is not None
    expected: dict[str, int] = {}
    for dtype, elements in zip(dtypes, (16, 32), strict=True):
        name = str(dtype).removeprefix("torch.")
        expected[name] = expected.get(name, 0) + elements * dtype.itemsize
    assert memory.parameters_by_dtype == expected
    assert memory.gradients == memory.parameters == sum(expected.values())
    assert watch.records[0].scenario.dtype == common


def test_parameters_and_options_are_not_printed(monkeypatch: pytest.MonkeyPatch) -> None:
    from optprof.profiler.measuring.live_optimizer import live_options

    def refuse(_: object) -> str:
        raise AssertionError("a tensor was printed")

    monkeypatch.setattr(torch.Tensor, "__repr__", refuse)
    monkeypatch.setattr(torch.nn.Parameter, "__repr__", refuse)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    optimizer.param_groups[0]["mask"] = torch.ones(2)
    assert live_options(optimizer)


def test_an_option_that_contains_itself_is_cut() -> None:
    from optprof.profiler.measuring.live_optimizer import live_options

    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    ring: list[object] = []
    ring.append(ring)
    optimizer.defaults["ring"] = optimizer.param_groups[0]["ring"] = ring
    assert live_options(optimizer)["lr"] == 0.1
