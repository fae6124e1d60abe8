"""A comparison in terminal, Markdown, JSON and page: all say the same, and text stays text."""

import io
import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from optprof.cli.app import app
from optprof.profiler.records.record import Watched
from optprof.profiler.records.store import RunStore
from optprof.reports import run_markdown
from optprof.reports.comparison.compare import compare
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.comparison.document import remarks

NASTY = "<script>alert('x')</script> | *bold* @somebody\nnext"


@pytest.fixture
def sides(simulated, timed, tmp_path) -> tuple[Path, Path]:
    steps = (0.50, 0.51, 0.52, 0.53, 0.54)
    before = [
        simulated(),
        simulated("sm3"),
        simulated("lamb16"),
        timed(step=steps),
        simulated("sgd"),
    ]
    failed = simulated("lamb16", outcome="failed", error=NASTY, memory=None)
    after = [
        simulated(state=8_004),
        simulated("sm3"),
        failed,
        timed(step=tuple(2 * step for step in steps)),
        simulated(NASTY),
    ]
    for name, records in (("before", before), ("after", after)):
        store = RunStore.create(tmp_path / name)
        for record in records:
            store.append(record)
    return tmp_path / "before", tmp_path / "after"


@pytest.fixture
def comparing(sides) -> Comparing:
    return Comparing.of(sides[0], sides[1], ["state>0", "step>5%"])


def terminal(comparing: Comparing, width: int = 80, **options: bool) -> str:
    output = io.StringIO()
    comparing.render(output, width=width, **options)
    return output.getvalue()


def as_json(comparing: Comparing, **options: bool) -> Any:
    output = io.StringIO()
    comparing.write_json(output, **options)
    return json.loads(output.getvalue())


def test_the_terminal_shows_every_change_at_80_columns(comparing):
    shown = terminal(comparing)
    assert max(map(len, shown.split("Stopped by a gate")[0].splitlines())) <= 80
    # The third least and the third largest of 25 ratios: 1.02 / 0.54 and 1.08 / 0.51.
    for words in (
        "regressed: 1.0005 times as much",
        "regressed: takes 1.889 to 2.118 times as long",
        "On one side only",
        "+4 B",
        "1.0005\u00d7",
    ):
        assert words in re.sub(r"\s*\n +", " ", shown)
    assert (
        "4 scenarios on both sides, 3 regressed, 0 improved, 1 only before, 1 only after"
        in " ".join(shown.split())
    )


def test_a_cause_of_unreliable_times_is_listed_once(simulated, timed):
    spoiled = replace(
        timed(), watched=Watched(warnings=("another process took 40 % of the processor",))
    )
    compared = compare([spoiled, simulated()], [timed(), simulated()])
    assert [line for line in remarks(compared) if "process" in line] == [
        "before: another process took 40 % of the processor"
    ]


def test_a_warning_about_counts_is_listed_too(simulated):
    unsure = replace(simulated(), warnings=("<b>.py, line 3, reads a value back",))
    compared = compare([simulated()], [unsure])
    assert "after: <b>.py, line 3, reads a value back" in remarks(compared)


def test_the_option_only_regressed_leaves_out_the_rest(comparing):
    shown = terminal(comparing, only_regressed=True)
    assert "sm3" not in shown
    assert "the same" not in shown
    assert "On one side only" not in shown
    pairs = as_json(comparing, only_regressed=True)["pairs"]
    assert [pair["scenario"]["optimizer"] for pair in pairs] == ["adamw", "lamb16", "adamw"]


def test_each_stopped_scenario_is_named_with_its_gate(comparing):
    lines = terminal(comparing, width=200).split("Stopped by a gate")[1].splitlines()
    stopped = [line.split(": ")[0] for line in lines if line]
    # One scenario has more state and one a slower step. A failed and a missing one stop at both
    # gates.
    assert stopped == ["state>0"] * 3 + ["step>5%"] * 3


def test_json_has_exact_bytes_and_the_ends_of_the_interval(comparing):
    answer = as_json(comparing)
    state, step = answer["pairs"][0]["changes"][0], answer["pairs"][3]["changes"][0]
    assert (state["metric"], state["before"], state["after"], state["verdict"]) == (
        "state",
        8_000,
        8_004,
        "regressed",
    )
    assert step["ratio"]["low"] < step["ratio"]["value"] == 2 < step["ratio"]["high"]
    assert [record["scenario"]["optimizer"] for record in answer["only_before"]] == ["sgd"]
    assert [(stopped["gate"], stopped["outcome"]) for stopped in answer["stopped"][:3]] == [
        ("state>0", "failed"),
        ("state>0", None),
        ("state>0", "ok"),
    ]


