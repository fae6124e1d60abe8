"""Accumulation in the profiler: the memory of simulated windows, and real training runs."""

import json
from dataclasses import replace
from typing import Any

import pytest

from optprof.profiler.measuring.files import require_iterations
from optprof.profiler.measuring.measurement import measure
from optprof.profiler.records.record import Environment, Memory, Record
from optprof.profiler.running.forecast import Forecast
from optprof.profiler.running.plan import comparison, plan
from optprof.profiler.simulating.simulation import run_simulation, simulate
from optprof.profiler.training.accumulating import target_schedule
from optprof.reports.page import render_page
from optprof.scenarios import Scenario

SMALL = Scenario(model="gpt2", sequence_length=8, config={"n_layer": 1})


def memory(scenario: Scenario) -> Memory:
    memory_of_scenario = simulate(scenario).memory
    assert memory_of_scenario is not None
    return memory_of_scenario


@pytest.mark.parametrize(
    "spec", ["gnts:threshold=0.8", "gns", "gns:estimator=mccandlish", "sbc:batch_size=8", "mht"]
)
def test_a_window_takes_the_memory_of_fixed_accumulation_to_the_byte(spec: str) -> None:
    fixed, accumulated = (
        memory(replace(SMALL, micro_batches=2)),
        memory(replace(SMALL, accumulate=spec)),
    )
    # The rest of a step's moments differ by scalars alone, which are gone when it ends.
    assert accumulated.peak_allocated == fixed.peak_allocated
    assert (accumulated.gradients, accumulated.optimizer_state) == (
        fixed.gradients,
        fixed.optimizer_state,
    )
    assert accumulated.optimizer_state_allocated == fixed.optimizer_state_allocated


def test_a_rescaler_takes_the_memory_of_a_plain_step_and_buffers_a_gradient_more() -> None:
    plain, fixed = memory(SMALL), memory(replace(SMALL, micro_batches=2))
    assert memory(replace(SMALL, accumulate="gnr")).peak_allocated == plain.peak_allocated
    buffered = memory(replace(SMALL, accumulate="gnts:buffered=true"))
    assert buffered.peak_by_phase["forward"] - fixed.peak_by_phase["forward"] < 100_000
    assert fixed.peak_allocated is not None
    assert buffered.peak_allocated is not None
    assert 0 < buffered.peak_allocated - fixed.peak_allocated <= plain.gradients


@pytest.mark.parametrize("spec", ["gnts:max_draws=1", "sbc:batch_size=1"])
def test_a_window_of_one_draw_takes_the_memory_of_a_plain_step(spec: str) -> None:
    assert memory(replace(SMALL, accumulate=spec)) == memory(replace(SMALL, accumulate="gnr"))


def test_the_draws_of_a_window_are_one_step_of_the_timeline() -> None:
    timeline = run_simulation(replace(SMALL, accumulate="gnts", steps=3)).timeline
    assert timeline is not None
    assert timeline.steps == 3
    second = [
        stretch.phase for stretch in timeline.phases if stretch.step == timeline.phases[-1].step
    ]
    assert second == ["forward", "backward", "step"] * 2


@pytest.mark.parametrize(
    ("question", "message"),
    [
        (
            {"accumulate": "sbc:batch_size=8,micro_batch_size=4"},
            "micro_batch_size is the batch size, 1, got 4",
        ),
        ({"accumulate": "gnts:final=0", "device": "cpu"}, "final must be > 0, got 0"),
        ({"accumulate": "gnts:final=low", "device": "cpu"}, "final must be a number, got 'low'"),
        (
            {"accumulate": "gnts:warmup_steps=200", "device": "cpu"},
            "total_steps must be > warmup_steps, got 100 and 200",
        ),
        ({"accumulate": "gnst"}, "gnts"),
        ({"accumulate": "gnts:threshold=0"}, "threshold: 0"),
        ({"accumulate": "gnts", "micro_batches": 2}, "micro_batches 1"),
        ({"accumulate": "gnts", "max_grad_norm": 1.0}, "max_grad_norm None"),
        ({"accumulate": "gnts", "workload": "state"}, "workload 'train'"),
    ],
)
def test_an_impossible_accumulation_is_refused_before_anything_runs(
    question: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=r"^[^\n]*$") as caught:
        plan(comparison(models=["tiny"], optimizers=["adamw"], **{"device": "sim", **question}))
    assert message in str(caught.value)


def test_the_states_that_a_plan_adds_accumulate_nothing() -> None:
    scenarios = plan(
        comparison(models=["tiny"], optimizers=["adamw"], device="sim", accumulate="gnts")
    )
    assert [(scenario.workload, scenario.accumulate) for scenario in scenarios] == [
        ("train", "gnts"),
        ("state", None),
    ]
    record = Record(scenario=scenarios[0], origin="simulated", environment=Environment())
    assert Record.from_dict(record.to_dict()) == record


COURSE = Scenario(
    model="tiny",
    device="cpu",
    sequence_length=16,
    batch_size=2,
    steps=12,
    options={"lr": 3e-3},
    implementation="loop",
    accumulate="gnts",
)


