"""Changes between two runs, in records whose sums can be checked on paper."""

import errno
import os
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest

from optprof.profiler.records.record import Environment, Record, Watched
from optprof.profiler.records.store import RunStore
from optprof.reports.comparison.compare import Compared, MetricChange, Pair, compare
from optprof.reports.comparison.sides import read_side

SLOW, QUICK = (1.00, 1.01, 1.02, 1.03, 1.04), (0.50, 0.51, 0.52, 0.53, 0.54)


def change(compared: Compared, metric: str) -> MetricChange:
    (pair,) = compared.pairs
    return next(each for each in pair.changes if each.metric == metric)


def test_bytes_are_compared_exactly(simulated):
    compared = compare([simulated(state=8_000)], [simulated(state=8_001)])
    state = change(compared, "state")
    assert (state.before, state.after, state.verdict) == (8_000, 8_001, "regressed")
    assert (
        change(compare([simulated(state=8_001)], [simulated(state=8_000)]), "state").verdict
        == "improved"
    )
    assert change(compare([simulated()], [simulated()]), "state").verdict == "same"


def test_scenarios_match_only_if_all_fields_are_equal(simulated):
    before = [simulated(), simulated(batch_size=2), simulated("sm3", options={"momentum": 0.0})]
    after = [
        simulated(seed=1),
        simulated(batch_size=2),
        simulated("sm3", options={"momentum": 0.9}),
    ]
    compared = compare(before, after)
    assert [pair.scenario.batch_size for pair in compared.pairs] == [2]
    assert [(r.scenario.optimizer, r.scenario.seed) for r in compared.only_before] == [
        ("adamw", 0),
        ("sm3", 0),
    ]
    assert [(r.scenario.optimizer, r.scenario.seed) for r in compared.only_after] == [
        ("adamw", 1),
        ("sm3", 0),
    ]


def test_a_time_differs_when_its_whole_interval_is_beyond_the_threshold(timed):
    assert change(compare([timed(step=QUICK)], [timed(step=SLOW)]), "step").verdict == "regressed"
    assert change(compare([timed(step=SLOW)], [timed(step=QUICK)]), "step").verdict == "improved"
    # All ratios lie between 1.00 / 0.54 and 1.04 / 0.50.
    assert (
        change(
            compare([timed(step=QUICK)], [timed(step=SLOW)], threshold=Fraction(2)), "step"
        ).verdict
        == "same"
    )


def test_a_noisy_time_is_not_judged_however_far_its_median_moved(timed):
    before, after = (1.0, 1.1, 1.2, 1.3, 9.0), (0.9, 1.0, 2.2, 2.3, 2.4)
    step = change(compare([timed(step=before)], [timed(step=after)]), "step")
    assert (step.before, step.after) == (1.2, 2.2)
    assert (step.verdict, step.note) == ("not judged", "noisy")


def test_a_time_is_the_same_only_if_its_whole_interval_is_within_the_threshold(timed):
    # All ratios lie between 100 / 102 and 102 / 100.
    steady = (1.00, 1.005, 1.01, 1.015, 1.02)
    assert change(compare([timed(step=steady)], [timed(step=steady)]), "step").verdict == "same"
    narrow = compare([timed(step=steady)], [timed(step=steady)], threshold=Fraction(1, 100))
    assert change(narrow, "step").verdict == "not judged"


def test_a_disturbed_time_is_not_judged_even_if_its_whole_interval_moved(timed):
    warning = "other processes took 40% of the processors while times were taken"
    busy = replace(timed(step=SLOW), watched=Watched(warnings=(warning,)))
    for sides in ([timed(step=QUICK)], [busy]), ([busy], [timed(step=QUICK)]):
        step = change(compare(*sides), "step")
        assert (step.verdict, step.note) == ("not judged", f"noisy: {warning}")


def test_a_warning_about_bytes_leaves_times_alone(timed):
    unsure = replace(timed(step=SLOW), warnings=("line 3 reads a value back",))
    assert change(compare([timed(step=QUICK)], [unsure]), "step").verdict == "regressed"


