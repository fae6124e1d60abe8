"""Watched loops of many kinds: closures, wrapped and compiled steps, no steps, errors."""

import os
import time
from collections import defaultdict
from collections.abc import Callable, Generator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch

import optprof
from optprof.optimizers import SM3
from optprof.optimizers.accumulation import GradientNormThreshold
from optprof.profiler.measuring.watching import Watch
from optprof.profiler.records.record import RankBytes, Ranks, Record
from optprof.profiler.records.store import standing


def layer() -> torch.nn.Linear:
    """Return a layer with 512 bytes of weights."""
    return torch.nn.Linear(8, 16, bias=False)


def loss(model: torch.nn.Module) -> torch.Tensor:
    return model(torch.ones(4, 8)).square().mean()


def train(model: torch.nn.Module, optimizer: Any, steps: int = 4) -> None:
    for _ in range(steps):
        loss(model).backward()
        optimizer.step()
        optimizer.zero_grad()


def watched(optimizer: Any, model: torch.nn.Module, loop: Callable[..., Any] = train) -> Record:
    with Watch(optimizer, model=model) as watch:
        loop(model, optimizer)
    return watch.records[0]


@pytest.mark.parametrize("is_keyword", [False, True])
def test_a_closure_s_forward_and_backward_do_not_count_as_the_step(is_keyword: bool):
    model = layer()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        time.sleep(0.02)
        value = loss(model)
        value.backward()
        return value

    with Watch(optimizer, model=model) as watch:
        losses = [
            optimizer.step(closure=closure) if is_keyword else optimizer.step(closure)
            for _ in range(5)
        ]
    (record,) = watch.records
    assert losses[0] is not None
    assert record.times is not None
    assert record.memory is not None
    assert record.watched is not None
    assert len(record.times["step"]) == 3
    assert max(record.times["step"]) < 0.02 <= min(record.times["iteration"])
    assert (record.memory.gradients, record.memory.optimizer_state) == (512, 512)
    assert list(record.watched.memory) == ["between_steps", "step", "closure", "later_steps"]


def test_a_step_that_calls_its_closure_again_and_again_is_timed_without_it():
    model = layer()
    optimizer = torch.optim.LBFGS(
        model.parameters(), lr=0.01, max_iter=5, tolerance_grad=0, tolerance_change=0
    )
    calls = 0

    def closure() -> torch.Tensor:
        nonlocal calls
        calls += 1
        time.sleep(0.02)
        optimizer.zero_grad()
        value = loss(model)
        value.backward()
        return value

    record = watched(optimizer, model, lambda *_: [optimizer.step(closure) for _ in range(4)])
    assert calls == 4 * 5
    assert record.times is not None
    assert median(record.times["step"]) < 0.02 < 5 * 0.02 <= median(record.times["iteration"])


def test_a_step_that_calls_super_s_step_is_one_step():
    class Mine(torch.optim.SGD):
        def step(self, closure: Any = None) -> Any:
            time.sleep(0.01)
            return super().step(closure)

    def closure() -> torch.Tensor:
        time.sleep(0.05)
        value = loss(model)
        value.backward()
        return value

    # torch hooks a class's step when its first optimizer is made.
    torch.optim.SGD([torch.zeros(1)], lr=0.1)
    model = layer()
    optimizer = Mine(model.parameters(), lr=0.1)
    record = watched(optimizer, model, lambda *_: [optimizer.step(closure) for _ in range(4)])
    assert record.times is not None
    assert len(record.times["step"]) == 2
    assert all(0.01 <= seconds < 0.05 for seconds in record.times["step"])


class Lookahead(torch.optim.Optimizer):
    """A wrapper with its own state that does not call torch's constructor."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer, self.param_groups, self.defaults = (
            optimizer,
            optimizer.param_groups,
            optimizer.defaults,
        )
        self.state = defaultdict(dict)
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter]["slow"] = parameter.detach().clone()

    def step(self, closure: Any = None) -> Any:
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)


class Passing:
    """An object with an optimizer that is not one itself."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.step, self.zero_grad = optimizer.step, optimizer.zero_grad


