"""The GPUs that a step needs, in words, tables, a picture, a page and JSON."""

import io
import json
from dataclasses import replace

import pytest
from tests.support import lettering

from optprof.profiler.records.fits import Fit, RankSearch, needs
from optprof.reports import print_fits, write_fit_page
from optprof.reports.fit import FitFindings
from optprof.reports.gpus_needed import needed_page, needed_pictures, verdict
from optprof.reports.pictures.drawing import FOR_PAPER, draw
from optprof.reports.pictures.picture import Plot
from optprof.reports.tables.gpus_needed import below_text, count_text, left_text
from optprof.scenarios.spec import Scenario

GIB = 2**30
SEARCH = RankSearch(parallel="fsdp2", counts=(1, 2, 4, 8), left_out={})


def answer(optimizer: str, gpu: str, ranks: int, **fields: object) -> Fit:
    scenario = Scenario(
        model="tiny & co",
        optimizer=optimizer,
        sequence_length=16,
        gpu=gpu,
        ranks=ranks,
        parallel="fsdp2" if ranks > 1 else None,
    )
    return Fit(scenario=scenario, usable=14 * GIB, **fields)  # pyright: ignore[reportArgumentType]


FITS = [
    # adamw: ruled out on one, short on two, NCCL decides on four, sure on eight.
    answer("adamw", "t4", 1, least=30 * GIB),
    answer("adamw", "t4", 2, needed=20 * GIB),
    answer("adamw", "t4", 4, needed=13 * GIB, left=GIB, fits_with_nccl=False),
    answer("adamw", "t4", 8, needed=9 * GIB, left=5 * GIB, fits_with_nccl=True),
    answer("sm3", "t4", 1, needed=12 * GIB, left=2 * GIB),
    answer("adamw", "l4", 1, needed=40 * GIB),
    answer("adamw", "l4", 2, needed=30 * GIB),
    answer("adamw", "l4", 4, needed=20 * GIB),
    answer("adamw", "l4", 8, needed=16 * GIB),
    answer("sm3", "l4", 1, needed=15 * GIB),
    answer("sm3", "l4", 2, needed=13 * GIB, left=GIB, fits_with_nccl=False),
    answer("sm3", "l4", 4, needed=13 * GIB, left=GIB, fits_with_nccl=False),
    answer("sm3", "l4", 8, needed=13 * GIB, left=GIB, fits_with_nccl=False),
    answer("adamw", "v100-16", 1, reason="v100-16 has no hardware for bf16"),
    answer("sm3", "v100-16", 1, error="Broken: no"),
]


def test_a_number_is_the_first_that_fits_and_a_range_ends_where_nccl_surely_has_room():
    assert [count_text(need) for need in needs(FITS)] == [
        "4 to 8",
        "1",
        "more than 8",
        "2 or more",
        "✗ v100-16 has no hardware for bf16",
        "✗ not simulated",
    ]


def test_the_neighbours_of_a_number_are_told():
    first, second, third = needs(FITS)[:3]
    assert below_text(first) == "2 GPUs short by 6.000 GiB"
    assert left_text(first) == (
        "1.000 GiB left on 4 GPUs, where NCCL takes an estimated 18.4 to 960 MiB"
    )
    assert (left_text(second), below_text(second)) == ("2.000 GiB left on 1 GPU", "")
    assert (left_text(third), below_text(third)) == ("", "8 GPUs short by 2.000 GiB")
    ruled_out = needs([FITS[0], FITS[3]])[0]
    assert below_text(ruled_out) == ("1 GPU short by 16.00 GiB for parameters and gradients alone")


def test_the_verdict_is_about_the_gpu_on_which_optimizers_differ_most():
    findings = FitFindings.of(FITS, SEARCH)
    assert findings.title == "tiny & co · fp32 · batch 1 · 16 tokens · fsdp2"
    assert verdict(findings) == "On l4 adamw needs more than 8 and sm3 needs 2 or more."
    alike = FitFindings.of([fit for fit in FITS if fit.scenario.optimizer == "sm3"][:1], SEARCH)
    assert verdict(alike) == "On t4 sm3 needs 1."