def test_three_samples_are_too_few_to_judge(timed):
    step = change(compare([timed(step=(1, 1, 1))], [timed(step=(9, 9, 9))]), "step")
    assert (step.verdict, step.note) == ("not compared", "too few samples")


def test_times_of_another_machine_are_refused_unless_requested(timed):
    own = timed(step=QUICK)
    machine = replace(own.environment.machine, cpu="Another")
    other = replace(timed(step=SLOW), environment=replace(own.environment, machine=machine))
    step = change(compare([own], [other]), "step")
    assert (step.verdict, step.note) == ("not compared", "different machines")
    assert change(compare([own], [other], across_machines=True), "step").verdict == "regressed"


def test_times_of_unrecorded_machines_are_refused(timed):
    unknown = replace(timed(step=QUICK), environment=Environment())
    assert change(compare([unknown], [unknown]), "step").note == "the machine is not known"


def test_bytes_are_compared_across_machines(simulated):
    other = replace(simulated(state=4_000), environment=Environment())
    assert change(compare([simulated()], [other]), "state").verdict == "improved"


def test_measured_times_are_not_compared_with_estimated_ones(timed):
    step = change(
        compare([timed(step=QUICK)], [timed(step=SLOW, share=0.5)], across_machines=True), "step"
    )
    assert step.note == "measured against estimated"
    step = change(compare([timed(step=QUICK, share=0.25)], [timed(step=SLOW, share=0.5)]), "step")
    assert step.note == "timed on 25.0 % of the model against 50.0 %"


def test_a_scenario_that_runs_out_of_memory_now_has_regressed(simulated):
    lost = simulated(outcome="out-of-memory", error="needs 26 GiB of 24")

    def only(before, after) -> Pair:
        (pair,) = compare([before], [after]).pairs
        return pair

    assert (only(simulated(), lost).outcome_verdict, only(simulated(), lost).changes) == (
        "regressed",
        (),
    )
    assert only(lost, simulated()).outcome_verdict == "improved"
    assert only(lost, lost).outcome_verdict == "same"


def test_the_workload_state_has_no_peak_to_compare(simulated):
    compared = compare([simulated(workload="state")], [simulated(workload="state")])
    assert {each.metric for each in compared.pairs[0].changes} == {"state", "state-allocated"}


def at(record: Record, time: str | None) -> Record:
    return replace(record, environment=Environment(time=time))


def test_within_a_run_the_last_record_of_a_scenario_counts_regardless_of_its_time(simulated):
    times = ("2025-11-21T09:00:00+00:00", "2025-11-21T07:00:00+00:00", "2025-11-21T08:00:00+00:00")
    records = [
        at(simulated(state=state), time) for state, time in zip((9, 7, 8), times, strict=True)
    ]
    compared = compare(records, [simulated(state=9)])
    assert change(compared, "state").before == 8
    assert compared.superseded == 2


NOON = "2025-11-21T12:00:00+00:00"


@pytest.mark.parametrize(
    ("first", "second", "newest"),
    [
        (("2025-11-21T01:00:00+00:00", "2025-11-21T02:00:00+00:00"), (NOON, NOON), 4),
        # The clock of the second run was set back before its last record was made.
        (
            ("2025-11-21T01:00:00+00:00", "2025-11-21T02:00:00+00:00"),
            (NOON, "2025-11-21T01:30:00+00:00"),
            2,
        ),
        # Half past twelve in Berlin is before noon in London.
        ((None, NOON), (None, "2025-11-21T12:30:00+01:00"), 2),
        # A record without a time is older than one with a time. Of equal times the run whose name
        # sorts last counts.
        ((None, NOON), (NOON, None), 2),
        ((None, NOON), (NOON, "zzz"), 2),
        ((None, NOON), (None, NOON.removesuffix("+00:00")), 4),
    ],
)
def test_between_runs_the_record_that_was_made_last_counts(
    simulated, tmp_path, first, second, newest
):
    for name, times, states in (("a", first, (1, 2)), ("b", second, (3, 4))):
        store = RunStore.create(tmp_path / name)
        for state, time in zip(states, times, strict=True):
            store.append(at(simulated(state=state), time))
    compared = compare(read_side(tmp_path).records, [simulated(state=9)])
    assert change(compared, "state").before == newest