@pytest.mark.parametrize(
    ("wrap", "name", "state"),
    [
        (Lookahead, f"{__name__}:Lookahead", 2 * 512),
        (Passing, "sgd", 512),
        (lambda made: Passing(Passing(made)), "sgd", 512),  # pyright: ignore[reportArgumentType]
        # It also keeps the sum of the gradients since the last step.
        (
            lambda made: GradientNormThreshold(made, 1e-9, buffered=True, max_draws=3),
            "optprof.optimizers.accumulation:GradientNormThreshold",
            2 * 512,
        ),
    ],
)
def test_wrapped_optimizers_are_watched(wrap: Callable[..., Any], name: str, state: int):
    model = layer()
    record = watched(wrap(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)), model)
    assert record.memory is not None
    assert record.times is not None
    assert (record.scenario.optimizer, record.memory.optimizer_state) == (name, state)
    assert len(record.times["step"]) == 2


def test_with_accelerate_only_real_steps_are_counted():
    accelerate = pytest.importorskip("accelerate")
    accelerator = accelerate.Accelerator(cpu=True, gradient_accumulation_steps=2)
    model, optimizer = accelerator.prepare(layer(), SM3(layer().parameters()))

    def loop(_: torch.nn.Module, __: Any) -> None:
        for _round in range(8):
            with accelerator.accumulate(model):
                accelerator.backward(loss(model))
                optimizer.step()

    optimizer.param_groups[0]["params"] = list(model.parameters())
    record = watched(optimizer, model, loop)
    assert record.memory is not None
    assert record.times is not None
    # An accumulator for each of 16 rows and 8 columns; two of four steps are the warm-up.
    assert (record.scenario.optimizer, record.memory.optimizer_state) == ("sm3", 4 * (16 + 8))
    assert len(record.times["step"]) == 2


class Calling(torch.optim.SGD):
    """A step that gets a model or another object with attributes, and calls it."""

    def step(self, judge: Any) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        assert isinstance(judge, torch.nn.Module | Judge)
        judge(torch.ones(4, 8)).square().mean().backward()
        super().step()
        self.zero_grad()


class Judge:
    """A callable that is not a function."""

    def __init__(self, model: torch.nn.Module) -> None:
        self.model = model

    def __call__(self, batch: torch.Tensor) -> torch.Tensor:
        return self.model(batch)


@pytest.mark.parametrize("is_module", [True, False])
def test_a_step_gets_the_same_object_that_the_loop_passes(is_module: bool):
    model = layer()
    optimizer = Calling(model.parameters())
    judge = model if is_module else Judge(model)
    record = watched(optimizer, model, lambda *_: [optimizer.step(judge) for _ in range(4)])
    assert record.times is not None
    assert record.watched is not None
    assert len(record.times["step"]) == 2
    note = "a step got a Judge as its closure: the step's time includes the closure's"
    assert (note in record.watched.warnings) is not is_module


class BackwardItself(torch.optim.SGD):
    """A step that runs the backward pass."""

    def step(self, loss: torch.Tensor) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        self.zero_grad()
        loss.backward()
        super().step()


def test_gradients_made_by_the_step_itself_are_counted():
    model = layer()
    optimizer = BackwardItself(model.parameters())
    record = watched(optimizer, model, lambda *_: [optimizer.step(loss(model)) for _ in range(3)])
    assert record.memory is not None
    assert record.watched is not None
    assert (record.memory.gradients, record.watched.warnings) == (512, ())


def test_hooks_that_the_loop_removes_are_noted():
    model = layer()
    optimizer = torch.optim.AdamW(model.parameters())

    def loop(*_: Any) -> None:
        train(model, optimizer, 1)
        optimizer._optimizer_step_post_hooks.clear()  # pyright: ignore[reportPrivateUsage]
        train(model, optimizer, 3)

    record = watched(optimizer, model, loop)
    assert record.watched is not None
    assert [warning[:37] for warning in record.watched.warnings] == [
        "the loop removed the hooks that watch"
    ]


