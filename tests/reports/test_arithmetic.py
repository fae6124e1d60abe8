"""Arithmetic on records, checked by hand: entries, savings, curves, peaks, times and labels."""

import math
from dataclasses import replace
from typing import Any

import pytest

from optprof.profiler.records.record import Watched
from optprof.reports.arithmetic.curves import curves
from optprof.reports.arithmetic.entries import entries, failures, setting_names
from optprof.reports.arithmetic.findings import Findings, pictured
from optprof.reports.arithmetic.labels import dtype_name, labels
from optprof.reports.arithmetic.peaks import peaks
from optprof.reports.arithmetic.savings import savings, without_baseline
from optprof.reports.arithmetic.times import Spread, samples_per_second, timings, tokens_per_second
from optprof.reports.phrases import interval_text, peak_text, unlike_text, unpaced_text
from optprof.reports.tables.summary import cpu_table
from optprof.reports.tables.verdict import cards, sources, verdict
from optprof.reports.words import warning_lines
from optprof.scenarios import spec


def names_of(records):
    return list(labels(records).values())


def test_an_optimizer_alone_goes_by_its_name(simulated):
    assert names_of(
        [
            simulated("adamw", options={"lr": 0.1, "amsgrad": False}),
            simulated("sm3", options={"momentum": 0.0}),
        ]
    ) == [
        "adamw",
        "sm3",
    ]


def test_a_momentum_that_costs_bytes_is_in_the_label(simulated):
    assert names_of([simulated("sm3", options={"momentum": 0.9, "lr": 0.1})]) == [
        "sm3 (momentum=0.9)"
    ]
    assert names_of([simulated("sgd-sai", options={"momentum": 0.9})]) == ["sgd-sai"]


def test_every_option_that_decides_the_bytes_is_in_the_label_at_an_unusual_value(simulated):
    alone = [
        simulated("lamb16", options={"scale": "upstream"}),
        simulated("apollo", options={"rank": 4}, deciding_options={"rank": 256}),
        simulated(
            "lamb",
            options={"preset": "cybertronai", "bias_correction": None},
            deciding_options={"preset": None, "bias_correction": None},
        ),
    ]
    assert names_of(alone) == [
        "lamb16 (scale=upstream)",
        "apollo (rank=4)",
        "lamb (preset=cybertronai)",
    ]


@pytest.mark.parametrize(
    ("optimizer", "options", "label"),
    [
        ("adamw", {"amsgrad": True, "momentum": 0.9}, "adamw (amsgrad=True, momentum=0.9)"),
        ("adamw", {"amsgrad": False, "momentum": None}, "adamw"),
        ("sm3", {"momentum": 0.9}, "sm3 (momentum=0.9)"),
        ("sm3", {"momentum": 0.0}, "sm3"),
        ("sgd", {"momentum": 0.9}, "sgd"),
        ("sgd", {"momentum": 0.0}, "sgd (momentum=0.0)"),
        ("apollo", {"rank": 4}, "apollo"),
    ],
)
def test_an_older_record_is_labelled_with_its_flags_and_momentum(
    simulated, optimizer: str, options: dict[str, Any], label: str
):
    assert names_of([simulated(optimizer, options=options, deciding_options=None)]) == [label]


def test_a_failed_record_shares_the_label_of_its_optimizer(simulated):
    options = {"scale": "upstream"}
    failed = simulated(
        "lamb16", options=options, deciding_options=None, memory=None, outcome="failed", error="no"
    )
    assert names_of([failed, simulated("lamb16", options=options)]) == ["lamb16 (scale=upstream)"]


def test_namesakes_are_labelled_with_the_options_that_differ(simulated):
    records = [simulated("adamw", options={"lr": lr, "betas": [0.9, 0.999]}) for lr in (0.1, 0.2)]
    assert names_of(records) == ["adamw (lr=0.1)", "adamw (lr=0.2)"]


def test_bytes_and_times_of_one_question_make_one_entry(simulated, timed):
    (entry,) = entries([simulated("adamw"), timed("adamw")])
    assert entry.state_bytes == 8_000
    assert entry.bytes_per_parameter == 8.0
    assert entry.peak_bytes == 20_000
    assert entry.step is not None
    assert entry.step.median == 0.2


