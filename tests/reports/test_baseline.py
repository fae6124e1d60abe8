"""The baseline: one choice for a run, named by every text, table and picture."""

import io
import re
from pathlib import Path

import pytest
from commands import run as command

from optprof.profiler.records.record import Record
from optprof.profiler.records.store import RunStore
from optprof.reports import print_run, run_markdown, write_report
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.arithmetic.visibility import sights
from optprof.reports.page import render_page
from optprof.reports.phrases import missing_text
from optprof.reports.pictures import pictures, savings
from optprof.reports.reasons import hidden_most
from optprof.reports.run import Run
from optprof.reports.tables.heat_map import heat_map
from optprof.reports.tables.verdict import cards, verdict
from optprof.reports.units import TIMES


@pytest.fixture
def without_adamw(simulated) -> list[Record]:
    """The run of the issue: Adam with 8,000 bytes, SM3 with 8, SGD-SaI with 4,000."""
    return [simulated("adam", state=8_000), simulated("sm3"), simulated("sgd-sai")]


@pytest.mark.parametrize(
    ("optimizers", "baseline"),
    [
        (("sm3", "adam", "adamw"), "adamw"),
        (("sm3", "adam"), "adam"),
        (("sm3", "sgd-sai"), "sm3"),
    ],
)
def test_the_baseline_is_adamw_else_adam_else_the_first(simulated, optimizers, baseline):
    assert Findings.of(list(map(simulated, optimizers))).baseline == baseline


def test_an_optimizer_that_keeps_no_state_is_no_baseline_unless_it_is_named(simulated):
    records = [simulated("sgd", state=0), simulated("sm3"), simulated("sgd-sai")]
    assert Findings.of(records).baseline == "sm3"
    named = Findings.of(records, baseline="sgd")
    assert named.savings == []
    assert missing_text(named).startswith("sgd kept no state on tiny")


def test_a_baseline_that_failed_stays_the_baseline(simulated):
    failed = simulated("adamw", memory=None, outcome="failed", error="why")
    findings = Findings.of([simulated("adam", state=8_000), failed, simulated("sm3")])
    assert findings.baseline == "adamw"
    assert missing_text(findings).startswith("adamw failed on tiny")


def test_every_medium_compares_with_the_baseline_of_the_run(without_adamw, tmp_path):
    findings = Findings.of(without_adamw)
    assert [row.factor for row in findings.savings] == [1, 1_000, 2]
    assert "1,000\u00d7 smaller than adam's" in verdict(findings)
    assert [name for name, _ in cards(findings)["tiny"][1].lines][1] == "against adam"
    assert [cell.text for cell in heat_map(findings).rows[0][1:]] == [
        f"1.00{TIMES}", f"1,000{TIMES}", f"2.00{TIMES}",
    ]  # fmt: skip
    (picture,) = savings.describe(findings)
    assert picture.title == "State kept, compared with adam"
    assert "adam's" in picture.sentence
    text = hidden_most(sights(findings.entries, findings.baseline))
    assert "less state than adam:" in text
    stream = io.StringIO()
    print_run(without_adamw, stream, width=100)
    assert "vs adam " in stream.getvalue()
    assert f"1,000{TIMES}" in stream.getvalue()
    store = RunStore.create(tmp_path)
    for record in without_adamw:
        store.append(record)
    store.close()
    assert "| smaller than adam |" in run_markdown(tmp_path)
    page = write_report(tmp_path).read_text(encoding="utf-8")
    # The paper's own figures have an adamw.
    shown = re.sub(r"Published and not in this run.*?</section>", "", page, flags=re.DOTALL)
    assert not re.search(r"(than|against|with|vs) adamw\b", shown)
    assert "against adam" in shown
    assert "State kept, compared with adam" in (tmp_path / "figures/savings.svg").read_text()


def test_a_named_baseline_is_used_by_every_medium(without_adamw, tmp_path):
    findings = Findings.of(without_adamw, baseline="sgd-sai")
    assert [row.factor for row in findings.savings] == [0.5, 500, 1]
    stream = io.StringIO()
    print_run(without_adamw, stream, width=100, baseline="sgd-sai")
    assert "vs sgd-sai" in stream.getvalue()
    assert "compared with sgd-sai" in render_page(without_adamw, baseline="sgd-sai")
    run = Run(records=without_adamw, baseline="sgd-sai")
    assert "smaller than sgd-sai" in run._repr_html_()
    page = run.report(tmp_path / "run").read_text(encoding="utf-8")
    assert "compared with sgd-sai" in page
    again = Run.read(tmp_path / "run").report(tmp_path / "run", baseline="sm3")
    assert "compared with sm3" in again.read_text(encoding="utf-8")


def test_a_baseline_that_the_run_does_not_have_is_refused_by_name(without_adamw):
    with pytest.raises(ValueError, match="no optimizer of this run is named 'adamw'") as raised:
        Findings.of(without_adamw, baseline="adamw")
    assert str(raised.value).endswith("give --baseline one of adam, sm3, sgd-sai")


def test_one_optimizer_is_compared_with_nothing(simulated):
    findings = Findings.of([simulated("sm3")])
    assert "savings" not in [picture.name for picture in pictures(findings)]
    assert heat_map(findings).rows == ()
    stream = io.StringIO()
    print_run([simulated("sm3")], stream, width=100)
    assert "vs " not in stream.getvalue()


def test_a_command_refuses_a_baseline_that_the_run_will_not_have(tmp_path: Path):
    words = ["profile", "tiny", "-o", "adam,sm3", "-d", "sim", "--baseline", "adamw"]
    ended = command(words, cwd=tmp_path)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(
        "no optimizer of this run is named 'adamw'; give --baseline one of adam, sm3"
    )
    assert not (tmp_path / "runs").exists()
