"""Scenarios: every valid one is read back as written; any other is refused in one line."""

import json
import re
from dataclasses import asdict
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from optprof.scenarios import Scenario, schema, spec

numbers = st.integers() | st.floats() | st.sampled_from([2**63 - 1, 2**63, 10**30, 1e308, 5e-324])
values = st.recursive(
    st.none()
    | st.booleans()
    | numbers
    | st.text(max_size=5)
    | st.just("\udcff")
    | st.just("x" * 30_000),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
fields = st.fixed_dictionaries(
    {"model": st.sampled_from(["gpt2", "mine:net", "n" * 1_000, "n" * 1_001, "\udcff:net"])},
    optional={
        "config": st.dictionaries(st.text(max_size=3), values, max_size=3),
        "options": st.dictionaries(st.text(max_size=3), values, max_size=3),
        **dict.fromkeys(
            (
                "batch_size",
                "sequence_length",
                "micro_batches",
                "steps",
                "seed",
                "lora_rank",
                "max_grad_norm",
            ),
            values,
        ),
        **dict.fromkeys(("alloc_conf", "gpu", "optimizer", "dtype", "device"), values),
    },
)


@settings(max_examples=150, deadline=None)
@given(values=fields)
def test_a_valid_scenario_is_read_back_as_written(values: dict[str, Any]):
    scenario, message = None, ""
    try:
        scenario = Scenario(**values)
    except ValueError as error:
        message = str(error)
    assert len(message) < 500
    assert "\n" not in message
    assert (
        scenario is None
        or schema.read(Scenario, schema.parse_json(json.dumps(asdict(scenario)))) == scenario
    )


@pytest.mark.parametrize(
    ("field", "most"),
    [
        ("batch_size", 1 << 24),
        ("sequence_length", 1 << 24),
        ("micro_batches", 1 << 13),
        ("steps", 100_000),
        ("seed", 2**63 - 1),
        ("lora_rank", 1 << 16),
    ],
)
def test_a_whole_number_has_an_upper_limit(field: str, most: int):
    values: dict[str, Any] = {"model": "mine:net", "device": "cpu", field: most}
    beyond: dict[str, Any] = {**values, field: most + 1}
    assert getattr(Scenario(**values), field) == most
    with pytest.raises(
        ValueError, match=f"^{field} is at most {2**63 - 1 if field == 'seed' else most}, got"
    ):
        Scenario(**beyond)


def test_a_simulation_follows_no_more_micro_batches_than_it_can():
    assert Scenario(model="gpt2", micro_batches=4096, steps=4)
    with pytest.raises(
        ValueError, match=r"^steps times micro_batches is at most 16384 in a simulation"
    ):
        Scenario(model="gpt2", micro_batches=4096, steps=5)
    assert Scenario(model="gpt2", micro_batches=4096, steps=5, device="cpu")


def test_a_list_and_a_tuple_are_one_scenario_and_keep_their_types():
    as_list, as_tuple = (
        Scenario(model="gpt2", options={"betas": kind((0.9, 0.99))}) for kind in (list, tuple)
    )
    assert as_list == as_tuple
    assert isinstance(as_tuple.options["betas"], tuple)
    assert as_list != Scenario(model="gpt2", options={"betas": [0.9, 0.98]})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("plain", "plain"),
        ("caf\xe9 \u540d", "caf\xe9 \u540d"),
        ("run-\udcff", "run-\\xff"),
        ("half \ud800", "half \\ud800"),
        ("a" * 20_000, "a" * 20_000),
    ],
)
def test_a_shortened_text_is_valid_in_a_record(text: str, expected: str):
    assert schema.shortened(text) == expected
    assert schema.check(str, schema.shortened(text), "text")


def test_the_middle_of_a_long_text_and_of_a_long_list_is_left_out():
    text = schema.shortened("a" * 15_000 + "b" * 15_000)
    assert len(text) <= schema.MOST_LETTERS
    assert text.startswith("aaa")
    assert "10,048 letters left out" in text
    assert text.endswith("bbb")
    words = schema.shortened_all(map(str, range(5_000)))
    assert words[499:502] == ["499", "[... 4,000 left out ...]", "4500"]


def test_a_later_field_counts_only_once_it_is_set(monkeypatch: pytest.MonkeyPatch):
    """Else every new field would rename the scenarios, whose files older runs name by the key."""
    full = {seed: Scenario(model="gpt2", seed=seed).key for seed in (0, 1)}
    monkeypatch.setattr(spec, "_LATER", {**spec._LATER, "seed": 0})
    unset, is_set = Scenario(model="gpt2"), Scenario(model="gpt2", seed=1)
    assert (unset.added, is_set.added) == ({}, {"seed": 1})
    assert unset.key not in full.values()
    assert is_set.key == full[1]


def test_files_of_older_runs_keep_their_names():
    key = Scenario(model="gpt2", optimizer="sm3", options={"lr": 0.1}).key
    assert key.hex()[:12] == "a6fc43d2bbc1"


@pytest.mark.parametrize(
    "text",
    [
        "NaN",
        "[Infinity]",
        "-Infinity",
        "1e400",
        '"\\ud800"',
        "[" * 3000,
        "{",
        "",
        "[1,]",
        '{"a": 1, "a": 2}',
        "18446744073709551616",
        "9" * 5000,
        "-0.0",
        "1E5",
        '"\\u0000"',
        "\ufeff[]",
        "[1] 2",
        "'a'",
        "0x1",
        "01",
        "true",
        "1.7976931348623157e308",
        "5e-324",
    ],
)
def test_json_is_parsed_as_by_python_s_own_parser(text: str):
    """The faster parser refuses more: NaN, Infinity, 1e400 and halves of surrogate pairs."""
    try:
        expected = json.loads(text)
    except (ValueError, RecursionError):
        expected = None
    if expected is None or re.search(r"NaN|Infinity|1e400|\\ud800", text):
        with pytest.raises(ValueError, match=r".+"):
            schema.parse_json(text)
    else:
        assert repr(schema.parse_json(text)) == repr(expected)
        assert repr(schema.parse_json(text.encode())) == repr(expected)