def test_a_run_is_compared_in_the_order_of_its_command(tmp_path: Path, simulated):
    store = RunStore.create(tmp_path / "run")
    for name, place in (("sm3", 2), ("adamw", 0), ("sgd", 1), ("sm3", 4)):
        store.append(replace(simulated(optimizer=name), place=place))
    records = read_side(tmp_path / "run").records
    assert [each.scenario.optimizer for each in records] == ["adamw", "sgd", "sm3", "sm3"]


def test_a_run_that_cannot_be_read_passes_no_gate(simulated, tmp_path, monkeypatch):
    for name in ("a", "b"):
        RunStore.create(tmp_path / name).append(at(simulated(), NOON))
    closed = tmp_path / "b" / "records.jsonl"
    look = Path.lstat

    def refuse(path: Path) -> os.stat_result:
        # A mode would not keep the superuser out.
        if path == closed:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return look(path)

    monkeypatch.setattr(Path, "lstat", refuse)
    side = read_side(tmp_path)
    assert len(side.records) == 1
    assert len(side.damage) == 1
    assert side.damage[0].endswith(f"Permission denied: 'b{os.sep}records.jsonl'")
    with pytest.raises(PermissionError):
        read_side(tmp_path / "b")


def test_between_runs_an_unreadable_time_is_reported_and_passes_no_gate(simulated, tmp_path):
    for name, time in (("a", NOON), ("b", "zzz"), ("c", None)):
        store = RunStore.create(tmp_path / name)
        store.append(at(simulated(), time))
    assert read_side(tmp_path).damage == (
        "b/records.jsonl: the time of a record, 'zzz', cannot be read",
    )
    # Within a run the last record in the file is the newest.
    assert read_side(tmp_path / "b").damage == ()


def test_a_damaged_line_of_any_run_of_a_side_is_named(simulated, tmp_path):
    for name in ("one", "two", "three"):
        RunStore.create(tmp_path / name).append(simulated(model=name))
    with (tmp_path / "one" / "records.jsonl").open("a") as lines:
        lines.write('{"sch')
    (tmp_path / "two" / "records.jsonl").unlink()
    (tmp_path / "two" / "records.jsonl").symlink_to("/etc/passwd")
    side = read_side(tmp_path)
    assert [record.scenario.model for record in side.records] == ["one", "three"]
    assert [each.split(" is ")[0] for each in side.damage] == [
        "one/records.jsonl, line 2: torn after 5 bytes, without an end of line",
        "two/records.jsonl",
    ]
    with pytest.raises(ValueError, match=r"two/records\.jsonl is a symbolic link"):
        read_side(tmp_path / "two")


def test_a_state_of_0_bytes_has_no_ratio(simulated):
    state = change(compare([simulated(state=0)], [simulated(state=4)]), "state")
    assert (state.ratio, state.verdict) == (None, "regressed")
    assert state.beyond(Fraction(10**9))


def test_a_side_without_records_is_one_clear_line(simulated):
    with pytest.raises(ValueError, match="the second side of the comparison has no records"):
        compare([simulated()], [])


def test_a_side_is_a_run_or_a_folder_of_runs(simulated, tmp_path):
    for name in ("one", "two"):
        RunStore.create(tmp_path / name).append(simulated(model=name))
    assert [record.scenario.model for record in read_side(tmp_path / "two").records] == ["two"]
    assert [record.scenario.model for record in read_side(tmp_path).records] == ["one", "two"]
    with pytest.raises(FileNotFoundError, match="no run in"):
        read_side(tmp_path / "three")
