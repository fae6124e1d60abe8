"""Pictures: their files, sizes and limits. Their looks were judged by eye."""

import struct
from dataclasses import replace
from io import BytesIO
from xml.etree import ElementTree

import pytest
from PIL import Image
from tests.support import lettering

from optprof.profiler.records.record import StepEstimate
from optprof.profiler.records.store import RunStore, file_name
from optprof.reports import write_figure, write_report
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.icons import OUTLINES, icon_path
from optprof.reports.pictures import drawing as drawing_files
from optprof.reports.pictures import pictures
from optprof.reports.pictures.drawing import STYLES, draw, draw_published, figure
from optprof.reports.pictures.picture import Bars, Icicle, Picture
from optprof.reports.style import MARKS, SPARE, marks


def draw_all(records, folder, style=STYLES["paper"]):
    return drawing_files.draw_all(pictures(Findings.of(records)), folder, style)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("figures")


@pytest.fixture(scope="module")
def drawings(mixed, folder):
    return {drawing.name: drawing for drawing in draw_all(mixed, folder)}


def size_of(png):
    return struct.unpack(">II", png[16:24])


def alt_of(picture: Picture) -> str:
    panel = picture.panels[0]
    assert not isinstance(panel, Bars)
    return panel.alt


def test_every_picture_of_a_mixed_run_is_written_as_a_large_png(drawings, folder):
    assert sorted(drawings) == [
        "iteration",
        "pareto",
        "peak",
        "savings",
        "state-by-size",
        "step-time",
    ]
    assert {path.name for path in folder.iterdir()} == {
        f"{name}.{form}" for name in drawings for form in ("png", "svg")
    }
    for path in folder.glob("*.png"):
        width, height = size_of(path.read_bytes())
        assert width > 1_000
        assert height > 300
        assert path.stat().st_size > 10_000


def test_no_text_of_a_picture_is_cut_or_stands_over_another(drawings):
    for drawing in drawings.values():
        assert lettering.faults(drawing.svg) == [], drawing.name


def test_no_text_of_a_crowded_picture_is_cut_or_stands_over_another(crowded, timeline, monkeypatch):
    monkeypatch.setattr(figure, "_png", lambda *_: b"")
    timelines = {
        file_name(record.scenario): timeline for record in crowded if record.origin == "simulated"
    }
    shown = pictures(Findings.of(crowded, timelines))
    drawn = [part for picture in shown for part in picture.files.values()]
    kinds = {"savings", "state-by-size", "timeline", "ways", "pareto"}
    assert {picture.kind for picture in shown} >= kinds
    for part in drawn:
        assert lettering.faults(draw(part, STYLES["paper"]).svg) == [], part.name


@pytest.fixture
def crowded(simulated, timed):
    """Records whose values are long ranges, tiny sizes and near each other."""
    sizes = {"vit-s16": 22_050_664, "gpt2-medium": 354_823_168}
    records = []
    for model, count in sizes.items():
        for number, name in enumerate(("adamw", "sgd-sai", "lamb16", "sm3")):
            record = simulated(name, model=model, parameter_count=count, state=8_000 + number)
            assert record.memory is not None
            ends = {"peak_allocated_upper": 25_000, "peak_reserved_upper": 2**21 + 2**20}
            records.append(replace(record, memory=replace(record.memory, **ends)))
            step = tuple(0.1 * (1 + 0.01 * number + 0.001 * turn) for turn in range(6))
            records.append(replace(timed(name, model=model, step=step), parameter_count=count))
    return [*records, simulated("adamw", model="gpt2-medium", ranks=16_384, parallel="fsdp2")]


def test_every_picture_is_written_as_vectors_too(drawings):
    for drawing in drawings.values():
        assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")


def test_pictures_have_exact_figures(drawings):
    assert "saves 7.80 KiB" in drawings["savings"].svg
    assert "99.9 %" in drawings["savings"].svg
    assert "in step" in drawings["peak"].svg
    assert "estimated from 25.0 %" in drawings["step-time"].svg
    assert "step 25.0 % of 400 ms" in drawings["iteration"].svg
    assert "simulated or estimated" in drawings["savings"].svg


def test_the_words_of_a_picture_say_what_it_shows(mixed):
    shown = {picture.name: picture for picture in pictures(Findings.of(mixed))}
    assert "adamw in fp32: tiny 7.81 KiB" in alt_of(shown["state-by-size"])
    assert len(shown["step-time"].table.rows) == 2


def test_the_same_records_draw_the_same_picture(simulated, tmp_path):
    first, second = (draw_all([simulated("adamw")], tmp_path / name) for name in ("a", "b"))
    assert first == second


