"""Histories: runs in the order of their times, and regressions by the rule of a gate."""

import io
import json
import re
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optprof.cli.app import app
from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.comparison.history import History, read_history
from optprof.reports.comparison.history_document import curve, print_history, write_json

STEADY = (1.00, 1.005, 1.01, 1.015, 1.02, 1.025)
NOISY = (0.7, 0.8, 1.0, 1.1, 1.3, 1.6)


def dated(record: Record, day: int, commit: str | None = None) -> Record:
    environment = replace(
        record.environment, time=f"2025-11-{day:02}T00:00:00+00:00", git_commit=commit
    )
    return replace(record, environment=environment)


def write(folder: Path, runs: dict[str, list[Record]]) -> Path:
    for name, records in runs.items():
        store = RunStore.create(folder / name)
        for record in records:
            store.append(record)
    return folder


def slower(samples: tuple[float, ...], factor: float) -> tuple[float, ...]:
    return tuple(factor * sample for sample in samples)


def verdicts(history: History) -> list[list[str | None]]:
    return [[point.verdict for point in series.points] for series in history.series]


def as_json(history: History) -> Any:
    output = io.StringIO()
    write_json(history, output)
    return json.loads(output.getvalue())


def test_runs_are_in_the_order_of_their_records_times_not_of_their_names(simulated, tmp_path):
    write(
        tmp_path,
        {
            "a": [dated(simulated(state=3), 23, "c" * 12)],
            "b": [dated(simulated(state=1), 21, "a" * 12)],
            "c": [dated(simulated(state=2), 22, "b" * 12)],
        },
    )
    history = read_history([tmp_path], "state")
    assert [(run.name, run.commit) for run in history.runs] == [
        ("b", "a" * 12),
        ("c", "b" * 12),
        ("a", "c" * 12),
    ]
    assert [point.value for point in history.series[0].points] == [1, 2, 3]
    assert verdicts(history) == [[None, "regressed", "regressed"]]


def test_a_time_regresses_by_the_interval_of_its_ratio(timed, tmp_path):
    factors = (1, 1.02, 1.5, 1.5)
    runs = {
        f"run-{day}": [dated(timed(step=slower(STEADY, factor)), day)]
        for day, factor in enumerate(factors, 1)
    }
    history = read_history([write(tmp_path, runs)], "step")
    assert verdicts(history) == [[None, "same", "regressed", "same"]]
    strict = read_history([tmp_path], "step", threshold=Fraction(60, 100))
    assert verdicts(strict) == [[None, "same", "same", "same"]]


def test_a_regression_behind_a_noisy_run_is_found(timed, tmp_path):
    samples = (STEADY, NOISY, slower(STEADY, 1.2))
    runs = {f"run-{day}": [dated(timed(step=each), day)] for day, each in enumerate(samples, 1)}
    (series,) = read_history([write(tmp_path, runs)], "step").series
    # The third run is compared with the first: the second is noise.
    assert [point.verdict for point in series.points] == [None, "not judged", "regressed"]
    assert series.points[1].noise


def test_a_slow_drift_shows_in_the_change_from_the_first_run_to_the_last(timed, tmp_path):
    runs = {
        f"run-{day}": [dated(timed(step=slower(STEADY, 1.02**day)), day)] for day in range(1, 7)
    }
    (series,) = read_history([write(tmp_path, runs)], "step").series
    assert not series.regressed
    assert series.overall
    assert series.overall.verdict == "regressed"


def test_a_lost_result_is_a_regression(simulated, tmp_path):
    lost = simulated(outcome="out-of-memory", error="needs 26 GiB of 24", memory=None)
    runs = {"one": [dated(simulated(), 1)], "two": [dated(lost, 2)], "three": [dated(lost, 3)]}
    history = read_history([write(tmp_path, runs)], "state")
    assert verdicts(history) == [[None, "regressed", None]]
    assert [point.value for point in history.series[0].points] == [8_000, None, None]


def test_scenarios_of_equal_bytes_are_shown_once(simulated, tmp_path):
    runs = {
        f"run-{day}": [
            dated(simulated(state=8_000 + day), day),
            dated(simulated(state=8_000 + day, workload="state"), day),
            dated(simulated("sm3"), day),
        ]
        for day in (1, 2)
    }
    history = read_history([write(tmp_path, runs)], "state")
    assert (len(history.series), len(history.distinct)) == (3, 2)
    output = io.StringIO()
    print_history(history, output, width=80)
    shown = " ".join(output.getvalue().split())
    assert "tiny · adamw ▁█ 7.81 KiB 7.81 KiB 1.0001\u00d7 regressed in run-2" in shown
    assert "State of 3 scenarios over 2 runs: 1 regression: tiny · adamw in run-2" in shown
    assert max(map(len, output.getvalue().splitlines())) <= 80


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([1, 1, 1], "▄▄▄"),
        # Within 5 % of each other.
        ([100, 104], "▄▄"),
        ([0, 7, 3], "▁█▄"),
        ([0, 1], "▁█"),
        (list(range(20)), "▁▁▂▂▃▃▄▄▅▅▆▆▇▇██"),
    ],
)
def test_a_curve_is_flat_within_the_threshold_and_shows_the_last_runs(values, shown):
    assert curve(values, 0.05) == shown


