"""The published figures that ship with the package, compared with ours."""

from dataclasses import replace

import pytest

from optprof.profiler.records.record import StepEstimate
from optprof.reports.arithmetic.reproduction import (
    not_reproduced,
    published,
    reproduced_times,
    reproduction,
    residuals,
)
from optprof.reports.tables.overview import time_table
from optprof.reports.units import factor_text


def test_all_sixteen_published_figures_ship_with_the_package():
    assert len(published()) == 16
    assert [row.model for row in published() if row.extrapolated] == ["llama2-7b", "llama2-7b"]


def test_a_published_figure_is_compared_with_the_allocated_state(simulated):
    record = simulated("sgd-sai", model="gpt2-xl", workload="state")
    record = replace(record, memory=replace(record.memory, optimizer_state_allocated=6 * 2**30))
    (row,) = reproduction([record])
    assert row.published.state_gib == 5.93
    assert row.difference_gib == pytest.approx(0.07)
    assert row.difference_percent == pytest.approx(100 * 0.07 / 5.93)


@pytest.mark.parametrize(
    "change",
    [
        {"workload": "train"},
        {"dtype": "bf16"},
        {"options": {"amsgrad": True}},
        {"outcome": "failed", "memory": None},
        {"model": "gpt2"},
    ],
)
def test_only_plain_fp32_states_on_a_fresh_device_are_comparable(simulated, change):
    fields = {"model": "gpt2-xl", "workload": "state"} | change
    assert reproduction([simulated("adamw", **fields)]) == []


def test_figures_without_a_record_are_listed_by_optimizer(simulated):
    rows = reproduction(
        [simulated("adamw", model=model, workload="state") for model in ("gpt2-xl", "vit-h14")]
    )
    missing = not_reproduced(rows)
    assert missing["adamw"] == ["vit-s16", "llama2-7b"]
    assert missing["sgd-sai"] == ["vit-s16", "vit-h14", "gpt2-xl", "llama2-7b"]
    assert set(missing) == {"adamw", "sgd-sai", "adam-mini", "prodigy"}


def test_a_published_step_time_is_compared_with_the_estimate_for_its_gpu(simulated):
    def estimate(gpu):
        return StepEstimate(
            gpu=gpu,
            seconds=0.069,
            floor_seconds=0.02,
            moved_bytes=8,
            needed_bytes=4,
            launches=1,
            synchronisations=0,
        )

    records = [
        simulated("adamw", model="gpt2-xl", estimate=estimate(gpu)) for gpu in ("a100-80", "h200")
    ]
    ((row, record),) = reproduced_times(records)
    assert (row.step_seconds, record) == (0.138, records[0])
    assert [cell.text for cell in time_table([(row, record)]).rows[0][3:6]] == [
        "138 ms",
        "69.0 ms",
        factor_text(0.5),
    ]


def test_residuals_are_only_of_figures_that_the_authors_measured(simulated):
    def ours(model, gib):
        record = simulated("adamw", model=model, workload="state")
        return replace(
            record, memory=replace(record.memory, optimizer_state_allocated=round(gib * 2**30))
        )

    # Published are 4.86 and 11.86; 49.48 is extrapolated.
    rows = reproduction([ours("vit-h14", 4.84), ours("gpt2-xl", 11.96), ours("llama2-7b", 60.0)])
    assert (
        residuals(rows)
        == "Of 2 measured figures ours differ by \u22120.4 % to +0.8 %, most by +0.10 GiB for adamw"
        " on gpt2-xl; the paper prints two decimals."
    )
    assert residuals(reproduction([ours("llama2-7b", 60.0)])) == ""
