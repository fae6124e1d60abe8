"""Hostile text in every field of a record, through every output: it is shown, and never acts.

The strings of `tests/data/hostile.json` would act on a terminal, a browser, a spreadsheet, GitHub,
matplotlib or a file system. Parsers of HTML, XML, CSV, Markdown and event files judge.
"""

import csv
import io
import json
import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import replace
from html.parser import HTMLParser
from itertools import cycle
from pathlib import Path
from typing import Any
from unicodedata import category
from xml.etree import ElementTree

import commands
import pytest

from optprof.profiler.records.fits import Change, Fit
from optprof.profiler.records.record import (
    Environment,
    GpuReading,
    Level,
    Machine,
    Memory,
    Record,
    StepEstimate,
    StepOperation,
    Watched,
)
from optprof.profiler.records.store import RunStore
from optprof.profiler.records.timeline import BlockSource, PeakGroup, Timeline
from optprof.profiler.safety.plain import plain
from optprof.reports import print_fits, print_run, run_markdown, write_fit_page, write_report
from optprof.reports.comparison.compare import compare
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.page import render_page
from optprof.reports.run import Run
from optprof.scenarios.spec import Scenario

HOSTILE: Mapping[str, str] = json.loads(
    (Path(__file__).parents[1] / "data" / "hostile.json").read_text(encoding="utf-8")
)
# Reading a record refuses half of a surrogate pair.
TEXTS = [text for text in HOSTILE.values() if category(text[-1]) != "Cs"]
# So many groups of four records put each text into a dozen fields or more.
GROUPS = 21
# Tags that could act; the page of a run has some itself, for its switches, marks and graphs.
ACTIVE_TAGS = {
    "script",
    "style",
    "link",
    "iframe",
    "object",
    "embed",
    "img",
    "image",
    "form",
    "base",
}
# After Markdown, GitHub makes links, mentions and pictures of these in the remaining text.
GITHUB = re.compile(
    r"\w://|(?:mailto|xmpp):[^\s\u200b]|www\.\w|@\w|#\d|!\d|GH-\d|[0-9a-f]{40}|:[a-z_]\w*:",
    re.IGNORECASE,
)
COLOUR = re.compile(r"\x1b\[[0-9;]*m")


def hostile_records(texts: Iterator[str], timed: Any, simulated: Any) -> list[Record]:
    """Return four records with a text in each field that can hold one."""
    some = texts.__next__
    environment = Environment(
        python=some(),
        platform=some(),
        machine=Machine(cpu=some(), gpu=some()),
        versions={"torch": some(), some(): some()},
        command=("optprof", some(), some()),
        git_commit=some(),
        time=some(),
    )
    memory: Memory = simulated("sm3").memory
    peak = memory.peak_allocated or 0
    memory = replace(
        memory,
        state_by_key={some(): 8},
        state_by_key_dtype={some(): {some(): 8}},
        peak_phase=some(),
        peak_by_category={some(): peak},
        peak_by_phase={some(): peak},
        parameters_by_dtype={some(): 4_000},
    )
    numbers = {"floor_seconds": 0.5, "moved_bytes": 8, "needed_bytes": 8, "launches": 1}
    estimate = StepEstimate(gpu=some(), seconds=1.0, synchronisations=0, **numbers)
    reading = GpuReading(
        clock_mhz=1,
        memory_clock_mhz=1,
        temperature_celsius=1,
        slowed_by=(some(),),
        other_processes=1,
        process_bytes=1,
    )
    watched = Watched(
        samples=1,
        tokens=16,
        memory={some(): {some(): Level(end=1, peak=2)}},
        tensors_at_peak={some(): 2},
        gpu=(reading,),
        operations=(StepOperation(name=some(), calls=1, seconds=1.0, bytes=8),),
        warnings=(some(),),
    )
    model, family = some(), some()

    def words() -> dict[str, Any]:
        options = {some(): some(), "momentum": some()}
        fields = {"model": model, "model_family": family, "environment": environment}
        texts = {"options": options, "warnings": (some(),), "lost": (some(),)}
        return fields | texts | {"deciding_options": {"momentum": 0.0}}

    times = {"step": (0.1, 0.2), some(): (0.1, 0.2)}
    settings = {"alloc_conf": some(), "config": {some(): some()}}
    return [
        simulated("adamw", **words()),
        simulated(some(), memory=memory, estimate=estimate, **settings, **words()),
        timed(some(), times=times, warmup=times, watched=watched, **words()),
        simulated("sgd", memory=None, outcome="failed", error=some(), log=some(), **words()),
    ]


