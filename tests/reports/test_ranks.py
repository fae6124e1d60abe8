"""Ranks in a report: whose bytes they are, those of all, and what is sent, counted by hand."""

import io
from dataclasses import replace

import pytest

from optprof.profiler.records.record import Exchange, Memory, RankBytes, Ranks
from optprof.profiler.records.store import file_name
from optprof.reports import html, markdown, terminal
from optprof.reports.arithmetic.capacity import fits_by_setting
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.ranks import sent_bytes, side_by_side
from optprof.reports.page import run_page
from optprof.reports.pictures import pictures
from optprof.reports.pictures.picture import Areas
from optprof.reports.summary import run_summary, terminal_summary
from optprof.reports.tables.ranks import each_tables, exchange_tables, rank_table
from optprof.reports.units import NOTHING
from optprof.scenarios import hardware

GATHER = Exchange(phase="forward", operation="all_gather", group=4, calls=2, bytes=4_000)
SCATTER = Exchange(phase="backward", operation="reduce_scatter", group=4, calls=1, bytes=4_000)
REDUCE = Exchange(phase="step", operation="all_reduce", group=4, calls=1, bytes=8)


@pytest.fixture
def on_ranks(simulated):
    def make(name: str = "adamw", parallel: str = "fsdp2", **fields):
        ranks = Ranks(**{"exchanges": (GATHER, SCATTER), "elements": (250,) * 4} | fields)
        return replace(simulated(name, ranks=4, parallel=parallel), ranks=ranks)

    return make


def part(rank: int, state: int, peak: int | None = None) -> RankBytes:
    return RankBytes(
        rank=rank, parameters=100, gradients=100, optimizer_state=state, peak_allocated=peak
    )


@pytest.mark.parametrize(
    ("operation", "nbytes"),
    [
        # In a ring of four, three quarters of the tensor leave each rank; twice that for a sum.
        ("all_gather", 750),
        ("reduce_scatter", 750),
        ("all_reduce", 1_500),
        ("broadcast", 1_000),
        ("all_to_all", None),
    ],
)
def test_a_rank_sends_its_part_of_a_ring(operation: str, nbytes: int | None):
    exchange = Exchange(phase="step", operation=operation, group=4, calls=1, bytes=1_000)
    assert sent_bytes(exchange) == nbytes


def rows(findings: Findings) -> list[list[str]]:
    return [[cell.text for cell in row] for row in rank_table(findings).rows]


def test_the_state_that_extends_a_curve_has_no_row_of_its_own(on_ranks):
    step = on_ranks()
    alone = replace(step, scenario=replace(step.scenario, workload="state"))
    assert len(rows(Findings.of([step, alone]))) == 1
    assert len(rows(Findings.of([alone]))) == 1


def test_the_state_of_all_ranks_is_exact_if_they_are_equal(on_ranks):
    assert rows(Findings.of([on_ranks()])) == [
        ["adamw", "simulated", "0 of 4", "fsdp2", "alike", "7.81 KiB", "31.2 KiB", "5.86 KiB"]
    ]


def test_it_is_an_upper_bound_if_the_first_rank_has_the_most(on_ranks):
    uneven = on_ranks(elements=(300, 300, 300, 100))
    assert rows(Findings.of([uneven]))[0][4:7] == ["differ", "7.81 KiB", "at most 31.2 KiB"]
    last = replace(uneven, scenario=replace(uneven.scenario, rank=3))
    assert rows(Findings.of([last]))[0][2:7] == ["3 of 4", "fsdp2", "differ", "7.81 KiB", NOTHING]


def test_it_is_unknown_under_zero1_where_ranks_keep_whole_parameters(on_ranks):
    findings = Findings.of([on_ranks(parallel="zero1", elements=(700, 100, 100, 100))])
    assert rows(findings)[0][6] == NOTHING


def test_it_is_the_sum_if_every_rank_was_measured(on_ranks):
    each = (part(0, 8_000, 50), part(1, 8_000, 90), part(2, 8_000, 70), part(3, 2_000, 80))
    measured = on_ranks(elements=(), exchanges=(), each=each, slowest=2)
    findings = Findings.of([measured])
    assert findings.ranks[0].total == 26_000
    assert rows(findings)[0][2:5] == ["1 of 4", "fsdp2", "differ"]
    (table,) = each_tables(findings).values()
    assert table.head == ("rank", "parameters", "gradients", "state", "peak allocated")
    texts = [[cell.text for cell in row] for row in table.rows]
    assert texts[:2] == [
        ["least", "100 B, all ranks", "100 B, all ranks", "1.95 KiB, rank 3", "50 B, rank 0"],
        ["most", "100 B, all ranks", "100 B, all ranks", "7.81 KiB, rank 0", "90 B, rank 1"],
    ]
    assert [row[0] for row in texts[2:]] == ["0", "1 (fullest)", "2 (slowest)", "3"]
    alike = on_ranks(each=(part(0, 8_000), part(1, 8_000)), slowest=1)
    (table,) = each_tables(Findings.of([alike])).values()
    assert [row[0].text for row in table.rows[2:]] == ["0", "1 (slowest)"]