@pytest.mark.parametrize(
    ("spec", "draws", "added"),
    [
        ("sbc:batch_size=6", (3, 3, 3, 3), 0),
        ("mht:error=1e-9,max_draws=4", (1, 4, 4), 0),
        ("gnts:threshold=1e-6,max_draws=5", (5, 5), 0),
        ("gnts:threshold=1e-6,max_draws=5,buffered=true", (5, 5), 4 * 132_864),
        ("gnr", (1,) * 12, 0),
        ("gns:tolerance=1e-9,max_draws=4", (4, 4, 4), 0),
    ],
)
def test_a_training_run_records_each_draw_and_its_time(
    spec: str, draws: tuple[int, ...], added: int
) -> None:
    record = measure(replace(COURSE, accumulate=spec))
    course, times = record.course, record.times
    assert course is not None
    assert times is not None
    assert (course.draws, course.added_bytes, course.dropped) == (draws, added, 0)
    assert course.ended == tuple(sum(draws[: place + 1]) for place in range(len(draws)))
    # The times of the first tenth are its warm-up.
    assert record.warmup is not None
    assert len(course.losses) == 12
    assert [
        (len(samples["iteration"]), len(samples["forward"])) for samples in (record.warmup, times)
    ] == [(1, 1), (11, 11)]
    decided = {
        phase: sum(len(samples.get(phase, ())) for samples in (record.warmup, times))
        for phase in ("step", "draw")
    }
    assert decided == {"step": len(draws), "draw": 12 - len(draws)}
    assert [reading.micro_batches for reading in course.held_out] == list(range(13))
    assert record.watched is not None
    assert record.watched.tokens == 32
    assert record.memory is not None
    assert record.memory.optimizer_state == 2 * 4 * 132_864 + 4 * len(net_tensors())
    assert Record.from_dict(record.to_dict()) == record


def net_tensors() -> list[str]:
    """The parameters of the tiny model, a step count each."""
    from optprof.scenarios.workpiece import build

    return [name for name, _ in build(COURSE, "meta").model.named_parameters()]


def test_a_training_run_learns_and_its_seed_selects_its_text() -> None:
    scenario = replace(COURSE, steps=60, accumulate="mht:error=0.2")
    first, again, other = (measure(replace(scenario, seed=seed)).course for seed in (0, 0, 1))
    assert first is not None
    assert again is not None
    assert other is not None
    assert first.losses == again.losses != other.losses
    before, after = first.held_out[0].loss, first.held_out[-1].loss
    assert before is not None
    assert after is not None
    assert after < before - 0.5
    assert len(first.held_out) == 21


def test_a_schedule_drives_the_target_over_the_run() -> None:
    course = measure(replace(COURSE, accumulate="sbc:batch_size=2,final=3")).course
    assert course is not None
    # The batch goes from 2 to 6 samples in half a cosine: 2, 2.1, 2.3, 2.6, 3, 3.5, 4, 4.5, 5, 5.4,
    # 5.7, 5.9.
    assert (course.draws, course.ended) == ((1, 2, 2, 2, 3), (1, 3, 5, 7, 10))
    assert target_schedule(COURSE) is None


@pytest.mark.filterwarnings("ignore:a micro-batch's gradient")
def test_a_training_run_that_diverges_is_recorded_and_shown() -> None:
    record = measure(replace(COURSE, options={"lr": 1e30}, accumulate="sbc:batch_size=2"))
    course = record.course
    assert course is not None
    assert course.losses[0] is not None
    assert course.losses[-1] is None
    assert course.held_out[-1].loss is None
    assert course.dropped == 12 - len(course.draws) > 0
    assert course.ended == tuple(range(1, len(course.draws) + 1))
    assert Record.from_dict(json.loads(record.to_json())) == record
    assert "Losses that are not finite are left out" in render_page([record])


def test_an_older_record_is_read() -> None:
    data = measure(replace(COURSE, steps=2)).to_dict()
    del data["course"]["ended"]
    course = Record.from_dict(data).course
    assert course is not None
    assert course.ended == ()


def test_snapshots_and_traces_of_a_training_run_are_refused_and_its_time_is_unknown() -> None:
    simulated = replace(COURSE, device="sim")
    require_iterations([simulated], snapshots=True, traces=True)
    require_iterations([COURSE], snapshots=True, traces=False)
    with pytest.raises(ValueError, match="leave out --trace"):
        require_iterations([simulated, COURSE], snapshots=False, traces=True)
    with pytest.raises(ValueError, match="leave out --snapshot"):
        require_iterations([replace(COURSE, device="cuda")], snapshots=True, traces=False)
    record = Record(scenario=simulated, origin="simulated", environment=Environment())
    known, unknown = (
        Forecast(scenario=scenario, record=record, simulation_seconds=2.0)
        for scenario in (simulated, COURSE)
    )
    assert (known.seconds, unknown.seconds) == (2.0, None)


def test_a_model_that_reads_no_text_has_no_training_run() -> None:
    with pytest.raises(ValueError, match="resnet18 reads other batches"):
        measure(Scenario(model="resnet18", device="cpu", accumulate="gnts"))


def test_a_training_run_with_a_scaler_is_unscaled_once() -> None:
    course = measure(replace(COURSE, amp="fp16", accumulate="sbc:batch_size=4")).course
    assert course is not None
    # The scaler's first scale may be too large for fp16: micro-batches that overflow are dropped.
    assert sum(course.draws) + course.dropped >= 11
    assert set(course.draws) <= {2}
