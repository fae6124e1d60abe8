"""Timelines in reports: where a phase stands, which samples a picture shows, and what page and
files say.
"""

import random
import re
from dataclasses import replace
from itertools import pairwise

import pytest

from optprof.profiler.records.store import DamageWarning, RunStore, file_name
from optprof.profiler.records.timeline import Stretch
from optprof.reports import write_report
from optprof.reports.arithmetic.courses import Course, bands, phases_held, thinned
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.figures import draw_all
from optprof.reports.figures.curve import simplified, stairs

GIB = 2**30


@pytest.fixture
def run(tmp_path, simulated, timeline):
    """A run of two optimizers, one of them with a timeline."""
    store = RunStore.create(tmp_path / "run")
    for record in (simulated("adamw"), simulated("sm3")):
        store.append(record)
    store.write_timeline(simulated("adamw").scenario, timeline)
    return store


def test_phases_stand_side_by_side_and_fill_the_width(timeline):
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
        kept = [nbytes[number] for number in shown if number in of_column]
        assert {
            max(nbytes[number] for number in of_column),
            min(nbytes[number] for number in of_column),
        } <= set(kept)


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


def test_a_timeline_belongs_to_the_scenario_of_its_name(timeline, simulated):
    records = [simulated("adamw"), simulated("sm3")]
    findings = Findings.of(records, {file_name(records[1].scenario): timeline})
    assert [course.label for course in findings.courses] == ["sm3"]


def test_a_device_that_ran_out_of_memory_shows_what_filled_it(tmp_path, simulated, timeline):
    full = simulated(
        "lamb16", model="huge", outcome="out-of-memory", error="out of memory in backward of step 1"
    )
    store = RunStore.create(tmp_path / "run")
    for record in (simulated("adamw"), full):
        store.append(record)
        store.write_timeline(record.scenario, timeline)
    page = write_report(store.folder).read_text(encoding="utf-8")
    assert "lamb16 on huge: out of memory: 6.000 GiB in backward · 7.000 reserved" in page
    assert "Memory along the training step: huge" in page


def test_a_value_is_kept_until_the_next_where_that_can_be_seen():
    assert stairs([0, 0.5, 0.501], [1, 3, 2], 0.01) == [
        (0, 1),
        (0.5, 1),
        (0.5, 3),
        (0.501, 2),
        (1.0, 2),
    ]


def test_a_simplified_curve_is_nowhere_further_off_than_allowed():
    noise = random.Random(1)
    points = [(number / 999, noise.random() * (number % 97 == 0)) for number in range(1_000)]
    kept = simplified(points, 1.0, 0.01)
    assert len(kept) < 120
    assert set(kept) <= set(points)
    ends = [points.index(point) for point in kept]
    for first, last in pairwise(ends):
        start, end = complex(*points[first]), complex(*points[last])
        for x, y in points[first:last]:
            # Of a thousand points of the line, the nearest.
            assert (
                min(
                    abs(complex(x, y) - (start + (end - start) * step / 1_000))
                    for step in range(1_001)
                )
                < 0.0101
            )
    assert simplified([(0, 0), (0.5, 0.5), (1, 1)], 1.0, 0.001) == [(0, 0), (1, 1)]
    assert simplified([(0, 0), (0.5, 0.6), (1, 1)], 1.0, 0.001) == [(0, 0), (0.5, 0.6), (1, 1)]


def test_the_report_shows_the_course_and_the_largest_blocks(run):
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert re.search(r"<h2 id=[^>]*>Memory along the training step", page)
    assert re.search(r"<h2 id=[^>]*>The largest blocks at the peak", page)
    assert "adamw: 6.000 GiB in backward · 7.000 reserved" in page
    assert (
        "adamw holds most: 6.000 GiB in backward of training step 1, where 1.000 GiB (14.3 %) of"
        " what is reserved is not in use." in page
    )
    for words in (
        "h.3.mlp.c_fc",
        "aten::addmm",
        "model.py:12",
        "backward, training step 1",
        'title="3,221,225,472 bytes"',
    ):
        assert words in page
    assert "<b>wte" not in page
    assert (run.folder / "figures" / "timeline.png").stat().st_size > 10_000


def test_without_timelines_the_report_is_as_it_was(tmp_path, simulated):
    store = RunStore.create(tmp_path / "run")
    store.append(simulated("adamw"))
    page = write_report(store.folder).read_text(encoding="utf-8")
    assert "Memory along" not in page
    assert "largest blocks" not in page


def test_each_setting_has_a_picture_of_its_own(tmp_path, simulated, timeline):
    records = [simulated("adamw", model=model) for model in ("tiny", "small")]
    timelines = {file_name(record.scenario): timeline for record in records}
    drawings = {drawing.name: drawing for drawing in draw_all(records, tmp_path, timelines)}
    assert drawings["timeline"].title.endswith("tiny")
    assert drawings["timeline-2"].title.endswith("small")
    assert "training step 1" in drawings["timeline"].svg
    assert len(drawings["timeline"].svg) < 60_000


def test_rows_with_other_phases_name_their_own(tmp_path, simulated, timeline):
    short = replace(
        timeline,
        phases=(Stretch(step=1, phase="backward", events=5, samples=6),),
        places=(0, 1, 2, 3, 4, 5),
    )
    records = [simulated("adamw"), simulated("sm3", outcome="out-of-memory", error="out of memory")]
    names = [file_name(record.scenario) for record in records]
    for timelines, count in (((timeline, timeline), 1), ((timeline, short), 2)):
        drawn = draw_all(records, tmp_path, dict(zip(names, timelines, strict=True)))
        form = next(drawing.svg for drawing in drawn if drawing.name == "timeline")
        assert form.count(">training step 1<") == count


def test_a_broken_timeline_costs_itself_alone_and_is_named(run):
    path = next(run.timelines_path.iterdir())
    path.write_bytes(b"\x80\x04.")
    with pytest.warns(DamageWarning, match=r"tiny-adamw-\w+\.json\.gz: not a timeline"):
        page = write_report(run.folder).read_text(encoding="utf-8")
    assert page.count(f"timelines/{path.name}: not a timeline: Not a gzipped file") == 2
    assert str(run.folder) not in page
    assert "Memory along the training step" not in page
    assert ">sm3</strong>" in page
