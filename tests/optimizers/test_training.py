"""Ours reach AdamW's loss within 5 % in as many steps: a GPT on letters and an MLP on digits.

Each loss is that on all data after training: of the GPT for one seed, of the MLP the mean of three.
Learning rates, models and schedule are in tests/bench/training.py, which trains the GPT with more
seeds.
"""

import sys
from collections.abc import Iterator
from functools import lru_cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import torch

from optprof import optimizers

FILE = Path(__file__).parents[1] / "bench" / "training.py"


def load() -> Any:
    """Load the module of the bench; tests/ is no package."""
    spec = spec_from_file_location("bench_training", FILE)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look up their annotations
    spec.loader.exec_module(module)
    return module


training = load()


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread: small tensors gain nothing from more, which slow down on a busy machine."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@lru_cache
def final_loss(task: str, optimizer: str) -> float:
    made = training.TASKS[task]()
    seeds = training.SEEDS[task][:1] if task == "gpt" else training.SEEDS[task]
    return mean(
        training.train(made, training.SPECS[task][optimizer], seed=seed).final for seed in seeds
    )


@pytest.mark.parametrize("name", optimizers.available("optprof"))
@pytest.mark.parametrize("task", ["gpt", "digits"])
def test_it_reaches_the_loss_of_adamw_within_5_percent(task: str, name: str) -> None:
    assert final_loss(task, name) <= 1.05 * final_loss(task, "adamw")


def test_lamb16_reaches_the_loss_of_lamb_within_1_percent() -> None:
    assert final_loss("gpt", "lamb16") <= 1.01 * final_loss("gpt", "lamb")


def test_adamw_itself_learns() -> None:
    assert final_loss("gpt", "adamw") < 1.4  # letters drawn at their frequencies cost 2.9
    assert (
        final_loss("digits", "adamw") < 0.6
    )  # guessing costs 2.30, and nothing gets below the 0.50 of smoothed labels