def test_pictures_without_data_are_left_out(simulated, timed, tmp_path):
    def drawn(*records):
        return [drawing.name for drawing in draw_all(records, tmp_path)]

    assert drawn(simulated("adamw")) == ["state-by-size", "peak"]
    assert drawn(timed("adamw")) == ["step-time"]
    assert drawn(simulated("adamw", memory=None, outcome="failed", error="no")) == []


def test_a_state_of_0_bytes_is_not_on_a_log_axis_and_a_note_says_so(simulated):
    def shown(*records):
        return {picture.name: picture for picture in pictures(Findings.of(records))}

    both = shown(simulated("adamw"), simulated("sgd", state=0))
    assert "sgd" in str(both["state-by-size"].notes[0])
    assert "state-by-size" not in shown(simulated("sgd", state=0))


def test_an_icicle_has_every_category_and_the_names_that_have_room(simulated, timeline):
    record = simulated("adamw")
    findings = Findings.of([record], {file_name(record.scenario): timeline})
    picture = next(each for each in pictures(findings) if each.name == "icicle")
    (panel,) = picture.panels
    assert isinstance(panel, Icicle)
    assert "temporaries 50.0 %" in panel.alt
    # The peak, three categories, their classes, modules and operations; the loss has no module.
    assert len(panel.tiles) == 1 + 3 + 3 + 3 + 3
    drawing = draw(picture, STYLES["paper"])
    for name in ("temporaries", "Linear", "h.*.mlp.c_fc", "aten::mm"):
        assert f">{name}<" in drawing.svg
    # A part of 512 bytes is too thin for its name.
    assert "nll_loss" not in drawing.svg
    assert size_of(drawing.png)[0] > 1_000


def test_names_with_markup_and_formulas_are_drawn_as_they_are(simulated, tmp_path):
    records = [simulated("adamw"), simulated("m:<b>&$x_1$", model="$\\frac{1$")]
    records = [replace(record, model_family=None) for record in records]
    drawings = draw_all(records, tmp_path)
    assert drawings
    for drawing in drawings:
        assert ElementTree.fromstring(drawing.svg).tag.endswith("svg")


def test_marks_are_fixed_and_no_two_optimizers_of_a_run_share_one():
    many = [
        "sm3",
        "adamw",
        "sgd-sai",
        "lamb16",
        "sm3 (momentum=0.9)",
        "a:Other",
        "b:Other",
        "adamw, loop",
    ]
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


def test_a_paper_s_picture_is_a_column_wide_and_a_slide_s_is_as_wide_as_a_screen(
    mixed, drawings, tmp_path, monkeypatch
):
    monkeypatch.setattr(figure, "_svg", lambda *_: "")
    slides = draw_all(mixed, tmp_path, STYLES["slides"])
    shown = {"paper": drawings, "slides": {drawing.name: drawing for drawing in slides}}
    widths = {
        name: {size_of(drawing.png)[0] for drawing in drawings.values()}
        for name, drawings in shown.items()
    }
    # 3.35 and 6.4 inches and margins of 0.08, at 300 pixels an inch.
    assert widths == {"paper": {1_053}, "slides": {1_968}}
    assert shown["paper"].keys() == shown["slides"].keys()
    assert {'width="241.2pt"' in drawing.svg for drawing in shown["paper"].values()} == {True}


def test_another_style_or_figure_is_one_clear_line(simulated, tmp_path):
    RunStore.create(tmp_path).append(simulated("adamw"))
    with pytest.raises(ValueError, match="no style is named 'poster'; there are paper and slides"):
        write_report(tmp_path, style="poster")
    with pytest.raises(ValueError, match="no figure is named 'sgd-sai-5'; there is sgd-sai-4"):
        write_figure(tmp_path, "sgd-sai-5")
    with pytest.raises(
        ValueError,
        match=(
            "the run has no state that sgd-sai-4 shows; this command adds them: optprof profile"
            " vit-s16"
        ),
    ):
        write_figure(tmp_path, "sgd-sai-4")