def test_markdown_keeps_its_columns_with_any_text_in_a_record(comparing):
    text = comparing.markdown()
    tables = [line for line in text.splitlines() if line.startswith("|")]
    for line in tables:
        assert line.replace("\\|", "").count("|") in (4, 8, 9)
    assert "<script>" not in text.replace("\\<", "")
    assert "@somebody" not in text
    assert "\\| \\*bold\\* \\@&#8203;somebody next" in text


class _Elements(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.headings: list[str] = []
        self.links: list[str] = []
        self._in_heading = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "srcset")]
        self._in_heading = tag == "h2"

    def handle_data(self, data: str) -> None:
        if self._in_heading and data.strip():
            self.headings.append(data.strip())


def test_the_page_has_its_sections_and_loads_nothing(comparing, tmp_path):
    page = tmp_path / "pages" / "compare.html"
    comparing.write_page(page, ["optprof", "compare", "a b", "<c>"])
    elements = _Elements()
    elements.feed(page.read_text(encoding="utf-8"))
    assert elements.headings == [
        "Verdict",
        "Stopped by a gate",
        "Changed: state",
        "Changed: peak allocated",
        "Changed: step",
        "All figures",
        "On one side only",
        "How to repeat it",
    ]
    assert all(link.startswith("#") for link in elements.links)
    assert "optprof compare &#39;a b&#39; &#39;&lt;c&gt;&#39;" in page.read_text(encoding="utf-8")


def test_a_run_is_a_markdown_table_for_a_pull_request(sides):
    text = run_markdown(sides[1])
    assert (
        "| adamw | tiny | 7.82 KiB | 8.00 | 1.00\u00d7 | 19.5 KiB | step | 1.04 s \u00b1? |" in text
    )
    assert "\\<script\\>" in text
    assert "Without a result:" in text


def test_comparing_and_explaining_load_no_torch_and_no_matplotlib(sides):
    code = (
        "import sys; from pathlib import Path; from optprof.reports import explain;"
        " from optprof.reports.comparison.comparing import Comparing\n"
        "found = Comparing.of(Path(sys.argv[1]), Path(sys.argv[2]), [])\n"
        "found.render(sys.stdout); found.markdown()\nassert not {'torch', 'matplotlib',"
        " 'transformers'} & set(sys.modules)"
    )
    subprocess.run(
        [sys.executable, "-c", code, *map(str, sides)],
        check=True,
        cwd=Path(__file__).parents[2],
        capture_output=True,
    )


def test_markdown_shows_only_the_latest_record_of_a_scenario(simulated, tmp_path):
    store = RunStore.create(tmp_path)
    for record in (
        simulated(outcome="failed", error="by hand", memory=None),
        simulated("sm3"),
        simulated(),
    ):
        store.append(record)
    shown = run_markdown(tmp_path)
    assert "by hand" not in shown
    assert shown.count("| adamw |") == 1


def test_a_link_to_a_run_next_to_it_is_no_second_run(simulated, tmp_path):
    runs = tmp_path / "runs"
    RunStore.create(runs / "first").append(simulated())
    (runs / "latest").symlink_to(runs / "first")
    compared = Comparing.of(runs, runs / "first", []).compared
    assert (compared.superseded, len(compared.pairs)) == (0, 1)


@pytest.fixture
def three(simulated, timed, tmp_path) -> list[Path]:
    """Three runs: the second has 4 more bytes of state, the third half the step time."""
    steps = (0.50, 0.51, 0.52, 0.53, 0.54)
    half = tuple(step / 2 for step in steps)
    runs = {
        "one": [simulated(), timed(step=steps)],
        "two": [simulated(state=8_004), timed(step=steps)],
        "three": [simulated(), timed(step=half), simulated("sm3")],
    }
    for name, records in runs.items():
        store = RunStore.create(tmp_path / name)
        for record in records:
            store.append(record)
    return [tmp_path / name for name in runs]


def test_each_of_several_runs_is_compared_with_the_first(three):
    comparing = Comparing.of(three[0], three[1], ["state>0"], more=three[2:])
    shown = terminal(comparing)
    lines = {" ".join(line.split()) for line in re.sub(r"\s*\n {20,}", " ", shown).splitlines()}
    for line in (
        "state one 7.81 KiB \u2013 \u2013 first run",
        "state two 7.82 KiB +4 B 1.0005\u00d7 regressed: 1.0005 times as much",
        "state three 7.81 KiB 0 1.00\u00d7 the same",
        # A figure that is the same in all runs takes one line.
        "peak reserved all 2.00 MiB 0 1.00\u00d7 the same",
    ):
        assert line in lines
    # The third least and the third largest ratio: 0.51 / 2 / 0.54 and 0.54 / 2 / 0.51.
    assert "improved: takes 0.472 to 0.529 times as long" in re.sub(r"\s*\n +", " ", shown)
    assert "three, not one" in shown
    assert [offence.names for offence in comparing.stopped] == [("one", "two")]
    answer = as_json(comparing)
    assert answer["schema"] == 1
    two, three_ = answer["comparisons"]
    assert (two["before"], two["after"], len(two["stopped"])) == ("one", "two", 1)
    assert (three_["after"], three_["stopped"], len(three_["only_after"])) == ("three", [], 1)


