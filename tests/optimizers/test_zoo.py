"""Optimizers of other packages, made from a list of parameters, with the bytes described.

test_contract.py and test_gradients.py list the promises of the contract that they break.
"""

import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from math import ceil, prod
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Embedding, Linear, ModuleDict, Parameter
from torch.optim.optimizer import Optimizer

from optprof import optimizers
from optprof.optimizers import zoo

pytestmark = pytest.mark.skipif(
    find_spec("pytorch_optimizer") is None, reason="needs the extra zoo"
)

SHAPES = [(), (5,), (8, 12), (2, 3, 2, 2)]


def low_rank(shape: tuple[int, ...], rank: int) -> int:
    if len(shape) != 2 or min(shape) <= rank:
        return 8 * prod(shape)
    return 2 * 4 * max(shape) * rank + 4 * min(shape) * rank


# Bytes of a float32 parameter's state, by shape.
STATE_BYTES: dict[str, Callable[[tuple[int, ...]], int]] = {
    "adam-mini": lambda shape: 4 * prod(shape) + 8,
    "ademamix": lambda shape: 12 * prod(shape),
    "adan": lambda shape: 16 * prod(shape),
    "apollo": lambda shape: low_rank(shape, 256),
    "apollo:rank=2": lambda shape: (
        low_rank(shape, 2) + (4 if len(shape) == 2 else 0)
    ),  # and the norm of the last update
    "came": lambda shape: (
        4 * prod(shape)
        + 4
        + (
            8 * (prod(shape[:-1]) + prod(shape[:-2]) * shape[-1])
            if len(shape) > 1
            else 4 * prod(shape)
        )
    ),
    "fira": lambda shape: low_rank(shape, 128),
    "fira:rank=2": lambda shape: low_rank(shape, 2) + (4 if len(shape) == 2 else 0),
    "flash-adamw": lambda shape: 2 * prod(shape) + 4 * ceil(prod(shape) / 32),
    "galore": lambda shape: low_rank(shape, 128),
    "galore:rank=2": lambda shape: low_rank(shape, 2),
    "lion": lambda shape: 4 * prod(shape),
    "prodigy": lambda shape: 16 * prod(shape),
    "racs": lambda shape: 4 * ((shape[0] if shape else 1) + prod(shape[1:]) + 1),
    "schedule-free-adamw": lambda shape: 8 * prod(shape),
    "scion": lambda shape: 4 * prod(shape),
    "soap": lambda shape: (
        8 * prod(shape) + (8 * sum(d * d for d in shape) if len(shape) > 1 else 0)
    ),
    "tiger": lambda shape: 4 * prod(shape),
}
EVERY = pytest.mark.parametrize("spec", STATE_BYTES)


def parameters() -> list[Parameter]:
    torch.manual_seed(0)
    return [Parameter(torch.randn(shape)) for shape in SHAPES]


def take_steps(optimizer: Optimizer, params: list[Parameter], steps: int = 3) -> None:
    for step in range(steps):
        torch.manual_seed(step)
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()


