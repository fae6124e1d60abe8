"""The simulator's bytes, compared with formulas, the SGD-SaI paper, and real tensors on the CPU."""

from dataclasses import replace

import pytest
import torch

from optprof import optimizers
from optprof.profiler import Memory, simulate
from optprof.profiler.measuring.measurement import measure
from optprof.profiler.simulating import simulation
from optprof.profiler.simulating.training import ModelTrace, trace_model
from optprof.scenarios import Scenario, hardware, models
from optprof.scenarios.workpiece import build

MIB, GIB = 1 << 20, 1 << 30


def memory(**fields: object) -> Memory:
    memory = simulate(Scenario(**fields)).memory  # pyright: ignore[reportArgumentType]
    assert memory is not None
    return memory


def shapes(model: str) -> list[torch.Size]:
    return [
        p.shape for p in build(Scenario(model=model, workload="state"), "meta").model.parameters()
    ]


STATE_BYTES = {
    "adafactor": lambda shape: (
        4 * (shape.numel() // shape[-1] + shape.numel() // shape[-2] + 1)
        if len(shape) > 1
        else 4 * shape.numel() + 4
    ),
    "adagrad": lambda shape: 4 * shape.numel() + 4,
    "adam": lambda shape: 8 * shape.numel() + 4,
    "adamw": lambda shape: 8 * shape.numel() + 4,  # two float32 moments and a float32 step count
    "lamb": lambda shape: 8 * shape.numel() + 4,
    "lamb16": lambda shape: (
        2 * shape.numel() + 12
    ),  # two float8 moments, their float32 scales and a step count
    "muon": lambda shape: 4 * shape.numel() if len(shape) == 2 else 8 * shape.numel() + 4,
    "rmsprop": lambda shape: 4 * shape.numel() + 4,
    "sgd": lambda shape: 4 * shape.numel(),
    "sgd-sai": lambda shape: 4 * shape.numel() + 4,
    "sm3": lambda shape: 4 * sum(shape),  # one float32 accumulator an axis
}


def test_every_optimizer_has_a_formula():
    assert set(STATE_BYTES) == set(optimizers.available("optprof", "torch"))


@pytest.mark.parametrize("optimizer", STATE_BYTES)
@pytest.mark.parametrize("model", ["gpt2-xl", "llama2-7b", "vit-s16", "resnet18"])
def test_state_bytes_are_those_of_the_formula(model: str, optimizer: str):
    expected = sum(STATE_BYTES[optimizer](shape) for shape in shapes(model))
    counted = memory(model=model, optimizer=optimizer, workload="state")
    assert counted.optimizer_state == sum(counted.state_by_key.values()) == expected


@pytest.mark.parametrize(
    ("model", "optimizer", "gib"),
    [
        ("gpt2-xl", "adamw", 11.605),
        ("gpt2-xl", "sgd-sai", 5.803),
        ("gpt2-xl", "sm3", 0.0085),
        ("llama2-7b", "adamw", 50.205),
        ("llama2-7b", "sgd-sai", 25.103),
        ("llama2-7b", "sm3", 0.0106),
    ],
)
def test_the_state_of_large_models_is_as_published(model: str, optimizer: str, gib: float):
    digits = 4 if optimizer == "sm3" else 3
    assert (
        round(
            memory(model=model, optimizer=optimizer, workload="state").optimizer_state / GIB, digits
        )
        == gib
    )


@pytest.mark.parametrize(
    ("model", "optimizer", "gib"),
    [
        ("gpt2-xl", "sgd-sai", 5.93),
        ("gpt2-xl", "adamw", 11.87),
        ("vit-h14", "sgd-sai", 2.42),
        ("llama2-7b", "sgd-sai", 25.10),
    ],
)
def test_the_allocated_state_on_a_fresh_device_is_the_paper_s(
    model: str, optimizer: str, gib: float
):
    """arXiv 2412.11768 has 5.93, 11.86, 2.42 and 25.15, read from a figure."""
    allocated = memory(model=model, optimizer=optimizer, workload="state").optimizer_state_allocated
    assert allocated is not None
    assert round(allocated / GIB, 2) == gib


@pytest.mark.parametrize(("optimizer", "gib"), [("sgd-sai", 5.93), ("adamw", 11.87)])
def test_state_in_reused_blocks_of_activations_has_the_same_size(optimizer: str, gib: float):
    allocated = memory(model="gpt2-xl", optimizer=optimizer).optimizer_state_allocated
    assert allocated is not None
    assert round(allocated / GIB, 2) == gib


def test_foreach_adamw_has_a_temporary_per_parameter_and_its_loop_two_for_the_largest():
    foreach, loop = (
        memory(model="gpt2", workload="state", implementation=how).peak_by_category
        for how in ("foreach", "loop")
    )
    assert foreach["temporary"] == foreach["parameter"]
    assert (
        loop["temporary"] == 2 * 148 * MIB
    )  # the 50257 x 768 embedding is 147.2 MiB, a segment of its own


@pytest.mark.parametrize("workload", ["train", "state"])
@pytest.mark.parametrize("optimizer", STATE_BYTES)
def test_the_peak_is_the_sum_of_its_categories_and_the_highest_phase(optimizer: str, workload: str):
    counted = memory(model="resnet18", optimizer=optimizer, workload=workload, batch_size=2)
    assert counted.peak_allocated is not None
    assert (
        counted.peak_allocated
        == sum(counted.peak_by_category.values())
        == max(counted.peak_by_phase.values())
    )
    assert counted.peak_phase is not None
    assert counted.peak_by_phase[counted.peak_phase] == counted.peak_allocated
    assert counted.peak_reserved is not None
    assert counted.peak_reserved >= counted.peak_allocated


def test_bf16_halves_parameters_and_gradients():
    full, half = (
        memory(model="gpt2", sequence_length=8),
        memory(model="gpt2", sequence_length=8, dtype="bf16"),
    )
    assert (half.parameters, half.gradients) == (full.parameters // 2, full.gradients // 2)


def test_more_steps_change_nothing_after_the_first():
    assert memory(model="gpt2", sequence_length=8) == memory(
        model="gpt2", sequence_length=8, steps=4
    )


def test_the_model_is_traced_once_for_all_optimizers(monkeypatch: pytest.MonkeyPatch):
    traced: list[Scenario] = []

    def trace(scenario: Scenario) -> ModelTrace:
        traced.append(scenario)
        return trace_model(scenario)

    monkeypatch.setattr(simulation, "trace_model", trace)
    for optimizer in STATE_BYTES:
        memory(model="resnet18", optimizer=optimizer, seed=1)
    assert len(traced) == 1


@pytest.mark.parametrize(
    ("model", "optimizer"),
    [
        *(("gpt2", name) for name in ("adamw", "sgd-sai", "sm3", "lamb16")),
        *(("resnet18", name) for name in sorted(STATE_BYTES)),
    ],
)
def test_bytes_equal_those_of_real_tensors_on_the_cpu(model: str, optimizer: str):
    shorter = {"config": {"n_layer": 2}, "sequence_length": 16} if model == "gpt2" else {}
    scenario = Scenario(model=model, optimizer=optimizer, implementation="loop", steps=2, **shorter)
    simulated = simulate(scenario).memory
    real = measure(replace(scenario, device="cpu")).memory
    assert simulated is not None
    assert real is not None
    for field in (
        "parameters",
        "gradients",
        "optimizer_state",
        "state_by_key",
        "state_by_key_dtype",
    ):
        assert getattr(simulated, field) == getattr(real, field), field


def test_optimizers_that_read_values_back_can_be_simulated():
    counted = memory(model="gpt2", optimizer="torch.optim:NAdam", sequence_length=8)
    assert counted.optimizer_state == sum(8 * shape.numel() + 8 for shape in shapes("gpt2"))


@pytest.mark.parametrize("model", models.available())
def test_every_model_of_the_catalogue_trains_in_simulation(model: str):
    entry = models.describe(model)
    assert entry is not None
    record = simulate(
        Scenario(model=model, optimizer="sgd", batch_size=2, sequence_length=entry.positions and 64)
    )
    assert record.parameter_count == entry.parameter_count
    assert record.memory is not None
    assert record.memory.parameters == record.memory.gradients == 4 * entry.parameter_count


def test_a_gradient_that_is_a_view_counts_its_whole_storage():
    """With one image, the gradient of ViT's class token is a slice of that of all 197 tokens."""
    counted = memory(model="vit-s16", optimizer="sgd")
    assert counted.gradients - counted.parameters == 196 * 384 * 4


def test_a_training_step_has_an_estimate_for_its_gpu_or_the_default_one():
    estimate = simulate(Scenario(model="resnet18", optimizer="adamw", gpu="a100-80")).estimate
    assert estimate is not None
    assert estimate.needed_bytes == 28 * 11_689_512
    assert estimate.floor_seconds == pytest.approx(28 * 11_689_512 / 2.039e12)
    assert estimate.gpu == hardware.DEFAULT_GPU
    assert simulate(Scenario(model="resnet18", optimizer="adamw")).estimate == estimate
    assert (
        simulate(Scenario(model="resnet18", optimizer="adamw", batch_size=3)).estimate == estimate
    )
    # A curve of states has many large models and no need of times.
    state = Scenario(model="resnet18", optimizer="adamw", workload="state")
    assert simulate(state).estimate is None
    assert simulate(replace(state, gpu="a100-80")).estimate == estimate


def test_without_a_gpu_a_step_that_cannot_be_estimated_still_has_its_memory(monkeypatch):
    def refuse(*_: object) -> None:
        raise ValueError("no hardware for that")

    monkeypatch.setattr(simulation, "estimate", refuse)
    record = simulate(Scenario(model="tiny", optimizer="adamw"))
    assert (record.outcome, record.estimate) == ("ok", None)
    with pytest.raises(ValueError, match="no hardware"):
        simulate(Scenario(model="tiny", optimizer="adamw", gpu="a100-80"))
