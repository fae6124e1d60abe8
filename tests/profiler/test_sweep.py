"""Forecasts of a sweep: limits of its measurements, and no number for unknown times."""

from io import StringIO

import pytest

from optprof.profiler.measuring.measurement import to_simulate
from optprof.profiler.records.record import Environment, Record
from optprof.profiler.running.forecast import forecast
from optprof.profiler.running.plan import plan_suite
from optprof.reports import print_forecasts
from optprof.scenarios import Scenario
from optprof.scenarios.suites import read


def simulate(scenario: Scenario) -> Record:
    return Record(scenario=scenario, origin="simulated", environment=Environment())


def test_a_forecast_adds_the_limits_of_measurements_and_leaves_out_training_runs():
    course = Scenario(model="tiny", device="cpu", accumulate="gnts:threshold=0.8")
    scenarios = [Scenario(model="tiny"), Scenario(model="tiny", device="cpu"), course]
    forecasts = forecast(scenarios, simulate, lambda *_: None)
    # Warm-up for ten seconds, samples for thirty, and the step alone for half of that.
    assert [each.seconds and round(each.seconds) for each in forecasts] == [0, 55, None]
    output = StringIO()
    print_forecasts(forecasts, output)
    assert "unknown" in output.getvalue()
    assert "3 scenarios, about 55 s, and 1 training run of unknown length" in output.getvalue()


def test_a_forecast_names_optimizers_as_a_report_does():
    scenarios = [
        Scenario(model="tiny", options={"lr": 0.001, "amsgrad": False}, amp=amp)
        for amp in (None, "bf16")
    ]
    output = StringIO()
    print_forecasts(forecast(scenarios, simulate, lambda *_: None), output, width=80)
    rows = [line.split() for line in output.getvalue().splitlines()[1:3]]
    assert [row[:5] for row in rows] == [
        ["tiny", "adamw", "simulated", "CUDA", "\N{EN DASH}"],
        ["tiny", "adamw", "simulated", "CUDA", "bf16"],
    ]


def test_the_simulation_of_a_measured_scenario_keeps_its_allocator_settings():
    scenario = Scenario(
        model="tiny", device="cuda", gpu="a100-80", alloc_conf="expandable_segments:True", steps=100
    )
    assert to_simulate(scenario) == Scenario(model="tiny", alloc_conf="expandable_segments:True")


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (
            "gpt2",
            "{n_layer = 1000000000}",
            "config.n_layer from a file is at most 1024, got 1000000000",
        ),
        (
            "llama2-7b",
            "{num_hidden_layers = 1025}",
            "config.num_hidden_layers from a file is at most 1024, got 1025",
        ),
        (
            "resnet18",
            "{depths = [2, 2, 2, 5000]}",
            "config.depths from a file is at most 1024, got 5000",
        ),
        (
            "gpt2",
            "{num_labels = 1000000000}",
            "config.num_labels from a file is at most 1048576, got 1000000000",
        ),
        (
            "resnet18",
            f"{{depths = {[1] * 65}}}",
            "config.depths from a file has at most 64 items, got 65",
        ),
    ],
)
def test_a_suite_file_has_limits_on_the_size_of_a_model(model: str, config: str, message: str):
    text = f'[[scenarios]]\nmodel = "{model}"\ndevice = "sim"\nconfig = {config}'
    with pytest.raises(ValueError, match=message):
        plan_suite(read("mine", text.encode()), ())


def test_a_suite_whose_forecast_would_not_end_is_refused():
    text = (
        '[[scenarios]]\nmodel = "tiny"\ndevice = "sim"\nmicro_batches = 4096\nseed = [0, 1, 2, 3,'
        " 4, 5, 6, 7, 8]"
    )
    with pytest.raises(
        ValueError,
        match=r"^a suite has at most 65536 micro-batches in all simulated steps, got 73728; ",
    ):
        plan_suite(read("mine", text.encode()), ())
    assert len(plan_suite(read("mine", text.replace(", 8", "").encode()), ())) == 8


def test_a_file_s_batch_is_not_made_to_check_its_configuration():
    text = (
        '[[scenarios]]\nmodel = "gpt2"\ndevice = "sim"\nbatch_size = 100000\nconfig = {n_layer = 2}'
    )
    (scenario,) = plan_suite(read("mine", text.encode()), ())
    assert scenario.batch_size == 100_000
