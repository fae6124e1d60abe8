"""Requests that cannot be measured or written down are refused in one line, before work starts."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

import optprof
from optprof import optimizers
from optprof.profiler.machine import environment
from optprof.profiler.records.record import Environment
from optprof.profiler.records.store import RunStore
from optprof.profiler.running.plan import comparison, plan, require_timeout
from optprof.scenarios import schema, suites
from optprof.scenarios.models import read_config

HUGE = "9" * 30


def refusal(**changes: Any) -> str:
    question: dict[str, Any] = {"models": ["tiny"], "optimizers": ["adamw"], "device": "sim"}
    with pytest.raises(ValueError, match=r"^[^\n]{10,500}$") as caught:
        plan(comparison(**question | changes))
    return str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seed": 2**70}, "seed is at most"),
        ({"batch_size": 10**12}, "batch_size is at most"),
        (
            {"models": ["gpt2"], "batch_size": 1 << 20},
            "batch_size times sequence_length is at most",
        ),
        ({"micro_batches": 10**9}, "micro_batches is at most"),
        ({"steps": 10**9}, "steps is at most"),
        ({"steps": 100_000}, "steps times micro_batches is at most"),
        ({"lora_rank": 10**9}, "lora_rank is at most"),
        ({"max_grad_norm": float("inf")}, "max_grad_norm must be finite"),
        ({"max_grad_norm": float("nan")}, "max_grad_norm must be finite"),
        ({"max_grad_norm": 1e-320}, "max_grad_norm must be a number >= 1.17"),
        ({"max_grad_norm": 1e308}, "max_grad_norm is at most"),
        ({"alloc_conf": f"max_split_size_mb:{HUGE}"}, "max_split_size_mb is at most"),
        ({"alloc_conf": f"large_segment_size_mb:{HUGE}"}, "large_segment_size_mb is at most"),
        ({"alloc_conf": f"max_split_size_mb:{'9' * 5000}"}, "max_split_size_mb is at most"),
        ({"models": ["tiny"] * 50, "optimizers": ["adamw"] * 50}, "a comparison has at most 2000"),
        ({"optimizers": [f"adamw:lr={HUGE}"]}, "adamw.lr is at most"),
        ({"optimizers": ["adamw:lr=1e400"]}, "adamw.lr must be finite"),
        ({"optimizers": [f"adamw:lr={'(' * 5000}"]}, "an optimizer's text has at most"),
        ({"optimizers": ["prodigy:growth_rate=-1e400"]}, "prodigy"),
        ({"accumulate": "gnts:threshold=1e400"}, "gnts.threshold must be finite"),
        ({"accumulate": "x" * 5000}, "accumulate has at most"),
        ({"config": {"n_layer": 10**9}}, "config.n_layer is at most 1024"),
        ({"config": {"n_embd": 10**13}}, "config.n_embd is at most"),
        ({"config": {"vocab_size": 10**30}}, "config.vocab_size is at most"),
        ({"config": {"n_layer": {1, 2}}}, "config.n_layer must be plain data"),
        ({"config": {"n_layer": "9" * 5000}}, "tiny cannot be built with"),
        ({"dtype": "x" * 3000}, "dtype must be one of"),
        ({"models": ["m\udcff:net"]}, ""),
    ],
)
def test_an_impossible_comparison_is_refused_in_one_line(changes: dict[str, Any], message: str):
    assert refusal(**changes).startswith(message)


def test_an_infinite_default_may_be_written_and_is_left_to_the_optimizer():
    if "prodigy" not in optimizers.available():
        pytest.skip("prodigy is not installed")
    scenario, *_ = plan(
        comparison(models=["tiny"], optimizers=["prodigy:growth_rate=1e400"], device="sim")
    )
    assert "growth_rate" not in scenario.options


@pytest.mark.parametrize("seconds", [0, -1, 0.5, float("nan"), float("inf"), 1e308])
def test_an_invalid_time_limit_is_refused(seconds: float):
    with pytest.raises(ValueError, match=r"^timeout [^\n]*$"):
        require_timeout(seconds)
    require_timeout(None)
    require_timeout(1)


@pytest.mark.parametrize(
    "pair", [f"n_layer={'9' * 30_000}", f"n_layer={'(' * 5000}", f"n_layer={'-' * 5000}1"]
)
def test_a_configuration_s_text_has_a_limit(pair: str):
    try:
        assert isinstance(read_config([pair])["n_layer"], str)
    except ValueError as error:
        assert len(str(error)) < 200  # noqa: PT017


@pytest.mark.parametrize(
    "field",
    [
        "batch_size = 1000000000000",
        "sequence_length = 1000000000",
        "micro_batches = 1000000000",
        "steps = 1000000000",
        "lora_rank = 1000000000",
        "seed = 99999999999999999999",
        "max_grad_norm = 1e300",
    ],
)
def test_a_number_in_a_suite_has_a_limit(field: str):
    name = field.partition(" ")[0]
    with pytest.raises(ValueError, match=f"^scenarios 1, {name} is at most "):
        suites.read("mine", f"[[scenarios]]\nmodel = 'tiny'\n{field}\n".encode())


def test_arguments_of_any_kind_make_a_record_that_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    undecodable = os.fsdecode(b"--out=run-\xff")
    words = ["optprof", undecodable, "x " * 15_000, *("y" for _ in range(200_000))]
    monkeypatch.setattr("sys.argv", words)
    with optprof.watch(
        torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1), model="n" * 3000, out=tmp_path
    ):
        pass
    (record,) = RunStore(tmp_path).read()
    assert record.environment.command == ("optprof",)
    assert len(record.scenario.model) <= schema.MOST_NAME
    command = environment.command()
    assert "run-\\xff" in command[1]
    assert "left out" in command[2]
    assert sum(map(len, command)) < 20_000


class Odd(torch.optim.SGD):
    """An optimizer whose groups, state and errors hold what no record could."""

    def __init__(self, parameters: Any) -> None:
        super().__init__(parameters, lr=0.1)
        nested: list[Any] = []
        for _ in range(100):
            nested = [nested]
        for number, group in enumerate(self.param_groups):
            group |= {
                "huge": 10**5000,
                "text": "\udcff" * 30_000,
                "deep": nested,
                3: "three",
                "k" * 3000: number,
                "nan": float("nan"),
            }

    def step(self, closure: Any = None) -> Any:
        for number, group in enumerate(self.param_groups):
            for parameter in group["params"]:
                self.state[parameter][f"{number}" * 3000 + "\udcff"] = torch.zeros(2)
        return super().step(closure)


def test_a_loop_with_odd_options_state_and_errors_makes_a_record_that_is_read(tmp_path: Path):
    parameters = [torch.nn.Parameter(torch.ones(2)) for _ in range(1_100)]
    odd = Odd(
        [
            {"params": [parameter], "lr": 0.1 / (number + 1)}
            for number, parameter in enumerate(parameters)
        ]
    )

    def train() -> None:
        with optprof.watch(odd, out=tmp_path):
            for parameter in parameters:
                parameter.grad = torch.ones(2)
            odd.step()
            raise RuntimeError("\udcff" + "no luck " * 10_000)

    with pytest.raises(RuntimeError, match="no luck"):
        train()
    (record,) = RunStore(tmp_path).read()
    assert record.outcome == "failed"
    assert record.memory is not None
    assert record.memory.optimizer_state == 1_100 * 8
    assert len(record.memory.state_by_key) <= 1_001
    assert record.error is not None
    assert len(record.error) < 3_000


def test_a_full_run_is_an_error_before_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(2))], lr=0.1)
    with optprof.watch(optimizer, out=tmp_path):
        pass
    monkeypatch.setattr(schema, "MOST_RECORDS", 1)
    ran = []
    with (
        pytest.raises(ValueError, match="a run has at most 1 records"),
        optprof.watch(optimizer, out=tmp_path),
    ):
        ran.append(True)
    assert not ran


def test_the_environment_fits_the_schema():
    made = environment.environment(seed=0)
    assert schema.read(Environment, made.to_dict()) == made
