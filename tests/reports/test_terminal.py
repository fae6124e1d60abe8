"""The terminal: the summary of a run as text."""

import io
import re

import pytest

from optprof.profiler.records.record import StepEstimate, Watched
from optprof.reports import print_run
from optprof.reports.units import TIMES


def test_the_terminal_shows_the_summary_in_eighty_columns(mixed):
    stream = io.StringIO()
    print_run(mixed, stream, width=80)
    lines = stream.getvalue().splitlines()
    assert max(map(len, lines)) <= 80
    adamw = next(line for line in lines if "adamw" in line and "vs" not in line)
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


def estimate(seconds: float) -> StepEstimate:
    return StepEstimate(
        gpu="a100-80",
        seconds=seconds,
        floor_seconds=0.02,
        moved_bytes=80_000,
        needed_bytes=28_000,
        launches=8,
        synchronisations=0,
    )


@pytest.mark.parametrize("gpu", [None, "a100-80"])
def test_an_estimate_for_a_gpu_has_a_column_and_a_label(simulated, gpu: str | None):
    stream = io.StringIO()
    print_run([simulated("adamw", gpu=gpu, estimate=estimate(0.07))], stream, width=80)
    text = " ".join(stream.getvalue().split())
    assert "on a100-80" in text
    assert "~70.0 ms" in text
    assert "step times on a100-80: estimated from the bytes" in text
    assert ("--gpu names another GPU" in text) == (gpu is None)


def test_a_gpu_s_step_stands_beside_its_bytes_and_a_cpu_s_in_a_table_of_its_own(simulated, timed):
    records = [
        simulated("adamw", estimate=estimate(0.07)),
        simulated("sm3", estimate=estimate(0.06)),
        timed("adamw", step=(0.2,) * 6),
        timed("sm3", step=(0.3,) * 6),
    ]
    stream = io.StringIO()
    print_run(records, stream, width=80)
    on_gpu, on_cpu, *_ = stream.getvalue().split("\n\n")
    assert on_gpu.splitlines()[1].split()[-2:] == ["on", "a100-80"]
    assert [line.split()[-2:] for line in on_gpu.splitlines()[2:]] == [
        ["~70.0", "ms"],
        ["~60.0", "ms"],
    ]
    title, head, *rows = on_cpu.splitlines()
    assert title.strip() == "tiny: step on the CPU"
    assert head.split() == ["optimizer", "step", "time", "vs", "adamw"]
    assert [row.split()[:5] for row in rows] == [
        ["\u25cf", "adamw", "200", "ms", f"1.00{TIMES}"],
        ["\u25b2", "sm3", "300", "ms", f"1.50{TIMES}"],
    ]


def test_a_sound_median_has_no_mark_and_its_throughput_is_shown(timed):
    times = {"step": (0.098, 0.1, 0.1, 0.1, 0.1, 0.103), "iteration": (0.5,)}
    record = timed(
        "adamw", times=times, watched=Watched(tokens=32, warnings=("others were there",))
    )
    stream = io.StringIO()
    print_run([record], stream, width=130)
    adamw = next(line for line in stream.getvalue().splitlines() if "100 ms" in line)
    assert "\u00b1" not in stream.getvalue()
    assert "64.0 tokens/s" in adamw
    assert "adamw on tiny (CPU, loop): others were there" in stream.getvalue()


def test_a_noisy_time_is_marked_and_so_is_a_ratio_that_may_be_1(simulated, timed):
    adamw = (0.08, 0.092, 0.096, 0.1, 0.104, 0.108, 0.13)
    stream = io.StringIO()
    records = [
        *map(simulated, ("adamw", "sm3")),
        timed("adamw", step=adamw),
        timed("sm3", step=(0.1, 0.101, 0.102, 0.1, 0.1, 0.1)),
    ]
    print_run(records, stream, width=80)
    text = stream.getvalue()
    # Of seven samples the interval reaches from the first to the last.
    assert "100 ms \u00b130 %" in text
    assert re.search("sm3 +100 ms +1.00\u00d7 \u00b1", text)
    assert "\u00b1 marks a noisy figure" in text


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
    assert [name in " ".join(heads) for name in ("state", "vs adamw", "peak")] == [True] * 3
