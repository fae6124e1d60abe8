"""The explanations of figures, and that docs/metrics.md has the same."""

from dataclasses import fields
from pathlib import Path

import pytest

from optprof.profiler.records.record import Memory, StepEstimate
from optprof.reports.explain import FIGURES, METRICS, explain, find, metrics_page

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"


def test_the_docs_say_what_the_command_says():
    assert PAGE.read_text(encoding="utf-8") == metrics_page(), (
        "print(metrics_page(), end='') writes it again"
    )


def test_every_figure_names_a_field_of_the_record():
    names = {
        "memory": {item.name for item in fields(Memory)},
        "estimate": {item.name for item in fields(StepEstimate)},
    }
    names["times"] = {"forward", "backward", "step", "iteration"}
    for metric in METRICS.values():
        part, _, name = metric.field.partition(".")
        assert name in names[part]


def test_a_figure_has_its_unit_origin_and_omissions():
    lines = explain("state").splitlines()
    assert lines[0] == "state: state"
    assert [line.split(":")[0] for line in lines[1:]] == [
        "unit",
        "means",
        "obtained",
        "leaves out",
        "in a record",
    ]


def test_an_unknown_name_is_answered_with_a_near_one():
    with pytest.raises(ValueError, match="no metric named 'peek'; did you mean peak"):
        find("peek")


@pytest.mark.parametrize(
    ("name", "unit"), [("draws", "micro-batches"), ("driver", "exact bytes; GiB are 2**30 of them")]
)
def test_figures_that_are_no_metrics_are_explained_and_not_compared(name, unit):
    assert list(FIGURES)[: len(METRICS)] == list(METRICS)
    assert explain(name).splitlines()[1] == f"unit: {unit}"
    with pytest.raises(ValueError, match=f"no metric named '{name}'"):
        find(name)
