"""What a sweep would take: the limits of what is measured, and no number where there is none."""

from io import StringIO

from profiler.measuring.measurement import to_simulate
from profiler.record import Record
from profiler.running.sweep import forecast
from reports.forecasts import render_forecasts
from scenarios import Scenario


def simulate(scenario: Scenario) -> Record:
    return Record(scenario=scenario, origin="simulated", environment={})


def test_a_forecast_adds_the_limits_of_what_is_measured_and_knows_no_end_of_a_course():
    course = Scenario(model="tiny", device="cpu", accumulate="gnts:threshold=0.8")
    asked = [Scenario(model="tiny"), Scenario(model="tiny", device="cpu"), course]
    found = forecast(asked, simulate, lambda *_: None)
    # Warm-up for ten seconds, samples for thirty, and the step alone for half of that.
    assert [each.seconds and round(each.seconds) for each in found] == [0, 55, None]
    told = StringIO()
    render_forecasts(found, told)
    assert "unknown" in told.getvalue()
    assert "3 scenarios, 55 s, and courses: 1" in told.getvalue()


def test_what_is_simulated_of_a_measured_scenario_has_its_allocator():
    asked = Scenario(model="tiny", device="cuda", gpu="a100-80", alloc_conf="expandable_segments:True", steps=100)
    assert to_simulate(asked) == Scenario(model="tiny", alloc_conf="expandable_segments:True")
