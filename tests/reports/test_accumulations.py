"""Training runs with accumulation compared: figures worked out by hand from made-up records."""

from collections.abc import Sequence
from io import StringIO
from typing import Any

import pytest

from optprof.profiler.records.record import Course, Environment, HeldOut, Memory, Record, Watched
from optprof.reports import markdown, print_run
from optprof.reports.arithmetic.accumulations import accumulations, baseline, common_loss
from optprof.reports.arithmetic.entries import entries
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.times import timings, tokens_per_second
from optprof.reports.page import render_page, run_page
from optprof.reports.pictures import accumulation, pictures
from optprof.reports.pictures.charts import Chart
from optprof.reports.pictures.picture import Plot
from optprof.reports.summary import run_summary
from optprof.reports.tables.accumulation import accumulation_tables
from optprof.reports.units import MINUS, NOTHING, TIMES
from optprof.scenarios import Scenario


def course(
    accumulate: str,
    seed: int,
    draws: Sequence[int],
    held_out: Sequence[float | None],
    ended: Sequence[int] = (),
    **more: Any,
) -> Record:
    """Record eight micro-batches of 100 tokens, half a second each."""
    readings = tuple(
        HeldOut(micro_batches=4 * place, loss=loss) for place, loss in enumerate(held_out)
    )
    return Record(
        scenario=Scenario(model="tiny", device="cpu", seed=seed, accumulate=accumulate, steps=8),
        origin="measured",
        times={"iteration": (0.5,) * 8, "step": (0.01,), "draw": (0.002, 0.004, 0.003)},
        watched=Watched(tokens=100),
        course=Course(
            draws=tuple(draws),
            ended=tuple(ended),
            losses=(5.0,) * 8,
            held_out=readings,
            added_bytes=0,
            dropped=0,
        ),
        environment=Environment(),
        **more,
    )


RECORDS = [
    course("sbc:batch_size=2", 0, (2, 2, 2, 2), (5.0, 4.0, 3.0)),
    course("gnts:threshold=2", 0, (4, 1, 1, 2), (5.0, 3.0, 2.5)),
    course("sbc:batch_size=2", 1, (2, 2, 2, 2), (5.0, 4.0, 3.4)),
    course("gnts:threshold=2", 1, (4, 2), (5.0, 3.2, 2.7)),
]


def test_seeds_of_one_accumulation_are_one_row() -> None:
    (group,) = accumulations(RECORDS)
    fixed, waiting = group
    assert (fixed.spec, fixed.seeds, fixed.tokens) == ("sbc:batch_size=2", (0, 1), 800)
    assert fixed.draws(4) == (2, 2, 2, 2)
    # Steps end at 4, 5, 6, 8 and at 4, 6 of 8 micro-batches.
    assert waiting.draws(4) == (None, 4.0, pytest.approx((1 + 1 + 2) / 3), 2.0)
    assert waiting.steps.mean == 3
    assert fixed.final_loss is not None
    assert (fixed.final_loss.mean, fixed.final_loss.low, fixed.final_loss.high) == (
        pytest.approx(3.2),
        3.0,
        3.4,
    )


def test_steps_are_placed_where_they_ended_even_if_micro_batches_were_dropped() -> None:
    ((way,),) = accumulations(
        [course("gnts:threshold=2", 0, (2, 2), (5.0, 4.0, 3.0), ended=(2, 8))]
    )
    assert way.draws(4) == (2.0, None, None, 2.0)


def test_differences_are_by_seed_with_a_t_interval() -> None:
    (group,) = accumulations(RECORDS)
    difference = group[1].against(group[0])
    assert difference is not None
    # -0.5 and -0.7: their mean, and 12.706 standard errors of 0.1.
    assert (difference.mean, difference.low, difference.high) == (
        pytest.approx(-0.6),
        pytest.approx(-1.8706),
        pytest.approx(0.6706),
    )
    (alone,) = accumulations(RECORDS[:2])
    assert alone[1].against(alone[0]) is None


