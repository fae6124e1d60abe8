"""Records from elsewhere: any line is read as a record or refused with a clear error."""

import json
import os
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from optprof.profiler.records.record import Environment, Memory, Record, StepEstimate
from optprof.profiler.records.store import RunStore
from optprof.scenarios import Scenario

# 100,000 and more for a long night: OPTPROF_FUZZ=100000 pytest -k malformed
EXAMPLES = int(os.environ.get("OPTPROF_FUZZ", "200"))

WHOLE = Record(
    scenario=Scenario(
        model="gpt2", config={"n_layer": 2}, options={"betas": [0.9, 0.99]}, max_grad_norm=1.0
    ),
    origin="simulated",
    model_family="gpt2",
    parameter_count=4,
    memory=Memory(
        parameters=16,
        gradients=16,
        optimizer_state=36,
        state_by_key={"exp_avg": 16},
        state_by_key_dtype={"exp_avg": {"float32": 16}},
        peak_by_category={"activation": 3},
        peak_by_phase={"step": 80},
    ),
    times={"step": (0.1, 0.2)},
    warmup={},
    estimate=StepEstimate(
        gpu="t4",
        seconds=0.1,
        floor_seconds=0.1,
        moved_bytes=1,
        needed_bytes=1,
        launches=1,
        synchronisations=0,
    ),
    error="one line",
    log="logs/001.log",
    environment=Environment(versions={"torch": "2.13"}, threads=2),
).to_dict()


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the path to every value in the data."""
    items = (
        data.items()
        if isinstance(data, dict)
        else enumerate(data)
        if isinstance(data, list | tuple)
        else ()
    )
    return [path, *(place for key, value in items for place in places(value, (*path, key)))]


def changed(path: tuple[Any, ...], value: Any) -> Any:
    data = json.loads(json.dumps(WHOLE))
    if not path:
        return value
    place = data
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return data


def test_a_whole_record_is_read_as_it_was_written():
    assert Record.from_dict(json.loads(json.dumps(WHOLE))).to_dict() == WHOLE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            ("origin",),
            "guessed",
            "origin must be one of measured, simulated, estimated, got 'guessed'",
        ),
        (("memory", "parameters"), "16", "memory.parameters must be a whole number, got '16'"),
        (("memory", "parameters"), True, "memory.parameters must be a whole number, got True"),
        (
            ("memory", "parameters"),
            2**63,
            "memory.parameters is at most 9223372036854775807, got 9223372036854775808",
        ),
        (("memory", "state_by_key"), [1], r"memory.state_by_key must be an object, got \[1\]"),
        (("times", "step"), [0.1, "x"], "times.step must be a number, got 'x'"),
        (("times", "step"), [float("inf")], "times.step must be finite, got inf"),
        (("scenario", "model"), "x" * 1_001, "scenario.model has at most 1000 letters, got 1001"),
        (("error",), "x" * 20_001, "error has at most 20000 letters, got 20001"),
        (("scenario", "steps"), 1, "scenario.steps must be a whole number >= 2, got 1"),
        (("environment",), None, "environment must be an object, got None"),
        (("environment", "threads"), "2", "environment.threads must be a whole number, got '2'"),
        (
            ("scenario", "config"),
            {"a": [[[[[[[[[[[[[[]]]]]]]]]]]]]]},
            "scenario.config.a holds lists or objects more than 12 deep",
        ),
    ],
)
def test_a_wrong_value_is_named(path: tuple[Any, ...], value: Any, message: str):
    with pytest.raises(ValueError, match=f"^not a record: {message}"):
        Record.from_dict(changed(path, value))


anything = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=20)
    | st.just("x" * 30_000),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=8) | st.sampled_from(list(WHOLE)), inner, max_size=4)
    ),
    max_leaves=12,
)
lines = st.one_of(
    st.binary(max_size=200),
    st.builds(
        lambda path, value: json.dumps(changed(path, value)).encode(),
        st.sampled_from(places(WHOLE)),
        anything,
    ),
    st.builds(
        lambda place, drop, put: (
            (text := json.dumps(WHOLE).encode())[:place] + put + text[place + drop :]
        ),
        st.integers(0, len(json.dumps(WHOLE))),
        st.integers(0, 30),
        st.sampled_from(
            [
                b"",
                b"{",
                b"}",
                b"[",
                b"]",
                b'"',
                b"\\",
                b"\n",
                b"\x00",
                b"\xff",
                b"NaN",
                b"9" * 5000,
                b"1e999",
                b"[" * 3000,
            ]
        ),
    ),
)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> RunStore:
    return RunStore(tmp_path_factory.mktemp("fuzzed"))


@settings(max_examples=EXAMPLES, deadline=2000, suppress_health_check=[HealthCheck.too_slow])
@given(data=lines)
def test_a_malformed_line_is_an_error_in_one_line_or_records(store: RunStore, data: bytes):
    store.records_path.write_bytes(data + b"\n")
    records = store.read()
    assert all(
        message.startswith("records.jsonl, line ") and len(message) < 2000
        for message in store.damage
    )
    assert records or store.damage
    assert all(Record.from_dict(json.loads(record.to_json())) == record for record in records)


def test_a_line_says_what_the_data_say():
    line = Record.from_dict(WHOLE).to_json()
    assert json.loads(line) == json.loads(json.dumps(WHOLE))
    assert list(json.loads(line)) == list(WHOLE)
