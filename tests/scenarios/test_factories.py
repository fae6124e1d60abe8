"""Users' factories, compared with a plain call of the same factory on the CPU."""

import dataclasses
import functools
import random
import sys
import traceback
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from optprof.scenarios import Scenario, factories
from optprof.scenarios.batches import by_name, map_tensors, tensors_in
from optprof.scenarios.settings import TorchSettings, own_settings
from optprof.scenarios.workpiece import build

BF16, FP32 = torch.bfloat16, torch.float32


class Net(nn.Module):
    """A model with a large weight and small ones."""

    def __init__(self, width: int = 64) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, 256), nn.Linear(256, width)

    def forward(self, x: torch.Tensor, y: Any = 0.0) -> torch.Tensor:
        return (self.second(self.first(x).relu()) - y).square().mean()


def sized(batch_size: int = 8, sequence_length: int = 128, attention: str = "flash"):
    return Net(), {
        "x": torch.zeros(batch_size, sequence_length, 64),
        "y": float(attention == "flash"),
    }


def named_only(*, batch_size: int = 6):
    return Net(), {"x": torch.zeros(batch_size, 64)}


def anything(**options: Any):
    return Net(options.get("width", 64)), {
        "x": torch.zeros(options.get("batch_size", 7), options.get("width", 64))
    }


partly = functools.partial(named_only, batch_size=5)
model = Net()


def typed(dtype: torch.dtype, batch_size: int = 2):
    # The scale keeps its own dtype: the factory takes the dtype and decides.
    made = Net().to(dtype)
    made.register_buffer("scale", torch.ones(3, dtype=torch.float64))
    return made, {"x": torch.zeros(batch_size, 64, dtype=dtype)}


def by_default_dtype():
    torch.set_default_dtype(BF16)
    return Net(), {"x": torch.zeros(2, 64)}


