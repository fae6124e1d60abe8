"""The search for what fits, checked by simulating single scenarios: streams, batches, changes."""

from dataclasses import replace
from typing import Any

import pytest

from optprof.profiler import simulate
from optprof.profiler.simulating.batches import StreamCache
from optprof.profiler.simulating.fitting import Fitting, candidates, largest
from optprof.profiler.simulating.simulation import run_simulation
from optprof.scenarios import Scenario, hardware

RESNET = Scenario(model="resnet18", optimizer="adamw", gpu="t4", batch_size=512)
GPT2 = Scenario(model="gpt2", config={"n_layer": 2}, sequence_length=64)


@pytest.mark.parametrize(
    "scenario",
    [
        GPT2,
        replace(GPT2, checkpointing=True),
        Scenario(model="resnet18"),
        Scenario(model="vit-s16"),
    ],
)
def test_a_computed_stream_equals_the_traced_one(scenario: Scenario):
    streams = StreamCache()
    for optimizer in ("adamw", "sgd"):
        for batch in (2, 1, 4, 5, 23):
            changed = replace(scenario, optimizer=optimizer, batch_size=batch)
            computed, traced = streams.of(changed), run_simulation(changed)
            assert computed.segments == traced.segments
            assert computed.allocations.nbytes == traced.allocations.nbytes


@pytest.mark.parametrize("guess", [0, 1, 3, 64, 1_000, 1 << 30])
@pytest.mark.parametrize("answer", [0, 1, 2, 63, 64, 65, 999, 1_000])
def test_the_largest_batch_is_the_last_that_fits(answer: int, guess: int):
    tried: list[int] = []

    def fits(batch: int) -> bool:
        tried.append(batch)
        return batch <= answer

    assert largest(fits, guess, 1_000) == answer
    assert len(tried) == len(set(tried)) <= 20
    assert {answer, answer + 1} - {0, 1_001} <= set(tried) <= set(range(1, 1_001))


@pytest.mark.parametrize(("miss", "calls"), [(0, 2), (1, 2), (-1, 4), (3, 4), (-6, 6)])
def test_a_near_guess_shortens_the_search(miss: int, calls: int):
    tried: list[int] = []
    answer = 77_777
    largest(lambda batch: tried.append(batch) or batch <= answer, answer + miss, 1 << 20)
    assert len(tried) == calls


def test_requested_bytes_bound_what_a_device_has_to_reserve():
    stream = StreamCache().of(replace(GPT2, batch_size=4))
    memory = simulate(replace(GPT2, batch_size=4)).memory
    assert memory is not None
    assert memory.peak_reserved is not None
    nbytes = stream.allocations.nbytes
    held = peak = 0
    for event in (event for segment in stream.segments for event in segment.events):
        held += nbytes[event] if event >= 0 else -nbytes[~event]
        peak = max(peak, held)
    assert stream.requested_peak == peak <= memory.peak_reserved


def test_the_largest_batch_fits_and_the_next_does_not():
    scenario = replace(GPT2, gpu="t4", batch_size=512)
    fit = Fitting().fit(scenario)
    assert fit.largest_batch is not None
    assert fit.largest_batch > 1
    at, above = (
        simulate(replace(scenario, batch_size=fit.largest_batch + more)) for more in (0, 1)
    )
    assert (at.outcome, above.outcome) == ("ok", "out-of-memory")


def test_the_largest_batch_has_room_for_the_workspaces_of_convolutions():
    """A batch that runs only with smaller workspaces may fit, but does not count as fitting."""
    fit = Fitting().fit(RESNET)
    assert fit.fits
    assert fit.largest_batch is not None
    assert fit.largest_batch > 512
    next_one = replace(RESNET, batch_size=fit.largest_batch + 1)
    assert simulate(next_one).outcome == "ok"
    next_fit = Fitting().fit(next_one)
    assert (next_fit.fits, next_fit.may_fit) == (False, True)
    too_large = Fitting().fit(replace(RESNET, batch_size=1_024))
    assert (too_large.fits, too_large.may_fit) == (False, False)


def test_a_device_that_is_full_in_the_third_step_is_too_small():
    """Two steps run, the third does not: blocks left by the second take its place."""
    scenario = Scenario(
        model="llama2-7b",
        optimizer="sgd-sai",
        sequence_length=2048,
        checkpointing=True,
        gpu="a100-80",
    )
    assert simulate(scenario).outcome == "ok"
    assert simulate(replace(scenario, steps=3)).outcome == "out-of-memory"
    assert not Fitting().fit(scenario).fits


def test_the_bytes_left_are_those_that_torch_has_not_reserved():
    fit = Fitting().fit(RESNET)
    memory = simulate(RESNET).memory
    assert memory is not None
    assert memory.peak_reserved_upper is not None
    assert (
        fit.left
        == hardware.describe("t4").memory_bytes
        - hardware.CONTEXT_BYTES
        - memory.peak_reserved_upper
    )
    assert fit.changes == ()


def test_every_change_that_is_named_makes_it_fit():
    too_large = replace(RESNET, batch_size=1_024)
    fit = Fitting().fit(too_large, [too_large, replace(too_large, optimizer="sgd")])
    assert not fit.fits
    assert simulate(too_large).outcome == "out-of-memory"
    assert fit.changes
    for change in fit.changes:
        assert simulate(replace(too_large, **change.fields)).outcome == "ok"
    smaller = next(change.fields for change in fit.changes if "batch_size" in change.fields)
    assert smaller["batch_size"] * smaller["micro_batches"] >= 1_024


def test_changes_come_in_the_order_of_what_they_cost():
    scenario = Scenario(model="gpt2", batch_size=8)
    changes = candidates(
        scenario, [scenario, replace(scenario, optimizer="sm3")], 3, hardware.describe("a100-80")
    )
    names = ["+".join(change) for change in changes]
    assert changes[:3] == [
        {"alloc_conf": "expandable_segments:True"},
        {"implementation": "fused"},
        {"implementation": "loop"},
    ]
    assert changes[3] == {"batch_size": 3, "micro_batches": 3}
    assert names[4] == "implementation+batch_size+micro_batches"
    order = [
        names.index(name) for name in ("checkpointing", "optimizer+options+implementation", "dtype")
    ]
    assert order == sorted(order)
    assert not any(len(change) > 6 for change in changes)


def test_a_gpu_without_bf16_has_a_reason_in_place_of_changes():
    fit = Fitting().fit(replace(RESNET, dtype="bf16"))
    assert (fit.fits, fit.reason, fit.changes) == (False, "t4 has no hardware for bf16", ())
    assert not any(
        "dtype" in change for change in candidates(RESNET, [], 0, hardware.describe("t4"))
    )


def test_an_unknown_gpu_is_an_error():
    with pytest.raises(ValueError, match="no GPU is named 'gtx'"):
        Fitting().fit(replace(RESNET, gpu="gtx"))


@pytest.mark.parametrize(("dtype", "traces"), [("fp32", 1), ("bf16", 2)])
def test_gpus_share_a_trace_where_attention_takes_the_same_kernels(dtype: Any, traces: int):
    """Half precision: flash from capability 8.0 on, math on a T4. Float32: memory-efficient."""
    streams = StreamCache()
    for gpu in ("h100-80", "a100-80", "rtx4090", "t4", "h200"):
        streams.of(
            Scenario(model="gpt2", config={"n_layer": 1}, sequence_length=16, dtype=dtype, gpu=gpu)
        )
    ((*traced,),) = streams._models.values()
    assert len(traced) == traces
