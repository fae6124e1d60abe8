"""Plans of comparisons: their scenarios in order, and mistakes refused before anything runs."""

import json
import sys
from pathlib import Path

import pytest
import torch

from optprof.profiler.running.plan import comparison, plan
from optprof.scenarios import Scenario, models


@pytest.fixture(autouse=True)
def without_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)


def summary(scenarios: list[Scenario]) -> list[tuple[str, str, str, str]]:
    return [(s.device, s.workload, s.model, s.optimizer) for s in scenarios]


@pytest.mark.compiler
def test_one_model_is_simulated_and_measured_and_its_family_gives_the_curve():
    scenarios = plan(comparison(models=["vit-b16"], optimizers=["adamw", "sm3"]))
    assert summary(scenarios) == [
        *(("sim", "train", "vit-b16", name) for name in ("adamw", "sm3")),
        *(
            ("sim", "state", model, name)
            for model in ("vit-s16", "vit-b16", "vit-h14")
            for name in ("adamw", "sm3")
        ),
        *(("cpu", "train", "vit-b16", name) for name in ("adamw", "sm3")),
    ]
    assert {s.implementation for s in scenarios if s.device == "sim"} == {"foreach"}
    assert {s.implementation for s in scenarios if s.device == "cpu"} == {"fused"}


