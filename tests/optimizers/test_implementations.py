"""The named implementation is the one that runs, judged by the operations of a step."""

import sys
from collections import Counter
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode

from optprof import optimizers
from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI, compiled, fused
from optprof.profiler.running.plan import comparison, plan
from optprof.profiler.training.optimizer import make_optimizer
from optprof.scenarios import Scenario, spec

# Alike, so that several of them make one bucket of ours; a parameter this large is worth compiling.
SHAPES = [(128, 128), (16, 8), (16, 8), (16, 8), (8,), (8,)]
OURS = {"lamb": LAMB, "lamb16": LAMB16, "sgd-sai": SGDSaI, "sm3": SM3}
SETTINGS = (
    "lamb16:scale=upstream",
    "lamb:preset=nvidia",
    "sm3:momentum=0.9,beta=0.9",
    "sgd-sai:momentum=0",
)
# Every matrix of these tests is smaller than the default rank, so none is projected, and foreach
# takes all of them.
NAMES = (*optimizers.available(), *SETTINGS)
MINE = """
from torch.optim import SGD, AdamW

class Plain(AdamW):
    def __init__(self, params, lr=1e-3):
        super().__init__(params, lr=lr)

class Open(SGD):
    def __init__(self, params, **anything):
        super().__init__(params, **anything)

class Settled(AdamW):
    def __init__(self, params):
        super().__init__(params, foreach=True)

class Fused(AdamW):
    def __init__(self, params):
        super().__init__(params, fused=True)

class Own(AdamW):
    def __init__(self, params):
        super().__init__(params)

    def step(self, closure=None):
        return super().step(closure)
"""


class Counting(TorchDispatchMode):
    """Count operations by kind, and the most tensors of a list operation, without step counts."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: Counter[str] = Counter()
        self.longest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name
        if "_foreach_" in name:
            if any(tensor.dim() for tensor in args[0]):
                self.longest = max(self.longest, len(args[0]))
        else:
            self.kinds["fused" if "_fused_" in name else "tensor"] += 1
        return func(*args, **(kwargs or {}))


@pytest.fixture
def on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch choose between loop and foreach as it does on CUDA."""
    module = sys.modules["torch.optim.optimizer"]
    monkeypatch.setattr(module, "_get_foreach_kernels_supported_devices", lambda: ["cpu"])


