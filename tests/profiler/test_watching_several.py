"""Several optimizers in one loop, and several watches at once: their steps and peaks."""

import threading
from mmap import PAGESIZE, mmap
from pathlib import Path
from typing import Any

import pytest
import torch

import optprof
from optprof.profiler.measuring.phases import Counters, PhaseWatch
from optprof.profiler.measuring.watching import Watch
from optprof.profiler.records.record import Level, Record

SPIKE = 64 << 20


def spike() -> None:
    """Fill and free 64 MiB without malloc, which may keep freed memory after another test."""
    with mmap(-1, SPIKE) as pages:
        pages[::PAGESIZE] = bytes(SPIKE // PAGESIZE)


def gan() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Return a generator of 8 x 16 and a discriminator of 16 x 2: 512 and 128 bytes."""
    return torch.nn.Linear(8, 16, bias=False), torch.nn.Linear(16, 2, bias=False)


def play(
    generator: torch.nn.Module,
    discriminator: torch.nn.Module,
    *optimizers: torch.optim.Optimizer,
    rounds: int = 4,
) -> None:
    """Step the first optimizer, use much memory for a moment, and step the second."""
    for _ in range(rounds):
        for place, optimizer in enumerate(optimizers):
            discriminator(generator(torch.ones(4, 8))).square().mean().backward()
            if place > 0:
                spike()
            optimizer.step()
            optimizer.zero_grad()


def peaks(record: Record) -> dict[str, int]:
    assert record.watched is not None
    return {phase: counters["resident"].peak for phase, counters in record.watched.memory.items()}


def test_a_watch_of_two_optimizers_makes_two_records_with_the_loop_s_memory(tmp_path: Path):
    generator, discriminator = gan()
    first, second = (
        torch.optim.AdamW(generator.parameters()),
        torch.optim.SGD(discriminator.parameters(), lr=0.1, momentum=0.9),
    )
    with optprof.watch(first, second, model=[generator, discriminator], out=tmp_path) as run:
        play(generator, discriminator, first, second)
    one, other = run.records
    assert (one.scenario.optimizer, other.scenario.optimizer) == ("adamw", "sgd")
    assert one.memory is not None
    assert other.memory is not None
    assert (one.memory.parameters, one.memory.gradients, one.memory.optimizer_state) == (
        512,
        512,
        2 * 512 + 4,
    )
    assert (other.memory.parameters, other.memory.gradients, other.memory.optimizer_state) == (
        128,
        128,
        128,
    )
    assert {
        len(samples) for record in run.records for samples in (record.times or {}).values()
    } == {2}
    assert peaks(one)["between_steps"] == peaks(other)["between_steps"]
    assert peaks(one)["later_steps"] == peaks(other)["later_steps"]
    # The steps of one are the other steps of the other.
    assert peaks(one)["step"] == peaks(other)["other_steps"]
    assert peaks(one)["other_steps"] == peaks(other)["step"]
    assert len(optprof.read_run(tmp_path).records) == 2


def test_the_order_of_optimizers_does_not_change_the_scenario():
    parameters = [torch.nn.Parameter(torch.ones(4)) for _ in range(4)]
    for parameter in parameters:
        parameter.grad = torch.ones(4)
    first, *others = (
        torch.optim.SGD([parameter], lr=rate)
        for parameter, rate in zip(parameters, (0.1, 0.2, 0.3, 0.2), strict=True)
    )
    scenarios: list[Any] = []
    for order in (others, others[::-1]):
        with Watch(first, *order) as watch:
            for optimizer in (first, *order):
                optimizer.step()
        scenarios.append(watch.records[0].scenario)
    assert scenarios[0] == scenarios[1]
    # Equal optimizers are counted.
    assert sorted(name[:-7] for name in scenarios[0].config["beside"]) == ["2 of sgd", "sgd"]


def test_a_shared_module_is_divided_among_its_optimizers():
    model = torch.nn.Linear(8, 16)
    first, second = torch.optim.SGD([model.weight], lr=0.1), torch.optim.SGD([model.bias], lr=0.1)
    with Watch(first, second, model=model) as watch:
        play(model, torch.nn.Identity(), first, second)
    assert [record.memory.parameters for record in watch.records if record.memory] == [512, 64]
    assert {record.scenario.model for record in watch.records} == {"torch.nn.modules.linear:Linear"}


def test_equal_optimizers_have_separate_records(tmp_path: Path):
    critics = [torch.nn.Linear(4, 4), torch.nn.Linear(4, 4)]
    optimizers = [torch.optim.AdamW(critic.parameters()) for critic in critics]
    with optprof.watch(*optimizers, model=critics, out=tmp_path):
        for critic, optimizer in zip(critics, optimizers, strict=True):
            critic(torch.ones(1, 4)).sum().backward()
            optimizer.step()
    assert len(optprof.read_run(tmp_path).records) == 2


@pytest.mark.parametrize("outer", [0, 1])
def test_nested_watches_do_not_reset_each_other_s_peaks(outer: int):
    generator, discriminator = gan()
    models = (generator, discriminator)
    optimizers = tuple(torch.optim.AdamW(model.parameters()) for model in models)
    with Watch(optimizers[outer]) as one, Watch(optimizers[1 - outer]) as other:
        play(*models, *optimizers)
    for (record,) in (one.records, other.records):
        highest = peaks(record)
        assert highest["between_steps"] >= max(highest["step"], SPIKE)
        # The spike is between the steps of both.
        assert highest["between_steps"] - highest["step"] > SPIKE // 2


def test_each_interval_has_its_own_peak():
    """The counter has one peak, which a reset sets to the level."""
    level = peak = 10

    def go_to(*levels: int) -> None:
        nonlocal level, peak
        for level in levels:
            peak = max(peak, level)

    def reset() -> bool:
        nonlocal peak
        peak = level
        return True

    counters = Counters(read=lambda: {"used": Level(end=level, peak=peak)}, reset=reset)
    go_to(99, 10)
    with counters.interval() as whole:
        go_to(70, 20)
        with counters.interval() as first:
            go_to(30, 25)
        assert first == {"used": Level(end=25, peak=30)}
        with counters.interval() as second:
            go_to(15)
        assert second == {"used": Level(end=15, peak=25)}
    assert whole == {"used": Level(end=15, peak=70)}


def test_a_phase_that_ends_in_an_exception_is_discarded():
    counters = Counters(read=lambda: {"used": Level(end=1, peak=1)}, reset=lambda: True)
    watch = PhaseWatch(counters)
    with pytest.raises(KeyError), watch.phase("step"):
        raise KeyError
    with watch.phase("later"):
        pass
    assert list(watch.levels()) == ["later"]
    assert not counters._open


def test_threads_may_watch_their_own_training():
    records: list[Record] = []

    def train() -> None:
        models = gan()
        optimizer = torch.optim.AdamW(models[0].parameters())
        with Watch(optimizer) as watch:
            for _ in range(20):
                models[0](torch.ones(4, 8)).sum().backward()
                optimizer.step()
        records.extend(watch.records)

    threads = [threading.Thread(target=train) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [(record.outcome, record.watched.warnings) for record in records if record.watched] == [
        ("ok", ())
    ] * 4


@pytest.mark.parametrize(
    ("model", "error"),
    [
        (["one"], "one for each; got 1 for 2"),
        (3, "a torch.nn.Module or a name, got int"),
        ([object(), None], "or a name, got object"),
    ],
)
def test_a_model_of_the_wrong_kind_or_number_is_refused(model: Any, error: str):
    optimizers = [torch.optim.SGD([torch.zeros(1)], lr=0.1) for _ in range(2)]
    with pytest.raises(ValueError, match=error):
        Watch(*optimizers, model=model)


def test_an_optimizer_given_twice_is_refused():
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=0.1)
    with pytest.raises(ValueError, match="once"):
        Watch(optimizer, optimizer)
