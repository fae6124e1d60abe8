"""The terminal: the summary of a run as text."""

import io

import pytest

from optprof.profiler.records.record import StepEstimate, Watched
from optprof.reports import print_run


def test_the_terminal_shows_the_summary_in_eighty_columns(mixed):
    stream = io.StringIO()
    print_run(mixed, stream, width=80)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    adamw = next(line for line in lines if "adamw" in line and "GiB" not in line)
    assert "8.00" in adamw
    assert "100 ms" not in adamw
    assert "tiny: step on the CPU" in stream.getvalue()
    assert "100 ms" in stream.getvalue()
    assert "~200 ms" in stream.getvalue()
    assert "out-of-memory: lamb16 on tiny" in stream.getvalue()
    assert "saved" not in stream.getvalue()


def test_a_wide_terminal_shows_the_per_cent_too_and_prints_brackets_unchanged(simulated):
    stream = io.StringIO()
    records = [simulated("adamw", model="[red]m"), simulated("sm3", model="[red]m")]
    print_run(records, stream, width=100)
    assert "[red]m" in stream.getvalue()
    assert "99.9 %" in stream.getvalue()


def test_the_terminal_refuses_an_empty_run():
    with pytest.raises(ValueError, match="the run holds no records"):
        print_run([], io.StringIO())


def test_an_estimate_for_a_gpu_has_a_column_and_a_label(simulated):
    estimate = StepEstimate(
        gpu="a100-80",
        seconds=0.07,
        floor_seconds=0.02,
        moved_bytes=80_000,
        needed_bytes=28_000,
        launches=8,
        synchronisations=0,
    )
    stream = io.StringIO()
    print_run([simulated("adamw", estimate=estimate)], stream, width=80)
    assert "on a100-80" in stream.getvalue()
    assert "~70.0 ms" in stream.getvalue()
    assert "step times on a100-80: estimated from the bytes" in stream.getvalue()


def test_a_wide_terminal_shows_the_median_s_interval_and_the_throughput(timed):
    times = {"step": (0.098, 0.1, 0.1, 0.1, 0.1, 0.103), "iteration": (0.5,)}
    record = timed(
        "adamw", times=times, watched=Watched(tokens=32, warnings=("others were there",))
    )
    stream = io.StringIO()
    print_run([record], stream, width=130)
    adamw = next(line for line in stream.getvalue().splitlines() if "100 ms" in line)
    assert "\u00b13.0 %" in adamw
    assert "64.0 tokens/s" in adamw
    assert "adamw on tiny (CPU, loop): others were there" in stream.getvalue()


def test_a_failure_of_both_workloads_is_listed_once(simulated):
    failure = {"memory": None, "outcome": "failed", "error": "KeyError: 'lr' (mine.py, line 12)"}
    stream = io.StringIO()
    records = [
        simulated("adamw"),
        *(simulated("sm3", workload=workload, **failure) for workload in ("train", "state")),
    ]
    print_run([*records, simulated("sm3", **failure | {"error": "another"})], stream, width=200)
    assert stream.getvalue().count("(mine.py, line 12)") == 1
    assert stream.getvalue().count("another") == 1


def test_a_table_that_is_too_wide_continues_below_with_its_first_column(simulated):
    stream = io.StringIO()
    print_run([simulated("adamw"), simulated("sgd-sai")], stream, width=40)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 40
    # Every part names the rows again, and no word or number is broken.
    heads = [line for line in lines if line.startswith("optimizer")]
    assert len(heads) >= 2
    assert sum("sgd-sai" in line for line in lines) == len(heads)
    assert [name in " ".join(heads) for name in ("state GiB", "vs adamw", "peak GiB")] == [True] * 3