@pytest.mark.parametrize(
    ("optimizer", "layer", "way"),
    [
        ("sgd", "Embedding(9, 4, sparse=True)", "loop"),
        ("adagrad", "Embedding(9, 4, sparse=True)", "loop"),
        ("sgd", "Embedding(9, 4)", "fused"),
        # Refused when it runs, as before: the text decides.
        ("sgd:fused=True", "Embedding(9, 4, sparse=True)", "fused"),
    ],
)
def test_torchs_optimizers_run_as_loops_on_a_cpu_if_gradients_are_sparse(
    optimizer: str, layer: str, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = f"""
import torch
def build(batch_size=2):
    return torch.nn.{layer}, (torch.zeros(batch_size, dtype=torch.long),)
"""
    (tmp_path / "words_of.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "words_of", raising=False)
    (scenario,) = plan(comparison(models=["words_of:build"], optimizers=[optimizer], device="cpu"))
    assert scenario.implementation == way


def test_a_constructor_that_reads_its_parameters_is_planned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    code = """
import torch
class Remembering(torch.optim.SGD):
    def __init__(self, params, lr=0.1):
        super().__init__(params, lr=lr)
        params = [param for group in self.param_groups for param in group["params"]]
        self.first = [param.detach().numpy().copy() for param in params]
"""
    (tmp_path / "remembering.py").write_text(code)
    monkeypatch.syspath_prepend(tmp_path)
    (scenario,) = plan(
        comparison(models=["tiny"], optimizers=["remembering:Remembering"], device="cpu")
    )
    assert (scenario.implementation, scenario.options) == ("loop", {"lr": 0.1})


LANGUAGE = ("gpt2", "gpt2-xl", "llama2-7b", "llama3-8b", "llama3-70b")


@pytest.mark.parametrize(
    ("named", "curve"),
    [
        (["gpt2"], LANGUAGE),
        (["llama2-13b"], (*LANGUAGE[:3], "llama2-13b", *LANGUAGE[3:])),
        (["gpt2", "gpt2-xl", "llama2-7b"], LANGUAGE),
        (["gpt2", "vit-s16"], (*LANGUAGE, "vit-s16", "vit-b16", "vit-h14")),
        (["tiny"], ("tiny",)),
    ],
)
def test_language_models_are_shown_from_gpt2_to_llama3_and_others_with_their_family(named, curve):
    scenarios = plan(comparison(models=named, optimizers=["sgd"], device="sim"))
    assert summary(scenarios) == [
        *(("sim", "train", model, "sgd") for model in named),
        *(("sim", "state", model, "sgd") for model in curve),
    ]


def test_of_several_models_the_state_alone_is_asked_for_the_named_ones():
    scenarios = plan(comparison(["gpt2", "vit-s16"], "sgd", device="sim", workload="state"))
    assert [scenario.model for scenario in scenarios] == ["gpt2", "vit-s16"]


def test_the_state_alone_is_not_simulated_twice():
    scenarios = plan(
        comparison(models=["resnet18"], optimizers=["sgd"], device="sim", workload="state")
    )
    assert summary(scenarios) == [
        ("sim", "state", name, "sgd") for name in ("resnet18", "resnet50")
    ]


@pytest.mark.parametrize("workload", ["train", "state"])
def test_the_curve_is_not_cut_off_by_the_memory_of_a_gpu(workload: str):
    scenarios = plan(
        comparison(
            models=["gpt2"], optimizers=["sgd"], device="sim", workload=workload, gpu="rtx3090"
        )
    )
    assert scenarios[0].gpu == "rtx3090"
    assert {s.gpu for s in scenarios[1:]} == {None}
    assert {s.model for s in scenarios if s.workload == "state"} == (
        {*models.family("gpt2")} if workload == "state" else {*LANGUAGE}
    )


def test_a_scenario_has_every_hyper_parameter():
    (scenario,) = plan(comparison(models=["gpt2"], optimizers=["sm3:momentum=0.9"], device="cpu"))
    assert scenario.options == {
        "lr": 0.1,
        "momentum": 0.9,
        "beta": 0.0,
        "eps": 1e-30,
        "maximize": False,
    }
    assert scenario.sequence_length == 1024


def test_an_option_that_only_cuda_takes_is_not_ignored():
    (scenario,) = plan(
        comparison(models=["gpt2"], optimizers=["adamw:capturable=true"], device="cpu")
    )
    assert (scenario.options["capturable"], scenario.options["differentiable"]) == (True, False)


def test_training_options_apply_to_every_scenario():
    options = {
        "amp": "bf16",
        "micro_batches": 4,
        "max_grad_norm": 1.0,
        "set_to_none": False,
        "checkpointing": True,
        "attention": "eager",
        "lora_rank": 8,
        "config": {"n_layer": 2},
        "alloc_conf": "expandable_segments:True",
    }
    scenarios = plan(comparison(models=["gpt2"], optimizers=["adamw"], **options))
    assert summary(scenarios) == [
        ("sim", "train", "gpt2", "adamw"),
        ("sim", "state", "gpt2", "adamw"),
        ("cpu", "train", "gpt2", "adamw"),
    ]
    assert all(
        {name: getattr(scenario, name) for name in options} == options for scenario in scenarios
    )


def test_allocator_settings_default_to_those_of_the_environment(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setenv("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    (question,) = comparison("resnet18", "sgd", device="cpu")
    assert [
        scenario.alloc_conf for scenario in plan([question, {**question, "alloc_conf": ""}])
    ] == ["expandable_segments:True", ""]


def of_width(width: int):
    return torch.nn.Linear(width, 1), {"input": torch.zeros(1, width)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["gpt3"]}, "no model named 'gpt3'; did you mean gpt2"),
        (
            {"models": ["no_such_module:net"]},
            "model 'no_such_module:net' cannot be loaded: No module named 'no_such_module'",
        ),
        (
            {"models": [f"{__name__}:of_width"]},
            "test_plan:of_width' must be given 'width'; say --model-config width=VALUE",
        ),
        (
            {"models": [f"{__name__}:of_width"], "config": {"width": 3}, "sequence_length": 8},
            "takes no sequence_length, got 8",
        ),
        ({"optimizers": ["adamv"]}, "no optimizer is named 'adamv'; did you mean adam"),
        (
            {"optimizers": ["sm3:momentun=0.9"]},
            "no option of sm3 is named 'momentun'; did you mean momentum",
        ),
        ({"optimizers": ["sm3:momentum=2"]}, "momentum.*2"),
        ({"optimizers": ["torch.optim:Adaw"]}, "no class in torch.optim is named 'Adaw'"),
        (
            {"optimizers": ["torch.optim:LBFGS"], "implementation": "foreach"},
            "LBFGS has no foreach implementation",
        ),
        ({"dtype": "fp8"}, "dtype must be one of fp32, bf16, fp16, fp64, got 'fp8'"),
        ({"device": "cuda"}, "no CUDA device on this machine; use --device sim or cpu"),
        ({"device": "tpu"}, "device must be one of sim, cpu, cuda, got 'tpu'"),
        ({"gpu": "rtx4080"}, "no GPU is named 'rtx4080'; did you mean"),
        ({"gpu": "t4", "dtype": "bf16"}, "t4 has no hardware for bf16; ask for fp32"),
        ({"gpu": "v100-16", "amp": "bf16"}, "v100-16 has no hardware for bf16; ask for fp32"),
        ({"alloc_conf": "nonsense:1"}, "nonsense"),
        ({"amp": "fp8"}, "amp must be one of bf16, fp16, got 'fp8'"),
        (
            {"amp": "bf16", "dtype": "bf16"},
            "amp runs fp32 parameters under autocast, got dtype 'bf16' with amp 'bf16'",
        ),
        (
            {"implementation": "fused", "optimizers": ["rmsprop"]},
            "rmsprop has no fused implementation; ask for loop",
        ),
        ({"micro_batches": 0}, "micro_batches must be a whole number >= 1, got 0"),
        ({"max_grad_norm": 0.0}, "max_grad_norm must be a number > 0, got 0.0"),
        (
            {"config": {"n_positions": 64}, "sequence_length": 65},
            "gpt2 has 64 positions, got a sequence length of 65",
        ),
        ({"config": {"layers": 2}}, "no 'layers'.* in the configuration of gpt2"),
        ({"models": ["resnet18"], "checkpointing": True}, "resnet18 cannot be checkpointed"),
        (
            {"ranks": 2, "rank": 1, "parallel": "ddp", "device": "cpu"},
            "--device cpu measures all ranks, and --rank 1 asks for one",
        ),
        (
            {"models": ["resnet18"], "ranks": 2, "parallel": "tp:2"},
            "tp has plans for gpt2 and llama models, got resnet18",
        ),
        ({"workload": "infer"}, "workload must be one of train, state, got 'infer'"),
        ({"batch_size": 0}, "batch_size must be a whole number >= 1, got 0"),
        ({"steps": 1}, "steps must be a whole number >= 2, got 1"),
        ({"sequence_length": 2048}, "gpt2 has 1024 positions, got a sequence length of 2048"),
        (
            {"models": ["resnet18"], "sequence_length": 8},
            "resnet18 reads images and has no sequence length",
        ),
        ({"gpu": "rtx3009"}, "no GPU is named 'rtx3009'; did you mean rtx3090"),
        (
            {"alloc_conf": "max_split_size:64"},
            "alloc_conf has no setting 'max_split_size'; did you mean max_split_size_mb",
        ),
    ],
)
def test_a_mistake_is_named_before_anything_runs(changes: dict[str, object], message: str):
    with pytest.raises(ValueError, match=message):
        plan(comparison(**{"models": ["gpt2"], "optimizers": ["adamw"], **changes}))


def test_ranks_are_measured_on_their_own_gpus_or_by_request(monkeypatch: pytest.MonkeyPatch):
    question = {"model": "tiny", "ranks": 4, "parallel": "fsdp2"}
    assert [each.device for each in plan([question])] == ["sim"]
    assert [each.device for each in plan([{**question, "device": "cpu"}])] == ["cpu"]
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert [each.device for each in plan([question])] == ["sim", "cuda"]
    assert [each.device for each in plan([{**question, "rank": 3}])] == ["sim"]


@pytest.mark.parametrize(
    ("parallel", "implementation"), [("fsdp2", "foreach"), ("tp:2", "foreach"), ("ddp", "fused")]
)
def test_a_fused_step_of_torch_that_refuses_split_parameters_is_foreach(
    parallel: str, implementation: str
):
    question = {"model": "tiny", "optimizer": "sgd", "ranks": 2, "device": "cpu"}
    (scenario,) = plan([{**question, "parallel": parallel}])
    assert scenario.implementation == implementation


def test_options_that_json_cannot_hold_are_left_to_the_optimizer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "mine_with_a_function.py").write_text("""
import torch
class Mine(torch.optim.SGD):
    def __init__(self, params, lr=0.1, rule=len):
        super().__init__(params, lr=lr)
""")
    monkeypatch.setattr(sys, "path", [*sys.path, str(tmp_path)])
    (scenario,) = plan(
        comparison(models=["gpt2"], optimizers=["mine_with_a_function:Mine"], device="cpu")
    )
    assert scenario.options == {"lr": 0.1}


def test_a_gpu_without_bf16_is_an_error_before_anything_runs():
    for precision in ({"dtype": "bf16"}, {"amp": "bf16"}):
        with pytest.raises(
            ValueError, match="t4 has no hardware for bf16; ask for fp32, or for another GPU"
        ):
            plan(
                comparison(
                    models=["gpt2"], optimizers=["adamw"], device="sim", gpu="t4", **precision
                )
            )
    with pytest.raises(ValueError, match="no GPU is named 'tpu'"):
        plan(comparison(models=["gpt2"], optimizers=["adamw"], device="sim", gpu="tpu"))


def test_an_option_that_json_has_no_number_for_is_left_to_the_optimizer():
    pytest.importorskip("pytorch_optimizer")
    (scenario,) = plan(
        comparison(
            models=["vit-s16", "vit-b16"], optimizers=["prodigy"], device="sim", workload="state"
        )
    )[:1]
    assert "growth_rate" not in scenario.options
    json.dumps(scenario.options, allow_nan=False)
