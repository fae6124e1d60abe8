"""Every value that a record may have has its word and its style in every report."""

from typing import get_args

import pytest

from optprof.profiler.records.record import Environment, Origin, Outcome
from optprof.profiler.tracing.stream import Category, Phase
from optprof.reports import words
from optprof.reports.arithmetic.courses import WIDTHS
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.peaks import CATEGORIES
from optprof.reports.arithmetic.provenance import ORIGINS, provenance
from optprof.reports.comparison.tables import Names
from optprof.reports.phrases import missing_text
from optprof.reports.pictures import step_sizes
from optprof.reports.style import CATEGORY_COLOURS
from optprof.scenarios.spec import Device, Implementation


def test_every_implementation_has_a_different_dash():
    assert step_sizes.DASHES.keys() == set(get_args(Implementation))
    assert len({*step_sizes.DASHES.values()}) == len(step_sizes.DASHES)
    assert all(name in step_sizes.DASH_NOTE for name in get_args(Implementation))


def test_every_category_has_a_place_and_a_different_colour():
    assert get_args(Category) == CATEGORIES
    assert CATEGORY_COLOURS.keys() == set(get_args(Category))
    assert len({*CATEGORY_COLOURS.values()}) == len(CATEGORY_COLOURS)


def test_every_phase_of_a_step_has_a_width():
    assert WIDTHS.keys() == set(get_args(Phase)) - {"build"}


def test_every_origin_outcome_and_device_has_its_word():
    assert ORIGINS.keys() == set(get_args(Origin))
    assert words.OUTCOMES.keys() == set(get_args(Outcome))
    assert words.DEVICES.keys() == words.PLACES.keys() == set(get_args(Device))


def test_without_a_baseline_the_advice_is_to_add_one(simulated):
    text = missing_text(Findings.of([simulated("sm3")]))
    assert text == "Nothing to compare sm3 with: add adamw to --optimizers."
    other = [simulated("sm3"), simulated("adamw", model="large")]
    text = missing_text(Findings.of(other))
    assert text == "No adamw to compare with on tiny: add adamw to --optimizers."
    assert missing_text(Findings.of([simulated("sm3"), simulated("sgd-sai")])) == ""
    assert missing_text(Findings.of([simulated("adamw"), simulated("sm3")])) == ""


def test_the_advice_for_a_watched_loop_is_to_watch_the_baseline_too(simulated):
    environment = Environment(seed=None, command=("train.py",))
    watched = simulated(
        "sm3", model="train:Net", device="cpu", origin="measured", environment=environment
    )
    text = missing_text(Findings.of([watched]))
    assert text == "Nothing to compare sm3 with: watch the loop with adamw, too."
    assert not {"steps", "seed"} & dict(provenance([watched])).keys()
    assert Names.of([watched]).common == "own dtype · 16 tokens · workload train · CPU · foreach"


@pytest.mark.parametrize(
    ("outcome", "verb"),
    [
        ("out-of-memory", "ran out of memory"),
        ("failed", "failed"),
        ("killed", "was killed"),
        ("timeout", "took too long"),
    ],
)
def test_after_a_failed_baseline_the_advice_is_not_to_add_one(simulated, outcome, verb):
    findings = Findings.of(
        [simulated("adamw", memory=None, outcome=outcome, error="why"), simulated("sm3")]
    )
    assert missing_text(findings) == f"adamw {verb} on tiny, so there is nothing to compare with."


def test_each_setting_has_its_own_reason(simulated):
    failed = simulated("adamw", memory=None, outcome="out-of-memory", error="why")
    text = missing_text(Findings.of([failed, simulated("sm3"), simulated("sm3", dtype="bf16")]))
    assert text == (
        "adamw ran out of memory on tiny · fp32, so there is nothing to compare with. "
        "No adamw to compare with on tiny · bf16: add adamw to --optimizers."
    )


def test_for_a_baseline_without_state_the_advice_is_not_to_add_one(simulated):
    text = missing_text(Findings.of([simulated("adamw", state=0), simulated("sm3")]))
    assert text == "adamw kept no state on tiny, so there is nothing to compare with."