class Read(nn.Module):
    """Read values just made, a few or many."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.rates = [rate.item() for rate in torch.linspace(0, 0.1, 3)]
        self.layer = nn.Linear(64, 64)
        self.out = nn.Linear(64, int((torch.rand(count) >= 0).sum().item()) // count + 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.layer(x)).square().mean()


def reads_little():
    return Read(100), {"x": torch.zeros(2, 64)}


def reads_much():
    return Read(100_000), {"x": torch.zeros(2, 64)}


class Mixed(nn.Module):
    """Tables with known values, and weights without; one weight has three names and is listed."""

    def __init__(self) -> None:
        super().__init__()
        slopes = torch.tensor([2.0**-power for power in range(8)])
        self.register_buffer("bias", slopes[:, None] * torch.arange(5000.0))
        self.register_buffer("places", torch.arange(64))
        self.first, self.second = nn.Linear(512, 512, bias=False), nn.Linear(512, 512, bias=False)
        self.second.weight = self.first.weight
        self.scale = nn.Parameter(torch.ones(512), requires_grad=False)
        self.weights = [self.scale, self.first.weight]
        self.recurrent = nn.LSTM(8, 8)
        self.shift = torch.ones(512)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (
            self.second(self.first(x) * self.weights[0] + self.shift).mean()
            + self.recurrent(x[:, :8])[0].mean()
        )


def mixed():
    return Mixed(), {"x": torch.zeros(2, 512)}


def assigned():
    # A weight without data gets data; a small one with data becomes a part of one without.
    made = Net()
    made.first.weight.data = torch.from_numpy(np.ones((256, 64), dtype=np.float32))
    made.second.bias.data = made.first.weight.data[0]
    return made, {"x": torch.zeros(2, 64)}


def made_by_hand():
    weight = nn.Parameter(torch.randn(64, 300))
    net = nn.Module()
    net.weights = nn.ParameterDict(
        {"one": weight, "again": weight, "other": nn.Parameter(torch.zeros(300))}
    )
    return net, {"x": torch.zeros(2, 64)}


def lazy():
    layers = nn.Sequential(
        nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)
    )
    return layers, (torch.zeros(2, 3, 16, 16),)


def loaded(batch_size: int = 4):
    data = torch.utils.data.TensorDataset(torch.randn(50, 64), torch.randn(50, 64))
    return Net(), next(iter(torch.utils.data.DataLoader(data, batch_size=batch_size, shuffle=True)))


def alone():
    return Net(), torch.zeros(3, 64)


@dataclasses.dataclass(frozen=True)
class Pair:
    """A batch as a collate function may return it."""

    x: torch.Tensor
    count: int


def nested():
    mask = torch.ones(4, 16)
    mask[:, 10:] = 0
    parts = {
        "ids": torch.arange(4),
        "deep": {"mask": mask},
        "list": [torch.zeros(2), torch.zeros(3, dtype=torch.float64)],
    }
    return Net(), {"x": parts, "y": Pair(torch.zeros(5), 7)}


def on_cuda():
    return Net().cuda(), {"x": torch.zeros(2, 64)}


def of_three():
    return Net(), {"x": torch.zeros(2, 64)}, 3


def needs(width: int):
    return Net(width)


class OfOne(nn.Module):
    """Take all of its batch as one argument."""

    def forward(self, batch: Any) -> torch.Tensor:
        return torch.cat(list(batch)).sum()


class OfAny(nn.Module):
    """Take any batch, without names."""

    def forward(self, *batch: Any) -> torch.Tensor:
        return torch.cat(list(batch)).sum()


PACKED = nn.utils.rnn.pack_sequence([torch.zeros(3, 4), torch.zeros(2, 4)])
TWO = (torch.zeros(2, 64), torch.zeros(2, 64))


@pytest.mark.parametrize(
    ("module", "batch", "names"),
    [
        (Net, TWO, ["x", "y"]),
        (Net, TWO[0], ["x"]),
        (Net, Pair(TWO[0], 7), ["x"]),
        (Net, PACKED, ["x"]),
        (OfOne, TWO, ["batch"]),
        (OfOne, list(TWO), ["batch"]),
        (OfOne, Pair(TWO[0], 7), ["batch"]),
    ],
)
def test_a_batch_without_names_is_the_arguments_in_order(
    module: type[nn.Module], batch: Any, names: list[str]
):
    result = by_name(module(), batch)
    assert list(result) == names
    assert (
        (list(result.values()) == list(batch)) if len(names) == 2 else (result[names[0]] is batch)
    )


def of_loader():
    return Net(), DataLoader(TensorDataset(*TWO))


def of_generator():
    return Net(), (TWO for _ in range(3))


def of_unnamed():
    return OfAny(), TWO


def of_too_many():
    return Net(), (*TWO, TWO[0])


class Models:
    """A class whose method is a factory."""

    def build(self):
        return Net()


@own_settings()
def made(name: str, device: str = "meta", **fields: Any):
    return build(Scenario(model=f"{__name__}:{name}", **fields), device)


def shapes(module: nn.Module) -> list[tuple[Any, ...]]:
    """Return everything about a model's tensors that an optimizer or a trace can see."""
    tensors = [
        *module.named_parameters(remove_duplicate=False),
        *module.named_buffers(remove_duplicate=False),
    ]
    return [
        (name, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad, type(tensor))
        for name, tensor in tensors
    ]


FACTORIES = (
    "reads_little",
    "reads_much",
    "mixed",
    "made_by_hand",
    "lazy",
    "loaded",
    "alone",
    "by_default_dtype",
    "sized",
    "assigned",
)


@pytest.mark.parametrize("name", FACTORIES)
def test_a_model_without_data_has_the_tensors_of_the_factory_s_model(name: str):
    without, real = made(name), made(name, "cpu")
    assert shapes(without.model) == shapes(real.model)
    assert {parameter.device.type for parameter in without.model.parameters()} == {"meta"}
    # Of several names for one parameter named_parameters yields one.
    assert [name for name, _ in without.model.named_parameters()] == [
        name for name, _ in real.model.named_parameters()
    ]


@pytest.mark.parametrize("name", FACTORIES)
def test_a_batch_has_the_factory_s_data(name: str):
    without, real = made(name), made(name, "cpu")
    assert list(without.batch) == list(real.batch)
    result = tensors_in(without.batch)
    assert result
    for tensor, expected in zip(result, tensors_in(real.batch), strict=True):
        assert tensor.shape == expected.shape
        assert tensor.device.type == "cpu"


def test_a_model_s_lists_hold_the_model_s_own_tensors():
    module: Any = made("mixed").model
    assert module.weights[0] is module.scale
    assert module.weights[1] is module.first.weight
    assert module.first.weight is module.second.weight
    assert module.shift.is_meta


def test_small_integer_tensors_keep_their_values():
    module: Any = made("mixed").model
    assert torch.equal(module.places, torch.arange(64))


