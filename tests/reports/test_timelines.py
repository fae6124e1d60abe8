"""Timelines in reports: places of phases, samples of pictures, and text of page and files."""

import random
import re
from dataclasses import replace

import pytest

from optprof.profiler.records.store import DamageWarning, RunStore, file_name
from optprof.profiler.records.timeline import Stretch
from optprof.reports import write_report
from optprof.reports.arithmetic.courses import Course, bands, phases_held, thinned
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.peaks import peak_parts
from optprof.reports.pictures import pictures
from optprof.reports.pictures.drawing import STYLES, draw
from optprof.reports.pictures.timelines import stairs
from optprof.reports.tables.overview import GROUP_HEAD, group_rows, group_table
from optprof.reports.units import NOTHING

GIB = 2**30


@pytest.fixture
def run(tmp_path, simulated, timeline):
    """A run of two optimizers, one of them with a timeline."""
    store = RunStore.create(tmp_path / "run")
    for record in (simulated("adamw"), simulated("sm3")):
        store.append(record)
    store.write_timeline(simulated("adamw").scenario, timeline)
    return store


def test_phases_are_side_by_side_and_fill_the_width(timeline):
    placed = bands(timeline)
    assert [(band.left, band.right) for band in placed] == [
        (0, pytest.approx(1 / 3)),
        (pytest.approx(1 / 3), pytest.approx(2 / 3)),
        (pytest.approx(2 / 3), pytest.approx(1)),
    ]
    assert [list(band.samples) for band in placed] == [[0, 1, 2], [3, 4], [5]]


