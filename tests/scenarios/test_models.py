"""The catalogue's models, against the published parameter counts, and the user's own models."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from optprof.scenarios import Scenario, models
from optprof.scenarios.batches import map_tensors
from optprof.scenarios.workpiece import Workpiece, build

PUBLISHED = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    # Half of total_size, the bytes of the bf16 checkpoint, in model.safetensors.index.json:
    # 16,060,522,496 of meta-llama/Meta-Llama-3-8B, 141,107,412,992 of Meta-Llama-3-70B.
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "vit-s16": 22_050_664,
    "vit-b16": 86_567_656,
    "vit-h14": 632_045_800,
    "resnet18": 11_689_512,
    "resnet50": 25_557_032,
    # Counted by hand: embeddings (256 + 256) 64, two layers of 12 x 64^2 + 13 x 64, the last norm
    # 2 x 64.
    "tiny": 132_864,
}


def test_the_catalogue_lists_these_models():
    assert models.available() == tuple(PUBLISHED)


@pytest.mark.parametrize("name", models.available())
def test_parameters_are_counted_exactly_with_tied_weights_once(name: str):
    model = build(Scenario(model=name), "meta").model
    entry = models.describe(name)
    assert entry is not None
    assert sum(p.numel() for p in model.parameters()) == entry.parameter_count == PUBLISHED[name]


def test_a_model_with_data_has_the_dtype_and_is_in_training_mode():
    workpiece = build(Scenario(model="resnet18", dtype="bf16", batch_size=2), "cpu")
    assert {p.dtype for p in workpiece.model.parameters()} == {torch.bfloat16}
    assert {p.device.type for p in workpiece.model.parameters()} == {"cpu"}
    assert workpiece.model.training
    assert workpiece.loss(workpiece.batch).isfinite()


def test_a_configuration_entry_replaces_the_published_one():
    model = build(
        Scenario(
            model="gpt2",
            config={"n_layer": 2, "n_positions": 64, "vocab_size": 100},
            sequence_length=64,
        ),
        "meta",
    ).model
    layer = 12 * 768**2 + 13 * 768
    assert sum(p.numel() for p in model.parameters()) == 2 * layer + (100 + 64 + 2) * 768


@pytest.mark.parametrize(
    ("name", "layers", "width", "made", "dtype"),
    [
        ("gpt2", 12, 768, 3 * 768, "fp32"),  # c_attn makes queries, keys and values at once
        ("llama2-7b", 2 * 32, 4096, 4096, "bf16"),
        ("vit-s16", 2 * 12, 384, 384, "fp32"),
    ],
)
def test_with_a_rank_only_adapters_are_trained(
    name: str, layers: int, width: int, made: int, dtype: str
):
    model = build(Scenario(model=name, lora_rank=8, dtype=dtype), "meta").model  # pyright: ignore[reportArgumentType]
    trained = [p for p in model.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == layers * 8 * (width + made)
    # peft keeps adapters in float32 over a model in half precision.
    assert {p.dtype for p in trained} == {torch.float32}
    entry = models.describe(name)
    assert entry is not None
    assert (
        sum(p.numel() for p in model.parameters() if not p.requires_grad) == entry.parameter_count
    )


def test_adapters_need_peft_and_a_model_that_they_fit(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(
        ValueError,
        match="adapters go into gpt2, llama, vit models, got 'resnet18'; leave the rank out",
    ):
        build(Scenario(model="resnet18", lora_rank=8), "meta")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(
        ValueError,
        match=(
            'LoRA needs the package peft, which is not installed; pip install "optprof\\[lora\\]"'
        ),
    ):
        build(Scenario(model="gpt2", lora_rank=8), "meta")


def test_positions_of_a_configuration_are_the_limit():
    assert models.sequence_length("gpt2", None, {"n_positions": 64}) == 64
    assert models.sequence_length("llama2-7b", 8192, {"max_position_embeddings": 8192}) == 8192
    with pytest.raises(ValueError, match="gpt2 has 64 positions, got a sequence length of 65"):
        models.sequence_length("gpt2", 65, {"n_positions": 64})


def test_configuration_entries_are_read_from_text():
    read = models.read_config(
        [
            "n_layer=24",
            "activation_function = gelu_new",
            "attn_pdrop=0.0",
            "use_cache=False",
            "hidden_sizes=[1, 2]",
        ]
    )
    assert read == {
        "n_layer": 24,
        "activation_function": "gelu_new",
        "attn_pdrop": 0.0,
        "use_cache": False,
        "hidden_sizes": [1, 2],
    }


@pytest.mark.parametrize("pair", ["n_layer", "=3", "n_layer=", "n layer=3"])
def test_a_configuration_entry_that_does_not_read_is_refused(pair: str):
    with pytest.raises(ValueError, match="a configuration entry is written key=value"):
        models.read_config([pair])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"config": {"n_layers": 2}},
            r"no 'n_layers' \(near: n_layer\) in the configuration of gpt2",
        ),
        ({"config": {"n_head": 7}}, "gpt2 cannot be built with {'n_head': 7}: "),
        (
            {"model": "resnet18", "attention": "eager"},
            "resnet18 has no attention, got 'eager'; leave it out",
        ),
        ({"model": "resnet18", "checkpointing": True}, "resnet18 cannot be checkpointed: "),
    ],
)
def test_an_unsupported_option_of_a_model_is_an_error(options: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        build(Scenario(**{"model": "gpt2", **options}), "meta")  # pyright: ignore[reportArgumentType]


def test_the_seed_decides_weights_and_batch():
    first, again, other = (
        build(Scenario(model="resnet18", seed=seed), "cpu") for seed in (1, 1, 2)
    )
    weights = [next(w.model.parameters()) for w in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert torch.equal(first.batch["labels"], again.batch["labels"])
    assert not torch.equal(weights[0], weights[2])


def test_language_models_take_the_requested_tokens():
    batch = build(Scenario(model="gpt2", batch_size=3, sequence_length=7), "meta").batch
    assert batch["input_ids"].shape == batch["labels"].shape == (3, 7)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("gpt2-xl", "gpt2"),
        ("llama2-7b", "llama2"),
        ("vit-h14", "vit"),
        ("resnet18", "resnet"),
        ("mine:net", None),
    ],
)
def test_a_model_belongs_to_a_family(name: str, family: str | None):
    assert models.family_name(name) == family
    assert name in models.family(name)


def test_a_wrong_name_is_answered_with_near_ones():
    with pytest.raises(
        ValueError,
        match=(
            r"no model named 'GPT2-XXL'; did you mean gpt2-xl, .*\(module:factory names your own\)"
        ),
    ):
        models.describe("GPT2-XXL")


@pytest.fixture
def module_of_mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "module_of_mine.py").write_text("""
import torch

