"""Figures: the files, their forms, and what they leave out. How they look was looked at."""

import struct
from dataclasses import replace
from xml.etree import ElementTree

import pytest

from reports.figures import draw_all
from reports.figures.spacing import crowded, spaced, thinned
from reports.icons import OUTLINES, icon_path
from reports.style import MARKS, SPARE, marks


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def drawings(mixed, folder):
    return {drawing.name: drawing for drawing in draw_all(mixed, folder)}


def size_of(png):
    return struct.unpack(">II", png[16:24])


def test_every_picture_of_a_mixed_run_is_written_as_a_large_png(drawings, folder):
    assert sorted(drawings) == ["iteration", "peak", "savings", "state-by-size", "step-time"]
    assert {path.name for path in folder.iterdir()} == {f"{name}.{form}" for name in drawings for form in ("png", "svg")}
    for path in folder.glob("*.png"):
        width, height = size_of(path.read_bytes())
        assert width > 1_000
        assert height > 300
        assert path.stat().st_size > 10_000


def test_every_picture_has_a_form_whose_lines_are_sharp_in_any_size(drawings):
    for drawing in drawings.values():
        assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")


def test_exact_figures_stand_in_the_pictures(drawings):
    assert "saves 0.00000744 GiB" in drawings["savings"].svg
    assert "99.9 %" in drawings["savings"].svg
    assert "in step" in drawings["peak"].svg
    assert "estimated from 25.0 %" in drawings["step-time"].svg
    assert "step 25.0 % of 400 ms" in drawings["iteration"].svg
    assert "simulated or estimated" in drawings["savings"].svg


def test_the_words_beside_a_picture_tell_what_it_shows(drawings):
    assert "sm3 (momentum=0.9) on tiny" in drawings["savings"].alt
    assert "adamw in fp32: tiny 7.81 KiB" in drawings["state-by-size"].alt
    assert len(drawings["step-time"].table.rows) == 2


def test_the_same_records_draw_the_same_picture(simulated, tmp_path):
    first, second = (draw_all([simulated("adamw")], tmp_path / name) for name in ("a", "b"))
    assert first == second


def test_pictures_without_data_are_left_out(simulated, timed, tmp_path):
    def drawn(*records):
        return [drawing.name for drawing in draw_all(records, tmp_path)]

    assert drawn(simulated("adamw")) == ["state-by-size", "peak"]
    assert drawn(timed("adamw")) == ["step-time"]
    assert drawn(simulated("sm3"), simulated("sgd-sai")) == ["state-by-size", "peak"]
    assert drawn(simulated("adamw", memory=None, outcome="failed", error="no")) == []


def test_no_state_at_all_has_no_place_on_a_log_axis_and_the_note_says_so(simulated, tmp_path):
    found = {drawing.name: drawing for drawing in draw_all([simulated("adamw"), simulated("sgd", state=0)], tmp_path)}
    assert "sgd" in found["state-by-size"].notes[0]
    assert "state-by-size" not in {drawing.name for drawing in draw_all([simulated("sgd", state=0)], tmp_path)}


def test_names_with_markup_and_formulas_are_drawn_as_they_are(simulated, tmp_path):
    records = [simulated("adamw"), simulated("m:<b>&$x_1$", model="$\\frac{1$")]
    records = [replace(record, model_family=None) for record in records]
    for drawing in draw_all(records, tmp_path):
        ElementTree.fromstring(drawing.svg)


def test_labels_are_moved_apart_and_keep_their_order():
    assert spaced([1.0, 1.0, 5.0], [1.0, 1.0, 1.0], 0.0, 10.0) == [1.0, 2.0, 5.0]
    assert spaced([9.9, 9.8], [1.0, 1.0], 0.0, 10.0) == [9.5, 8.5]
    assert crowded([1.0, 1.5], [1.0, 1.0])
    assert not crowded([1.0, 2.5], [1.0, 1.0])
    assert thinned(5, 3) == [0, 2, 4]
    assert thinned(3, 3) == [0, 1, 2]


def test_marks_are_fixed_and_no_two_optimizers_of_a_run_share_one():
    many = ["sm3", "adamw", "sgd-sai", "lamb16", "sm3 (momentum=0.9)", "a:Other", "b:Other", "adamw, loop"]
    chosen = marks(many)
    assert chosen["adamw"] == MARKS["adamw"]
    assert chosen["sm3"] == MARKS["sm3"]
    assert len(set(chosen.values())) == len(many)
    assert marks(reversed(many)) == chosen
    assert marks(["sm3 (momentum=0.9)"])["sm3 (momentum=0.9)"] == MARKS["sm3"]


def test_every_shape_has_an_icon_of_its_own():
    shapes = {mark.shape for mark in (*MARKS.values(), *SPARE)}
    assert shapes == {"o", *OUTLINES}
    assert len({icon_path(shape) for shape in shapes}) == len(shapes)
