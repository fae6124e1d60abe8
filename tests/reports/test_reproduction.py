"""Reproduction: the published figures that ship with the package, beside ours."""

from dataclasses import replace

import pytest

from reports.reproduction import not_reproduced, published, reproduction


def test_all_sixteen_published_figures_ship_with_the_package():
    assert len(published()) == 16
    assert [row.model for row in published() if row.extrapolated] == ["llama2-7b", "llama2-7b"]


def test_a_published_figure_is_set_beside_the_allocated_state(simulated):
    record = simulated("sgd-sai", model="gpt2-xl", workload="state")
    record = replace(record, memory=replace(record.memory, optimizer_state_allocated=6 * 2**30))
    (row,) = reproduction([record])
    assert row.published.state_gib == 5.93
    assert row.difference_gib == pytest.approx(0.07)
    assert row.difference_percent == pytest.approx(100 * 0.07 / 5.93)


@pytest.mark.parametrize(
    "change",
    [{"workload": "train"}, {"dtype": "bf16"}, {"options": {"amsgrad": True}}, {"outcome": "failed", "memory": None}, {"model": "gpt2"}],
)
def test_only_plain_fp32_states_on_a_fresh_device_are_comparable(simulated, change):
    asked = {"model": "gpt2-xl", "workload": "state"} | change
    assert reproduction([simulated("adamw", **asked)]) == []


def test_what_has_no_record_is_listed_by_optimizer(simulated):
    rows = reproduction([simulated("adamw", model=model, workload="state") for model in ("gpt2-xl", "vit-h14")])
    missing = not_reproduced(rows)
    assert missing["adamw"] == ["vit-s16", "llama2-7b"]
    assert missing["sgd-sai"] == ["vit-s16", "vit-h14", "gpt2-xl", "llama2-7b"]
    assert set(missing) == {"adamw", "sgd-sai", "adam-mini", "prodigy"}