def test_a_loss_that_is_not_finite_is_left_out_and_so_is_the_mean_over_the_seeds() -> None:
    records = [*RECORDS[:3], course("gnts:threshold=2", 1, (4, 2), (5.0, 3.2, None))]
    (group,) = accumulations(records)
    assert group[1].final_loss is None
    assert list(group[1].losses) == [0, 400]
    assert group[1].best_loss is not None
    assert group[1].best_loss.mean == pytest.approx((2.5 + 3.2) / 2)
    assert common_loss(group) == pytest.approx(3.2)
    (part,) = accumulation_tables(records).values()
    assert "not finite are left out, and with them the mean: gnts:threshold=2." in part.note
    assert [cell.text for cell in part.learned.rows[1][6:9]] == [
        NOTHING,
        NOTHING,
        "2.850 (2.500 to 3.200)",
    ]
    assert "gnts:threshold=2: not finite" in render_page(records)
    lost = [course("gnts:threshold=2", 0, (), (None, None, None))]
    assert common_loss(accumulations(lost)[0]) is None
    assert "tokens to a common loss" in render_page(lost)


def test_a_course_s_times_are_not_those_of_an_optimizer_s_step() -> None:
    memory = Memory(
        parameters=4,
        gradients=4,
        optimizer_state=8,
        state_by_key={},
        state_by_key_dtype={},
        peak_by_category={},
        peak_by_phase={},
    )
    record = course("gnts:threshold=2", 0, (4, 2), (5.0, 3.2, 3.0), memory=memory)
    assert not timings([record])
    assert tokens_per_second(record) is None
    (entry,) = entries([record])
    assert (entry.state_bytes, entry.step) == (8, None)


def test_terminal_and_markdown_have_a_short_table_of_accumulations() -> None:
    output = StringIO()
    print_run(RECORDS, output)
    for text in (output.getvalue(), markdown.render(run_summary(Findings.of(RECORDS)))):
        assert "When to step: tiny" in text
        assert "3.200 (3.000 to 3.400)" in text


def test_tokens_are_counted_to_a_loss_that_all_have_reached() -> None:
    (group,) = accumulations(RECORDS)
    goal = common_loss(group)
    assert goal is not None
    assert goal == pytest.approx(3.2)
    assert [way.tokens_to(goal) for way in group] == [800, 400]
    assert group[0].tokens_to(1.0) is None
    assert {tokens: loss.mean for tokens, loss in group[1].losses.items()} == {
        0: 5.0,
        400: pytest.approx(3.1),
        800: pytest.approx(2.6),
    }
    assert (group[1].losses[400].low, group[1].losses[400].high) == (3.0, 3.2)


def test_rates_are_of_all_courses_together() -> None:
    waiting = accumulations(RECORDS)[0][1]
    assert (waiting.micro_batches_per_second, waiting.tokens_per_second) == (2.0, 200.0)
    assert waiting.steps_per_second == pytest.approx(6 / 8)
    assert waiting.draw_seconds == 0.003


def test_the_tables_say_which_seeds_are_missing() -> None:
    (part,) = accumulation_tables(RECORDS[:3]).values()
    assert "Fewer seeds have gnts:threshold=2." in part.note
    (other,) = accumulation_tables([RECORDS[0], *RECORDS[2:]]).values()
    assert "seeds 0, 1" in other.note
    assert "Fewer seeds have gnts:threshold=2." in other.note
    (first,) = accumulation_tables([RECORDS[0], *RECORDS[1::2]]).values()
    assert "Fewer seeds have sbc:batch_size=2." in first.note
    assert [row[0].text for row in part.learned.rows] == ["sbc:batch_size=2", "gnts:threshold=2"]
    assert part.learned.rows[0][6].text == "3.200 (3.000 to 3.400)"
    assert part.losses.head == ("accumulation", "0 tokens", "800 tokens")
    assert not accumulation_tables([])


def test_the_page_has_a_section_on_accumulations() -> None:
    page = render_page(RECORDS)
    assert "When to step" in page
    assert "tokens to 3.200" in page