def test_two_implementations_make_two_entries_and_a_time_joins_its_own(simulated, timed):
    records = [simulated("adamw"), simulated("adamw", implementation="loop"), timed("adamw")]
    timed_labels = {entry.label: entry.step is not None for entry in entries(records)}
    assert timed_labels == {"adamw, foreach": False, "adamw, loop": True}


def test_bytes_measured_on_a_gpu_take_precedence_over_simulated_ones(simulated):
    measured = simulated("adamw", device="cuda", origin="measured")
    (entry,) = entries([simulated("adamw"), measured])
    assert entry.bytes_from is measured


def test_bytes_of_a_cpu_without_a_peak_do_not_hide_the_simulated_peak(simulated, timed):
    plain = simulated("adamw")
    without_peak = replace(
        plain.memory, peak_allocated=None, peak_reserved=None, peak_phase=None, peak_by_category={}
    )
    (entry,) = entries([plain, timed("adamw", memory=without_peak, parameter_count=1_000)])
    assert entry.peak_bytes == 20_000
    assert entry.step is not None


def test_the_family_on_the_curve_makes_no_entries_of_its_own(simulated):
    rows = entries([simulated("adamw"), simulated("adamw", model="small", workload="state")])
    assert [entry.setting.model for entry in rows] == ["tiny"]


def test_a_run_of_states_alone_makes_entries_without_a_training_peak(simulated):
    (entry,) = entries([simulated("adamw", workload="state")])
    assert entry.state_bytes == 8_000
    assert entry.peak_bytes is None


def test_settings_are_named_by_the_traits_that_differ(simulated):
    rows = entries(
        [
            simulated("adamw"),
            simulated("adamw", dtype="bf16"),
            simulated("adamw", model="other", sequence_length=None),
        ]
    )
    assert list(setting_names([entry.setting for entry in rows]).values()) == [
        "tiny · fp32",
        "tiny · bf16",
        "other",
    ]


@pytest.mark.parametrize(
    ("changes", "trait"),
    [
        ({"amp": "bf16"}, "bf16 autocast"),
        ({"checkpointing": True}, "checkpointed"),
        ({"attention": "eager"}, "eager attention"),
        ({"micro_batches": 4}, "4 micro-batches"),
        ({"max_grad_norm": 1.0}, "clipped to 1.0"),
        ({"set_to_none": False}, "gradients kept"),
        ({"config": {"n_layer": 24}}, "n_layer=24"),
        ({"lora_rank": 8}, "LoRA of rank 8"),
        ({"gpu": "A100-80"}, "on A100-80"),
        ({"alloc_conf": "expandable_segments:True"}, "expandable_segments:True"),
        ({"parallel": "fsdp2", "ranks": 8}, "fsdp2 on 8 ranks"),
        ({"parallel": "ddp", "ranks": 8, "rank": 3}, "ddp on 8 ranks, rank 3"),
    ],
)
def test_different_ways_of_training_are_never_joined_and_are_named(
    simulated, changes: dict[str, object], trait: str
):
    rows = entries([simulated("adamw"), simulated("adamw", **changes)])
    assert list(setting_names([entry.setting for entry in rows]).values()) == [
        "tiny",
        f"tiny · {trait}",
    ]
    assert trait in rows[1].setting.traits


