"""Steps that ranks share, simulated with the other options of a scenario, and their errors."""

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch.distributed as dist

from optprof.profiler.simulating.simulation import simulate
from optprof.scenarios import Scenario

LLAMA = {"num_hidden_layers": 1, "hidden_size": 64, "vocab_size": 128}


@pytest.fixture(autouse=True)
def without_group() -> Iterator[None]:
    """Leave the fake process group, which other tests must not see."""
    yield
    if dist.is_initialized():
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"model": "tiny", "ranks": 3, "parallel": "tp:3"},
            "tiny has num_attention_heads=4, which 3 ranks cannot share; use a tp:N whose",
        ),
        (
            {"model": "tiny", "config": {"n_inner": 127}, "ranks": 2, "parallel": "tp:2"},
            "tiny has n_inner=127, which 2 ranks cannot share; use a tp:N whose N divides 127",
        ),
        (
            {
                "model": "llama3-8b",
                "config": {**LLAMA, "num_attention_heads": 4, "num_key_value_heads": 1},
                "ranks": 4,
                "parallel": "fsdp2+tp:2",
            },
            "llama3-8b has num_key_value_heads=1, which 2 ranks cannot share",
        ),
        (
            {"model": "vit-s16", "ranks": 2, "parallel": "tp:2"},
            "tp has plans for gpt2 and llama models, got vit-s16; use fsdp2, ddp or zero1",
        ),
        (
            {"model": "tiny", "lora_rank": 2, "ranks": 2, "parallel": "tp:2"},
            "tp has plans for gpt2 and llama models, got tiny with adapters; use fsdp2",
        ),
        (
            {"model": "tiny", "optimizer": "muon", "ranks": 2, "parallel": "zero1"},
            "zero1 takes optimizers with one group of parameters, and muon makes several; use ddp",
        ),
        (
            {"model": "tiny", "optimizer": "adam-mini", "ranks": 2, "parallel": "zero1"},
            "zero1 splits plain parameters, and adam-mini needs their names; use ddp or fsdp2",
        ),
    ],
)
def test_what_cannot_be_shared_is_one_line_of_error(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        simulate(Scenario(**{"batch_size": 1, "sequence_length": 8, **fields}))
    assert "\n" not in str(error.value)