def test_parameters_that_the_model_has_replaced_are_noted():
    model = layer()
    optimizer = torch.optim.SGD(model.parameters())

    def loop(*_: Any) -> None:
        train(model, optimizer)
        model.load_state_dict(
            {name: value.clone() for name, value in model.state_dict().items()}, assign=True
        )

    record = watched(optimizer, model, loop)
    assert record.memory is not None
    assert record.watched is not None
    assert record.memory.state_by_key == {"params": 512}
    assert record.watched.warnings == (
        "1 of the parameters that SGD steps are not the model's: they count as its state",
    )


def test_closing_a_generator_that_trains_is_a_success():
    model = layer()
    optimizer = torch.optim.AdamW(model.parameters())
    watch = Watch(optimizer, model=model)

    def steps() -> Generator[int]:
        with watch:
            for number in range(100):
                train(model, optimizer, 1)
                yield number

    training = steps()
    assert [next(training) for _ in range(4)] == [0, 1, 2, 3]
    training.close()
    assert [(record.outcome, record.error) for record in watch.records] == [("ok", None)]


def test_a_watch_is_used_once():
    model = layer()
    watch = Watch(torch.optim.AdamW(model.parameters()), model=model)
    with watch:
        pass
    with pytest.raises(ValueError, match="make a new one"), watch:
        pass