# Words under the pointer that name values of plotly, as no text from a record may.
OWN_TEMPLATES = {
    "event %{customdata:,} of %{text}<extra></extra>",
    (
        "<b>%{customdata[0]}</b><br>%{text}, %{percentRoot:.2%} of the peak<br>%{value:,d} bytes in"
        " %{customdata[1]}<extra></extra>"
    ),
}


@pytest.fixture(scope="module")
def records(timed: Any, simulated: Any) -> list[Record]:
    """Records with each text in several fields, no two of them in the same fields."""
    texts = cycle(TEXTS)
    return [record for _ in range(GROUPS) for record in hostile_records(texts, timed, simulated)]


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, records: list[Record], timeline: Timeline
) -> Path:
    """The folder of a run of all these records, with its whole report."""
    store = RunStore.create(tmp_path_factory.mktemp("hostile") / "run")
    for record in records:
        store.append(record)
    texts = cycle(TEXTS)
    for record in records[1::4]:
        phases = tuple(replace(each, phase=next(texts)) for each in timeline.phases)
        blocks = tuple(
            replace(each, phase=next(texts), module=next(texts), op=next(texts), line=next(texts))
            for each in timeline.largest
        )
        source = BlockSource(*(next(texts) for _ in range(5)))
        group = PeakGroup(
            source=source, phase=next(texts), blocks=1, nbytes=timeline.peak_allocated
        )
        changed = replace(
            timeline,
            categories={source.category: timeline.allocated},
            phases=phases,
            largest=blocks,
            groups=(group,),
            sources=(source,),
            events=(0, 1, 1, 1, -1, 0),
        )
        store.write_timeline(record.scenario, changed)
    write_report(store.folder, tensorboard=True)
    return store.folder


@pytest.fixture(scope="module")
def comparing(
    tmp_path_factory: pytest.TempPathFactory, run: Path, records: list[Record]
) -> Comparing:
    store = RunStore.create(tmp_path_factory.mktemp("after") / "run")
    for record in records:
        memory = record.memory and replace(
            record.memory, optimizer_state=record.memory.optimizer_state + 8
        )
        store.append(replace(record, memory=memory))
    return Comparing.of(run, store.folder, ["state>0"])


def fits() -> list[Fit]:
    scenarios = [
        Scenario(model=text, optimizer=text, options={text: text}, gpu="t4") for text in TEXTS
    ]
    change = Change(fields={"checkpointing": True}, left=1)
    return [
        Fit(scenario=scenario, usable=1, needed=2, changes=(change,), reason=text, error=text)
        for scenario, text in zip(scenarios, TEXTS, strict=True)
    ]


def require_printed(text: str) -> None:
    """Require that a font draws every character, or that it is a blank, line end or joiner."""
    hidden = {each for each in text if category(each)[0] == "C" or category(each) in ("Zl", "Zp")}
    assert hidden <= set("\n\t\u200c\u200d")


