"""Pareto front, heat map, capacity of GPUs, visibility and agreement, checked by hand."""

from dataclasses import replace

import pytest

from optprof.profiler.records.record import Environment, GpuReading, Machine, StepEstimate, Watched
from optprof.reports.arithmetic.agreement import agreements, summary
from optprof.reports.arithmetic.capacity import fits_by_setting
from optprof.reports.arithmetic.curves import time_curves
from optprof.reports.arithmetic.entries import entries
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.pareto import front, tradeoffs
from optprof.reports.arithmetic.visibility import sights
from optprof.reports.reasons import hidden_most, other_parts
from optprof.reports.tables.heat_map import heat_map
from optprof.reports.units import MINUS, NOTHING
from optprof.scenarios import hardware

GIB = 2**30
# Bytes that torch can use of the catalogue's T4: 15,642,329,088 less 512 MiB.
T4 = 15_105_458_176


def estimate(gpu: str, seconds: float) -> StepEstimate:
    return StepEstimate(
        gpu=gpu,
        seconds=seconds,
        floor_seconds=0.01,
        moved_bytes=8,
        needed_bytes=4,
        launches=1,
        synchronisations=0,
    )


def fits(records, gpus=None):
    return [fit for group in fits_by_setting(records, gpus).values() for _, fit in group]


def holding(record, **memory):
    return replace(record, memory=replace(record.memory, **memory))


def test_the_front_has_the_points_that_no_other_beats_in_both():
    assert front([(1, 9), (2, 5), (3, 5), (4, 1), (4, 2), (5, 1)]) == [
        True,
        True,
        False,
        True,
        False,
        False,
    ]


def test_twins_are_on_the_front_together_and_a_lone_point_is_the_front():
    assert front([(1, 1), (1, 1), (2, 2)]) == [True, True, False]
    assert front([(3, 3)]) == [True]
    assert front([]) == []


def test_time_and_peak_are_paired_within_one_setting(simulated, timed):
    records = [
        simulated("adamw"),
        simulated("sgd-sai"),
        simulated("sm3"),
        timed("adamw", step=(0.2,)),
        timed("sgd-sai", step=(0.1,)),
    ]
    points = tradeoffs(entries([*records, timed("sm3", step=(0.3,))]))
    assert [
        (point.entry.label, point.seconds, point.bytes, point.on_front) for point in points
    ] == [
        ("adamw", 0.2, 20_000, False),
        ("sgd-sai", 0.1, 16_000, True),
        ("sm3", 0.3, 12_008, True),
    ]
    assert {(point.clock, point.origin, point.is_peak) for point in points} == {
        ("cpu", "measured", True)
    }


def test_samples_have_an_interval_and_estimates_are_another_clock(simulated, timed):
    sampled = timed("adamw", step=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6))
    (point,) = tradeoffs(entries([simulated("adamw"), sampled]))
    assert (point.clock, point.lower, point.upper) == ("cpu", 0.1, 0.6)
    # A GPU's bytes stand beside a GPU's time if the run has one.
    estimated = simulated("adamw", gpu=None, estimate=estimate("t4", 0.05))
    (point,) = tradeoffs(entries([estimated, sampled]))
    assert (point.clock, point.lower, point.upper) == ("t4", None, None)


def test_without_a_peak_everywhere_the_state_is_the_memory(simulated, timed):
    records = [simulated(name, workload="state") for name in ("adamw", "sm3")] + [
        timed(name) for name in ("adamw", "sm3")
    ]
    records = [
        replace(record, scenario=replace(record.scenario, workload="state")) for record in records
    ]
    assert [(point.bytes, point.is_peak) for point in tradeoffs(entries(records))] == [
        (8_000, False),
        (8, False),
    ]


def test_the_heat_map_has_a_cell_for_every_optimizer_and_model_of_the_run(simulated):
    records = [
        simulated("adamw"),
        simulated("sm3"),
        simulated("adamw", model="large", state=80_000),
        simulated("sgd-sai", model="large"),
    ]
    shown = heat_map(Findings.of(records))
    assert shown.head == ("model", "adamw", "sm3", "sgd-sai")
    factors = {name.text: [cell.text for cell in cells] for name, *cells in shown.rows}
    assert factors == {
        "tiny": ["1.00\u00d7", "1,000\u00d7", NOTHING],
        "large": ["1.00\u00d7", NOTHING, "20.0\u00d7"],
    }