def test_the_paper_s_figure_has_its_numbers_and_ours(simulated, tmp_path):
    def ours(model, optimizer, gib, **changes):
        record = simulated(
            optimizer, model=model, workload="state", parameter_count=1_557_611_200, **changes
        )
        return replace(
            record, memory=replace(record.memory, optimizer_state_allocated=round(gib * 2**30))
        )

    estimate = StepEstimate(
        gpu="a100-80",
        seconds=0.07,
        floor_seconds=0.02,
        moved_bytes=8,
        needed_bytes=4,
        launches=1,
        synchronisations=0,
    )
    store = RunStore.create(tmp_path)
    for record in (ours("gpt2-xl", "sgd-sai", 5.934), ours("gpt2-xl", "adamw", 11.871)):
        store.append(record)
    paths = write_figure(tmp_path, "sgd-sai-4", style="slides")
    assert [path.name for path in paths] == ["sgd-sai-4.png", "sgd-sai-4.svg"]
    text = paths[1].read_text()
    for words in (
        "5.93 | 5.93",
        "11.86 | 11.87",
        "49.48* | \u2013",
        "6.52 | \u2013",
    ):
        assert f">{words}<" in text
    assert ">GiB of state" in text
    assert ">time of the step" not in text
    assert lettering.faults(text) == []
    timed = draw_published(
        [*store.read(), ours("gpt2-xl", "adamw", 11.871, gpu="a100-80", estimate=estimate)]
    )
    assert timed is not None
    # The narrowest form of the widest picture.
    assert lettering.faults(timed.svg) == []
    assert ">time of the step" in timed.svg
    assert draw_published([simulated("adamw")]) is None


def test_time_against_memory_names_every_optimizer_and_its_front(simulated, timed):
    records = [
        simulated("adamw"),
        simulated("sgd-sai"),
        timed("adamw", step=(0.2,)),
        timed("sgd-sai", step=(0.1,)),
    ]
    picture = pictures(Findings.of(records))[-1]
    assert alt_of(picture).endswith(
        "sgd-sai: 100 ms ±? and 15.6 KiB, on the Pareto front; adamw: 200 ms ±? and 19.5 KiB."
    )
    drawing = draw(picture, STYLES["paper"])
    assert ">sgd-sai<" in drawing.svg
    assert ">time of the step, on CPU, linear scale<" in drawing.svg
    # No mark is filled, because the bytes are simulated.
    assert f"fill: {MARKS['sgd-sai'].colour.light}" not in drawing.svg


def test_an_optimizer_without_state_is_drawn_with_the_others(simulated, timed):
    records = [
        simulated(name, state=state, workload="state")
        for name, state in (("adamw", 8_000), ("sgd", 0))
    ]
    records += [
        replace(timed(name), scenario=replace(timed(name).scenario, workload="state"))
        for name in ("adamw", "sgd")
    ]
    picture = pictures(Findings.of(records))[-1]
    assert "sgd: 200 ms ±? and 0 B" in alt_of(picture)
    assert ">sgd<" in draw(picture, STYLES["paper"]).svg


def test_a_report_overwrites_no_file_outside_its_run(simulated, tmp_path):
    run, outside = tmp_path / "run", tmp_path / "mine.txt"
    RunStore.create(run).append(simulated("adamw"))
    outside.write_text("mine")
    for name in ("report.html", "records.csv", "records.json", "figures", "figures/peak.png"):
        link = run / name
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(outside)
        with pytest.raises(ValueError, match=f"{name} is a symbolic link"):
            write_report(run)
        link.unlink()
    assert outside.read_text() == "mine"
    (tmp_path / "linked").symlink_to(run)
    assert write_report(tmp_path / "linked").is_file()


def test_a_picture_that_shows_one_of_many_models_names_it(simulated):
    names = [f"m:Opt{number}" for number in range(12)]
    records = [
        simulated(name, model=model) for model in ("first", "second") for name in ("adamw", *names)
    ]
    (picture,) = (each for each in pictures(Findings.of(records)) if each.name == "peak")
    assert picture.notes == ("The picture shows 13 of 26 rows; the table has all.",)
    drawing = draw(picture, STYLES["paper"])
    assert ">first<" in drawing.svg
    assert ">second<" not in drawing.svg


def test_no_name_is_wider_than_its_picture(simulated, timed, timeline, monkeypatch):
    monkeypatch.setattr(figure, "_svg", lambda *_: "")
    wide = "m:" + "Wide_name." * 99
    records = [
        replace(simulated(optimizer, model=model), model_family=None)
        for model in (wide, "n:" + "W" * 900)
        for optimizer in ("adamw", wide)
    ]
    records += [timed("adamw"), timed(wide), simulated("adamw"), simulated(wide)]
    shown = Findings.of(records, {file_name(records[0].scenario): timeline})
    for picture in pictures(shown):
        drawing = draw(picture, STYLES["paper"])
        image = Image.open(BytesIO(drawing.png)).convert("L")
        # Half of the margins may be used.
        for left in (0, image.width - 12):
            assert image.crop((left, 0, left + 12, image.height)).getextrema() == (255, 255)
        assert image.height < 4_000
