"""Pictures drawn while scenarios are simulated: the same files, and none while steps are timed."""

import time

import pytest

from optprof.profiler.records.store import RunStore
from optprof.reports import write_report
from optprof.reports.ahead import Ahead
from optprof.reports.pictures import drawing
from optprof.reports.pictures.drawing import draw


@pytest.fixture
def drawn(monkeypatch):
    """The names of the pictures that are drawn, in order."""
    names = []

    def draws(picture, style):
        names.append(picture.name)
        time.sleep(0.05)
        return draw(picture, style)

    monkeypatch.setattr(drawing, "draw", draws)
    return names


def wait_for(condition):
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def files_of(folder):
    return {
        path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()
    }


def test_a_setting_is_drawn_once_it_is_complete_while_others_run(simulated, tmp_path, drawn):
    trained = simulated("adamw"), simulated("sm3")
    state = simulated("adamw", model="gpt2", workload="state", parameter_count=10**8).scenario
    store = RunStore.create(tmp_path / "run")
    scenarios = [*(record.scenario for record in trained), state]
    with Ahead(tmp_path / "run", None, scenarios) as ahead:
        ahead.start(scenarios[0])
        ahead.start(state)
        store.append(trained[0])
        ahead.finish(scenarios[0])
        ahead.start(scenarios[1])
        time.sleep(0.3)
        assert drawn == []
        store.append(trained[1])
        ahead.finish(scenarios[1])
        wait_for(lambda: drawn == ["savings", "peak"])
    store.close()


def test_a_report_draws_what_has_changed_and_writes_the_same_files(simulated, tmp_path, drawn):
    trained = simulated("adamw"), simulated("sm3")
    # A state of another size changes the plot over sizes, and no other picture.
    larger = simulated("adamw", model="gpt2", workload="state", parameter_count=10**8)
    run, plain = tmp_path / "run", tmp_path / "plain"
    store = RunStore.create(run)
    for record in trained:
        store.append(record)
    with Ahead(run, None) as ahead:
        ahead.start(larger.scenario)
        wait_for(lambda: drawn == ["savings", "peak"] and len(ahead.drawn) == 2)
        store.append(larger)
    store.close()
    del drawn[:]
    write_report(run, drawn=ahead.drawn)
    assert drawn == ["state-by-size"]
    store = RunStore.create(plain)
    for record in (*trained, larger):
        store.append(record)
    write_report(plain)
    assert files_of(run) == files_of(plain)


def test_nothing_is_drawn_while_a_step_is_timed(simulated, timed, tmp_path, drawn):
    trained, measured = simulated("adamw"), timed("adamw")
    store = RunStore.create(tmp_path)
    for record in (trained, simulated("sm3")):
        store.append(record)
    with Ahead(tmp_path, None) as ahead:
        ahead.start(trained.scenario)
        wait_for(lambda: drawn)
        ahead.start(measured.scenario)
        # The picture that was begun is complete, and no other begins.
        assert drawn == ["savings"]
        assert len(ahead.drawn) == 1
        time.sleep(0.05)
        assert drawn == ["savings"]
        ahead.start(trained.scenario)
        wait_for(lambda: len(ahead.drawn) == 2)
    assert drawn == ["savings", "peak"]


def test_an_error_while_drawing_ahead_is_left_to_the_report(simulated, tmp_path, monkeypatch):
    def fails(*_):
        raise OSError("no")

    monkeypatch.setattr(drawing, "draw", fails)
    RunStore.create(tmp_path).append(simulated("adamw"))
    with Ahead(tmp_path, None) as ahead:
        ahead.start(simulated("adamw").scenario)
    assert ahead.drawn == []
    with pytest.raises(OSError, match="no"):
        write_report(tmp_path)