def test_json_has_exact_values_by_the_number_of_the_run(simulated, tmp_path):
    runs = {
        f"run-{day}": [dated(simulated(state=state), day)]
        for day, state in ((1, 8_000), (2, 8_004))
    }
    answer = as_json(read_history([write(tmp_path, runs)], "state"))
    assert [run["name"] for run in answer["runs"]] == ["run-1", "run-2"]
    (series,) = answer["series"]
    assert [(point["run"], point["value"]) for point in series["points"]] == [
        (0, 8_000),
        (1, 8_004),
    ]
    assert series["overall"]["verdict"] == series["points"][1]["verdict"] == "regressed"
    assert series["points"][1]["change"]["ratio"]["value"] == 8_004 / 8_000


def test_an_anonymous_history_names_no_run_and_no_commit(simulated, tmp_path):
    write(tmp_path, {"secret": [dated(simulated(), 1, "a" * 12)]})
    shown = json.dumps(as_json(read_history([tmp_path], "state", anonymous=True)))
    assert "secret" not in shown
    assert "a" * 12 not in shown


def test_anonymous_histories_and_comparisons_name_no_damaged_run(simulated, tmp_path):
    write(tmp_path, {"one": [simulated()], "hidden": [simulated()], "veiled": []})
    with (tmp_path / "hidden" / "records.jsonl").open("a") as file:
        file.write("{}\n")
    (tmp_path / "veiled" / "records.jsonl").unlink()
    (tmp_path / "veiled" / "records.jsonl").symlink_to("/etc/passwd")
    history = read_history([tmp_path], "state", anonymous=True)
    comparing = Comparing.of(tmp_path, tmp_path / "one", ["state>0"], anonymous=True)
    for damage in (history.damage, comparing.compared.damage, comparing.unjudged):
        assert len(damage) == 2
        assert not re.search("hidden|veiled", " ".join(damage))


def test_a_run_that_is_named_twice_counts_once(simulated, tmp_path):
    write(tmp_path, {"one": [simulated()]})
    (tmp_path / "latest").symlink_to("one")
    folders = [tmp_path, tmp_path / "one", tmp_path / "latest"]
    assert len(read_history(folders, "state").runs) == 1


def test_damage_of_a_run_is_named_and_the_others_are_shown(simulated, tmp_path):
    write(tmp_path, {"one": [simulated()], "two": [simulated()], "three": []})
    (tmp_path / "two" / "records.jsonl").write_text("{}\n")
    history = read_history([tmp_path], "state")
    assert [run.name for run in history.runs] == ["one"]
    assert [each.split(",")[0] for each in history.damage] == ["two/records.jsonl"]


def command(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["history", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_the_command_writes_page_picture_and_markdown(simulated, tmp_path):
    runs = {f"run-{day}": [dated(simulated(state=8_000 * day), day)] for day in (1, 2)}
    write(tmp_path / "runs", runs)
    page, folder = tmp_path / "history.html", tmp_path / "figures"
    status, shown, errors = command(
        tmp_path / "runs", "-m", "peak", "--html", page, "--figures", folder, "--markdown"
    )
    assert (status, shown.splitlines()[4][:10]) == (0, "| scenario")
    assert "History: peak allocated" in page.read_text(encoding="utf-8")
    assert {path.name for path in folder.iterdir()} == {"history-peak.png", "history-peak.svg"}
    assert errors.count("picture: ") == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("-m", "peek"), "no metric named 'peek'; did you mean peak?"),
        (("-m", "estimate"), "no run has step on the GPU, estimated (estimate); they have state"),
        (("--figures", "figures"), "there is nothing to draw: State of 1 scenario over 1 run"),
        (("--json", "--markdown"), "--markdown and --json both write to stdout"),
    ],
)
def test_a_request_that_cannot_be_met_is_one_clear_line(simulated, tmp_path, arguments, message):
    write(tmp_path, {"one": [simulated()]})
    status, _, errors = command(tmp_path, *arguments)
    assert status == 2
    assert message in errors


def test_without_a_folder_of_runs_the_usual_one_is_named(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert command()[2].startswith("optprof: no run in runs; name the folder of a run")
