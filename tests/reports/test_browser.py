"""The pages in a browser: offline, by keyboard, in light and dark, on a phone and on paper.

The browser is Debian's chromium.
"""

import csv
import io
import json
import os
import pickle
import re
import time
from dataclasses import replace
from pathlib import Path
from typing import NoReturn

import pytest
from PIL import Image
from tests.reports.test_gpus_needed import FITS, SEARCH

from optprof.profiler.records.record import (
    Environment,
    Exchange,
    Level,
    RankBytes,
    Ranks,
    Watched,
)
from optprof.profiler.records.store import RunStore
from optprof.profiler.records.timeline import BlockSource, PeakGroup
from optprof.profiler.safety.plain import spreadsheet_text
from optprof.profiler.simulating.simulation import run_simulation
from optprof.profiler.simulating.snapshot import snapshot
from optprof.profiler.snapshots.answer import answer
from optprof.reports import (
    read_traces,
    write_fit_page,
    write_report,
    write_snapshot_page,
    write_trace,
)
from optprof.reports.comparison.compare import compare
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.comparison.history import read_history
from optprof.reports.comparison.history_document import write_page
from optprof.reports.run import Run
from optprof.reports.units import NOTHING
from optprof.scenarios import Scenario

HOSTILE = Path(__file__).parents[1] / "data" / "hostile.json"
CHROMIUM = Path("/usr/bin/chromium")
DESKTOP, PHONE = {"width": 1280, "height": 900}, {"width": 390, "height": 844}
SECTIONS = (
    "Verdict",
    "State kept, compared with adamw",
    "Savings heat map",
    "Optimizer state against model size",
    "What the peak is made of",
    "The peak by module and operation",
    "Memory along the training step",
    "Time of the optimizer's step on CPU",
    "The step's share of an iteration on CPU",
    "Time of the step against model size",
    "Time against memory",
    "What fits on which GPU",
    "Why you may not see the saving",
    "Simulated against measured",
    "What the real runs showed",
    "Against the published figures",
    "Without a result",
    "All numbers",
    "What the state is made of",
    "How to repeat it",
    "What the words mean",
)
PARTS = (
    "Savings heat map",
    "The peak by module and operation",
    "The step's share of an iteration on CPU",
    "Time of the step against model size",
    "What the real runs showed",
    "Against the published figures",
    "What the state is made of",
    "What the words mean",
)


def without_browser(reason) -> NoReturn:
    if os.environ.get("OPTPROF_REQUIRE_BROWSER") == "1":
        pytest.fail(f"OPTPROF_REQUIRE_BROWSER is 1, but {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="module")
def browser():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        without_browser("playwright is not installed; pip install playwright")
    if not CHROMIUM.is_file():
        without_browser(f"there is no {CHROMIUM}; apt-get install chromium")
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=str(CHROMIUM))
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def open_page(browser):
    """Open a file in a new window; `page.messages` lists its requests, log lines and errors."""

    def open_page(path, viewport=DESKTOP, **options):
        page = browser.new_context(viewport=viewport, **options).new_page()
        page.messages = []
        page.on(
            "request",
            lambda request: (
                page.messages.append(request.url) if request.url != path.as_uri() else None
            ),
        )
        page.on("console", lambda message: page.messages.append(message.text))
        page.on("pageerror", lambda error: page.messages.append(str(error)))
        page.on("dialog", lambda dialog: page.messages.append(dialog.message))
        page.goto(path.as_uri())
        until(
            page,
            "[...document.querySelectorAll('.graph')].every((graph) =>"
            " graph.querySelector('.main-svg'))",
        )
        return page

    return open_page


@pytest.fixture(scope="module")
def folder(tmp_path_factory, mixed, simulated, timed, timeline):
    """A run of two model sizes, optimizers with equal states, and every origin and outcome."""
    store = RunStore.create(tmp_path_factory.mktemp("runs") / "everything")
    large = {"model": "tiny-large", "parameter_count": 10_000, "model_family": "tiny"}
    watched = Watched(memory={"step": {"allocated": Level(end=80_000, peak=90_000)}})
    more = [
        simulated("adam-mini", state=4_000),
        *(
            simulated(name, **large, state=state)
            for name, state in (("adamw", 80_000), ("adam-mini", 40_000))
        ),
        replace(
            timed("adamw", model="tiny-large", step=(0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.1)),
            parameter_count=10_000,
            model_family="tiny",
        ),
        simulated("adamw", device="cuda", origin="measured"),
        simulated(
            "adamw", **large, state=80_000, device="cuda", origin="measured", watched=watched
        ),
        simulated("prodigy", memory=None, outcome="failed", error="ValueError: no"),
    ]
    for record in [
        replace(record, parameter_count=1_000, model_family="tiny") if record.times else record
        for record in mixed
    ] + more:
        store.append(record)
    store.write_timeline(mixed[0].scenario, timeline)
    write_report(store.folder)
    return store.folder