def test_several_runs_of_one_name_or_without_names_are_letters(three, tmp_path):
    again = [tmp_path / "b" / "one", *three[:2]]
    again[0].parent.mkdir()
    again[0].symlink_to(three[0])
    for runs, anonymous in ((again, False), (three, True)):
        comparing = Comparing.of(runs[0], runs[1], [], more=runs[2:], anonymous=anonymous)
        assert [each.names for each in comparing.all] == [("A", "B"), ("A", "C")]


def test_a_noisy_time_is_listed_and_not_judged_by_a_gate(timed, tmp_path):
    before, after = (1.0, 1.1, 1.2, 1.3, 9.0), (0.9, 1.0, 2.2, 2.3, 2.4)
    for name, steps in (("before", before), ("after", after)):
        RunStore.create(tmp_path / name).append(timed(step=steps))
    paths = tmp_path / "before", tmp_path / "after"
    comparing = Comparing.of(*paths, ["step>5%"])
    assert comparing.stopped == []
    (offence,) = comparing.left_open
    assert (offence.change and offence.change.metric, offence.reason) == ("step", "noisy")
    (listed,) = as_json(comparing)["not_judged"]
    assert (listed["gate"], listed["reason"]) == ("step>5%", "noisy")
    for text in (terminal(comparing), comparing.markdown()):
        assert "Not judged by a gate" in text
        assert "not judged: noisy, takes " in " ".join(text.split())
    # Every ratio is below 2.4 times.
    assert Comparing.of(*paths, ["step>140%"]).left_open == []


def test_a_gate_does_not_pass_a_time_in_silence_that_cannot_be_compared(timed, tmp_path):
    steady = (1.00, 1.005, 1.01, 1.015, 1.02)
    for name, short in (("before", steady), ("after", steady[:2])):
        store = RunStore.create(tmp_path / name)
        store.append(timed(step=steady))
        store.append(timed("sm3", step=short))
    comparing = Comparing.of(tmp_path / "before", tmp_path / "after", ["step>5%"])
    assert [offence.reason for offence in comparing.left_open] == ["too few samples"]


def command(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["compare", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


def test_a_time_gate_that_noise_leaves_open_has_its_own_status(timed, simulated, tmp_path):
    before, after = (1.0, 1.1, 1.2, 1.3, 9.0), (0.9, 1.0, 2.2, 2.3, 2.4)
    for name, steps, state in (("before", before, 8), ("after", after, 9)):
        store = RunStore.create(tmp_path / name)
        store.append(timed(step=steps))
        store.append(simulated(state=state))
    runs = tmp_path / "before", tmp_path / "after"
    status, _, errors = command(*runs, "--fail-on", "step>5%")
    assert (status, errors.splitlines()[-1]) == (5, "not judged by a gate: 1")
    # Without a gate nothing has to be judged, and a gate that stops says more.
    assert command(*runs)[0] == 0
    assert command(*runs, "--fail-on", "step>5%", "--fail-on", "state>0")[0] == 3


def test_several_runs_without_a_common_scenario_are_an_error_too(simulated, tmp_path):
    for seed, name in enumerate(("one", "two", "three")):
        RunStore.create(tmp_path / name).append(simulated(seed=seed))
    runs = [tmp_path / name for name in ("one", "two", "three")]
    status, shown, _ = command(*runs, "--json")
    answer = json.loads(shown)
    assert (status, len(answer["comparisons"])) == (2, 2)
    assert "seed (0 against 1), seed (0 against 2)" in answer["error"]


@pytest.mark.parametrize("gates", [(), ("--fail-on", "state>0")])
def test_runs_without_a_common_scenario_say_so_first_and_fail(simulated, tmp_path, gates):
    for name, records in (
        ("before", [simulated(), simulated("sm3")]),
        ("after", [simulated(seed=1), simulated("sm3", seed=2)]),
    ):
        store = RunStore.create(tmp_path / name)
        for record in records:
            store.append(record)
    runs = tmp_path / "before", tmp_path / "after"
    said = "nothing to compare: the runs have no scenario in common; they differ in seed"
    status, shown, _ = command(*runs, *gates)
    assert status == 2
    assert " ".join(shown.split()).startswith(f"{said} (0 against 1 and 2)")
    status, shown, errors = command(*runs, *gates, "--json")
    answer = json.loads(shown)
    assert (status, answer["pairs"], answer["error"][: len(said)]) == (2, [], said)
    assert errors.startswith(f"optprof: {said}")


def test_one_run_is_not_enough(tmp_path):
    status, _, errors = command(tmp_path)
    assert status == 2
    assert "a comparison needs two runs or more" in errors