def test_a_peak_on_an_unlimited_device_is_compared_with_the_bytes_that_torch_can_use(simulated):
    def answer(allocated: int, reserved: int) -> tuple[str, int | None]:
        (fit,) = fits(
            [holding(simulated("adamw"), peak_allocated=allocated, peak_reserved=reserved)], ["t4"]
        )
        assert fit.usable == T4
        return fit.answer, fit.spare

    assert answer(9 * GIB, 10 * GIB) == ("fits", T4 - 10 * GIB)
    assert answer(9 * GIB, T4) == ("tight", 0)
    # With 2 % of the reserved bytes: 14_809_272_722 * 1.02 = 15_105_458_176.4. One byte less fits.
    assert answer(9 * GIB, 14_809_272_722) == ("tight", 296_185_454)
    assert answer(9 * GIB, 14_809_272_721) == ("fits", 296_185_455)
    assert answer(T4, T4 + 1) == ("unsure", -1)
    assert answer(T4 + 1, T4 + 2) == ("fails", -2)


def test_a_record_on_the_gpu_s_own_memory_decides_for_that_gpu_alone(simulated):
    unlimited = holding(simulated("adamw"), peak_allocated=14 * GIB, peak_reserved=15 * GIB)
    own = holding(simulated("adamw", gpu="t4"), peak_allocated=13 * GIB, peak_reserved=14 * GIB)
    lost = simulated("adamw", gpu="v100-16", outcome="out-of-memory", error="needs more")
    (group,) = fits_by_setting([unlimited, own, lost], ["t4", "v100-16", "a100-40"]).values()
    assert {gpu: (fit.answer, fit.spare) for gpu, fit in group} == {
        "t4": ("tight", T4 - 14 * GIB),
        "v100-16": ("fails", None),
        "a100-40": ("fits", hardware.describe("a100-40").usable_bytes - 15 * GIB),
    }


def test_a_gpu_without_the_dtype_is_unsupported_and_states_and_cpus_are_not_judged(
    simulated, timed
):
    (fit,) = fits([simulated("adamw", dtype="bf16")], ["t4"])
    assert (fit.answer, fit.fits) == ("unsupported", False)
    assert fit.reason == "t4 has no hardware for bf16"
    assert fits([simulated("adamw", workload="state"), timed("adamw")], ["t4"]) == []
    assert len(fits([simulated("adamw")])) == len(hardware.available())
    with pytest.raises(ValueError, match="no GPU is named"):
        fits([], ["t5"])


def test_recorded_batches_bracket_the_largest(simulated):
    def batches(**reserved: int):
        records = [
            holding(
                simulated("adamw", batch_size=int(batch[1:])),
                peak_allocated=nbytes,
                peak_reserved=nbytes,
            )
            for batch, nbytes in reserved.items()
        ]
        fit = fits(records, ["t4"])[0]
        return fit.largest_batch, fit.failing_batch, fit.is_batch_settled

    assert batches(b1=GIB) == (1, None, False)
    assert batches(b1=GIB, b4=2 * GIB, b16=16 * GIB) == (4, 16, False)
    assert batches(b4=2 * GIB, b5=16 * GIB) == (4, 5, True)
    assert batches(b1=16 * GIB) == (None, 1, True)


def test_batches_of_other_optimizers_and_settings_do_not_count(simulated):
    small, large = (
        holding(simulated("adamw", batch_size=size), peak_allocated=nbytes, peak_reserved=nbytes)
        for size, nbytes in ((1, 1), (2, T4))
    )
    others = [simulated("sm3", batch_size=4), simulated("adamw", batch_size=8, dtype="bf16")]
    assert fits([small, large, *others], ["t4"])[0].largest_batch == 2


def test_a_sight_has_every_counter_and_those_of_its_baseline(simulated):
    lean = holding(simulated("sgd-sai"), peak_reserved=2**21 - 512, peak_phase="backward")
    base, own = sights(entries([simulated("adamw"), lean]), "adamw")
    assert base.baseline is None
    assert own.baseline is base
    assert (own.state_saved, own.allocated_saved, own.reserved_saved, own.driver_saved) == (
        4_000,
        4_000,
        512,
        512,
    )
    assert (own.rounding, own.fragmentation) == (512, 2**21 - 512 - 16_000)
    assert (own.driver, own.driver_is_read) == (2**21 - 512 + hardware.CONTEXT_BYTES, False)
    assert own.moved == (("optimizer_state", -4_000),)


def test_the_changed_parts_sum_to_the_difference_of_the_peaks(simulated):
    parts = {"parameter": 4_000, "gradient": 4_000, "optimizer_state": 4_000, "activation": 5_000}
    lean = holding(
        simulated("sgd-sai"), peak_allocated=17_000, peak_phase="backward", peak_by_category=parts
    )
    _, own = sights(entries([simulated("adamw"), lean]), "adamw")
    assert dict(own.moved) == {"optimizer_state": -4_000, "activation": 5_000, "temporary": -4_000}
    assert sum(count for _, count in own.moved) == 17_000 - 20_000 == -(own.allocated_saved or 0)