class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x).sum()

def bare(): return Net()
def sized(batch_size, sequence_length=5):
    return Net(), {"x": torch.ones(batch_size, sequence_length)}
def ready(): return Net(), {"x": torch.ones(3, 4)}
def nothing(): return 7
def listed(): return Net(), [1]
def wide(width=4): return torch.nn.Linear(width, 1), {"input": torch.ones(2, width)}
""")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    return "module_of_mine"


def test_a_factory_names_the_user_s_own_model(module_of_mine: str):
    workpiece = build(Scenario(model=f"{module_of_mine}:ready"), "meta")
    assert sum(p.numel() for p in workpiece.model.parameters()) == 10
    assert {p.device.type for p in workpiece.model.parameters()} == {"meta"}
    assert (
        workpiece.loss(map_tensors(lambda tensor: tensor.to("meta"), workpiece.batch)).device.type
        == "meta"
    )
    assert build(Scenario(model=f"{module_of_mine}:bare", workload="state"), "meta").batch == {}


def test_a_factory_gets_the_sizes_that_it_takes_and_refuses_others(module_of_mine: str):
    workpiece = build(
        Scenario(model=f"{module_of_mine}:sized", batch_size=3, sequence_length=4), "meta"
    )
    assert workpiece.batch["x"].shape == (3, 4)
    with pytest.raises(ValueError, match="ready' takes no batch_size, got 3; leave it out"):
        build(Scenario(model=f"{module_of_mine}:ready", batch_size=3), "meta")


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        ("bare", "gave no batch to train on; return"),
        ("nothing", "must return a torch.nn.Module, or one and its batch, got int"),
        (
            "listed",
            "must be a mapping of forward's arguments, or tensors for them in order, got list",
        ),
        ("absent", "cannot be loaded: .*absent"),
    ],
)
def test_a_factory_of_another_kind_is_an_error(module_of_mine: str, factory: str, message: str):
    with pytest.raises(ValueError, match=message):
        build(Scenario(model=f"{module_of_mine}:{factory}"), "meta")


def test_a_factory_gets_the_configuration_and_refuses_unknown_keys(
    module_of_mine: str,
):
    workpiece = build(Scenario(model=f"{module_of_mine}:wide", config={"width": 9}), "meta")
    assert sum(p.numel() for p in workpiece.model.parameters()) == 10
    for options, message in (
        ({"config": {"widht": 9}}, r"no 'widht' \(near: width\) among the arguments of model"),
        ({"checkpointing": True}, "has no method gradient_checkpointing_enable"),
        ({"attention": "eager"}, "takes no attention, got eager"),
    ):
        with pytest.raises(ValueError, match=message):
            build(Scenario(**{"model": f"{module_of_mine}:wide", **options}), "meta")


def test_a_missing_module_is_named():
    with pytest.raises(
        ValueError,
        match="model 'no_such_module:net' cannot be loaded: No module named 'no_such_module'",
    ):
        build(Scenario(model="no_such_module:net"), "meta")


class Returning(torch.nn.Module):
    """Return the input, next to a trained weight."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4))

    def forward(self, result: Any) -> Any:
        return result


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.ones(4), r"Returning must return a scalar loss, .*, got Tensor of shape \(4,\)"),
        ({"loss": torch.ones(4)}, r"got Tensor of shape \(4,\)"),
        ({"logits": torch.ones(4)}, "got dict"),
        (
            SimpleNamespace(loss=None),
            "got SimpleNamespace without a loss; give the batch its labels",
        ),
        (3.0, "got float"),
        (torch.ones(4).mean(), "the loss of Returning follows from no trained parameter"),
    ],
)
def test_an_output_without_a_loss_is_an_error(output: Any, message: str):
    model = Returning()
    with pytest.raises((TypeError, ValueError), match=message):
        Workpiece(model=model, batch={}).loss({"result": output})
    loss = model.weight.mean()
    assert Workpiece(model=model, batch={}).loss({"result": {"loss": loss}}) is loss