def test_a_terminal_shows_each_rank_only_where_they_differ(on_ranks):
    for states, shown in (((8_000,) * 4, False), ((8_000,) * 3 + (2_000,), True)):
        each = tuple(part(rank, state) for rank, state in enumerate(states))
        measured = on_ranks(elements=(), exchanges=(), each=each)
        measured = replace(measured, scenario=replace(measured.scenario, device="cpu"))
        findings, output = Findings.of([measured]), io.StringIO()
        terminal.render(terminal_summary(findings, 100), output, width=100)
        assert ("Each rank: adamw" in output.getvalue()) == shown
        assert ("fullest" in output.getvalue()) == shown
        # Ranks on a CPU exchange by gloo, and no simulation says what they send.
        assert "NCCL" not in output.getvalue()
        assert "sent a step" not in rank_table(findings).head


def test_optimizers_with_equal_exchanges_share_a_table(on_ranks):
    lamb = on_ranks("lamb16", exchanges=(GATHER, SCATTER, REDUCE))
    tables = exchange_tables(Findings.of([on_ranks(), on_ranks("sm3"), lamb]))
    assert list(tables) == ["adamw, sm3", "lamb16"]
    assert [[cell.text for cell in row] for row in tables["lamb16"].rows] == [
        ["forward", "all gather", "4", "2", "3.91 KiB", "2.93 KiB"],
        ["backward", "reduce scatter", "4", "1", "3.91 KiB", "2.93 KiB"],
        ["step", "all reduce", "4", "1", "8 B", "12 B"],
        ["whole step", "", "", "4", "7.82 KiB", "5.87 KiB"],
    ]


def test_the_ranks_of_watched_trainings_are_joined_and_repeated_trainings_are_not(simulated):
    def watched(rank: int, parameters: int, state: int, seconds: float):
        record = simulated(
            "adamw",
            model="train:Net",
            device="cpu",
            origin="measured",
            config={"parameters": parameters, "ranks": 2, "rank": rank},
            times={"step": (seconds,) * 6},
        )
        assert isinstance(record.memory, Memory)
        memory = replace(record.memory, optimizer_state=state)
        return replace(record, memory=memory, ranks=Ranks(each=(part(rank, state),)))

    first, second = watched(0, 300, 80, 1.0), watched(1, 200, 40, 2.0)
    (joined,) = side_by_side([first, second])
    assert joined.ranks is not None
    assert [one.optimizer_state for one in joined.ranks.each] == [80, 40]
    assert (joined.memory, joined.times) == (first.memory, second.times)
    assert joined.ranks.slowest == 1
    assert joined.scenario.config == {"parameters": 300, "ranks": 2}
    again = side_by_side([first, second, first, second])
    assert [len(each.ranks.each) for each in again if each.ranks] == [2, 2]
    assert side_by_side([first]) == [first]


def test_the_ways_to_share_a_step_are_one_picture_on_one_scale(simulated, timeline):
    records = [
        simulated("adamw"),
        simulated("sm3"),
        *(simulated("adamw", ranks=8, parallel=parallel) for parallel in ("ddp", "fsdp2")),
    ]
    timelines = {file_name(record.scenario): timeline for record in records}
    shown = {each.name: each for each in pictures(Findings.of(records, timelines))}
    panels = shown["ways"].panels
    assert [each.label for each in panels if isinstance(each, Areas)] == [
        *("one GPU", "ddp on 8 ranks", "fsdp2 on 8 ranks")
    ]
    assert len({each.most for each in panels if isinstance(each, Areas)}) == 1
    assert shown["ways"].context == "tiny · adamw"
    # One way alone has no other to stand next to.
    assert "ways" not in {each.name for each in pictures(Findings.of(records[:2], timelines))}


def test_a_gpu_that_nccl_could_fill_is_marked_as_tight(on_ranks):
    usable = hardware.describe("t4").usable_bytes
    for left, answer in ((2 * 2**30, "fits"), (900 << 20, "tight")):
        record = on_ranks()
        assert record.memory is not None
        memory = replace(record.memory, peak_reserved=usable - left)
        ((_, fits),) = fits_by_setting([replace(record, memory=memory)]).items()
        fit = next(fit for gpu, fit in fits if gpu == "t4")
        # 900 MiB are more than 2 % of the T4, and less than NCCL's 960 MiB.
        assert (fit.left, fit.answer) == (left, answer)


def test_every_medium_says_whose_bytes_these_are(on_ranks):
    findings = Findings.of([on_ranks(), on_ranks("sm3")])
    output = io.StringIO()
    terminal.render(terminal_summary(findings, 100), output, width=100)
    texts = (
        html.render(run_page(findings)),
        output.getvalue(),
        markdown.render(run_summary(findings)),
    )
    for text in texts:
        assert "fsdp2" in text
        assert "0 of 4" in text
        assert "All bytes are those of one rank" in text
        assert "NCCL takes an estimated 18.4 to 960 MiB" in text.replace("\n", " ")


def test_ranks_on_the_cpu_have_no_word_of_nccl(on_ranks):
    record = on_ranks(elements=(), exchanges=(), each=tuple(part(rank, 8_000) for rank in range(4)))
    measured = replace(record, scenario=replace(record.scenario, device="cpu"), origin="measured")
    page = html.render(run_page(Findings.of([measured])))
    assert "All bytes are those of one rank" in page
    assert "NCCL takes an estimated" not in page


def test_a_run_of_single_processes_has_no_word_of_ranks(simulated):
    findings = Findings.of([simulated("adamw")])
    assert findings.ranks == []
    assert "Ranks" not in html.render(run_page(findings))