def test_a_picture_keeps_the_highest_and_the_lowest_of_a_column(timeline):
    assert [number for _, number in thinned(timeline, 1_000)] == [0, 1, 2, 3, 4, 5]
    assert [number for _, number in thinned(timeline, 1)] == [0, 2, 3, 4, 5]
    noise = random.Random(0)
    nbytes = tuple(noise.randrange(GIB) for _ in range(5_000))
    long = replace(
        timeline,
        phases=(Stretch(step=1, phase="forward", events=4_999, samples=5_000),),
        places=tuple(range(5_000)),
        categories={"temporary": nbytes},
        reserved=(2 * GIB,) * 5_000,
        peak=nbytes.index(max(nbytes)),
    )
    shown = [number for _, number in thinned(long, 100)]
    assert len(shown) <= 2 * 101
    for column in range(100):
        of_column = range(-(-column * 4_999 // 100), min(-(-(column + 1) * 4_999 // 100), 5_000))
        drawn = [nbytes[number] for number in shown if number in of_column]
        assert {
            max(nbytes[number] for number in of_column),
            min(nbytes[number] for number in of_column),
        } <= set(drawn)


def test_a_phase_has_its_highest_bytes(timeline, simulated):
    course = Course(label="adamw", record=simulated("adamw"), timeline=timeline)
    assert [
        (band.stretch.phase, band.allocated, band.reserved, band.fragmentation)
        for band in phases_held(course)
    ] == [
        ("forward", 3 * GIB, 4 * GIB, GIB),
        ("backward", 6 * GIB, 7 * GIB, 6 * GIB),
        ("step", GIB, 7 * GIB, 6 * GIB),
    ]


def test_a_timeline_belongs_to_the_scenario_that_it_is_named_after(timeline, simulated):
    records = [simulated("adamw"), simulated("sm3")]
    findings = Findings.of(records, {file_name(records[1].scenario): timeline})
    assert [course.label for course in findings.courses] == ["sm3"]


def test_after_running_out_of_memory_the_blocks_at_the_peak_are_shown(
    tmp_path, simulated, timeline
):
    full = simulated(
        "lamb16", model="huge", outcome="out-of-memory", error="out of memory in backward of step 1"
    )
    store = RunStore.create(tmp_path / "run")
    for record in (simulated("adamw"), full):
        store.append(record)
        store.write_timeline(record.scenario, timeline)
    page = write_report(store.folder).read_text(encoding="utf-8")
    assert "lamb16: out of memory: 6.000 GiB in backward · 7.000 GiB reserved" in page
    assert "The peak by module and operation: huge" in page
    assert "Memory along the training step: huge" in page


def test_a_curve_has_steps_where_they_are_wide_enough_to_see():
    assert stairs([(0, 1), (0.5, 3), (0.501, 2)]) == [
        (0, 1),
        (0.5, 1),
        (0.5, 3),
        (0.501, 2),
        (1.0, 2),
    ]


def test_the_report_shows_the_timeline_and_the_blocks_at_the_peak(run):
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert re.search(r"<h2 id=[^>]*>Memory along the training step", page)
    assert re.search(r"<h[23] id=[^>]*>The peak by module and operation", page)
    assert "6.000 GiB in backward · 7.000 GiB reserved" in page
    assert (
        "adamw has the highest peak: 6.000 GiB in backward of training step 1. There 1.000 GiB"
        " (14.3 %) of the reserved memory are not in use." in page
    )
    for words in (
        "h.3.mlp.c_fc",
        "aten::addmm",
        "model.py:12",
        'title="3,221,225,472 bytes, 50.0 % of the peak"',
    ):
        assert words in page
    assert "<b>wte" not in page
    assert (run.folder / "figures" / "timeline.png").stat().st_size > 10_000


def test_an_older_timeline_shows_its_largest_blocks(run, timeline, simulated):
    older = replace(timeline, groups=(), sources=(), events=(), layers=())
    run.write_timeline(simulated("adamw").scenario, older)
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert re.search(r"<h3 id=[^>]*>The largest blocks at the peak", page)
    assert "backward, training step 1" in page
    assert "The peak by module and operation" not in page


def test_groups_add_up_to_the_last_row_which_is_the_peak(timeline, simulated):
    course = Course(label="adamw", record=simulated("adamw"), timeline=timeline)
    *rows, peak = group_rows(course)
    assert [[cell.text for cell in row] for row in rows] == [
        [
            *("parameters", "Embedding", "<b>wte</b>.*.weight", NOTHING, NOTHING, "build", "4"),
            *("1.000 GiB", "16.7 %"),
        ],
        [
            *("activations", "Linear", "h.*.mlp.c_fc", "aten::addmm", "model.py:12", "forward"),
            *("12", "2.000 GiB", "33.3 %"),
        ],
        [
            *("activations", NOTHING, NOTHING, "aten::nll_loss", "model.py:20", "forward"),
            *("1", "512 B", "0.00001 %"),
        ],
        [
            *("temporaries", "Linear", "h.*.mlp.c_fc", "aten::mm", NOTHING, "backward"),
            *("2", "3.000 GiB", "50.0 %"),
        ],
    ]
    assert [cell.text for cell in peak] == ["the peak", *[""] * 5, "19", "6.000 GiB", "100 %"]
    for column in (6, 7):
        assert sum(row[column].value or 0 for row in rows) == peak[column].value
    assert {len(row) for row in [*rows, peak]} == {len(GROUP_HEAD)}


def test_the_groups_of_all_optimizers_are_one_table(timeline, simulated):
    own = timeline.groups[-1]
    other = replace(timeline, groups=(*timeline.groups[:-1], replace(own, blocks=3)))
    courses = [
        Course(label=label, record=simulated(label), timeline=each)
        for label, each in (("adamw", timeline), ("sm3", other))
    ]
    table = group_table(courses)
    assert table.head[-2:] == ("adamw", "sm3")
    sizes = [[cell.text for cell in row[-2:]] for row in table.rows]
    assert sizes == [
        ["1.000 GiB", "1.000 GiB"],
        ["2.000 GiB", "2.000 GiB"],
        ["512 B", NOTHING],
        [NOTHING, "512 B"],
        ["3.000 GiB", "3.000 GiB"],
        ["6.000 GiB", "6.000 GiB"],
    ]
    assert table.rows[0][-1].exact == "1,073,741,824 bytes, 16.7 % of the peak"


def test_the_parts_of_a_peak_are_inside_each_other(timeline):
    parts = {part.path: part for part in peak_parts(timeline.groups)}
    assert [(path, part.start, part.nbytes) for path, part in parts.items() if len(path) < 3] == [
        ((), 0, 6 * GIB),
        (("parameter",), 0, GIB),
        (("parameter", "Embedding"), 0, GIB),
        (("activation",), GIB, 2 * GIB),
        (("activation", "Linear"), GIB, 2 * GIB - 512),
        # The loss belongs to no module.
        (("activation", "aten::nll_loss · model.py:20"), 3 * GIB - 512, 512),
        (("temporary",), 3 * GIB, 3 * GIB),
        (("temporary", "Linear"), 3 * GIB, 3 * GIB),
    ]
    for path, part in parts.items():
        inner = [each for each in parts.values() if each.path and each.path[:-1] == path]
        assert not inner or sum(each.nbytes for each in inner) == part.nbytes
        assert not inner or sum(each.blocks for each in inner) == part.blocks


def test_without_timelines_the_report_is_unchanged(tmp_path, simulated):
    store = RunStore.create(tmp_path / "run")
    store.append(simulated("adamw"))
    page = write_report(store.folder).read_text(encoding="utf-8")
    assert "Memory along" not in page
    assert "largest blocks" not in page


def test_each_setting_has_a_picture_of_its_own(simulated, timeline):
    records = [simulated("adamw", model=model) for model in ("tiny", "small")]
    timelines = {file_name(record.scenario): timeline for record in records}
    shown = {picture.name: picture for picture in pictures(Findings.of(records, timelines))}
    assert shown["timeline"].title.endswith("tiny")
    assert shown["timeline-2"].title.endswith("small")
    drawing = draw(shown["timeline"], STYLES["paper"])
    assert "training step 1" in drawing.svg
    assert len(drawing.svg) < 60_000


def test_rows_with_other_phases_name_their_own(simulated, timeline):
    short = replace(
        timeline,
        phases=(Stretch(step=1, phase="backward", events=5, samples=6),),
        places=(0, 1, 2, 3, 4, 5),
    )
    records = [simulated("adamw"), simulated("sm3", outcome="out-of-memory", error="out of memory")]
    names = [file_name(record.scenario) for record in records]
    for timelines, count in (((timeline, timeline), 1), ((timeline, short), 2)):
        findings = Findings.of(records, dict(zip(names, timelines, strict=True)))
        picture = next(each for each in pictures(findings) if each.name == "timeline")
        assert draw(picture, STYLES["paper"]).svg.count(">training step 1<") == count


def test_a_broken_timeline_is_left_out_and_named(run):
    path = next(run.timelines_path.iterdir())
    path.write_bytes(b"\x80\x04.")
    with pytest.warns(DamageWarning, match=r"tiny-adamw-\w+\.json\.gz: not a timeline"):
        page = write_report(run.folder).read_text(encoding="utf-8")
    assert page.count(f"timelines/{path.name}: not a timeline: Not a gzipped file") == 2
    assert str(run.folder) not in page
    assert "Memory along the training step" not in page
    assert ">sm3</strong>" in page