def test_a_field_without_words_of_its_own_is_named_as_well(
    simulated, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(spec, "_LATER", {"seed": 0})
    rows = entries([simulated("adamw"), simulated("adamw", seed=7)])
    assert [entry.setting.training_traits for entry in rows] == [(), ("seed=7",)]


def test_a_model_trained_in_part_has_a_curve_of_its_own(simulated):
    series = curves([simulated("adamw"), simulated("adamw", lora_rank=8, state=80)])
    assert [[point.state_bytes for point in one.points] for one in series] == [[8_000], [80]]


def test_savings_are_bytes_factor_and_share(simulated):
    rows = savings(
        entries(
            [
                simulated("adamw"),
                simulated("sgd-sai"),
                simulated("sm3"),
                simulated("huge", state=12_000),
            ]
        ),
        "adamw",
    )
    assert [row.saved_bytes for row in rows] == [0, 4_000, 7_992, -4_000]
    assert [row.factor for row in rows] == [1, 2, 1_000, 8 / 12]
    assert [row.share_kept for row in rows] == [1, 0.5, 0.001, 1.5]
    assert [row.is_baseline for row in rows] == [True, False, False, False]


def test_an_optimizer_without_state_saves_by_an_infinite_factor(simulated):
    row = savings(entries([simulated("adamw"), simulated("sgd", state=0)]), "adamw")[1]
    assert row.factor == math.inf
    assert row.saved_bytes == 8_000


def test_the_plain_adamw_is_the_baseline_if_there_is_one_with_amsgrad_too(simulated):
    heavy = simulated("adamw", options={"amsgrad": True}, state=12_000)
    rows = savings(entries([heavy, simulated("adamw", options={"amsgrad": False})]), "adamw")
    assert [(row.entry.label, row.is_baseline) for row in rows] == [
        ("adamw (amsgrad=True)", False),
        ("adamw (amsgrad=False)", True),
    ]
    assert rows[0].saved_bytes == -4_000


def test_the_baseline_is_the_one_that_runs_its_step_the_same_way(simulated):
    records = [
        simulated(name, implementation=way)
        for name in ("adamw", "sm3")
        for way in ("foreach", "loop")
    ]
    rows = savings(entries(records), "adamw")
    assert [(row.entry.label, row.baseline.label) for row in rows] == [
        ("adamw, foreach", "adamw, foreach"),
        ("adamw, loop", "adamw, loop"),
        ("sm3, foreach", "adamw, foreach"),
        ("sm3, loop", "adamw, loop"),
    ]
    assert unlike_text(rows) == ""
    other = savings(entries([simulated("adamw"), simulated("sm3", implementation="loop")]), "adamw")
    assert (
        unlike_text(other)
        == "States and peaks are compared across implementations: sm3 (loop) with adamw (foreach)."
        " The run has no result of adamw with the same implementation."
    )


def test_steps_that_run_differently_are_not_compared_and_the_report_says_so(simulated, timed):
    fused = timed("adamw")
    fused = replace(fused, scenario=replace(fused.scenario, implementation="fused"))
    records = [simulated("adamw"), fused, simulated("sm3"), timed("sm3")]
    findings = Findings.of(records)
    assert findings.paces == []
    assert unpaced_text(findings) == (
        "Step times are not compared across implementations: sm3 (loop) with adamw (fused)."
        " --implementation loop times all of them alike."
    )
    table = cpu_table(findings, findings.entries, 80)
    assert table.head[:3] == ("optimizer", "run as", "step")
    assert [row[1].text for row in table.rows] == ["fused", "loop"]
    alike = Findings.of([simulated("adamw"), timed("adamw"), simulated("sm3"), timed("sm3")])
    assert unpaced_text(alike) == ""
    assert "run as" not in cpu_table(alike, alike.entries, 80).head


def test_a_peak_is_compared_with_the_baseline_that_runs_its_step_the_same_way(simulated):
    loop = {"implementation": "loop"}
    low = replace(
        simulated("adamw", **loop),
        memory=replace(simulated("adamw").memory, peak_allocated=16 * 2**30),
    )
    text = verdict(Findings.of([simulated("adamw"), low, simulated("sm3", **loop)]))
    assert "falls from 16.00 GiB to 11.7 KiB" in text


@pytest.mark.parametrize(
    ("dtype", "nbytes", "name"),
    [
        (None, {"float32": 4, "bfloat16": 2}, "fp32+bf16"),
        (None, {"complex64": 8, "int8": 1, "float16": 2}, "fp16+complex64+int8"),
        # Dtypes without a counterpart of the requested one stay as they are.
        ("bf16", {"bfloat16": 2, "complex64": 8}, "bf16+complex64"),
        ("bf16", {"bfloat16": 2}, "bf16"),
        ("bf16", {}, "bf16"),
        (None, {}, "own dtype"),
    ],
)
def test_a_model_s_dtypes_are_those_that_a_record_counted(
    simulated, dtype: Any, nbytes: dict[str, int], name: str
):
    record = simulated("adamw", model="mine:build", dtype=dtype)
    assert dtype_name(record.scenario, replace(record.memory, parameters_by_dtype=nbytes)) == name


def test_only_optimizers_of_the_same_model_and_dtype_are_compared(simulated):
    rows = entries([simulated("adamw"), simulated("sm3", dtype="bf16")])
    assert [row.entry.label for row in savings(rows, "adamw")] == ["adamw"]
    assert [setting.dtype for setting in without_baseline(rows, "adamw")] == ["bf16"]


def test_a_curve_joins_one_family_and_no_single_model(simulated):
    records = [
        simulated("adamw", model="large", parameter_count=4_000, state=32_000),
        simulated("adamw"),
        simulated("adamw", model="loner", model_family=None, parameter_count=2_000, state=16_000),
    ]
    points = {
        series.family: [(point.parameters, point.state_bytes) for point in series.points]
        for series in curves(records)
    }
    assert points == {"tiny": [(1_000, 8_000), (4_000, 32_000)], None: [(2_000, 16_000)]}


def test_a_measured_state_takes_the_place_of_a_simulated_one_on_the_curve(simulated):
    (series,) = curves(
        [simulated("adamw"), simulated("adamw", origin="measured", device="cuda", state=8_004)]
    )
    assert [(point.state_bytes, point.origin) for point in series.points] == [(8_004, "measured")]


def test_series_that_coincide_get_lanes_of_their_own(simulated):
    lanes = curves(
        [
            simulated("sgd-sai"),
            simulated("lion", state=4_000),
            simulated("sm3"),
            simulated("adam-mini", state=4_050),
        ]
    )
    assert [(series.label, series.lane) for series in lanes] == [
        ("sgd-sai", 0),
        ("lion", 1),
        ("sm3", 0),
        ("adam-mini", 2),
    ]


def test_a_peak_is_split_in_the_order_of_a_stack_and_sums_up(simulated):
    records = [simulated("adamw")]
    (peak,) = peaks(entries(records), records)
    assert [name for name, _ in peak.parts] == [
        "parameter",
        "gradient",
        "optimizer_state",
        "temporary",
    ]
    assert sum(count for _, count in peak.parts) == peak.allocated == 20_000
    assert peak.phase == "step"


def test_a_peak_without_parts_is_one_part(simulated):
    record = simulated("adamw")
    records = [replace(record, memory=replace(record.memory, peak_by_category={}))]
    (peak,) = peaks(entries(records), records)
    assert peak.parts == (("allocated", 20_000),)
    assert (peak.parts_origin, peak.residual) == ("simulated", 0)


def test_a_peak_measured_on_cuda_has_the_parts_of_its_simulation_and_their_deviation(
    simulated,
):
    measured = simulated("adamw", device="cuda", origin="measured")
    measured = replace(
        measured, memory=replace(measured.memory, peak_by_category={}, peak_allocated=2**30)
    )
    records = [
        measured,
        simulated("adamw", implementation="loop"),
        simulated("adamw", dtype="bf16"),
        simulated("adamw"),
    ]
    peak = peaks(entries(records), records)[0]
    assert [name for name, _ in peak.parts] == [
        "parameter",
        "gradient",
        "optimizer_state",
        "temporary",
    ]
    assert (peak.allocated, peak.split, peak.residual, peak.parts_origin) == (
        2**30,
        20_000,
        2**30 - 20_000,
        "simulated",
    )
    assert (
        peak_text(peak)
        == "measured 1.000 GiB in step · 2.00 MiB reserved · parts simulated: 19.5 KiB in all,"
        " 1,024 MiB less"
    )


def test_a_spread_has_median_and_inclusive_quartiles():
    spread = Spread.of((5.0, 1.0, 2.0, 4.0, 3.0))
    assert (spread.lower, spread.median, spread.upper) == (2.0, 3.0, 4.0)
    assert (spread.smallest, spread.largest) == (1.0, 5.0)
    assert spread.samples == (5.0, 1.0, 2.0, 4.0, 3.0)


def test_one_sample_is_its_own_quartiles_and_no_sample_is_an_error():
    assert Spread.of((0.5,)).lower == 0.5
    with pytest.raises(ValueError, match="at least one sample"):
        Spread.of(())


def test_an_iteration_is_the_sum_of_its_medians(timed):
    whole, part = timings(
        [timed(times={"forward": (1.0,), "backward": (2.0,), "step": (1.0, 3.0)}), timed("sm3")]
    )
    assert whole.iteration == 5.0
    assert part.iteration is None


def test_a_failed_record_is_listed_and_makes_no_entry(simulated):
    lost = simulated("sm3", memory=None, outcome="failed", error="ValueError: no")
    assert [entry.label for entry in entries([simulated("adamw"), lost])] == ["adamw"]
    assert failures([simulated("adamw"), lost]) == [lost]


def test_the_verdict_names_the_smallest_state_and_its_effect_on_the_peak(simulated):
    text = verdict(Findings.of([simulated("adamw"), simulated("sgd-sai"), simulated("sm3")]))
    assert text.startswith("sm3 keeps the least state: 8 B, 1,000")
    assert "the peak of a training step falls from" in text


def test_the_verdict_needs_no_baseline_and_no_bytes(simulated, timed):
    assert verdict(Findings.of([simulated("sm3")])) == "sm3 keeps a state: 8 B."
    assert verdict(Findings.of([timed("adamw")])) == ""


def test_the_sources_of_numbers_are_listed_once_with_the_range_of_shares(simulated, timed):
    records = [
        simulated("adamw"),
        simulated("sm3"),
        timed("adamw", share=0.02),
        timed("sm3", share=0.059),
    ]
    assert sources(Findings.of(records)) == [
        "bytes: simulated for CUDA, foreach",
        "step times: estimated from 2.0 % to 5.9 % on CPU, loop",
    ]


def test_the_cards_are_of_the_largest_of_many_models(simulated):
    records = [simulated("adamw", model=f"m{size}", parameter_count=size) for size in (10, 30, 20)]
    (name,) = cards(Findings.of(records))
    assert name == "m30, the largest of 3"


def test_a_picture_shows_whole_groups_up_to_sixteen_rows_and_says_so():
    rows, notes = pictured(
        [(group, number) for group in "abcde" for number in range(8)], lambda row: row[0]
    )
    assert [group for group, _ in rows] == ["a"] * 8 + ["b"] * 8
    assert notes == ("The picture shows 16 of 40 rows; the table has all.",)
    assert pictured([("a", 1)], lambda row: row[0]) == ([("a", 1)], ())


def test_throughput_is_tokens_divided_by_the_median_iteration(timed):
    watched = Watched(samples=2, tokens=32)
    record = timed("adamw", times={"step": (0.1,), "iteration": (0.5, 4.0, 0.4)}, watched=watched)
    assert (tokens_per_second(record), samples_per_second(record)) == (64, 4)
    assert tokens_per_second(timed("adamw", watched=watched)) is None
    assert tokens_per_second(timed("adamw", times={"iteration": (0.5,)})) is None


def test_a_timed_iteration_is_used_in_place_of_the_sum_of_its_phases(timed):
    times = {"forward": (0.1,), "backward": (0.2,), "step": (0.1,)}
    (summed,), (whole,) = (
        timings([timed(times=times)]),
        timings([timed(times={**times, "iteration": (0.5,)})]),
    )
    assert (summed.iteration, whole.iteration) == (pytest.approx(0.4), 0.5)


def test_the_interval_of_a_median_is_in_words():
    spread = Spread.of((0.098, 0.1, 0.1, 0.1, 0.1, 0.103))
    assert interval_text(spread) == "98.0 \u2013 103 ms (\u00b13.0 %)"
    assert interval_text(Spread.of((0.1,) * 5)) == ""


def test_warnings_say_whose_times_they_spoil(timed):
    spoiled = Watched(warnings=("others were there",))
    records = [
        timed("adamw", watched=spoiled),
        timed("sm3", watched=spoiled),
        timed("sgd", watched=Watched()),
    ]
    assert warning_lines(records) == ["adamw and sm3 on tiny (CPU, loop): others were there"]


def test_warnings_of_counts_are_listed_with_those_of_times(timed):
    unsure = timed(
        "adamw",
        watched=Watched(warnings=("others were there",)),
        warnings=("opt.py, line 3, reads a value back",),
    )
    assert warning_lines([unsure]) == [
        "adamw on tiny (CPU, loop): opt.py, line 3, reads a value back",
        "adamw on tiny (CPU, loop): others were there",
    ]


def test_files_that_a_record_lost_are_listed_too(timed):
    cut = replace(timed(), lost=("tensorboard/a: No space left on device",))
    assert warning_lines([cut]) == [
        "adamw on tiny (CPU, loop): not kept: tensorboard/a: No space left on device"
    ]