@pytest.fixture
def kernels(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Count our steps by a kernel and by compiled code, which no dispatch mode sees."""
    used: Counter[str] = Counter()

    def kernel(*_: Any) -> Any:
        used["fused"] += 1
        return lambda *_: None

    def update(*_: Any) -> None:
        used["compiled"] += 1

    monkeypatch.setattr(fused, "kernel", kernel)
    monkeypatch.setattr(compiled, "update", update)
    return used


def ran(text: str, kernels: Counter[str], **options: Any) -> str:
    """Return the implementation that a step of a created optimizer used."""
    return ran_by(lambda params: optimizers.create(text, params, **options), kernels)


def ran_by(make: Any, kernels: Counter[str]) -> str:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape)) for shape in SHAPES]
    optimizer: Optimizer = make(params)
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        kernels.clear()
        optimizer.step()
    if kernels:
        (way,) = kernels
        return way
    with Counting() as counting:
        optimizer.step()
    if counting.kinds["fused"]:
        return "fused"
    return "foreach" if counting.longest > 1 else "loop"


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("text", "way"),
    [
        (text, way)
        for text in NAMES
        for way in optimizers.implementations(text, "cpu")
        if (text, way) != (SETTINGS[0], "fused")
    ],
)
def test_an_implementation_that_is_named_is_the_one_that_runs(
    text: str, way: Any, kernels: Counter[str]
) -> None:
    assert ran(text, kernels, implementation=way) == way
    scenario = Scenario(
        model="gpt2",
        optimizer=text.partition(":")[0],
        options=optimizers.parse(text)[1],
        implementation=way,
        device="cpu",
    )
    assert ran_by(lambda params: make_optimizer(scenario, params), kernels) == way


def test_scenarios_and_optimizers_name_the_same_ways() -> None:
    # Neither imports the other.
    assert get_args(spec.Implementation) == get_args(optimizers.Implementation)


CHOICES: list[tuple[dict[str, Any], str]] = [
    ({}, "foreach"),
    ({"foreach": None}, "foreach"),
    ({"foreach": True}, "foreach"),
    ({"foreach": False}, "loop"),
    ({"fused": False}, "foreach"),
    ({"fused": False, "foreach": None}, "foreach"),
    ({"fused": False, "foreach": False}, "loop"),
    ({"fused": False, "foreach": True}, "foreach"),
    ({"fused": True}, "fused"),
    ({"fused": True, "foreach": False}, "fused"),
    ({"compiled": False}, "foreach"),
    ({"compiled": True}, "compiled"),
    ({"compiled": True, "foreach": False}, "compiled"),
]


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    ("name", "options", "way"),
    [
        (name, *choice)
        for name in OURS
        for choice in CHOICES
        if choice[0].keys() <= {*optimizers.implementations(name)}
    ],
)
def test_the_options_of_ours_choose_as_torchs_do(
    name: str, options: dict[str, Any], way: str, kernels: Counter[str]
) -> None:
    assert ran_by(lambda params: OURS[name](params, **options), kernels) == way
    text = ",".join(f"{key}={value}" for key, value in options.items())
    assert optimizers.default_implementation(f"{name}:{text}" if text else name, "cuda") == way


@pytest.mark.parametrize("name", OURS)
def test_on_a_device_without_foreach_none_is_the_loop(name: str, kernels: Counter[str]) -> None:
    assert ran(name, kernels) == "loop"
    assert ran(name, kernels, foreach=True) == "foreach"


@pytest.mark.compiler
@pytest.mark.parametrize("name", optimizers.available("optprof", "torch"))
def test_on_a_cpu_a_step_is_fused_by_default_where_its_catalogue_entry_says_so(name: str) -> None:
    has_fused = "fused" in optimizers.implementations(name, "cpu")
    assert optimizers.default_implementation(name, "cpu") == ("fused" if has_fused else "loop")


@pytest.mark.parametrize(
    ("text", "way"),
    [
        ("adamw", "fused"),
        ("sgd:momentum=0.9", "fused"),
        ("adamw:fused=False", "loop"),
        ("adamw:foreach=False", "loop"),
        ("adamw:foreach=True", "foreach"),
        ("adamw:differentiable=True", "loop"),
        ("sm3:fused=False", "loop"),
        ("sm3:compiled=True", "compiled"),
        ("lamb16:scale=upstream", "loop"),
        ("adafactor", "loop"),
    ],
)
def test_options_decide_before_the_default_of_a_cpu(text: str, way: str) -> None:
    assert optimizers.default_implementation(text, "cpu") == way


@pytest.mark.parametrize("compiler", ["no-such-compiler", "false"])
def test_ours_run_as_loops_by_default_if_no_compiler_takes_the_kernels(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CXX", compiler)
    for name in ("sm3", "lamb16"):
        assert optimizers.default_implementation(name, "cpu") == "loop"
        assert optimizers.needs_compiler(name)
    assert optimizers.default_implementation("sm3:fused=True", "cpu") == "fused"
    # torch has compiled its own, and this setting of LAMB16 has no kernel on any machine.
    assert optimizers.default_implementation("adamw", "cpu") == "fused"
    assert not optimizers.needs_compiler("adamw")
    assert not optimizers.needs_compiler("lamb16", scale="upstream")


@pytest.mark.usefixtures("on_cuda")
@pytest.mark.parametrize(
    "text",
    [
        *optimizers.available("optprof", "torch"),
        *(
            f"adamw:{options}"
            for options in (
                "fused=False",
                "fused=True",
                "foreach=False",
                "foreach=True,fused=False",
            )
        ),
        *(f"sgd:{options}" for options in ("fused=False", "foreach=None,fused=None")),
        *(f"torch.optim:{name}" for name in ("AdamW", "NAdam", "Adamax", "Rprop", "ASGD")),
    ],
)
def test_the_default_is_what_the_optimizer_does_by_itself_on_cuda(
    text: str, kernels: Counter[str]
) -> None:
    assert optimizers.default_implementation(text, "cuda") == ran(text, kernels)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "mine", raising=False)


@pytest.mark.usefixtures("on_cuda", "mine")
@pytest.mark.parametrize(
    ("text", "default", "on_cpu"),
    [
        ("mine:Plain", "foreach", "loop"),
        ("mine:Open", "foreach", "loop"),
        ("mine:Open:foreach=False", "loop", "loop"),
        ("mine:Open:foreach=True", "foreach", "foreach"),
        ("mine:Settled", "foreach", "foreach"),
        ("mine:Fused", "fused", "fused"),
        # A user's own step hides whether it passes the choice on.
        ("mine:Own", "loop", "loop"),
    ],
)
def test_a_class_that_hides_the_choice_runs_as_its_record_says(
    text: str, default: Any, on_cpu: str, kernels: Counter[str]
) -> None:
    assert optimizers.default_implementation(text, "cuda") == default
    assert optimizers.default_implementation(text, "cpu") == on_cpu
    for way in {*optimizers.implementations(text), default}:
        if "=" not in text or way == default:
            assert ran(text, kernels, implementation=way) == way
    assert (
        optimizers.create(text, [Parameter(torch.ones(1))], implementation=default).defaults["lr"]
        == 1e-3
    )


@pytest.mark.parametrize(
    ("text", "implementation", "parts"),
    [
        ("sm3:fused=True", "loop", ["sm3 is given fused=True and implementation 'loop'"]),
        ("sm3:compiled=True", "foreach", ["compiled=True", "'foreach'"]),
        ("adamw:foreach=False", "foreach", ["foreach=False", "'foreach'"]),
        ("adamw:fused=False", "fused", ["fused=False", "'fused'"]),
        ("adamw:foreach=True,fused=True", None, ["foreach=True and fused=True"]),
        ("lamb:compiled=True,foreach=True", None, ["foreach=True and compiled=True"]),
        ("flash-adamw", "foreach", ["flash-adamw has no foreach implementation"]),
        ("adamw", "compiled", ["adamw has no compiled implementation"]),
        ("lamb", "compiled", ["lamb", "cannot be simulated"]),
        ("sm3:compiled=True", None, ["sm3", "cannot be simulated"]),
    ],
)
def test_an_impossible_way_is_refused_in_one_line(
    text: str, implementation: str | None, parts: list[str]
) -> None:
    if text not in optimizers.available() and ":" not in text:
        pytest.skip(f"{text} is not installed")
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        plan(
            comparison(
                models=["gpt2"], optimizers=[text], device="sim", implementation=implementation
            )
        )
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "implementation", "way"),
    [
        ("sm3:fused=True", None, "fused"),
        ("sm3:fused=True", "fused", "fused"),
        ("sm3:compiled=True", None, "compiled"),
        ("lamb16", "compiled", "compiled"),
        ("adamw:foreach=True", None, "foreach"),
        ("adamw", None, "fused"),
        ("adamw", "loop", "loop"),
    ],
)
def test_a_plan_takes_the_implementation_that_a_text_names(
    text: str, implementation: str | None, way: str
) -> None:
    (scenario,) = plan(
        comparison(models=["gpt2"], optimizers=[text], device="cpu", implementation=implementation)
    )
    assert scenario.implementation == way
    assert not scenario.options.keys() & {"foreach", "fused", "compiled"}
