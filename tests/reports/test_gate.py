"""Gates: how they are read, what they stop, and that none passes without a metric to judge."""

import json
import re
from fractions import Fraction
from io import StringIO
from pathlib import Path

import pytest

from optprof.profiler.records.store import RunStore
from optprof.reports.comparison.compare import compare
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.comparison.gate import Gate, offences, per_cent


@pytest.mark.parametrize(
    ("text", "metric", "allowed_bytes", "allowed_share"),
    [
        ("state>0", "state", 0, None),
        ("peak > 64 MiB", "peak", 64 * 2**20, None),
        ("reserved>0.5GiB", "reserved", 2**29, None),
        ("state-allocated>512B", "state-allocated", 512, None),
        ("peak>1%", "peak", None, Fraction(1, 100)),
        ("step>0.1%", "step", None, Fraction(1, 1000)),
    ],
)
def test_a_gate_is_read(text, metric, allowed_bytes, allowed_share):
    assert Gate.parse(text) == Gate(
        text=text, metric=metric, allowed_bytes=allowed_bytes, allowed_share=allowed_share
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "a gate reads METRIC>NUMBER"),
        ("state", "a gate reads METRIC>NUMBER"),
        ("state>=0", "a gate reads METRIC>NUMBER"),
        ("state<0", "a gate reads METRIC>NUMBER"),
        ("state>-1", "a gate reads METRIC>NUMBER"),
        ("state>1e3", "a gate reads METRIC>NUMBER"),
        ("state>0 peak>0", "a gate reads METRIC>NUMBER"),
        ("state>\u0661", "a gate reads METRIC>NUMBER"),
        ("sate>0", "no metric named 'sate'; did you mean state?"),
        ("state>5GB", "bytes come in B, KiB, MiB, GiB or as a per cent, got 'GB'"),
        ("step>5", "step is a time and takes a per cent, as step>5%"),
        ("step>5MiB", "step is a time and takes a per cent"),
    ],
)
def test_a_malformed_gate_is_one_clear_line(text, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Gate.parse(text)


@pytest.mark.parametrize("text", ["5", "-5%", "five%", "nan%"])
def test_a_threshold_is_a_per_cent(text):
    assert per_cent("2.5%") == Fraction(1, 40)
    with pytest.raises(ValueError, match="a threshold reads NUMBER%"):
        per_cent(text)


@pytest.mark.parametrize(
    ("gate", "stopped"),
    [
        ("state>0", True),
        ("state>79B", True),
        ("state>80B", False),
        ("state>0.99%", True),
        ("state>1%", False),
    ],
)
def test_a_gate_stops_growth_beyond_its_limit(simulated, gate, stopped):
    compared = compare([simulated(state=8_000)], [simulated(state=8_080)])
    assert bool(offences(compared, [Gate.parse(gate)])) == stopped


def test_a_saving_passes(simulated):
    compared = compare([simulated(state=8_000)], [simulated(state=4_000)])
    assert offences(compared, [Gate.parse("state>0"), Gate.parse("peak>0")]) == []


def test_a_gate_stops_a_time_by_its_whole_interval(timed):
    # Every ratio lies between 1.00 / 0.54 and 1.04 / 0.50.
    compared = compare(
        [timed(step=(0.50, 0.51, 0.52, 0.53, 0.54))], [timed(step=(1.00, 1.01, 1.02, 1.03, 1.04))]
    )
    assert offences(compared, [Gate.parse("step>80%")])
    assert not offences(compared, [Gate.parse("step>100%")])


def test_a_scenario_that_fails_now_passes_no_gate(simulated):
    compared = compare(
        [simulated(), simulated("sm3")],
        [simulated(), simulated("sm3", outcome="failed", error="boom")],
    )
    (offence,) = offences(compared, [Gate.parse("state>0")])
    assert (offence.subject.scenario.optimizer, offence.change) == ("sm3", None)


def test_a_new_option_with_a_default_is_still_judged_by_a_gate(simulated):
    before, after = (
        [simulated(), simulated("mine:Sign")],
        [simulated(), simulated("mine:Sign", options={"ema": True}, state=9_000)],
    )
    (offence,) = offences(compare(before, after), [Gate.parse("state>0")])
    assert (offence.subject.scenario.optimizer, offence.subject.scenario.options) == (
        "mine:Sign",
        {},
    )
    assert not offences(compare(before, [*before, simulated("sm3")]), [Gate.parse("state>0")])


def test_the_gates_of_the_docs_can_be_read():
    page = Path(__file__).parents[2] / "docs" / "compare.md"
    written = re.findall(r"--fail-on '([^']*)'", page.read_text(encoding="utf-8"))
    assert {Gate.parse(text).metric for text in written} >= {"state", "peak", "step"}


def test_a_gate_with_nothing_to_judge_does_not_pass(simulated, timed):
    with pytest.raises(ValueError, match="state>0 has nothing to judge"):
        offences(
            compare([simulated(outcome="failed", error="boom")], [simulated(seed=1)]),
            [Gate.parse("state>0")],
        )
    with pytest.raises(ValueError, match="too few samples"):
        offences(compare([timed()], [timed()]), [Gate.parse("step>5%")])


@pytest.mark.parametrize(
    "tail", ['{"schema": 1, "scen', "\n", "\0" * 512 + "\n", '{"schema": 1}\n']
)
@pytest.mark.parametrize("damaged", ["before", "after"])
def test_no_gate_passes_if_an_unreadable_record_may_be_the_newest(
    simulated, tmp_path, tail, damaged
):
    for name in ("before", "after"):
        store = RunStore.create(tmp_path / name)
        store.append(simulated())
        store.close()
    with (tmp_path / damaged / "records.jsonl").open("a") as lines:
        lines.write(tail)
    comparing = Comparing.of(tmp_path / "before", tmp_path / "after", ["state>0"])
    stream = StringIO()
    comparing.write_json(stream)
    assert (comparing.stopped, [each.partition(": ")[0] for each in comparing.unjudged]) == (
        [],
        [damaged],
    )
    assert f"{damaged}: records.jsonl, line 2: " in comparing.markdown().replace("\\", "")
    assert json.loads(stream.getvalue())["damage"] == list(comparing.unjudged)
    assert Comparing.of(tmp_path / "before", tmp_path / "after", []).unjudged == ()
    RunStore.open(tmp_path / damaged).repair()
    assert Comparing.of(tmp_path / "before", tmp_path / "after", ["state>0"]).unjudged == ()


def test_a_side_without_a_readable_record_is_an_error(simulated, tmp_path):
    RunStore.create(tmp_path / "run").append(simulated())
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "records.jsonl").write_text("{}\n")
    with pytest.raises(
        ValueError, match=r"no record can be read: records\.jsonl, line 1: schema 1 is read here"
    ):
        Comparing.of(tmp_path / "run", tmp_path / "none", ["state>0"])
