"""Accumulation in the profiler: what it adds to simulated memory, which is nothing, and courses of real training."""

from dataclasses import replace
from typing import Any

import pytest

from profiler.plan import Comparison, plan
from profiler.record import Memory, Record
from profiler.simulation import simulate
from scenarios import Scenario

SMALL = Scenario(model="gpt2", sequence_length=8, config={"n_layer": 1})


def memory(scenario: Scenario) -> Memory:
    found = simulate(scenario).memory
    assert found is not None
    return found


@pytest.mark.parametrize("spec", ["gnts:threshold=0.8", "gns", "gns:estimator=mccandlish", "sbc:batch_size=8", "mht"])
def test_a_window_takes_the_memory_of_fixed_accumulation_to_the_byte(spec: str) -> None:
    fixed, accumulated = memory(replace(SMALL, micro_batches=2)), memory(replace(SMALL, accumulate=spec))
    # The rest of a step's moments differ by scalars alone, which are gone when it ends.
    assert accumulated.peak_allocated == fixed.peak_allocated
    assert (accumulated.gradients, accumulated.optimizer_state) == (fixed.gradients, fixed.optimizer_state)
    assert accumulated.optimizer_state_allocated == fixed.optimizer_state_allocated


def test_a_rescaler_takes_the_memory_of_a_plain_step_and_buffers_a_gradient_more() -> None:
    plain, fixed = memory(SMALL), memory(replace(SMALL, micro_batches=2))
    assert memory(replace(SMALL, accumulate="gnr")).peak_allocated == plain.peak_allocated
    buffered = memory(replace(SMALL, accumulate="gnts:buffered=true"))
    assert buffered.peak_by_phase["forward"] - fixed.peak_by_phase["forward"] < 100_000
    assert fixed.peak_allocated is not None
    assert buffered.peak_allocated is not None
    assert 0 < buffered.peak_allocated - fixed.peak_allocated <= plain.gradients


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"accumulate": "gnst"}, "gnts"),
        ({"accumulate": "gnts:threshold=0"}, "threshold: 0"),
        ({"accumulate": "gnts", "micro_batches": 2}, "micro_batches 1"),
        ({"accumulate": "gnts", "max_grad_norm": 1.0}, "max_grad_norm None"),
        ({"accumulate": "gnts", "workload": "state"}, "workload 'train'"),
    ],
)
def test_an_accumulation_that_cannot_be_is_refused_before_anything_runs(asked: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        plan(Comparison(models=["tiny"], optimizers=["adamw"], device="sim", **asked))
    assert said in str(caught.value)


def test_the_states_that_a_plan_adds_accumulate_nothing() -> None:
    found = plan(Comparison(models=["tiny"], optimizers=["adamw"], device="sim", accumulate="gnts"))
    assert [(scenario.workload, scenario.accumulate) for scenario in found] == [("train", "gnts"), ("state", None)]
    record = Record(scenario=found[0], origin="simulated", environment={})
    assert Record.from_dict(record.to_dict()) == record
