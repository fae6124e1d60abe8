"""Peaks that are ranges because of cuDNN's workspaces, in every output that shows a peak."""

import io
from dataclasses import replace

import pytest

from optprof.profiler.records.fits import Fit
from optprof.profiler.records.record import Record
from optprof.reports import markdown, print_run
from optprof.reports.arithmetic.capacity import fits_by_setting
from optprof.reports.arithmetic.entries import entries
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.peaks import peaks
from optprof.reports.fit import FitFindings, fit_table, short_text
from optprof.reports.frame import COLUMNS
from optprof.reports.page import render_page
from optprof.reports.phrases import peak_text
from optprof.reports.summary import run_summary
from optprof.reports.tables.data import data_rows, memory_table
from optprof.reports.tables.verdict import RANGES, verdict
from optprof.reports.units import DECIMAL, bytes_text, exact_text
from optprof.scenarios import hardware
from optprof.scenarios.spec import Scenario

GIB, MIB = 2**30, 2**20


def ranged(record: Record, **upper: int) -> Record:
    """Return the record with peaks of 2 and 3 GiB, by default up to 2.25 and 3.5 GiB."""
    assert record.memory is not None
    ends = {"peak_allocated_upper": 9 * GIB // 4, "peak_reserved_upper": 7 * GIB // 2} | upper
    memory = replace(record.memory, peak_allocated=2 * GIB, peak_reserved=3 * GIB, **ends)
    return replace(record, memory=memory)


def shown(records: list[Record], width: int = 80) -> str:
    stream = io.StringIO()
    print_run(records, stream, width=width)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (GIB, 9 * GIB // 8, "1.000 to 1.125 GiB"),
        (900 * MIB, 9 * GIB // 8, "900 MiB to 1.125 GiB"),
        (GIB, GIB + 1, "1.000 GiB"),
        (512, 900, "512 to 900 B"),
    ],
)
def test_a_range_has_its_unit_once_and_is_one_number_if_both_ends_read_the_same(
    low: int, high: int, text: str
):
    assert bytes_text(low, upper=high) == text


def test_a_range_is_exact_and_reads_in_powers_of_1000_too():
    assert bytes_text(10**9, DECIMAL, 11 * 10**8) == "1.000 to 1.100 GB"
    assert exact_text(1_024, 2_048) == "1,024 to 2,048 bytes"
    assert exact_text(1_024, 1_024) == exact_text(1_024) == "1,024 bytes"


def test_the_terminal_shows_a_range_in_eighty_columns_and_says_why(simulated):
    text = shown([ranged(simulated("adamw")), ranged(simulated("sm3"))])
    assert max(map(len, text.splitlines())) <= 80
    assert text.count("2.000 to 2.250") == 2
    assert RANGES in text
    assert RANGES not in shown([simulated("adamw")])


def test_the_page_and_the_markdown_table_show_a_range(simulated):
    records = [ranged(simulated("adamw")), ranged(simulated("sm3"))]
    page = render_page(records)
    assert "2.000 to 2.250 GiB in step · 3.000 to 3.500 GiB reserved" in page
    assert 'title="2,147,483,648 to 2,415,919,104 bytes" data-decimal="2.147 to 2.416 GB"' in page
    assert RANGES in page
    assert "| 2.000 to 2.250 GiB |" in markdown.render(run_summary(Findings.of(records)))


def test_a_peak_without_a_range_is_one_number(simulated):
    record = ranged(simulated("adamw"), peak_allocated_upper=2 * GIB, peak_reserved_upper=3 * GIB)
    (peak,) = peaks(entries([record]), [record])
    assert peak_text(peak) == "2.000 GiB in step · 3.000 GiB reserved"


def test_the_verdict_compares_lower_ends_and_says_so(simulated):
    low = ranged(simulated("sm3"))
    assert low.memory is not None
    low = replace(low, memory=replace(low.memory, peak_allocated=GIB))
    text = verdict(Findings.of([ranged(simulated("adamw")), low]))
    assert text.endswith(
        "falls from 2.000 GiB to 1.000 GiB, both with cuDNN's smallest workspaces."
    )


def test_a_row_for_a_spreadsheet_has_both_ends(simulated):
    findings = Findings.of([ranged(simulated("adamw"))])
    (row,) = data_rows(findings)
    assert (row["peak_allocated_bytes"], row["peak_allocated_upper_bytes"]) == (
        2 * GIB,
        9 * GIB // 4,
    )
    assert (row["peak_reserved_bytes"], row["peak_reserved_upper_bytes"]) == (3 * GIB, 7 * GIB // 2)
    cells = {cell.text for cell in memory_table(findings).rows[0]}
    assert {"2.000 to 2.250 GiB", "3.000 to 3.500 GiB"} <= cells
    assert {"peak_allocated_upper_bytes", "peak_reserved_upper_bytes"} <= set(COLUMNS)


def test_a_peak_whose_upper_end_is_too_large_is_unsure_to_fit(simulated):
    usable = hardware.describe("t4").usable_bytes
    answers = []
    for upper in (usable // 2, usable, usable + 1):
        record = ranged(simulated("adamw"), peak_reserved_upper=upper)
        (group,) = fits_by_setting([record], ["t4"]).values()
        answers += [fit.answer for _, fit in group]
    assert answers == ["fits", "tight", "unsure"]


def test_a_scenario_that_fits_only_without_workspaces_may_fit():
    scenario = Scenario(model="tiny", batch_size=8, gpu="t4")
    fit = Fit(
        scenario=scenario,
        usable=14 * GIB,
        needed=15 * GIB,
        may_fit=True,
        largest_batch=7,
        failing_batch=8,
    )
    assert not fit.fits
    assert short_text(fit) == "? 1.000 GiB, 7"
    (row,) = fit_table(FitFindings.of([fit])).rows
    assert row[2].text == "perhaps, if cuDNN takes less memory"