def test_the_picture_has_a_row_for_each_gpu_and_a_lane_for_each_optimizer():
    (picture,) = needed_pictures(FitFindings.of(FITS, SEARCH))
    (plot,) = picture.panels
    assert isinstance(plot, Plot)
    assert plot.x.ticks == {0.0: "1", 1.0: "2", 2.0: "4", 3.0: "8", 4.0: "more"}
    # From the smallest memory to the largest; the GPU without bf16 has no row.
    assert plot.y.ticks == {0.0: "t4 16 GB", -1.0: "l4 24 GB"}
    marks = {
        line.label: [(point.x, point.interval) for point in line.points] for line in plot.lines
    }
    assert marks == {
        "adamw": [(2.0, (2.0, 3.0)), (4.0, None)],
        "sm3": [(0.0, None), (1.0, (1.0, 4.0))],
    }
    heights = [point.y for line in plot.lines for point in line.points]
    assert heights == pytest.approx([0.19, -0.81, -0.19, -1.19])
    assert "adamw on t4 4 to 8" in plot.alt


def test_the_picture_ends_at_the_largest_number_that_is_needed():
    enough = [fit for fit in FITS if fit.scenario.gpu == "t4"]
    for fits, last in ((enough, "8"), (enough[4:], "1")):
        (picture,) = needed_pictures(FitFindings.of(fits, SEARCH))
        (plot,) = picture.panels
        assert isinstance(plot, Plot)
        assert list((plot.x.ticks or {}).values())[-1] == last
    assert picture.title == "GPUs needed to train tiny & co"


def test_the_picture_s_words_do_not_stand_over_each_other():
    (picture,) = needed_pictures(FitFindings.of(FITS, SEARCH))
    svg = draw(picture, FOR_PAPER).svg
    assert lettering.faults(svg) == []
    assert "t4 16 GB" in svg


def test_page_picture_and_json_are_written_together(tmp_path):
    folder = tmp_path / "needed"
    page = write_fit_page(FITS, folder, ["optprof", "fit"], search=SEARCH)
    assert "tiny &amp; co" in page.read_text()
    assert {path.name for path in (folder / "figures").iterdir()} == {
        "gpus-needed.png",
        "gpus-needed.svg",
    }
    content = json.loads((folder / "fits.json").read_text())
    assert [fit["scenario"]["ranks"] for fit in content[:4]] == [1, 2, 4, 8]
    assert content[0]["nccl_estimated"] is None
    assert content[3]["nccl_estimated"] == [19_267_584, 1_006_632_960]
    assert needs(FITS)[0].to_dict() == {
        "gpu": "t4",
        "optimizer": "adamw",
        "options": {},
        "gpus_needed": 4,
        "gpus_with_room_for_nccl": 8,
    }


def test_the_terminal_has_the_numbers_and_says_what_is_estimated_and_left_out():
    output = io.StringIO()
    search = replace(SEARCH, parallel="fsdp2+tp:2", left_out={1: "tp:2 needs a number"})
    print_fits(FITS, output, search=search, width=200)
    text = output.getvalue()
    assert "GPUs needed" in text
    assert "4 to 8" in text
    assert "Left out: 1; tp:2 needs a number." in text
    assert "NCCL takes an estimated 36.8 MiB to 1.875 GiB more of each GPU" in text


def test_what_nccl_takes_is_in_no_exact_number():
    (need, *_) = needs(FITS)
    assert need.fit is not None
    assert need.fit.left == GIB
    rows = needed_page(FITS, SEARCH, ["optprof"]).sections[3].blocks[0].rows  # pyright: ignore
    assert [cell.text for cell in rows[0]][2:5] == ["4", "8", "1.000 GiB"]