def changes_settings():
    torch.set_default_dtype(BF16)
    torch.set_default_device("cpu")
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    torch.backends.cuda.enable_flash_sdp(False)
    # Like torch.backends.cudnn.enabled = False, which torch's testing tools forbid.
    torch._C._set_cudnn_enabled(False)
    return Net()


def test_the_factory_s_torch_settings_hold_until_its_training_ends():
    scenario = Scenario(model=f"{__name__}:changes_settings", workload="state")
    before = TorchSettings.now()
    with own_settings():
        work = build(scenario, "cpu")
        assert {parameter.dtype for parameter in work.model.parameters()} == {BF16}
        assert (torch.get_default_dtype(), torch.is_grad_enabled()) == (BF16, False)
    assert TorchSettings.now() == before
    assert torch.get_default_dtype() == FP32
    assert torch.backends.cuda.flash_sdp_enabled()
    assert torch.backends.cudnn.enabled
    assert torch.zeros(1, device="meta").device.type == "meta"


def draws():
    return Net(), {"x": torch.full((2, 64), random.random()), "y": float(np.random.rand())}


def test_every_random_number_of_a_factory_follows_the_seed():
    first, again, other = (made("draws", seed=seed).batch for seed in (1, 1, 2))
    assert torch.equal(first["x"], again["x"])
    assert first["y"] == again["y"]
    assert not torch.equal(first["x"], other["x"])
    assert first["y"] != other["y"]


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_sizes_default_to_the_factory_s_own(device: str):
    assert factories.own_size(f"{__name__}:sized", "batch_size") == 8
    batch = made("sized", device, batch_size=8).batch
    assert batch["x"].shape == (8, 128, 64)
    # Its default attention is not one of ours and stays.
    assert batch["y"] == 1.0
    requested = made("sized", device, batch_size=2, sequence_length=4, attention="eager").batch
    assert requested["x"].shape == (2, 4, 64)
    assert requested["y"] == 0.0


@pytest.mark.parametrize(
    ("name", "usual"),
    [("named_only", 6), ("partly", 5), ("Net", None), ("anything", None), ("needs", None)],
)
def test_a_size_is_read_from_any_signature(name: str, usual: int | None):
    assert factories.own_size(f"{__name__}:{name}", "batch_size") == usual


def test_a_factory_with_keyword_arguments_gets_every_option():
    assert made("anything").batch["x"].shape == (7, 64)
    assert made("anything", batch_size=3, config={"width": 32}).batch["x"].shape == (3, 32)


def test_a_class_is_a_factory():
    module = made("Net", workload="state", config={"width": 16}).model
    assert (
        sum(parameter.numel() for parameter in module.parameters())
        == 16 * 256 + 256 + 256 * 16 + 16
    )


def test_a_requested_dtype_holds_for_model_and_batch():
    workpiece = made("nested", dtype="bf16")
    assert {parameter.dtype for parameter in workpiece.model.parameters()} == {BF16}
    assert {tensor.dtype for tensor in tensors_in(workpiece.batch)} == {BF16, torch.int64}


def test_a_factory_that_takes_the_dtype_decides_the_dtypes():
    workpiece = made("typed", "cpu", dtype="bf16")
    assert {parameter.dtype for parameter in workpiece.model.parameters()} == {BF16}
    assert {buffer.dtype for buffer in workpiece.model.buffers()} == {torch.float64}
    # The factory requires a dtype, and the scenario has none: it gets the default.
    assert {parameter.dtype for parameter in made("typed").model.parameters()} == {FP32}


def test_every_tensor_of_a_nested_batch_is_copied():
    batch = made("nested").batch
    moved = map_tensors(lambda tensor: tensor.to("meta"), batch)
    assert [tensor.shape for tensor in tensors_in(moved)] == [(4,), (4, 16), (2,), (3,), (5,)]
    assert all(tensor.is_meta for tensor in tensors_in(moved))
    assert not any(tensor.is_meta for tensor in tensors_in(batch))
    assert moved["y"].count == 7


def test_batches_keep_their_types():
    transformers = pytest.importorskip("transformers")
    encoding = transformers.BatchEncoding({"input_ids": torch.ones(2, 3, dtype=torch.long)})
    moved = map_tensors(lambda tensor: tensor.to("meta"), encoding)
    assert type(moved) is type(encoding)
    assert moved.input_ids.is_meta
    packed = nn.utils.rnn.pack_sequence([torch.ones(3), torch.ones(2)])
    assert map_tensors(lambda tensor: tensor.to("meta"), packed).batch_sizes.device.type == "cpu"


