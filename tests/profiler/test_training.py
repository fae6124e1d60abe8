"""Options of training, compared with bytes worked out by hand."""

from dataclasses import replace

import pytest

from optprof.profiler import Memory, simulate
from optprof.profiler.simulating.replay import replay
from optprof.profiler.simulating.simulation import run_simulation
from optprof.profiler.simulating.training import without_optimizer
from optprof.scenarios import Scenario

MIB = 1 << 20


def memory(**fields: object) -> Memory:
    memory = simulate(
        Scenario(**{"model": "gpt2", "sequence_length": 8, "config": {"n_layer": 2}, **fields})
    ).memory  # pyright: ignore[reportArgumentType]
    assert memory is not None
    return memory


def test_lora_has_state_only_for_its_adapters():
    counted = memory(lora_rank=8)
    tensors = [8 * 768, 8 * 3 * 768] * 2
    assert counted.gradients == sum(4 * count for count in tensors)
    assert counted.optimizer_state == sum(8 * count + 4 for count in tensors)


@pytest.mark.parametrize(("implementation", "steps_on_device"), [("foreach", 0), ("fused", 1)])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "adagrad"])
def test_the_fused_kernel_keeps_its_step_counts_on_the_device(
    optimizer: str, implementation: str, steps_on_device: int
):
    counted = memory(optimizer=optimizer, implementation=implementation, workload="state")
    parameters = counted.parameters // 4
    count = 28  # tensors: two layers of 12, two embeddings, the last norm's two
    moments = 1 if optimizer == "adagrad" else 2
    assert counted.optimizer_state == 4 * moments * parameters + 4 * count
    assert counted.optimizer_state_allocated is not None
    on_host = memory(
        optimizer=optimizer, workload="state", implementation="foreach"
    ).optimizer_state_allocated
    assert on_host is not None
    assert counted.optimizer_state_allocated == on_host + steps_on_device * count * 512


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_the_fused_kernel_needs_no_temporaries(optimizer: str):
    counted = memory(optimizer=optimizer, implementation="fused", workload="state")
    assert "temporary" not in counted.peak_by_category


def test_an_optimizer_without_a_fused_kernel_says_so():
    with pytest.raises(ValueError, match="rmsprop has no fused implementation; ask for loop"):
        memory(optimizer="rmsprop", implementation="fused")


def test_kept_gradients_are_in_memory_in_the_next_forward_pass():
    dropped, retained = memory(), memory(set_to_none=False)
    more = retained.peak_by_phase["forward"] - dropped.peak_by_phase["forward"]
    assert dropped.gradients <= more < dropped.gradients + 30 * MIB  # in blocks with tails


def test_gradients_of_earlier_micro_batches_are_in_memory_in_the_next_forward_pass():
    one, two = memory(), memory(micro_batches=2)
    assert two.peak_by_phase["forward"] - one.peak_by_phase["forward"] >= one.gradients
    assert two.gradients == one.gradients


def test_checkpointing_keeps_the_input_of_each_layer_and_little_else():
    """Each layer adds only its input to the forward pass, 4 bytes x 512 tokens x 768."""
    fields = {"sequence_length": 512, "optimizer": "sgd"}

    def grown(**more: object) -> int:
        small, large = (memory(**fields, config={"n_layer": layers}, **more) for layers in (2, 4))
        return (large.peak_by_phase["forward"] - large.parameters * 2) - (
            small.peak_by_phase["forward"] - small.parameters * 2
        )

    layer_input = 4 * 512 * 768
    assert 2 * layer_input <= grown(checkpointing=True) < 6 * layer_input
    assert grown() > 40 * layer_input


@pytest.mark.parametrize(
    ("optimizer", "activation", "allocated", "reserved"),
    [
        ("sgd", "gelu_pytorch_tanh", 18.4, 22.3),
        ("adamw", "gelu_pytorch_tanh", 24.3, 28.1),
        ("sgd", "gelu_new", 20.9, 26.1),
    ],
)
def test_the_peak_of_gpt2_xl_is_that_of_an_earlier_trial(
    optimizer: str, activation: str, allocated: float, reserved: float
):
    """The trial ran AdamW's loop, and did not count the memory that kernels request."""
    config = {"activation_function": activation}
    simulation = run_simulation(
        Scenario(
            model="gpt2-xl",
            optimizer=optimizer,
            sequence_length=1024,
            config=config,
            implementation="loop",
        )
    )
    requests = {event for number in simulation.allocations.requests for event in (number, ~number)}
    tensors = [
        replace(segment, events=[event for event in segment.events if event not in requests])
        for segment in simulation.segments
    ]
    counted = replay(tensors, simulation.allocations, keep=())
    assert counted.peak_allocated / 2**30 == pytest.approx(allocated, rel=0.01)
    assert counted.peak_reserved / 2**30 == pytest.approx(reserved, rel=0.02)
    whole = simulation.record.memory
    assert whole is not None
    assert whole.peak_allocated is not None
    assert counted.peak_allocated <= whole.peak_allocated <= 1.005 * counted.peak_allocated


@pytest.mark.parametrize(("gpu", "expected"), [("h100-80", True), ("h200", True), ("t4", False)])
def test_a_gpu_of_the_usual_capability_shares_the_trace_without_a_gpu(gpu: str, expected: bool):
    scenario = Scenario(model="gpt2", gpu=gpu)
    assert (
        without_optimizer(scenario) == without_optimizer(replace(scenario, gpu=None))
    ) is expected


def test_flash_attention_keeps_a_random_state_and_a_t4_does_not_use_it():
    flash, efficient = (
        memory(amp="fp16", sequence_length=32, gpu=gpu) for gpu in ("a100-40", "t4")
    )
    layers, blocks = 2, 2  # the state and a number that nothing uses
    assert (
        flash.peak_by_phase["forward"] - efficient.peak_by_phase["forward"] == layers * blocks * 512
    )
