"""The page and the run folder: whole reports made from records alone."""

import json
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from optprof.profiler.records.record import Environment, Record
from optprof.profiler.records.store import RunStore
from optprof.reports import write_report
from optprof.reports.explain import FIGURES, METRICS
from optprof.reports.help import HELP
from optprof.reports.page import render_page
from optprof.reports.units import TIMES


class Elements(HTMLParser):
    """The elements of a page with their attributes, and its visible text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.words, self._hidden = [], [], False
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._hidden = tag in ("style", "script")

    def handle_endtag(self, tag):
        self._hidden = self._hidden and tag not in ("style", "script")

    def handle_data(self, data):
        if data.strip() and not self._hidden:
            self.words.append(data.strip())

    def all(self, tag):
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def text(self):
        return " ".join(self.words)


def write(folder, records):
    """Write these records as a run with its report, and return the page's text."""
    store = RunStore.create(folder)
    for record in records:
        store.append(record)
    return write_report(folder).read_text(encoding="utf-8")


@pytest.fixture
def report(tmp_path):
    return lambda records: write(tmp_path / "run", records)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return tmp_path_factory.mktemp("runs") / "mixed"


@pytest.fixture(scope="module")
def page(run, mixed):
    return write(run, mixed)


@pytest.fixture(scope="module")
def elements(page):
    return Elements(page)


@pytest.mark.usefixtures("page")
def test_a_report_has_a_page_pictures_and_a_table(run, mixed):
    assert sorted(path.name for path in run.iterdir()) == [
        "figures",
        "records.csv",
        "records.json",
        "records.jsonl",
        "report.html",
    ]
    assert [
        Record.from_dict(data)
        for data in json.loads((run / "records.json").read_text(encoding="utf-8"))
    ] == mixed
    assert (run / "records.csv").read_text(encoding="utf-8").count("\n") == len(mixed) + 1


def test_a_mixed_run_fills_every_section(page):
    for heading in (
        "Verdict",
        "State kept, compared with adamw",
        "Optimizer state against model size",
        "What the peak is made of",
        "Time of the optimizer",
        "The step&#39;s share of an iteration",
        "All numbers",
        "What the state is made of",
        "Against the published figures",
        "Without a result",
        "How to repeat it",
    ):
        assert re.search(rf"<h[23] id=[^>]*>{heading}", page), heading


def test_the_numbers_of_the_main_table_have_their_exact_bytes(elements):
    exact = {
        "class": "number",
        "data-value": "8000",
        "title": "8,000 bytes",
        "data-decimal": "8.00 kB",
    }
    assert exact in elements.all("td")
    assert "momentum=0.9" in elements.text
    assert "estimated from 25.0 % on CPU" in elements.text


def test_a_failure_is_listed_with_its_error(elements):
    text = elements.text
    assert "out-of-memory" in text
    assert "needs 26.1 GiB of 24 GiB" in text


def test_the_note_on_momentum_is_shown_for_sm3_alone(simulated):
    with_sm3, without = (
        render_page([simulated("adamw"), simulated(name)]) for name in ("sm3", "lamb16")
    )
    assert "SM3 saves this much only without momentum" in with_sm3
    assert "SM3 saves" not in without


def test_published_figures_are_shown_with_ours_and_the_rest_with_a_command(elements):
    text = elements.text
    assert "-o adamw,sgd-sai,adam-mini,prodigy --workload state --device sim" in text
    assert "published states and ours" in text
    assert "11.86 GiB" in text


def test_the_page_says_how_to_repeat_the_run(elements):
    text = elements.text
    for words in (
        "optprof profile tiny -o adamw,sm3:momentum=0.0",
        "A Processor, 2 cores, 8.000 GiB of memory, no GPU",
        "torch 2.13.0",
        "0123456789ab",
        "2025-11-21T01:32:05+00:00",
        "seed 7",
        "step 1 samples kept",
        "measured (filled marks)",
    ):
        assert words in text


def test_an_empty_environment_is_no_obstacle(simulated):
    bare = replace(simulated("adamw"), environment=Environment())
    assert "adamw" in Elements(render_page([bare])).text


def test_the_page_loads_from_no_address(page, elements):
    addresses = [
        attributes[name]
        for _, attributes in elements.elements
        for name in ("src", "srcset", "href")
        if name in attributes
    ]
    assert all(address.startswith("#") for address in addresses)
    assert not elements.all("link")
    assert "default-src 'none'" in elements.all("meta")[-1]["content"]
    assert len(page) < 3_000_000