@pytest.fixture(scope="module")
def page(open_page, folder):
    return open_page(folder / "report.html")


def until(page, condition, seconds=20):
    """Wait for a condition.

    Playwright's own wait evaluates a string in the page, which the page forbids.
    """
    end = time.monotonic() + seconds
    while not page.evaluate(condition):
        assert time.monotonic() < end, f"this did not come true: {condition}"
        page.wait_for_timeout(50)


def faults(page):
    """Return the rule and the elements of each serious or critical finding of axe."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    violations = axe.run(page).response["violations"]
    return [
        (each["id"], [node["html"] for node in each["nodes"]])
        for each in violations
        if each["impact"] in ("serious", "critical")
    ]


def column(page, table, number):
    return page.locator(
        f"table.sortable >> nth={table} >> tbody tr:not([hidden]) > :nth-child({number})"
    ).all_text_contents()


def test_the_page_requests_nothing_and_logs_nothing(page):
    assert page.messages == []


def test_every_section_is_present_and_explains_itself(page):
    headings = page.locator("section > :is(h2, h3[id])")
    assert headings.all_text_contents() == list(SECTIONS)
    assert page.locator("section").count() == len(SECTIONS)
    says = page.locator("section > :is(h2, h3[id]) + p.says").all_text_contents()
    assert [len(text) > 20 for text in says] == [True] * len(SECTIONS)
    # The contents name the subjects alone.
    subjects = [name for name in SECTIONS if name not in PARTS]
    assert page.locator("h2").all_text_contents() == subjects
    assert page.locator("#contents a").all_text_contents() == subjects


def test_what_failed_or_ran_out_of_memory_is_listed(page):
    failures = page.locator("section", has=page.locator("#failures")).text_content()
    assert "out-of-memory" in failures
    assert "needs 26.1 GiB of 24 GiB" in failures
    assert "ValueError: no" in failures
    assert "out-of-memory" in column(page, 0, 10)


def test_the_theme_can_be_chosen(page):
    paper = "getComputedStyle(document.body).backgroundColor"
    line = "document.querySelector('.graph').layout.xaxis.gridcolor"
    assert page.evaluate(paper) == "rgb(255, 255, 255)"
    light = page.evaluate(line)
    page.get_by_label("dark").check(force=True)
    assert page.evaluate(paper) == "rgb(20, 23, 28)"
    until(page, f"{line} !== '{light}'")
    page.get_by_label("system").check(force=True)
    assert page.evaluate(paper) == "rgb(255, 255, 255)"


def test_units_change_everywhere(page):
    assert column(page, 0, 4)[0] == "7.81 KiB"
    page.get_by_label("GB", exact=True).check(force=True)
    assert column(page, 0, 4)[0] == "8.00 kB"
    until(
        page,
        "document.querySelector('.graph').layout.yaxis.title.text === 'GB of state, log scale'",
    )
    assert page.evaluate(
        "Math.max(...document.querySelector('.graph').data.at(-1).y)"
    ) == pytest.approx(4e-5)
    page.get_by_label("GiB", exact=True).check(force=True)
    assert column(page, 0, 4)[0] == "7.81 KiB"


def test_with_units_of_gb_the_page_s_own_text_has_no_gib(page):
    # Error messages and the unit of the published figure are quoted unchanged.
    page.evaluate(
        "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
    )
    page.get_by_label("GB", exact=True).check(force=True)
    until(page, "!waiting.length")
    sections = (
        "[...document.querySelectorAll('section')].filter((each) =>"
        " !each.querySelector('#failures')).map((each) => each.innerText)"
    )
    lines = [
        line
        for text in page.evaluate(sections)
        for line in text.splitlines()
        if re.search("[KMG]iB", line)
    ]
    assert [line for line in lines if "The figure's “GB” are GiB" not in line] == []
    published = (
        page.locator("section", has=page.locator("#reproduction"))
        .locator("td.number")
        .all_text_contents()
    )
    # 11.86 GiB, the state of AdamW on gpt2-xl.
    assert "12.73 GB" in published
    page.get_by_label("GiB", exact=True).check(force=True)


def test_axes_can_be_linear_and_optimizers_hidden(page):
    section = page.locator("section", has=page.locator("#state-by-size"))
    graph = section.locator(".graph")
    assert graph.evaluate("(graph) => [graph.layout.xaxis.type, graph.layout.yaxis.type]") == [
        "log",
        "log",
    ]
    section.get_by_label("linear").check(force=True)
    assert graph.evaluate("(graph) => [graph.layout.xaxis.type, graph.layout.yaxis.type]") == [
        "linear",
        "linear",
    ]
    title = "(graph) => graph.layout.xaxis.title.text"
    assert graph.evaluate(title) == "parameters of the model, linear scale"
    section.get_by_label("logarithmic").check(force=True)
    assert graph.evaluate(title) == "parameters of the model, log scale"
    button = section.get_by_role("button", name="adam-mini")
    button.press("Enter")
    assert button.get_attribute("aria-pressed") == "false"
    assert graph.evaluate(
        "(graph) => graph.data.filter((trace) => !trace.visible).map((trace) => trace.label)"
    ) == ["adam-mini"]
    button.press("Enter")
    assert graph.evaluate("(graph) => graph.data.every((trace) => trace.visible)")


def test_series_that_coincide_are_distinguishable(page):
    traces = page.evaluate(
        "document.querySelector('.graph').data.filter((trace) => trace.label).map((trace) =>"
        " [trace.label, trace])"
    )
    first, second = (
        next(trace for label, trace in traces if label == name) for name in ("sgd-sai", "adam-mini")
    )
    assert first["marker"]["size"] > second["marker"]["size"]
    assert first["marker"]["symbol"] != second["marker"]["symbol"]
    assert first["line"]["dash"] != second["line"]["dash"]


def test_measured_marks_are_filled_and_others_hollow(page):
    colours = page.evaluate(
        "document.querySelector('.graph').data.filter((trace) => trace.label === 'adamw').map((t)"
        " => t.marker)"
    )
    fills = {fill for marker in colours for fill in marker["color"]}
    assert fills == {"#ffffff", colours[0]["line"]["color"]}


def test_tables_are_sorted_by_keyboard_and_say_so(page):
    button = page.locator("table.sortable >> nth=0").get_by_role("button", name="bytes a parameter")
    head = button.locator("xpath=..")
    assert head.get_attribute("aria-sort") == "none"
    button.press("Enter")
    rising = [text for text in column(page, 0, 5) if text != NOTHING]
    assert head.get_attribute("aria-sort") == "ascending"
    assert rising == sorted(rising, key=float)
    button.press("Enter")
    falling = column(page, 0, 5)
    assert head.get_attribute("aria-sort") == "descending"
    assert [text for text in falling if text != NOTHING] == rising[::-1]
    # Unknown values come last in both directions.
    assert falling[-1] == NOTHING


def test_filtered_rows_are_copied_and_saved_with_exact_numbers(page):
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.locator("#filter").fill("adam-mini simulated")
    assert set(column(page, 0, 1)) == {"adam-mini"}
    assert page.locator("#message").text_content() == f"2 of {page.evaluate('rows.length')} rows"
    page.get_by_role("button", name="Copy as CSV").click()
    until(page, "document.getElementById('message').textContent === '2 rows copied'")
    copied = list(csv.DictReader(io.StringIO(page.evaluate("navigator.clipboard.readText()"))))
    assert sorted(row["state_bytes"] for row in copied) == ["4000", "40000"]
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as JSON").click()
    saved = json.loads(download.value.path().read_text(encoding="utf-8"))
    assert sorted(row["peak_allocated_bytes"] for row in saved) == [16_000, 52_000]
    page.locator("#filter").fill("")
    assert len(column(page, 0, 1)) == page.evaluate("rows.length")


def test_the_contents_follow_and_mark_the_section_in_view(page):
    page.locator("#contents a", has_text="All numbers").press("Enter")
    marked = "document.querySelector('#contents [aria-current]').textContent"
    until(page, f"{marked} === 'All numbers'")
    top = "document.querySelector('nav').getBoundingClientRect().top"
    assert page.evaluate(f"[scrollY > 1_000, {top}]") == [True, 0]
    page.evaluate("scrollTo(0, document.documentElement.scrollHeight)")
    until(page, f"{marked} === 'How to repeat it'")
    page.evaluate("scrollTo(0, 0)")
    until(page, f"{marked} === 'Verdict'")


def test_a_graph_that_was_zoomed_into_can_be_reset(page):
    section = page.locator("section", has=page.locator("#state-by-size"))
    ranges = "(graph) => [graph.layout.xaxis.range, graph.layout.yaxis.range]"
    graph, button = section.locator(".graph"), section.get_by_role("button", name="Reset zoom")
    graph.scroll_into_view_if_needed()
    whole = graph.evaluate(ranges)
    assert not button.is_visible()
    box = graph.locator(".nsewdrag").first.bounding_box()
    page.mouse.move(box["x"] + 0.2 * box["width"], box["y"] + 0.2 * box["height"])
    page.mouse.down()
    page.mouse.move(box["x"] + 0.7 * box["width"], box["y"] + 0.7 * box["height"], steps=5)
    page.mouse.up()
    button.wait_for(state="visible")
    assert graph.evaluate(ranges) != whole
    button.press("Enter")
    button.wait_for(state="hidden")
    assert graph.evaluate(ranges) == whole


def test_graphs_and_their_numbers_are_saved_offline(page, folder):
    section = page.locator("section", has=page.locator("#peak"))
    saved = {}
    for form in ("SVG", "PNG", "CSV"):
        with page.expect_download() as download:
            section.get_by_role("button", name=f"{form}: save", exact=False).first.click()
        name = download.value.suggested_filename
        saved[name] = download.value.path().read_bytes()
    assert saved["peak.svg"] == (folder / "figures" / "peak.svg").read_bytes()
    image = Image.open(io.BytesIO(saved["peak.png"])).convert("L")
    # 241.2 points at 300 pixels an inch; a picture of nothing has one shade.
    assert image.width == pytest.approx(1_005, abs=4)
    assert sum(image.histogram()[:60]) > 0
    rows = list(csv.DictReader(io.StringIO(saved["peak.csv"].decode())))
    assert {row["optimizer"]: row["peak, bytes"] for row in rows}["sm3 (momentum=0.0)"] == "12008"
    assert page.messages == []


def test_all_numbers_are_saved_as_csv(page):
    with page.expect_download() as download:
        page.get_by_role("button", name="Save as CSV").click()
    assert download.value.suggested_filename == "records.csv"
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text(encoding="utf-8"))))
    assert len(rows) == page.evaluate("rows.length")
    assert {"optimizer", "state_bytes", "peak_allocated_bytes"} <= rows[0].keys()


def test_units_and_theme_are_kept_on_reload(page):
    # Each context keeps its own choices; the shared page gets its usual ones back.
    page.get_by_label("GB", exact=True).check(force=True)
    page.get_by_label("dark").check(force=True)
    page.reload()
    until(page, "document.querySelector('.graph .main-svg')")
    assert page.get_by_label("GB", exact=True).is_checked()
    assert column(page, 0, 4)[0] == "8.00 kB"
    assert page.evaluate("document.querySelector('.graph').layout.yaxis.title.text").startswith(
        "GB of state"
    )
    assert page.evaluate("root.dataset.theme") == "dark"
    page.get_by_label("GiB", exact=True).check(force=True)
    page.get_by_label("system").check(force=True)
    page.reload()
    until(page, "document.querySelector('.graph .main-svg')")
    assert column(page, 0, 4)[0] == "7.81 KiB"


def test_the_page_has_no_serious_accessibility_fault(page):
    page.evaluate(
        "document.querySelectorAll('details').forEach((details) => { details.open = true; })"
    )
    assert faults(page) == []


def test_dark_follows_the_system_and_is_as_accessible(open_page, folder):
    page = open_page(folder / "report.html", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    assert faults(page) == []
    assert page.messages == []


def test_a_phone_shows_everything_without_scrolling_sideways(open_page, folder):
    page = open_page(folder / "report.html", viewport=PHONE, has_touch=True)
    assert page.evaluate("document.documentElement.scrollWidth") == PHONE["width"]
    assert (
        page.evaluate(
            "Math.max(...[...document.querySelectorAll('.graph .main-svg')].map((svg) =>"
            " svg.clientWidth))"
        )
        <= PHONE["width"]
    )
    _uses_the_menu(page)
    _finds_the_hidden_columns(page)
    assert faults(page) == []


def _uses_the_menu(page):
    menu, link = page.locator("nav details"), page.locator("#contents a", has_text="All numbers")
    assert not link.is_visible()
    menu.locator("summary").press("Enter")
    assert link.is_visible()
    link.press("Escape")
    assert not link.is_visible()
    menu.locator("summary").press("Enter")
    link.press("Enter")
    until(page, "!document.querySelector('nav details').open")
    until(
        page,
        "document.querySelector('nav summary').textContent.trim() === 'Contents: All numbers'",
    )
    heading, bar = (page.locator(name).bounding_box() for name in ("#table", "nav"))
    assert heading["y"] >= bar["y"] + bar["height"]


def _finds_the_hidden_columns(page):
    box = page.locator(".scroll", has=page.locator("table.sortable")).first
    hint = box.locator("xpath=following-sibling::p[1]").locator(".hint")
    assert hint.is_visible()
    box.evaluate("(box) => { box.scrollLeft = box.scrollWidth; }")
    until(page, "!document.querySelector('.scroll:has(table.sortable)').matches('.more')")
    assert not hint.is_visible()


def test_on_a_desktop_no_table_scrolls(page):
    wide = (
        "[...document.querySelectorAll('table.sortable')].filter((table) => table.scrollWidth >"
        " table.parentElement.clientWidth)"
    )
    assert page.evaluate(f"{wide}.length") == 0


def test_paper_is_light_and_has_the_graphs(open_page, folder, tmp_path):
    page = open_page(folder / "report.html", color_scheme="dark")
    page.evaluate(
        "addEventListener('beforeprint', () => { const all = document.querySelectorAll('.graph');"
        " root.dataset.seen = all[0].layout.xaxis.gridcolor;"
        " root.dataset.wide = Math.max(...[...all].map((graph) => graph.layout.width)); })"
    )
    page.pdf(path=tmp_path / "page.pdf", format="A4")
    # Chromium wrote 6 kB of blank pages where the style sheet had container queries.
    assert len((tmp_path / "page.pdf").read_bytes()) > 100_000
    assert page.evaluate("root.dataset.seen") == "#d9dee5"
    # A4 has 718 pixels between Chromium's margins.
    assert 500 < int(page.evaluate("root.dataset.wide")) <= 680
    page.set_viewport_size({"width": 718, "height": 900})
    page.emulate_media(media="print")
    beyond = (
        "[...document.querySelectorAll('main :not(svg *, .graph *, .hidden)')].filter((each) =>"
        " each.getClientRects().length && each.getBoundingClientRect().right > 719)"
    )
    assert page.evaluate(f"{beyond}.map((each) => each.outerHTML)") == []
    page.emulate_media(media="screen")
    until(page, "document.querySelector('.graph').layout.xaxis.gridcolor === '#333a45'")


def test_a_part_of_the_peak_is_enlarged_by_a_click_and_names_its_exact_bytes(page):
    graph = page.locator("section", has=page.locator("#icicle")).locator(".graph")
    graph.scroll_into_view_if_needed()
    shown = "(graph) => [...graph.querySelectorAll('.slice')].map((each) => each.textContent)"
    assert graph.evaluate("(graph) => graph.data[0].values.slice(0, 2)") == [6 * 2**30, 2**30]
    part = graph.locator(".slice", has_text="temporaries")
    part.hover(force=True)
    until(page, "document.querySelector('#graph-icicle-1 .hoverlayer').textContent")
    words = graph.locator(".hoverlayer").text_content()
    assert words == "temporaries3.000 GiB, 50.00% of the peak3,221,225,472 bytes in 2 blocks"
    part.click(force=True)
    until(page, "document.querySelector('#graph-icicle-1').data[0].level")
    assert not any(text.startswith("activations") for text in graph.evaluate(shown))
    # The path above leads back.
    graph.locator(".pathbar").first.click(force=True)
    until(
        page,
        "[...document.querySelectorAll('#graph-icicle-1 .slice')].some((each) =>"
        " each.textContent.startsWith('activations'))",
    )
    # Without a pointer, the table has the same: it ends with the peak.
    table = page.locator("section", has=page.locator("#icicle")).locator("details table")
    last = table.locator("tbody tr").last
    assert last.locator("th").text_content() == "the peak"
    assert last.locator("td[title]").get_attribute("title") == "6,442,450,944 bytes"


def test_a_timeline_names_the_event_under_the_pointer(page):
    graph = page.locator("section", has=page.locator("#timeline")).locator(".graph")
    graph.scroll_into_view_if_needed()
    plot = graph.locator(".nsewdrag").first.bounding_box()
    assert plot is not None
    # The peak is a quarter into the backward pass, which is the second of three phases.
    page.mouse.move(plot["x"] + plot["width"] * (1 / 3 + 1 / 12), plot["y"] + plot["height"] / 2)
    until(page, "document.querySelector('#graph-timeline-1 .hoverlayer').textContent")
    words = graph.locator(".hoverlayer").text_content() or ""
    event = (
        "event 1 of backward, training step 1allocates temporariesh.11.mlp.c_fc · Linearaten::mm"
    )
    assert event in words
    assert "temporaries 3.000 GiB" in words


def test_every_part_of_a_bar_has_its_exact_bytes_under_the_pointer(page):
    peak = page.locator("section", has=page.locator("#peak"))
    titles = peak.locator(".part").evaluate_all("(parts) => parts.map((part) => part.title)")
    assert titles[:2] == ["parameters: 4,000 bytes", "gradients: 4,000 bytes"]
    assert all(re.fullmatch(r"[a-z ]+: [\d,]+ bytes?", title) for title in titles)
    assert peak.locator(".outline").first.get_attribute("title") == "reserved: 2,097,152 bytes"
    savings = page.locator("section", has=page.locator("#savings")).locator(".part")
    assert savings.nth(1).get_attribute("title") == "adamw: 8,000 bytes"
    phases = page.locator("section", has=page.locator("#iteration")).locator(".part")
    assert (phases.first.get_attribute("title") or "").startswith("forward: ")


def test_markup_from_records_stays_text(open_page, tmp_path, simulated, timeline):
    wicked = (
        "<script>alert(1)</script><img src=x onerror=alert(2)>\"'</script>${alert(3)}{{7*7}}%{x}"
    )
    store = RunStore.create(tmp_path / "run")
    records = [
        simulated("adamw", model=wicked, model_family=wicked),
        simulated(f"m:{wicked}", model=wicked, options={"momentum": wicked}, state=3_000),
        simulated("sm3", model=wicked, memory=None, outcome="failed", error=wicked),
    ]
    for record in records:
        store.append(
            replace(record, environment=Environment(command=("optprof", wicked), platform=wicked))
        )
    source = BlockSource(wicked, wicked, wicked, wicked, wicked)
    store.write_timeline(
        records[0].scenario,
        replace(
            timeline,
            categories={wicked: timeline.allocated},
            groups=(PeakGroup(source=source, phase=wicked, blocks=1, nbytes=6 * 2**30),),
            sources=(source,),
            events=(0, 1, 1, 1, -1, 0),
            layers=(wicked,) * 6,
        ),
    )
    page = open_page(write_report(store.folder))
    page.mouse.move(
        *page.evaluate(
            "(({ x, y, width }) => [x + width / 2, y +"
            " 60])(document.querySelector('.graph').getBoundingClientRect())"
        )
    )
    page.locator("#filter").fill("alert")
    page.locator("table.sortable >> nth=0").get_by_role("button").first.click()
    assert page.messages == []
    assert page.locator("img").count() == 0
    assert wicked in page.locator("body").text_content()


def test_copied_cells_run_in_no_spreadsheet(open_page, tmp_path, simulated):
    texts = [
        text
        for text in json.loads(HOSTILE.read_text(encoding="utf-8")).values()
        if "=" in text or "\x1b" in text
    ]
    store = RunStore.create(tmp_path / "run")
    for number, text in enumerate(["+1", "@A1", *texts]):
        store.append(
            simulated("sgd", options={"number": number}, memory=None, outcome="failed", error=text)
        )
    page = open_page(write_report(store.folder))
    rows = list(csv.DictReader(io.StringIO(page.evaluate("csvOf(shownRows())"))))
    assert [row["error"] for row in rows] == ["'+1", "'@A1", *map(spreadsheet_text, texts)]
    assert {row["parameters"] for row in rows} == {"1000"}


def test_a_single_record_is_drawn(open_page, tmp_path, simulated):
    store = RunStore.create(tmp_path / "run")
    store.append(simulated("sm3"))
    page = open_page(write_report(store.folder))
    low, high = page.evaluate("document.querySelector('.graph')._fullLayout.xaxis.range")
    assert low + 0.1 < 3 < high - 0.1
    advice = "Nothing to compare sm3 with: add adamw to --optimizers."
    assert advice in page.locator("body").text_content()
    assert page.messages == []


def test_a_notebook_shows_pictures_without_a_network(open_page, tmp_path, simulated):
    path = tmp_path / "notebook.html"
    run = Run(records=[simulated("adamw"), simulated("sm3")])
    head = '<!DOCTYPE html><html lang="en"><title>a</title><meta charset="utf-8"><body><h3>a</h3>'
    path.write_text(f"{head}<main>{run._repr_html_()}</main>", encoding="utf-8")
    page = open_page(path)
    sizes = page.evaluate(
        "[...document.images].map((image) => [image.complete, image.naturalWidth, image.width])"
    )
    assert len(sizes) == 3
    # 241.2 points are 321.6 pixels.
    assert {natural for _, natural, _ in sizes} <= {321, 322}
    assert all(complete and shown > 300 for complete, _, shown in sizes)
    assert [message for message in page.messages if not message.startswith("data:")] == []


def test_a_comparison_draws_filters_and_has_no_serious_accessibility_fault(
    open_page, tmp_path, simulated, timed
):
    steps = (0.50, 0.51, 0.52, 0.53, 0.54)
    before = [simulated(state=2**30), simulated("sm3"), timed(step=steps)]
    after = [
        simulated(state=2**31),
        simulated("sm3"),
        timed(step=tuple(step / 2 for step in steps)),
    ]
    path = tmp_path / "compare.html"
    compared = compare(before, after)
    Comparing(compared=compared, stopped=[]).write_page(path, ["optprof", "compare"])
    page = open_page(path)
    assert page.messages == []
    assert faults(page) == []
    state = page.locator("section", has=page.locator("#changed-state"))
    assert [bar.split("\n") for bar in state.locator(".row").all_inner_texts()] == [
        ["before", "1.000 GiB"],
        ["after", "2.000 GiB · 2.00 times as much"],
    ]
    page.locator("input[value=decimal]").check()
    assert "2.147 GB · 2.00 times as much" in state.inner_text()
    page.locator("#filter").fill("step")
    rows = page.locator("table.sortable tbody tr:visible")
    assert rows.count() == 1
    assert "improved: takes 0.472 to 0.529 times as long" in rows.inner_text()


def test_a_history_is_drawn_and_has_no_serious_accessibility_fault(open_page, tmp_path, simulated):
    for number, state in enumerate((8_000, 8_000, 9_000)):
        record = simulated(state=state)
        environment = replace(record.environment, time=f"2025-11-2{number}T00:00:00+00:00")
        store = RunStore.create(tmp_path / "runs" / f"run-{number}")
        store.append(replace(record, environment=environment))
    past = read_history([tmp_path / "runs"], "state")
    write_page(past, tmp_path / "history.html", ["optprof", "history"])
    page = open_page(tmp_path / "history.html")
    assert page.messages == []
    assert faults(page) == []
    # A ring around the third run, and a line through all three.
    traces = page.evaluate("document.querySelector('.graph').data.map((each) => each.x.length)")
    assert traces == [1, 3]
    assert "1 regression: tiny · adamw in run-2" in page.locator("body").inner_text()


def test_the_page_of_traces_is_offline_filtered_and_accessible(open_page, tmp_path):
    events = [
        {
            "ph": "X",
            "cat": "cpu_op",
            "name": f"aten::{name}",
            "ts": 10.0 * place,
            "dur": 5.0 + place,
        }
        for place, name in enumerate(("mm", "mul", "<b>add</b>"))
    ]
    allocated = {"Total Allocated": 4096, "Device Type": 0}
    events += [
        {"ph": "i", "name": "[memory]", "ts": place, "args": allocated} for place in range(3)
    ]
    path = tmp_path / "mine.json"
    path.write_text(json.dumps({"traceEvents": events}))
    written, *_ = write_trace(read_traces(path), path)
    page = open_page(written)
    assert page.locator(".sortable tbody tr").count() == 3
    assert page.locator("b").count() == 0
    page.get_by_label("Filter").fill("mul")
    assert page.locator(".sortable tbody tr:visible").all_inner_texts()[0].startswith("aten::mul")
    page.get_by_label("Filter").fill("")
    page.get_by_role("button", name="self, host").press("Enter")
    assert page.locator(".sortable tbody th").all_inner_texts()[0] == "aten::mm"
    assert page.messages == []
    assert faults(page) == []
    page.set_viewport_size(PHONE)
    until(page, f"document.documentElement.scrollWidth === {PHONE['width']}")
    assert faults(page) == []


@pytest.fixture(scope="module")
def snapshot_page(tmp_path_factory):
    """The page of a simulated step of GPT-2 without its beginning, under all settings."""
    folder = tmp_path_factory.mktemp("snapshot")
    simulation = run_simulation(Scenario(model="gpt2", optimizer="adamw", gpu="t4"))
    data = snapshot(simulation.record.scenario, simulation.segments, simulation.allocations)
    data["device_traces"][0] = data["device_traces"][0][1200:]
    (folder / "mem.pickle").write_bytes(pickle.dumps(data))
    contents = answer(folder / "mem.pickle", ["all"])
    return write_snapshot_page(contents, folder / "page", ["optprof"])


def test_the_page_of_a_snapshot_shows_settings_curve_and_segments(open_page, snapshot_page):
    begin = time.monotonic()
    page = open_page(snapshot_page)
    assert time.monotonic() - begin < 10
    assert page.messages == []
    assert page.locator(".verdict").inner_text().startswith("export PYTORCH_CUDA_ALLOC_CONF=")
    rows = page.locator("section", has=page.locator("#settings")).locator("tbody tr")
    assert "expandable_segments:True" in rows.first.inner_text()
    assert page.locator("#memory-0 .graph .main-svg, .graph .main-svg").count() >= 1
    assert page.locator("ul.rows .part").count() > 10
    sizes = column(page, 0, 5)
    page.locator("table.sortable thead button").nth(4).click()
    assert sorted(column(page, 0, 5)) == sorted(sizes)
    assert column(page, 0, 5) != sizes
    assert faults(page) == []


def test_the_page_of_a_snapshot_fits_a_phone_and_dark_paper(open_page, snapshot_page):
    page = open_page(snapshot_page, viewport=PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    assert faults(page) == []


@pytest.fixture(scope="module")
def needed_page(tmp_path_factory):
    folder = tmp_path_factory.mktemp("needed")
    return write_fit_page(FITS, folder / "run", ["optprof", "fit"], search=SEARCH)


def test_the_page_of_gpus_needed_draws_a_mark_for_each_optimizer_and_gpu(open_page, needed_page):
    page = open_page(needed_page)
    assert page.messages == []
    graph = page.locator("#graph-gpus-needed-1")
    names = graph.locator(".xtick text").all_text_contents()
    assert names == ["1", "2", "4", "8", "more"]
    assert graph.locator(".ytick text").all_text_contents() == ["t4 16 GB", "l4 24 GB"]
    assert graph.locator(".scatterlayer .point").count() == 4
    # The lines from adamw's 4 to 8 on t4, and from sm3's 2 to more on l4.
    assert graph.locator(".errorbar path.xerror").count() >= 2
    page.get_by_role("button", name="sm3").click()
    until(page, "document.querySelectorAll('.scatterlayer .point').length === 2")
    assert faults(page) == []


def test_the_page_of_gpus_needed_fits_a_phone_and_dark_paper(open_page, needed_page):
    page = open_page(needed_page, PHONE, color_scheme="dark")
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"]
    # Names of GPUs and of the last number are inside the graph.
    for tick in page.locator("#graph-gpus-needed-1 :is(.xtick, .ytick) text").all():
        box = tick.bounding_box()
        assert box is not None
        assert 0 <= box["x"] <= box["x"] + box["width"] <= PHONE["width"]
    assert faults(page) == []


def test_a_run_of_ranks_shows_ways_exchanges_and_ranks_side_by_side(
    open_page, tmp_path, simulated, timeline
):
    store = RunStore.create(tmp_path / "ranks")
    exchange = Exchange(phase="backward", operation="all_reduce", group=2, calls=1, bytes=4_000)
    each = tuple(
        RankBytes(rank=rank, parameters=4_000, gradients=4_000, optimizer_state=8_000 - rank)
        for rank in range(2)
    )
    for parallel in ("ddp", "fsdp2"):
        simulation = simulated("adamw", ranks=2, parallel=parallel)
        store.append(replace(simulation, ranks=Ranks(exchanges=(exchange,), elements=(500, 500))))
        store.write_timeline(simulation.scenario, timeline)
    measured = simulated("adamw", ranks=2, parallel="ddp", device="cpu", origin="measured")
    store.append(replace(measured, times={"step": (1.0,) * 6}, ranks=Ranks(each=each, slowest=1)))
    write_report(store.folder)
    assert (store.folder / "figures" / "ways.png").is_file()
    for options in ({}, {"viewport": PHONE, "color_scheme": "dark"}):
        page = open_page(store.folder / "report.html", **options)
        assert page.messages == []
        ways = page.locator("section[aria-labelledby=ways] p.row strong").all_text_contents()
        assert ways == ["ddp on 2 ranks", "fsdp2 on 2 ranks"]
        ranks = page.locator("section[aria-labelledby=ranks]")
        assert ranks.locator("table").count() == 4
        assert "1 (slowest)" in ranks.inner_text()
        assert faults(page) == []
