"""A comparison in terminal, Markdown, JSON and page: all say the same, and text stays text."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

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
        "regressed: more",
        "[1.889, 2.118]",
        "regressed: slower",
        "On one side only",
        "+4 B",
        "1.0005\u00d7",
    ):
        assert words in shown
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


def test_the_page_has_its_sections_and_no_script(comparing, tmp_path):
    page = tmp_path / "pages" / "compare.html"
    comparing.write_page(page, ["optprof", "compare", "a b", "<c>"])
    elements = _Elements()
    elements.feed(page.read_text(encoding="utf-8"))
    assert elements.headings == [
        "Verdict",
        "Stopped by a gate",
        "All figures",
        "On one side only",
        "How to repeat it",
    ]
    assert "script" not in elements.tags
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