def test_every_chart_has_words_and_a_table(elements):
    graphs = [box for box in elements.all("div") if box.get("class") == "graph"]
    assert [graph["id"] for graph in graphs] == ["graph-state-by-size-1", "graph-pareto-1"]
    assert all(graph["role"] == "img" and len(graph["aria-label"]) > 40 for graph in graphs)
    assert elements.all("details")
    assert f"1,000{TIMES} smaller · saves 7.80 KiB, 99.9 %" in elements.text
    assert "in step · 2.00 MiB reserved" in elements.text
    assert "step 25.0 % of 400 ms" in elements.text


def test_tables_name_their_rows_and_columns_and_can_be_scrolled(elements):
    assert {head.get("scope") for head in elements.all("th")} == {"row", "col"}
    boxes = [box for box in elements.all("div") if box.get("class") == "scroll"]
    assert len(boxes) == len(elements.all("table"))
    assert all(box["tabindex"] == "0" and box["aria-label"] for box in boxes)


def test_markup_in_names_and_errors_stays_text(simulated, report):
    wicked = '<script>alert("1")</script>'
    records = [
        simulated("adamw", model=wicked, model_family=wicked),
        simulated(f"m:{wicked}", model=wicked, options={"momentum": wicked}),
        simulated("sm3", model=wicked, memory=None, outcome="failed", error=f"{wicked} & 'more'"),
    ]
    records = [
        replace(record, environment=Environment(command=("optprof", wicked), platform=wicked))
        for record in records
    ]
    page, clean = report(records), render_page([simulated("adamw")])
    assert wicked in Elements(page).text
    assert wicked not in page
    assert len(Elements(page).all("script")) == len(Elements(clean).all("script"))


def test_without_a_baseline_the_page_says_what_to_add(simulated, report):
    text = Elements(report([simulated("sm3")])).text
    assert "Nothing to compare sm3 with: add adamw to --optimizers." in text
    assert "State kept" not in text


def test_one_record_is_a_report(simulated, report):
    text = Elements(report([simulated("adamw")])).text
    assert "What an optimizer costs on tiny" in text
    assert "7.81 KiB" in text


def test_500_records_are_a_page_of_less_than_6_mb(simulated, timed):
    names = ("adamw", "sgd-sai", "sm3", "lamb16", *(f"m:Opt{number}" for number in range(6)))
    records = [
        make(name, model=f"model-{size}")
        for size in range(25)
        for name in names
        for make in (simulated, timed)
    ]
    assert len(records) == 500
    page = render_page(records)
    assert len(page) < 6_000_000
    memory = page[page.index("<h3>Memory</h3>") : page.index("<h3>Time of the step on CPU</h3>")]
    assert memory.count("<tr>") == 1 + 250


def test_many_samples_make_no_long_page(simulated, timed):
    names = ("adamw", "sgd-sai", "sm3", "lamb16")
    short, long = (
        [
            make(name)
            for name in names
            for make in (
                simulated,
                lambda name, count=count: timed(name, step=(0.1, 0.2, 0.3, 0.4) * count),
            )
        ]
        for count in (50, 1_000)
    )
    pages = [render_page(records) for records in (short, long)]
    assert len(pages[1]) - len(pages[0]) < 10_000
    assert "Of more than 200 samples 200 are drawn" in pages[1]
    assert "Of more than 200 samples" not in pages[0]


def test_a_run_whose_scenarios_all_failed_still_says_why(simulated, report):
    text = Elements(
        report([simulated("adamw", memory=None, outcome="killed", error="killed by signal 9")])
    ).text
    assert "What an optimizer costs on tiny: no scenario has a result" in text
    assert "adamw was killed: killed by signal 9." in text


def test_an_empty_run_is_one_clear_line(report):
    with pytest.raises(ValueError, match="the run holds no records"):
        report([])


def test_a_folder_without_a_run_is_one_clear_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no records\.jsonl"):
        write_report(tmp_path)


def test_reports_load_without_torch_and_matplotlib_waits_until_it_is_needed():
    code = """
import sys, optprof.reports.terminal
assert "matplotlib" not in sys.modules
import optprof.reports.page
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_named_section_of_the_page_has_help(page, elements):
    names = [heading["id"] for heading in elements.all("h2")]
    parts = [heading["id"] for heading in elements.all("h3") if "id" in heading]
    assert len(names) > 8
    # The last part has the meanings of the words of all others.
    assert page.count('<details class="help">') == len(names) + len(parts) - 1
    assert page.count('<a href="#words">') == len(names) + len(parts) - 1
    assert "the shorter the bar, the more it saves" in elements.text
    # The meaning of a figure is that of the command `explain`.
    assert elements.text.count(METRICS["state"].meaning) == 1


def test_help_is_written_for_every_section_and_names_figures_that_exist():
    known = {**METRICS, **FIGURES}
    assert all(name in known for entry in HELP.values() for name in entry.figures)
    for entry in HELP.values():
        assert len(re.findall(r"[.;:] |\.$", entry.text)) <= 6
