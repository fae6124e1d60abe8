"""Records at the limits of the schema: each is read back as written, and every report is made."""

import json
import random
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass, replace
from io import StringIO
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from msgspec import Meta

from optprof.profiler.records.record import Environment, Record
from optprof.profiler.records.store import RunStore, standing
from optprof.reports import print_run, run_markdown, write_report
from optprof.reports.comparison.comparing import Comparing
from optprof.reports.frame import frame
from optprof.reports.page import render_page
from optprof.scenarios import Scenario, schema

LONG = "m:" + "Wide_name." * 99
TEXTS = ["", "x", "adamw", LONG, "\u202e<b>|`", "\x1b[31m", "=1+1", "名" * 300]
KEYS = [
    "step",
    "iteration",
    "forward",
    "exp_avg",
    "float32",
    "activation",
    "allocated",
    "tensors",
    "",
    LONG,
]
NUMBERS = [0.0, 5e-324, 1e-300, 1e-9, 0.1, 1.0, 3e38, 1e100, 1e300, -1.0, -1e300]
WHOLES = [0, 1, 2, 3, 1000, 2**31, 2**53 + 1, 2**63 - 1, -1, -(2**63 - 1)]
PLAIN = [None, True, 0, -1, 2**63 - 1, 0.1, 1e308, "", "x", LONG, [], [0.9, 0.99], {}, {"a": [1]}]
CHOSEN: dict[str, list[Any]] = {
    "model": ["gpt2", "tiny", "m:" + "f" * 998],
    "optimizer": ["adamw", "sm3", "m:" + "C" * 998],
    "gpu": [None, "t4", "nobody's"],
    "alloc_conf": ["", "expandable_segments:True"],
    "accumulate": [None],
    # An anonymous environment would leave out its other fields.
    "anonymous": [False],
    "origin": ["measured", "simulated", "estimated"],
}


def extreme(draw: random.Random, annotation: Any, name: str = "") -> Any:
    """Return a value of the annotation, more often than not at one of its limits."""
    if name in CHOSEN:
        return draw.choice(CHOSEN[name])
    origin, arguments = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        limits = [one for one in arguments if isinstance(one, Meta)]
        return limited(draw, annotation, limits[0]) if limits else extreme(draw, arguments[0])
    if origin is Literal:
        return draw.choice(arguments)
    if NoneType in arguments:
        kinds = [kind for kind in arguments if kind is not NoneType]
        return None if draw.random() < 0.2 else extreme(draw, kinds[0])
    if origin is tuple:
        return tuple(extreme(draw, arguments[0]) for _ in range(draw.choice([0, 1, 2, 8])))
    if origin is not None and issubclass(origin, Mapping):
        values = draw.sample(KEYS, draw.randrange(4))
        return {key: extreme(draw, arguments[1]) for key in values}
    if is_dataclass(annotation) and isinstance(annotation, type):
        return made(draw, annotation)
    return draw.choice(
        {str: TEXTS, int: WHOLES, float: NUMBERS, bool: [False, True]}.get(annotation, PLAIN)
    )


def limited(draw: random.Random, annotation: Any, limit: Any) -> Any:
    kind = get_args(annotation)[0]
    if kind is str:
        return draw.choice([text for text in TEXTS if len(text) <= limit.max_length])
    if kind not in (int, float):
        return extreme(draw, kind)
    # The least time other than 0 is the least that a clock measures.
    least = schema.LEAST_SECONDS if annotation is schema.Seconds else limit.ge
    ends = [kind(least), kind(limit.le)]
    inner = [one for one in (WHOLES if kind is int else NUMBERS) if least <= one <= limit.le]
    return draw.choice([*ends, *inner])


def made(draw: random.Random, kind: type[Any]) -> Any:
    hints = get_type_hints(kind, include_extras=True)
    required = [
        each.name
        for each in fields(kind)
        if each.default is MISSING and each.default_factory is MISSING
    ]
    names = [name for name in hints if name in required or draw.random() < 0.8]
    while True:
        values = {
            name: extreme(
                draw, hints[name], name if kind in (Scenario, Record, Environment) else ""
            )
            for name in names
        }
        try:
            return kind(**values)
        except ValueError:
            # These fields of a scenario contradict each other.
            names = [name for name in names if name in required or draw.random() < 0.8]


def run_of(seed: int, count: int = 4) -> list[Record]:
    """Return records that share models and optimizers, so that reports have pairs to compare."""
    draw = random.Random(seed)
    records = [made(draw, Record) for _ in range(count)]
    for _ in range(count):
        # Take each field from one of two records.
        one, other = draw.sample(records, 2)
        parts = {
            name: getattr(draw.choice((one, other)), name)
            for name in ("memory", "times", "watched", "estimate", "course", "parameter_count")
        }
        origin = draw.choice(["measured", "simulated"])
        settings = {
            "device": "cpu" if origin == "measured" else "sim",
            "optimizer": draw.choice(["adamw", "sm3", other.scenario.optimizer]),
        }
        records.append(
            replace(
                one,
                scenario=replace(one.scenario, **settings, steps=2, micro_batches=1),
                outcome="ok",
                origin=origin,
                **parts,
            )
        )
    states = [record for record in records if record.memory is not None][:3]
    return [
        *records,
        *(
            replace(
                record,
                scenario=replace(record.scenario, workload="state", accumulate=None),
                origin="simulated",
            )
            for record in states
        ),
    ]


@settings(max_examples=100, deadline=None)
@given(seed=st.integers(0, 2**32))
def test_a_record_is_read_back_as_written(seed: int):
    for record in run_of(seed):
        assert Record.from_dict(json.loads(record.to_line())) == record


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32))
def test_every_table_is_made_of_extreme_records(
    tmp_path_factory: pytest.TempPathFactory, seed: int
):
    folder = tmp_path_factory.mktemp("extremes")
    store = RunStore.create(folder)
    for record in run_of(seed):
        store.append(record)
    store.close()
    records = standing(store.read())
    print_run(records, StringIO())
    assert len(frame(records)) == len(records)
    assert run_markdown(folder)
    assert "</html>" in render_page(records)
    store.write_csv(records)
    comparing = Comparing.of(folder, folder, [], threshold="5%", across_machines=True)
    comparing.write_json(StringIO())
    comparing.markdown(only_regressed=False)
    comparing.render(StringIO(), only_regressed=False)


@pytest.mark.parametrize("seed", [1004])
def test_every_picture_is_drawn_of_extreme_records(tmp_path: Path, seed: int):
    store = RunStore.create(tmp_path)
    for record in run_of(seed):
        store.append(record)
    store.close()
    assert write_report(tmp_path).is_file()