def nbytes(value: Any) -> int:
    """Return the bytes of a state's tensors; a projector keeps its matrix in an attribute."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, dict):
        return sum(map(nbytes, value.values()))
    if isinstance(value, list | tuple):
        return sum(map(nbytes, value))
    return nbytes(vars(value)) if hasattr(value, "__dict__") else 0


def test_every_name_of_the_package_is_tested() -> None:
    assert {spec.partition(":")[0] for spec in STATE_BYTES} == set(
        optimizers.available("pytorch_optimizer")
    )


@EVERY
def test_state_costs_the_bytes_that_the_formula_says(spec: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    take_steps(optimizer, params)
    assert [nbytes(optimizer.state[param]) for param in params] == [
        STATE_BYTES[spec](shape) for shape in SHAPES
    ]


@EVERY
def test_options_of_the_constructor_are_checked_not_swallowed(spec: str) -> None:
    with pytest.raises(
        ValueError, match=r"option of .* is named 'weight_decoy'; did you mean weight_decay"
    ):
        optimizers.create(spec, parameters(), weight_decoy=0.1)
    with pytest.raises(ValueError, match="-1"):
        optimizers.create(spec, parameters(), lr=-1)


@EVERY
def test_every_optimizer_except_adam_mini_takes_groups(spec: str) -> None:
    params = parameters()
    groups: list[dict[str, Any]] = [
        {"params": params[:3], "weight_decay": 0.5},
        {"params": params[3:]},
    ]
    if spec == "adam-mini":
        with pytest.raises(ValueError, match="makes its own groups"):
            optimizers.create(spec, groups)
        return
    optimizer = optimizers.create(spec, groups)
    take_steps(optimizer, params)
    decays = {
        param: group["weight_decay"]
        for group in optimizer.param_groups
        for param in group["params"]
    }
    assert [decays[param] == 0.5 for param in params] == [True, True, True, False]


def test_the_name_sm3_is_ours_which_has_no_momentum_by_default() -> None:
    params = parameters()
    ours, theirs = (
        optimizers.create("sm3", params),
        optimizers.create("pytorch_optimizer:SM3", params),
    )
    take_steps(ours, params)
    take_steps(theirs, params)
    assert type(ours) is optimizers.SM3
    assert [nbytes(ours.state[param]) for param in params] == [4, 20, 80, 36]
    assert nbytes(theirs.state[params[2]]) == 80 + 4 * 8 * 12


@pytest.mark.parametrize("name", ["galore", "fira", "apollo"])
def test_only_matrices_larger_than_the_rank_are_projected(name: str) -> None:
    params = [Parameter(torch.randn(shape)) for shape in [(5,), (4, 12), (6, 6), (2, 9, 2, 2)]]
    optimizer = optimizers.create(f"{name}:rank=4", params)
    take_steps(optimizer, params)
    assert ["projector" in optimizer.state[param] for param in params] == [
        False,
        False,
        True,
        False,
    ]
    with pytest.raises(ValueError, match="rank: 0"):
        optimizers.create(f"{name}:rank=0", params)


def test_adam_mini_knows_embeddings_and_heads_by_name() -> None:
    model = ModuleDict({"embed": Embedding(10, 8), "q_proj": Linear(8, 8), "mlp": Linear(8, 4)})
    with pytest.raises(
        ValueError,
        match=r"sizes of q_proj.weight; write adam-mini:num_embeds=WIDTH,num_heads=HEADS",
    ):
        optimizers.create("adam-mini", list(model.named_parameters()))
    optimizer = optimizers.create(
        "adam-mini:num_embeds=8,num_heads=4", list(model.named_parameters())
    )
    take_steps(optimizer, list(model.parameters()))
    bytes_by_name = {
        name: nbytes(optimizer.state[param]) for name, param in model.named_parameters()
    }
    assert bytes_by_name == {
        "embed.weight": 8 * 80,  # both moments
        "q_proj.weight": 4 * 64 + 4 * 4,  # one second moment a head
        "q_proj.bias": 4 * 8 + 8,
        "mlp.weight": 4 * 32 + 8,
        "mlp.bias": 4 * 4 + 8,
    }


def test_nothing_of_the_zoo_is_imported_before_it_is_used() -> None:
    script = (
        "import sys; from optprof import optimizers; optimizers.available();"
        " optimizers.describe('lion');"
        " print(set(sys.modules) & {'pytorch_optimizer'})"
    )
    folder = Path(optimizers.__file__).parents[1]
    finished = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, check=True, cwd=folder, text=True
    )
    assert finished.stdout == "set()\n"


@pytest.mark.parametrize(
    ("name", "command"),
    [("lion", "pip install 'optprof[zoo]'"), ("adamw8bit-bnb", "pip install bitsandbytes")],
)
def test_a_name_whose_package_is_absent_says_what_to_install(
    name: str, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("optprof.optimizers.entries.find_spec", lambda _: None)
    assert name not in optimizers.available()
    assert optimizers.describe(name).summary
    with pytest.raises(ValueError, match=command.replace("[", r"\[")) as caught:
        optimizers.create(name, parameters())
    assert "\n" not in str(caught.value)


def test_a_package_that_does_not_load_is_named_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "bitsandbytes").mkdir()
    (tmp_path / "bitsandbytes" / "__init__.py").write_text("raise OSError('no\\nGPU')")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "bitsandbytes", raising=False)
    with pytest.raises(
        ValueError, match=r"^cannot load adamw8bit-bnb from bitsandbytes: OSError: no GPU$"
    ):
        optimizers.create("adamw8bit-bnb", parameters())


def test_every_entry_says_where_it_comes_from() -> None:
    for entry in zoo.ZOO.values():
        assert entry.package
        assert entry.installed_by
        assert entry.paper.startswith("https://")
