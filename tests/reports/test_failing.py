"""Failures in words: the title, the verdict and the command that helps; and who is spoken of."""

from dataclasses import replace
from typing import Any

import pytest
import typer

from optprof.cli.app import app
from optprof.reports.arithmetic.capacity import lacking
from optprof.reports.arithmetic.entries import entries
from optprof.reports.arithmetic.findings import Findings
from optprof.reports.failing import remedies, sentences, title
from optprof.reports.page import run_page
from optprof.reports.tables.verdict import cards, verdict
from optprof.scenarios import hardware

GIB = 2**30
LOST: dict[str, Any] = {"memory": None, "outcome": "failed", "error": "why"}


@pytest.fixture
def full(simulated):
    """A record of a simulated T4 that lacks so many bytes."""

    def make(optimizer, lack, **changes):
        ok = simulated(optimizer, gpu="t4", **changes)
        needed = hardware.describe("t4").usable_bytes + lack
        return replace(
            ok,
            outcome="out-of-memory",
            memory=replace(ok.memory, needed=needed),
            error="out of memory in step 1",
        )

    return make


def told(records):
    findings = Findings.of(records)
    return title(findings), sentences(findings)


def test_one_optimizer_that_does_not_fit_is_in_title_and_verdict(simulated, full):
    assert told([full("adamw", 3 * GIB // 4), simulated("sm3", gpu="t4")]) == (
        "What an optimizer costs on tiny: adamw does not fit on t4",
        ["tiny does not fit on t4 with adamw: 768 MiB more needed. sm3 fits."],
    )


def test_if_none_fits_the_title_says_so_and_the_verdict_which_comes_closest(full):
    heading, (sentence,) = told([full("adamw", 3 * GIB), full("sm3", 2 * GIB)])
    assert heading == "tiny does not fit on t4"
    assert sentence == (
        "tiny does not fit on t4 with any of 2 optimizers; sm3 comes closest: 2.000 GiB more"
        " needed."
    )


def test_a_record_without_the_bytes_that_are_missing_still_says_that_it_does_not_fit(full):
    record = full("adamw", GIB)
    older = replace(record, memory=replace(record.memory, needed=None))
    assert told([older])[1] == ["tiny does not fit on t4 with adamw."]


def test_a_state_is_known_although_the_step_does_not_fit(full):
    record = full("adamw", GIB)
    (entry,) = entries([record])
    assert (entry.state_bytes, entry.peak, entry.ran_out) == (8_000, None, True)
    assert entry.memory is not None
    assert entry.memory.optimizer_state_allocated is None
    assert lacking(record) == GIB
    ((card,),) = cards(Findings.of([record])).values()
    cell = dict(card.lines)["peak"]
    assert (cell.text, cell.remark) == ("1.000 GiB more needed", "does not fit on t4")
    assert "step on t4" not in dict(card.lines)


def test_a_model_that_only_extends_a_curve_is_in_neither_title_nor_verdict(simulated, full):
    curve = [
        simulated(name, model=model, workload="state", parameter_count=count)
        for name in ("adamw", "sm3")
        for model, count in (("tiny", 1_000), ("tiny-xl", 9_000))
    ]
    findings = Findings.of([full("adamw", GIB), full("sm3", GIB), *curve])
    page = run_page(findings)
    assert page.title == "tiny does not fit on t4"
    assert findings.models == ["tiny"]
    assert "tiny-xl" not in verdict(findings)
    # Even a failed one of them is no title's concern.
    lost = replace(curve[-1], outcome="timeout", memory=None, error="no result after 9 s")
    assert title(Findings.of([simulated("sm3"), lost])) == "What an optimizer costs on tiny"


def test_after_failed_steps_only_the_states_of_their_own_model_take_their_place(simulated):
    lost = simulated("adamw", memory=None, outcome="failed", error="ZeroDivisionError")
    states = [simulated("adamw", model=model, workload="state") for model in ("tiny", "tiny-xl")]
    findings = Findings.of([lost, *states])
    assert {entry.setting.model for entry in findings.entries} == {"tiny"}
    assert title(findings) == "What an optimizer costs on tiny: adamw failed"
    assert sentences(findings) == ["adamw failed: ZeroDivisionError."]


def test_a_run_of_states_alone_was_requested_as_such(simulated):
    records = [simulated("adamw", model=model, workload="state") for model in ("tiny", "tiny-xl")]
    assert title(Findings.of(records)) == "What an optimizer costs on tiny and tiny-xl"


def test_several_failures_are_named_by_what_became_of_them(simulated):
    records = [
        simulated("adamw"),
        simulated("sm3", memory=None, outcome="killed", error="killed by signal 9"),
        simulated("lamb16", memory=None, outcome="killed", error="killed by signal 11"),
        simulated("sgd-sai", memory=None, outcome="timeout", error="no result after 9 s"),
    ]
    assert told(records) == (
        "What an optimizer costs on tiny: sm3 and lamb16 were killed and sgd-sai took too long",
        ["sm3 and lamb16 were killed.", "sgd-sai took too long."],
    )


def test_failures_name_their_models_if_others_have_results(simulated):
    records = [
        simulated(name, model=model, **{} if outcome == "ok" else LOST | {"outcome": outcome})
        for model, outcome in (("tiny", "ok"), ("m:a", "killed"), ("m:b", "killed"))
        for name in ("adamw", "sm3")
    ]
    assert told(records) == (
        "What an optimizer costs on tiny, m:a and m:b: adamw and sm3 were killed on m:a and m:b",
        ["adamw and sm3 were killed on m:a and m:b: why."],
    )
    more = [simulated(f"torch.optim:A{number}", model=f"m:{number}", **LOST) for number in range(5)]
    assert sentences(Findings.of([*records, *more]))[1:] == [
        "torch.optim:A0 failed on m:0: why.",
        "torch.optim:A1 failed on m:1: why.",
        "3 more have no result: why.",
    ]


def test_the_remedy_is_a_command_that_fit_takes(full, simulated):
    options = {"model": "gpt2", "dtype": "bf16", "checkpointing": True, "sequence_length": 1024}
    records = [
        full("adamw", GIB, batch_size=64, set_to_none=False, config={"n_layer": 2}, **options),
        simulated(
            "sm3",
            options={"momentum": 0.9},
            gpu="t4",
            batch_size=64,
            set_to_none=False,
            config={"n_layer": 2},
            **options,
        ),
    ]
    (command,) = remedies(Findings.of(records))
    assert command == (
        "optprof fit gpt2 --gpu t4 -o adamw,sm3:momentum=0.9 --model-config n_layer=2 --dtype bf16"
        " --batch-size 64 --keep-gradients --checkpointing"
    )
    group: Any = typer.main.get_command(app)
    _, _, *words = command.split()
    parent = typer.Context(group, info_name="optprof")
    values = group.commands["fit"].make_context("fit", words, parent=parent).params
    assert values["model"] == "gpt2"
    assert values["optimizers"] == "adamw,sm3:momentum=0.9"
    assert list(values["config"]) == ["n_layer=2"]
    assert (values["batch_size"], values["dtype"]) == (64, "bf16")
    assert values["checkpointing"]
    assert values["set_to_none"]