def test_positions_become_the_names_of_forward():
    assert list(made("loaded").batch) == ["x", "y"]
    assert made("loaded", batch_size=4).batch["x"].shape == (4, 64)
    assert list(made("alone").batch) == ["x"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "on_cuda",
            (
                r"needs CUDA \(.*test_factories.py, line \d+\); this machine has no CUDA; leave"
                r" the device out"
            ),
        ),
        ("of_three", "must return a torch.nn.Module, or one and its batch, got tuple"),
        ("needs", "must be given 'width'; say --model-config width=VALUE"),
        ("of_loader", r"of_loader' must be one batch, got DataLoader; return next\(iter"),
        ("of_generator", "of_generator' must be one batch, got generator"),
        ("of_unnamed", "as many values as forward of OfAny takes by name, got 2; it names none"),
        ("of_too_many", "as many values as forward of Net takes by name, got 3; it takes x, y"),
        ("Models.build", "Models.build' is a method; name a function, a class or a static method"),
        ("model", "must be a function that returns a model, got Net"),
    ],
)
def test_a_factory_that_cannot_be_called_is_an_error(name: str, message: str):
    if name == "on_cuda" and torch.cuda.is_available():
        pytest.skip("needs a machine without CUDA")
    with pytest.raises(ValueError, match=message):
        made(name, workload="state")


def test_a_file_of_a_package_finds_its_neighbours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    inner = tmp_path / "outer_of_mine" / "inner"
    inner.mkdir(parents=True)
    (inner.parent / "__init__.py").write_text("")
    (inner.parent / "width.py").write_text("WIDTH = 9")
    (inner / "__init__.py").write_text("")
    text = (
        "import torch\nfrom ..width import WIDTH\nimport sibling_of_mine\ndef build(): return"
        " torch.nn.Linear(WIDTH, 1)\n"
    )
    (inner / "json.py").write_text(text)
    (inner / "sibling_of_mine.py").write_text("")
    monkeypatch.setattr("sys.path", [*sys.path, str(inner)])
    module = build(Scenario(model=f"{inner}/json.py:build", workload="state"), "meta").model
    assert sum(parameter.numel() for parameter in module.parameters()) == 10


@pytest.mark.parametrize(
    "text",
    ["import no_such_module", "raise ValueError('none')", "open('no_such_file')", "torch.nothing"],
)
def test_an_exception_of_a_factory_s_module_keeps_its_line(tmp_path: Path, text: str):
    file = tmp_path / "raising_of_mine.py"
    file.write_text(f"import torch\n{text}\n")
    with pytest.raises(Exception, match=r"^(?!model)") as raised:
        factories.load(f"{file}:build")
    frames = traceback.extract_tb(raised.value.__traceback__)
    assert [frame.lineno for frame in frames if frame.filename == str(file)] == [2]


def test_a_factory_does_not_see_the_command_line_of_optprof(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    file = tmp_path / "parsing_of_mine.py"
    parse = "argparse.ArgumentParser().parse_args()"
    file.write_text(
        f"import argparse, torch\n{parse}\ndef build():\n    {parse}\n    return torch.nn.Linear(9,"
        " 1)\n"
    )
    monkeypatch.setattr("sys.argv", ["optprof", "profile", "--device", "sim"])
    assert build(Scenario(model=f"{file}:build", workload="state"), "meta").model
    assert sys.argv[1:] == ["profile", "--device", "sim"]


def test_a_file_is_named_by_its_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    text = (
        "import torch\nfrom neighbour_of_mine import WIDTH\ndef build(): return"
        " torch.nn.Linear(WIDTH, 1)\n"
    )
    (tmp_path / "json.py").write_text(text)
    (tmp_path / "neighbour_of_mine.py").write_text("WIDTH = 9")
    monkeypatch.setattr("sys.path", ["."])
    monkeypatch.chdir(tmp_path)
    # A module of the standard library has this name.
    for name in (f"{tmp_path}/json.py:build", "./json.py:build", "json.py:build"):
        module = build(Scenario(model=name, workload="state"), "meta").model
        assert sum(parameter.numel() for parameter in module.parameters()) == 10
    with pytest.raises(
        ValueError,
        match=r"model 'nothing.py:build' cannot be loaded: there is no file .*nothing.py",
    ):
        factories.load("nothing.py:build")