class Plain(torch.optim.Optimizer):
    """A step that torch.compile compiles to one graph."""

    @torch.no_grad()
    def step(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        for parameter in self.param_groups[0]["params"]:
            parameter.sub_(parameter.grad * 0.1)


@pytest.mark.parametrize("is_one_graph", [False, True])
def test_a_compiled_step_is_watched_unless_it_is_one_graph(is_one_graph: bool):
    model = layer()
    optimizer = Plain(model.parameters(), {})
    step = torch.compile(optimizer.step, backend="eager", fullgraph=is_one_graph)

    def loop(_: torch.nn.Module, __: Any) -> None:
        for _round in range(4):
            loss(model).backward()
            step()

    record = watched(optimizer, model, loop)
    assert record.outcome == "ok"
    assert record.watched is not None
    assert [len(samples) for samples in (record.times or {}).values()] == (
        [] if is_one_graph else [2, 2]
    )
    assert record.scenario.implementation == "compiled"
    assert ["one graph of torch.compile" in warning for warning in record.watched.warnings] == [
        True
    ] * is_one_graph


def skipped(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Make infinite gradients, so that the scaler skips the step."""
    scaler = torch.amp.GradScaler("cpu")
    for _ in range(3):
        scaler.scale(loss(model) * float("inf")).backward()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()


@pytest.mark.parametrize("loop", [skipped, lambda *_: None])
def test_a_loop_without_a_step_is_a_failure(loop: Callable[..., None], tmp_path: Path):
    model = layer()
    optimizer = torch.optim.AdamW(model.parameters())
    with optprof.watch(optimizer, model=model, out=tmp_path) as run:
        loop(model, optimizer)
    (record,) = run.records
    assert (record.outcome, record.times) == ("failed", None)
    assert record.error is not None
    assert record.error.startswith(
        "AdamW.step never ran in this block: a GradScaler may have skipped it"
    )
    assert record.error in run._repr_html_()
    assert record.error in run.report(tmp_path).read_text(encoding="utf-8")


def test_steps_without_gradients_are_noted():
    model = layer()
    optimizer = torch.optim.AdamW(model.parameters())
    record = watched(optimizer, model, lambda *_: [optimizer.step() for _ in range(3)])
    assert record.watched is not None
    assert record.watched.warnings == ("no parameter had a gradient when AdamW stepped",)


@pytest.mark.parametrize(
    ("place", "note"),
    [
        (
            "optprof.profiler.measuring.live_steps.storage_bytes",
            "could not count the bytes of the gradients: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.watching.state_bytes",
            "could not count the bytes of parameters and state: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.resident.resident_bytes",
            "could not watch the memory of each phase: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.clock.Clock.now",
            "could not read the clock: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.clock.Clock.seconds",
            "could not read the times: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.live_subject.live_options",
            "could not read the options of the groups: KeyError: 'by hand'",
        ),
        (
            "optprof.profiler.measuring.watching.model_config",
            "could not read the model: KeyError: 'by hand'",
        ),
    ],
)
def test_a_failure_of_the_watcher_is_noted_and_does_not_end_the_training(
    place: str, note: str, monkeypatch: pytest.MonkeyPatch
):
    def fails(*_: Any) -> None:
        raise KeyError("by hand")

    monkeypatch.setattr(place, fails)
    model = layer()
    before = model.weight.detach().clone()
    record = watched(torch.optim.AdamW(model.parameters()), model)
    assert not torch.equal(before, model.weight)
    assert record.outcome == "ok"
    assert record.watched is not None
    # The line of code follows.
    assert any(warning.startswith(note) for warning in record.watched.warnings)
    assert Record.from_dict(record.to_dict()).scenario.optimizer == "adamw"


def test_a_record_that_cannot_be_written_is_a_warning_and_is_not_lost(tmp_path: Path):
    model = layer()
    optimizer = torch.optim.AdamW(model.parameters())
    watching = optprof.watch(optimizer, out=tmp_path / "run")
    run = watching.__enter__()
    train(model, optimizer)
    (tmp_path / "run" / "records.jsonl").unlink()
    (tmp_path / "run" / "records.jsonl").mkdir()
    with pytest.warns(UserWarning, match="the record of adamw was not kept"):
        watching.__exit__(None, None, None)
    assert run.records[0].outcome == "ok"


def test_sparse_gradients_count_their_values_and_indices():
    model = torch.nn.Embedding(50, 16, sparse=True)
    optimizer = SM3(model.parameters())

    def loop(_: torch.nn.Module, __: Any) -> None:
        for _round in range(3):
            model(torch.tensor([3, 5, 9])).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()

    record = watched(optimizer, model, loop)
    assert record.memory is not None
    # Three rows of 16 floats, three indices of eight bytes, and one accumulator per row.
    assert (record.memory.gradients, record.memory.optimizer_state) == (3 * 16 * 4 + 3 * 8, 4 * 50)


def test_a_sharded_model_counts_the_bytes_of_this_rank(tmp_path: Path):
    distributed = torch.distributed
    if not distributed.is_available():
        pytest.skip("torch has no distributed package")
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1
    )
    try:
        parameter = torch.nn.Parameter(
            distribute_tensor(torch.ones(8, 4), init_device_mesh("cpu", (1,)), [Shard(0)])
        )
        optimizer = torch.optim.AdamW([parameter])
        with Watch(optimizer) as watch:
            for _ in range(3):
                parameter.grad = torch.ones_like(parameter)
                optimizer.step()
    finally:
        distributed.destroy_process_group()
    memory, watch = watch.records[0].memory, watch.records[0].watched
    assert memory is not None
    assert watch is not None
    assert (memory.parameters, memory.gradients, memory.optimizer_state) == (128, 128, 2 * 128 + 4)
    assert watch.warnings == ()


def test_equal_ranks_of_a_training_have_a_record_each(tmp_path: Path):
    from torch.testing._internal.distributed.fake_pg import FakeStore

    for rank in range(2):
        torch.distributed.init_process_group("fake", store=FakeStore(), rank=rank, world_size=2)
        try:
            model = layer()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
            with optprof.watch(optimizer, model=model, out=tmp_path / "run"):
                train(model, optimizer)
        finally:
            torch.distributed.destroy_process_group()
    records = standing(optprof.read_run(tmp_path / "run").records)
    assert [record.scenario.config["rank"] for record in records] == [0, 1]
    # 512 bytes of weights, of their gradients and of their momentum.
    assert [record.ranks for record in records] == [
        Ranks(
            each=(RankBytes(rank=rank, parameters=512, gradients=512, optimizer_state=512),),
        )
        for rank in range(2)
    ]


class Unmade(torch.optim.Optimizer):
    """An optimizer that did not call torch's constructor and wraps no other."""

    def __init__(self) -> None:
        pass


@pytest.mark.parametrize("optimizer", [torch.optim.SGD([{"params": []}], lr=0.1), Unmade()])
def test_an_optimizer_that_cannot_be_watched_is_refused_in_one_line(optimizer: Any):
    with pytest.raises(
        ValueError, match=r"SGD has no parameters yet|Unmade has no parameter groups"
    ):
        Watch(optimizer)