def test_the_graphs_show_losses_and_draws_by_tokens() -> None:
    (picture,) = accumulation.describe(Findings.of(RECORDS))
    losses, draws = picture.panels
    assert isinstance(losses, Plot)
    assert isinstance(draws, Plot)
    fixed, waiting = losses.lines
    assert fixed.label == "sbc:batch_size=2"
    assert [(point.x, point.y) for point in fixed.points] == [
        (0, 5.0),
        (400, 4.0),
        (800, pytest.approx(3.2)),
    ]
    assert fixed.points[2].interval == (3.0, 3.4)
    assert waiting.points[1].interval == (3.0, 3.2)
    # The axis has 24 parts. The first steps ended with the fourth of eight micro-batches, in the
    # tenth part.
    first = draws.lines[1].points[0]
    assert (first.x, first.y) == (pytest.approx(800 * (3 * 24 // 8 + 0.5) / 24), 4)
    drawn = [graph.data["traces"] for graph in Chart.of(picture).graphs]
    # From 3.0 to 3.4 around 3.2.
    assert drawn[0][0]["error_y"]["arrayminus"][2] == pytest.approx(0.2)
    assert drawn[0][0]["error_y"]["array"][2] == pytest.approx(0.2)
    assert drawn[0][0]["line"]["color"] != drawn[0][1]["line"]["color"]


def test_a_course_that_never_stepped_has_its_graphs() -> None:
    page = render_page([course("gnts:threshold=0.1", 0, (), (5.0, 5.0, 5.0))])
    assert "gnts:threshold=0.1: none" in page


def test_the_baseline_steps_after_the_fewest_micro_batches_that_are_fixed() -> None:
    every = course("sbc:batch_size=1", 0, (1,) * 8, (5.0, 4.0, 3.0))
    fourth = course("sbc:batch_size=4", 0, (4, 4), (5.0, 4.0, 3.0))
    waiting = course("gnts:threshold=2", 0, (4, 4), (5.0, 3.0, 2.0))
    assert baseline(accumulations([waiting, fourth, every])[0]).spec == "sbc:batch_size=1"
    assert baseline(accumulations([waiting, fourth])[0]).spec == "sbc:batch_size=4"
    # A rule may happen to step as regularly, and is no baseline.
    assert baseline(accumulations([waiting, RECORDS[1]])[0]).micro_batches_a_step is None


def test_the_verdict_names_the_lowest_loss_its_chance_and_its_cost() -> None:
    (part,) = accumulation_tables(RECORDS).values()
    # 3.2 and 2.6 are the means of the seeds; test_differences_... has the interval.
    assert part.verdict == (
        "gnts:threshold=2 ends with the lowest loss on held-out text of 2.600 (mean of 2 seeds,"
        " 2.500 to 2.700). That is 0.600 below sbc:batch_size=2, which steps after every 2"
        f" micro-batches. It may be chance: the difference by seed, {MINUS}0.600 ({MINUS}1.871 to"
        " +0.671), reaches 0."
    )
    # 4 and 8 of eight micro-batches, half a second each.
    soonest, cost, missing = part.remarks
    assert soonest == (
        "gnts:threshold=2 needs the fewest micro-batches to 3.200, the lowest loss that all"
        " have reached: 4 (2.00 s); sbc:batch_size=2 needs 8 (4.00 s)."
    )
    assert cost == (
        "gnts:threshold=2 adds 0 B between micro-batches; a decision not to step takes 3.00 ms;"
        f" its tokens/s are 1.00{TIMES} those of sbc:batch_size=2."
    )
    assert missing.startswith("No way steps after each micro-batch; --accumulate sbc:batch_size=1")
    sure = [
        *RECORDS,
        course("sbc:batch_size=2", 2, (2, 2, 2, 2), (5.0, 4.0, 3.2)),
        course("gnts:threshold=2", 2, (4, 2), (5.0, 3.2, 2.6)),
    ]
    (part,) = accumulation_tables(sure).values()
    assert "Seeds alone do not explain it" in part.verdict


def test_one_seed_proves_little() -> None:
    (part,) = accumulation_tables(RECORDS[:2]).values()
    assert "2.500 (one seed)." in part.verdict
    assert part.verdict.endswith(
        "One seed proves little: add others with --seed 1, --seed 2 and --resume."
    )
    lost = [course("gnts:threshold=2", 0, (), (None, None, None))]
    (part,) = accumulation_tables(lost).values()
    assert part.verdict == "No way to step ends with a finite loss on held-out text."


def test_a_run_that_only_accumulates_is_about_accumulation(simulated: Any) -> None:
    page = run_page(Findings.of(RECORDS))
    assert page.title == "When to step: accumulation on tiny"
    assert [section.title for section in page.shown[:2]] == ["Verdict", "When to step"]
    (cards,) = (block for block in page.shown[0].shown if isinstance(block, tuple))
    assert [(card.label, card.headline.text) for card in cards] == [
        ("sbc:batch_size=2", "3.200"),
        ("gnts:threshold=2", "2.600"),
    ]
    assert [cell.text for _, cell in cards[1].lines] == [
        "on held-out text",
        f"{MINUS}0.600",
        "4 micro-batches",
        "3",
        "0 B",
        "200",
    ]
    assert [picture.name for picture in pictures(Findings.of(RECORDS))] == ["accumulation"]
    mixed = run_page(Findings.of([*RECORDS, simulated("adamw")]))
    assert mixed.title == "What an optimizer costs on tiny"
    assert "When to step" in [section.title for section in mixed.shown]
