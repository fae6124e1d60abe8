"""The answer to "does it fit": cells, words of a change, page and terminal."""

import io
import json
from dataclasses import replace

import pytest

from optprof.profiler.records.fits import Change, Fit
from optprof.reports import print_fits, write_fit_page
from optprof.reports.fit import (
    FitFindings,
    change_text,
    fit_table,
    overview_table,
    short_text,
    verdict,
)
from optprof.reports.units import NOTHING
from optprof.scenarios.spec import Scenario

GIB = 2**30
COMMAND = ["optprof", "fit", "tiny & co"]


def answer(optimizer: str, gpu: str, batch: int | None = None, **fields: object) -> Fit:
    scenario = Scenario(
        model="tiny & co", optimizer=optimizer, batch_size=8, sequence_length=16, gpu=gpu
    )
    failing = None if batch is None else batch + 1
    return Fit(
        scenario=scenario,
        usable=14 * GIB,
        largest_batch=batch,
        failing_batch=failing,
        **fields,  # pyright: ignore[reportArgumentType]
    )


FITS = [
    answer(
        "adamw",
        "t4",
        batch=5,
        needed=20 * GIB,
        changes=(Change(fields={"checkpointing": True, "dtype": "bf16"}, left=GIB),),
    ),
    answer("sm3", "t4", batch=1_024, needed=12 * GIB, left=2 * GIB),
    answer("adamw", "v100-16", reason="v100-16 has no hardware for bf16"),
    answer("sm3", "v100-16", batch=8, needed=15 * GIB, left=0),
]


def test_a_cell_has_the_bytes_left_or_short_and_the_largest_batch():
    assert [short_text(fit) for fit in FITS] == [
        "✗ 6.000 GiB, 5",
        "✓ 2.000 GiB, 1,024",
        "✗ v100-16 has no hardware for bf16",
        "≈ 0 B, 8",
    ]


def test_a_batch_at_which_the_search_ended_is_shown_as_a_lower_bound():
    ended = replace(FITS[1], largest_batch=1 << 20, failing_batch=None)
    assert short_text(ended) == "✓ 2.000 GiB, ≥ 1,048,576"
    settled = replace(FITS[1], largest_batch=(1 << 20) - 1, failing_batch=1 << 20)
    assert short_text(settled) == "✓ 2.000 GiB, 1,048,575"


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"alloc_conf": "expandable_segments:True"}, "expandable segments"),
        (
            {"implementation": "loop", "checkpointing": True},
            "the optimizer as a loop + checkpointing",
        ),
        ({"implementation": "fused"}, "the optimizer fused"),
        ({"batch_size": 2, "micro_batches": 4}, "batch 2, accumulated 4 times"),
        (
            {"optimizer": "sm3", "options": {}, "implementation": "foreach", "dtype": "bf16"},
            "sm3 instead of adamw + bf16 weights",
        ),
    ],
)
def test_a_change_is_described_in_words(fields: dict[str, object], text: str):
    assert change_text(Change(fields=fields, left=0), FITS[0].scenario) == text


def test_the_verdict_names_the_smallest_gpu():
    assert verdict(FitFindings.of(FITS)) == "adamw fits on no GPU; sm3 fits on t4 and larger."


def test_the_tables_have_a_row_per_gpu_and_a_row_per_answer():
    findings = FitFindings.of(FITS)
    assert [row[0].text for row in overview_table(findings).rows] == ["t4", "v100-16"]
    assert fit_table(findings).head[:2] == ("optimizer", "GPU")
    rows = [[cell.text for cell in row] for row in fit_table(findings).rows]
    assert rows[0] == [
        "adamw",
        "t4",
        "no",
        "20.00 GiB",
        "14.00 GiB",
        NOTHING,
        "5",
        "checkpointing + bf16 weights (leaves 1.000 GiB)",
    ]
    assert rows[1][2:] == ["yes", "12.00 GiB", "14.00 GiB", "2.000 GiB", "1,024", NOTHING]


def test_the_page_loads_no_other_file_and_escapes_its_text(tmp_path):
    page = write_fit_page(FITS, tmp_path / "run", COMMAND)
    text = page.read_text()
    assert "tiny &amp; co" in text
    assert "tiny & co" not in text
    assert "src=" not in text
    assert "http" not in text.replace("https://", "").replace("http-equiv", "")
    assert json.loads((tmp_path / "run" / "fits.json").read_text())[1]["left"] == 2 * GIB


def test_the_terminal_shows_the_table_and_the_cheapest_changes():
    stream = io.StringIO()
    print_fits(FITS, stream, width=80)
    text = stream.getvalue()
    assert "tiny & co · fp32 · batch 8 · 16 tokens" in text
    assert "t4 adamw: checkpointing + bf16 weights (1.000 GiB)" in text
    with pytest.raises(ValueError, match="no GPU or no optimizer"):
        print_fits([], stream)
