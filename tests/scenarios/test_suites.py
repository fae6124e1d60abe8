"""Suites: lists are axes, and a file is only data."""

import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optprof.scenarios import suites
from optprof.scenarios.suites import Suite, read

# For a long run: OPTPROF_FUZZ=100000 pytest -k malformed
EXAMPLES = int(os.environ.get("OPTPROF_FUZZ", "200"))


def suite(text: str) -> Suite:
    return read("mine", text.encode())


def test_every_list_is_an_axis_and_optimizers_change_fastest():
    result = suite("""
        description = "what bf16 saves"
        [[scenarios]]
        optimizer = ["adamw", "sm3:momentum=0.9"]
        model = ["gpt2", "gpt2-xl"]
        amp = ["none", "bf16"]
        config = {n_layer = 2}
    """)
    assert result.description == "what bf16 saves"
    assert [(q["model"], q["amp"], q["optimizer"]) for q in result.questions] == [
        (model, amp, optimizer)
        for model in ("gpt2", "gpt2-xl")
        for amp in (None, "bf16")
        for optimizer in ("adamw", "sm3:momentum=0.9")
    ]
    assert {q["config"]["n_layer"] for q in result.questions} == {2}


@pytest.mark.parametrize("name", suites.available())
def test_a_suite_of_optprof_s_own_has_a_title_and_scenarios(name: str):
    result = suites.load(name)
    assert result.name == name
    assert result.description
    assert result.questions


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"a suite has one \[\[scenarios\]\] table or more, got none"),
        ("scenarios = 3", r"a suite has one \[\[scenarios\]\] table"),
        ("scenarios = [3]", "scenarios 1 must be a table, got 3"),
        ("scenario = []", r"a suite has description and \[\[scenarios\]\], got 'scenario'"),
        ("[[scenarios]]", "scenarios 1 names no model"),
        ("[[scenarios]]\nmodl = 'gpt2'", "scenarios 1 has no field 'modl'; did you mean model?"),
        (
            "[[scenarios]]\nmodel = 'gpt2'\noptions = {lr = 1}",
            "'options'; options are written into the optimizer's text",
        ),
        ("[[scenarios]]\nmodel = []", "scenarios 1, model is an empty list"),
        (
            "[[scenarios]]\nmodel = 'gpt2'\nbatch_size = '8'",
            "scenarios 1, batch_size must be a whole number, got '8'",
        ),
        (
            "[[scenarios]]\nmodel = 'gpt2'\nbatch_size = 0",
            "batch_size must be a whole number >= 1, got 0",
        ),
        (
            "[[scenarios]]\nmodel = 'gpt2'\ndtype = 'fp8'",
            "scenarios 1, dtype must be one of fp32, bf16, fp16, fp64, got 'fp8'",
        ),
        (
            "[[scenarios]]\nmodel = 'gpt2'\nmax_grad_norm = nan",
            "max_grad_norm must be finite, got nan",
        ),
        (
            "[[scenarios]]\nmodel = 'gpt2'\nseed = [" + "1," * 2001 + "]",
            "a suite has at most 2000 scenarios, got 2001",
        ),
        (
            "[[scenarios]]\nmodel = '" + "x" * 501 + "'",
            "scenarios 1, model has at most 500 letters, got 501",
        ),
        ("a = " + "[" * 5000, "inside each other too deep"),
        ("#" * (256 << 10) + "#", "at most 262144 bytes, got more"),
    ],
)
def test_an_error_in_a_suite_is_one_line(text: str, message: str):
    with pytest.raises(ValueError, match=message) as error:
        suite(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "config",
    [
        '{attn_implementation = "someone/kernels"}',
        '{_attn_implementation = "flash"}',
        '{auto_map = {AutoModel = "theirs"}}',
        '{path = "/etc"}',
    ],
)
def test_a_file_s_configuration_names_no_path_and_no_code(config: str):
    with pytest.raises(ValueError, match="from a file"):
        suite(f"[[scenarios]]\nmodel = 'gpt2'\nconfig = {config}")


def test_an_unknown_suite_is_an_error_with_near_names(tmp_path: Path):
    with pytest.raises(ValueError, match="no suite is named 'papr'; did you mean paper"):
        suites.load("papr")
    (tmp_path / "mine.toml").write_bytes(b"\xff")
    with pytest.raises(ValueError, match=r"mine\.toml: a suite is text in UTF-8"):
        suites.load(str(tmp_path / "mine.toml"))


WHOLE = suites._NAMED.joinpath("precision.toml").read_bytes()
WORDS = [
    b"[[",
    b"]]",
    b"[",
    b"]",
    b"{",
    b"}",
    b"=",
    b"\n",
    b'"',
    b"'''",
    b",",
    b"model",
    b"scenarios",
    b"config",
    b"1e999",
    b"nan",
    b"\xff",
    b"-1",
]
broken = st.builds(
    lambda text, cuts: b"".join(
        text[: place % len(text)] + word + text[place % len(text) + drop :]
        for place, drop, word in cuts
    )[:4000],
    st.sampled_from([WHOLE, b"[[scenarios]]\nmodel = 'gpt2'\nconfig = {a = 1}\n"]),
    st.lists(
        st.tuples(st.integers(0, 1000), st.integers(0, 40), st.sampled_from(WORDS)),
        min_size=1,
        max_size=3,
    ),
)


@settings(max_examples=EXAMPLES, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(
    data=st.one_of(
        st.binary(max_size=300), broken, st.lists(st.sampled_from(WORDS), max_size=60).map(b"".join)
    )
)
def test_a_malformed_suite_is_an_error_in_one_line_or_a_suite(data: bytes):
    message, questions = "", ()
    try:
        questions = read("mine", data).questions
    except ValueError as error:
        message = str(error)
    assert len(message) < 2000
    assert 0 < len(questions) <= suites.MOST_SCENARIOS or message