def test_a_sight_is_compared_with_the_baseline_that_runs_its_step_the_same_way(simulated):
    loop = holding(simulated("adamw", implementation="loop"), peak_allocated=16_500)
    rows = sights(
        entries([simulated("adamw"), loop, simulated("sgd-sai", implementation="loop")]), "adamw"
    )
    assert [sight.allocated_saved for sight in rows] == [None, None, 500]


def test_foreach_is_compared_with_its_own_loop(simulated):
    loop = holding(simulated("adamw", implementation="loop"), peak_allocated=16_500)
    rows = sights(entries([simulated("adamw"), loop, simulated("sgd-sai")]), "adamw")
    assert [(sight.entry.label, sight.foreach_costs) for sight in rows] == [
        ("adamw, foreach", 3_500),
        ("adamw, loop", None),
        ("sgd-sai", None),
    ]


def test_the_driver_s_figure_is_the_largest_reading(simulated):
    def reading(nbytes: int | None) -> GpuReading:
        return GpuReading(
            clock_mhz=None,
            memory_clock_mhz=None,
            temperature_celsius=None,
            slowed_by=(),
            other_processes=0,
            process_bytes=nbytes,
        )

    watched = Watched(gpu=(reading(None), reading(3 * 2**20), reading(2**20)))
    measured = simulated("adamw", device="cuda", origin="measured", watched=watched)
    base, own = sights(entries([measured, simulated("sm3", device="cuda")]), "adamw")
    assert (base.driver, base.driver_is_read) == (3 * 2**20, True)
    assert own.driver_saved is None


def test_the_saving_that_is_hidden_most_is_one_sentence(simulated):
    parts = {"parameter": 4_000, "gradient": 4_000, "optimizer_state": 4_000, "activation": 5_000}
    lean = holding(
        simulated("sgd-sai"), peak_allocated=17_000, peak_phase="backward", peak_by_category=parts
    )
    # sm3 saves 7,992 bytes and all of them show; of sgd-sai's 4,000 only 3,000 do.
    shown = sights(entries([simulated("adamw"), simulated("sm3"), lean]), "adamw")
    assert hidden_most(shown) == (
        "sgd-sai keeps 3.91 KiB less state than adamw: its allocated peak is 2.93 KiB lower, its"
        " reserved peak as high; its peak lies in backward, that of adamw in step."
    )
    assert other_parts(shown[2]) == f"activations +4.88 KiB, temporaries {MINUS}3.91 KiB"
    assert hidden_most(shown[:1]) == "The state of adamw is 40.0 % of its peak in step."
    assert [sight.foreach_adds for sight in shown] == [4_000, 4_000, None]


def test_a_missing_counter_makes_no_sentence(simulated):
    bare = simulated("adamw", device="cpu", origin="measured")
    bare = holding(
        bare,
        optimizer_state_allocated=None,
        peak_allocated=None,
        peak_reserved=None,
        peak_phase=None,
        peak_by_category={},
        peak_by_phase={},
    )
    (sight,) = sights(entries([bare]), "adamw")
    assert (hidden_most([sight]), other_parts(sight)) == ("", "")


def test_one_scenario_simulated_and_measured_agrees_or_has_a_residual(simulated):
    measured = holding(
        simulated("adamw", device="cuda", origin="measured", steps=100), peak_allocated=25_000
    )
    rows = agreements([simulated("adamw"), measured])
    assert [(one.metric, one.simulated, one.measured, one.residual) for one in rows] == [
        ("state", 8_000, 8_000, 0),
        ("state-allocated", 8_512, 8_512, 0),
        ("peak", 20_000, 25_000, -5_000),
        ("reserved", 2**21, 2**21, 0),
    ]
    assert rows[2].percent == -20
    assert (
        summary(rows)
        == "3 of 4 figures agree to the byte; the furthest off is peak of adamw, by \u221220.0 %."
    )
    assert summary(rows[:2]) == "2 of 2 figures agree to the byte."
    assert summary([]) == ""


def test_another_implementation_is_compared_by_state_alone_and_another_scenario_not_at_all(
    simulated,
):
    measured = simulated("adamw", device="cpu", origin="measured", implementation="loop")
    assert [one.metric for one in agreements([simulated("adamw"), measured])] == ["state"]
    assert agreements([simulated("adamw", batch_size=2), measured]) == []
    assert (
        agreements(
            [
                simulated("sm3"),
                measured,
                simulated("adamw", outcome="failed", memory=None, error="no"),
            ]
        )
        == []
    )