class Elements(HTMLParser):
    """The tags, attributes and text of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.texts: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(name, value or "") for name, value in attrs]

    def handle_data(self, data: str) -> None:
        self.texts.append(data)


def require_inert(page: str, clean: str, shown: set[str]) -> None:
    """Require a page without active parts that shows the texts.

    It may have no tag, attribute or address that a page of harmless records does not have.
    """
    require_printed(page)
    elements, usual = Elements(page), Elements(clean)
    assert {tag: elements.tags.count(tag) for tag in ACTIVE_TAGS} == {
        tag: usual.tags.count(tag) for tag in ACTIVE_TAGS
    }
    assert not [name for name, _ in elements.attributes if name.startswith("on")]
    assert not [
        value
        for name, value in elements.attributes
        if name in ("href", "src", "action") and value[:1] != "#"
    ]
    text = " ".join("".join(elements.texts).split())
    assert not {each for each in shown if each not in text}


def shown_texts() -> set[str]:
    return {" ".join(plain(text).split()) for text in TEXTS}


def test_the_terminal_has_no_sequence_and_no_markup(records: list[Record], comparing: Comparing):
    stream = io.StringIO()
    print_run(records, stream, width=4_000)
    comparing.render(stream, width=4_000)
    print_fits(fits(), stream, width=4_000)
    require_printed(stream.getvalue())
    for text in (
        "[bold red]x[/bold red][link=http://evil.example]y[/link]",
        "[/]",
        ":smile: :skull:",
    ):
        assert text in stream.getvalue()
    # A line feed in a text begins no new line.
    assert not [
        line for line in stream.getvalue().splitlines() if line.startswith(("optprof:", "report:"))
    ]


def test_a_page_is_inert(run: Path, records: list[Record], simulated: Any):
    page = (run / "report.html").read_text(encoding="utf-8")
    require_inert(page, render_page([simulated("adamw")]), shown_texts())
    graphs = json.loads(
        re.findall(r'<script type="application/json" id="graphs">(.*?)</script>', page, re.S)[0]
    )
    written = [
        text for text in strings(graphs) if "evil" in text or "alert" in text or "%{" in text
    ]
    assert not [
        text
        for text in written
        if text not in OWN_TEMPLATES
        and re.search(r"<(?!b>|/b>|br>|extra></extra>|/extra>)|%\{(?!text\})", text)
    ]
    require_printed(Run(records=records)._repr_html_())


def strings(node: Any, name: str = "") -> Iterator[str]:
    """Yield the strings of JSON data, except the names of what a button hides."""
    if isinstance(node, str) and name != "label":
        yield node
    elif isinstance(node, dict):
        for key, value in node.items():
            yield from strings(value, key)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value, name)


def test_pages_of_fits_and_comparisons_are_inert(
    comparing: Comparing, tmp_path: Path, simulated: Any
):
    command = ["optprof", *HOSTILE.values()]
    page = write_fit_page(fits(), tmp_path / "fit", command).read_text(encoding="utf-8")
    answer = Fit(scenario=Scenario(model="tiny", gpu="t4"), usable=1, needed=2)
    usual = write_fit_page([answer], tmp_path / "clean", []).read_text(encoding="utf-8")
    require_inert(page, usual, shown_texts())
    comparing.write_page(tmp_path / "a.html", command)
    page = (tmp_path / "a.html").read_text(encoding="utf-8")
    usual = tmp_path / "usual.html"
    compared = compare([simulated(state=8)], [simulated(state=9)])
    Comparing(compared=compared, stopped=[]).write_page(usual, [])
    require_inert(page, usual.read_text(encoding="utf-8"), shown_texts())


def test_pictures_are_xml_without_a_control_character(run: Path):
    for path in (run / "figures").glob("*.svg"):
        text = path.read_text(encoding="utf-8")
        require_printed(text)
        tags = {element.tag.rpartition("}")[2] for element in ElementTree.fromstring(text).iter()}
        assert not tags & {"a", "script", "image", "foreignObject", "animate", "set"}


def test_no_cell_of_a_table_is_a_formula(run: Path):
    text = (run / "records.csv").read_text(encoding="utf-8")
    require_printed(text.replace("\r\n", "\n"))
    rows = list(csv.reader(io.StringIO(text)))
    assert len(rows) == 4 * GROUPS + 1
    assert {len(row) for row in rows} == {len(rows[0])}
    assert not {cell for row in rows for cell in row if cell[:1] in ("\t", "\n", "\r")}
    # A cell that is pasted or read with another separator is split.
    cells = {part.strip() for row in rows for cell in row for part in re.split(r"[;\t\n]", cell)}
    assert not {cell for cell in cells if cell[:1] in tuple("=+-@\uff1d\uff0b\uff0d\uff20")}
    assert "'=1+1" in cells


def test_markdown_is_a_table_of_text(run: Path, comparing: Comparing):
    markdown_it = pytest.importorskip("markdown_it")
    render = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"]).render
    for text in (run_markdown(run), comparing.markdown()):
        require_printed(text)
        elements = Elements(render(text))
        assert set(elements.tags) <= {"p", "table", "thead", "tbody", "tr", "th", "td", "strong"}
        assert not GITHUB.findall("\0".join(elements.texts))
        assert "\N{ZERO WIDTH SPACE}" not in text
        shown = " ".join("".join(elements.texts).replace("\N{ZERO WIDTH SPACE}", "").split())
        assert not {each for each in shown_texts() if each not in shown}


def test_event_files_have_plain_tags_and_no_host(run: Path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    paths = list((run / "tensorboard").glob("*/events.out.tfevents.*"))
    assert len(paths) == 3 * GROUPS + 1
    for path in paths:
        assert socket.gethostname() not in path.name
        for event in EventFileLoader(str(path)).Load():
            for value in event.summary.value:
                require_printed(value.tag)


def test_json_is_ascii_and_exact(run: Path, comparing: Comparing):
    text = (run / "records.json").read_text(encoding="ascii")
    values = {value for record in json.loads(text) for value in strings(record)}
    assert set(TEXTS) <= values
    stream = io.StringIO()
    comparing.write_json(stream)
    assert stream.getvalue().isascii()


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "run", "--markdown"),
        ("compare", "run", "run"),
        *(
            ("report", HOSTILE[name])
            for name in ("terminal hyperlink", "8-bit sequence", "override")
        ),
    ],
)
def test_a_command_writes_no_sequence_but_colours(run: Path, arguments: tuple[str, ...]):
    environment = os.environ | {"FORCE_COLOR": "1"}
    done = commands.run(arguments, cwd=run.parent, env=environment)
    require_printed(COLOUR.sub("", done.stdout + done.stderr))