def test_blocks_are_compared_with_a_simulation_under_the_same_settings_of_the_same_gpu(simulated):
    conditions = {"device": "cuda", "origin": "measured", "gpu": "t4"}
    other, unlimited, own = (
        holding(simulated("adamw", **where), peak_allocated=peak)
        for where, peak in (
            ({"gpu": "t4", "alloc_conf": "expandable_segments:True"}, 1),
            ({}, 2),
            ({"gpu": "t4"}, 3),
        )
    )
    peaks = [
        one.simulated
        for one in agreements([other, unlimited, own, simulated("adamw", **conditions)])
        if one.metric == "peak"
    ]
    assert peaks == [3]
    assert [
        one.simulated
        for one in agreements([unlimited, simulated("adamw", **conditions)])
        if one.metric == "peak"
    ] == [2]
    assert [one.metric for one in agreements([other, simulated("adamw", **conditions)])] == [
        "state"
    ]


def test_an_estimate_is_compared_with_samples_of_its_own_gpu_only(simulated):
    def times(gpu: str, device: str, memory: int | None = None):
        environment = Environment(machine=Machine(gpu=device, gpu_memory_bytes=memory))
        conditions = {
            "device": "cuda",
            "gpu": gpu,
            "times": {"step": (0.3, 0.1, 0.2)},
            "environment": environment,
        }
        records = [
            simulated("adamw", gpu=gpu, estimate=estimate(gpu, 0.25)),
            simulated("adamw", origin="measured", **conditions),
        ]
        return [
            (one.simulated, one.measured) for one in agreements(records) if one.unit == "seconds"
        ]

    assert times("a100-80", "NVIDIA A100-SXM4-80GB") == [(0.25, 0.2)]
    assert times("rtx3060", "NVIDIA GeForce RTX 3060", 12_587_106_304) == [(0.25, 0.2)]
    assert times("rtx3060", "NVIDIA GeForce RTX 3060", 8 * 2**30) == []
    for gpu, device in (
        ("a100-80", "NVIDIA GeForce RTX 3090"),
        ("a10", "NVIDIA A100-SXM4-80GB"),
        ("l4", "NVIDIA L40S"),
        ("a100-40", "NVIDIA A100-SXM4-80GB"),
        ("rtx3060", "NVIDIA GeForce RTX 3060 Ti"),
    ):
        assert times(gpu, device) == []


def test_blocks_on_one_gpu_of_the_catalogue_are_not_compared_with_another(simulated):
    environment = Environment(machine=Machine(gpu="NVIDIA A100-SXM4-80GB"))
    measured = simulated(
        "adamw", device="cuda", origin="measured", gpu="t4", environment=environment
    )
    other, own = (
        holding(simulated("adamw", gpu=gpu), peak_allocated=peak)
        for gpu, peak in (("t4", 1), ("a100-80", 2))
    )
    assert [
        one.simulated for one in agreements([other, own, measured]) if one.metric == "peak"
    ] == [2]
    assert [one.metric for one in agreements([other, measured])] == ["state"]


@pytest.mark.parametrize("device", ["NVIDIA GeForce RTX 3090 Ti", "NVIDIA A100 80GB PCIe"])
def test_blocks_on_a_gpu_outside_the_catalogue_are_compared_with_none_in_it(simulated, device):
    environment = Environment(machine=Machine(gpu=device))
    measured = simulated("adamw", device="cuda", origin="measured", environment=environment)
    named = [
        holding(simulated("adamw", gpu=gpu), peak_allocated=1) for gpu in ("rtx3090", "a100-80")
    ]
    unlimited = holding(simulated("adamw"), peak_allocated=2)
    assert [one.metric for one in agreements([*named, measured])] == ["state"]
    assert [
        one.simulated for one in agreements([*named, unlimited, measured]) if one.metric == "peak"
    ] == [2]


def test_times_by_size_are_joined_within_family_and_clock(timed, simulated):
    def at(model: str, count: int, step: tuple[float, ...], **changes: object):
        return timed(
            "adamw", model=model, parameter_count=count, step=step, model_family="tiny", **changes
        )

    records = [
        at("large", 4_000, (0.4,)),
        at("tiny", 1_000, (0.1, 0.2, 0.3, 0.4, 0.5, 0.6), share=0.5),
    ]
    records += [
        simulated("adamw", estimate=estimate("t4", 0.05)),
        timed("adamw", model="loner", parameter_count=2_000, step=(1.0,)),
    ]
    curves = [
        (
            series.clock,
            series.family,
            [(point.parameters, point.seconds) for point in series.points],
        )
        for series in time_curves(records)
    ]
    assert curves == [
        ("cpu", "tiny", [(1_000, pytest.approx(0.35)), (4_000, 0.4)]),
        ("t4", "tiny", [(1_000, 0.05)]),
        ("cpu", None, [(2_000, 1.0)]),
    ]
    first = time_curves(records)[0].points[0]
    assert (first.lower, first.upper, first.origin) == (0.1, 0.6, "estimated")
