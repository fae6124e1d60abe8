"""Simulated ranks against real processes: bytes of what each keeps, and the losses of its steps."""

# pyright: reportPrivateImportUsage=false

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from optprof.profiler.simulating.simulation import run_simulation
from optprof.profiler.training.optimizer import make_optimizer
from optprof.profiler.training.parallel import spread
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build, load_code

OPTIMIZERS = ("adamw", "lamb", "lamb16", "sgd-sai", "sm3")
# Few of these sizes divide by 4. Half of `n_inner` and of `intermediate_size` is odd, so the shards
# of a mesh of 2 times 2 differ too.
MODELS: dict[str, dict[str, Any]] = {
    "gpt2": {
        "n_layer": 1,
        "n_head": 4,
        "n_embd": 60,
        "n_inner": 242,
        "vocab_size": 257,
        "n_positions": 17,
        "attn_pdrop": 0.0,
        "embd_pdrop": 0.0,
        "resid_pdrop": 0.0,
    },
    "llama2-7b": {
        "num_hidden_layers": 1,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "hidden_size": 44,
        "head_dim": 10,
        "intermediate_size": 102,
        "vocab_size": 257,
    },
}
# Four tensor-parallel ranks need layers that they divide.
DIVIDED: dict[str, dict[str, Any]] = {
    "gpt2": {"n_inner": 244},
    "llama2-7b": {"intermediate_size": 100},
}
OPTIONS = {
    "fsdp2:reshard_after_forward=false": ("adamw", "sm3"),
    "fsdp2:mixed_precision=bf16": ("adamw", "lamb16"),
    "fsdp2:cpu_offload=true": ("adamw", "sgd-sai"),
}
# The ways of each number of ranks, with optimizers. Every one is compared on two ranks, and on the
# mesh; on four SM3 alone joins AdamW, since its accumulators are sharded unlike its parameters. The
# options of fsdp2 leave the shards as they are.
WAYS: dict[int, dict[str, tuple[str, ...]]] = {
    2: {**dict.fromkeys(("ddp", "zero1", "fsdp2", "tp:2"), OPTIMIZERS), **OPTIONS},
    4: {
        **dict.fromkeys(("zero1", "fsdp2", "tp:4"), ("adamw", "sm3")),
        **dict.fromkeys(("ddp", *OPTIONS), ("adamw",)),
        "fsdp2+tp:2": OPTIMIZERS,
    },
}
CASES = [(model, ranks, way) for model in MODELS for ranks in WAYS for way in WAYS[ranks]]
NEEDS_GLOO = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch is built without gloo"
)
Answers = dict[str, dict[str, Any]]


def scenario_of(model: str, way: str, **fields: Any) -> Scenario:
    config = MODELS[model] | (DIVIDED[model] if way == "tp:4" else {})
    return Scenario(
        model=model,
        config=config,
        batch_size=2,
        sequence_length=17,
        **{"parallel": way, **fields},
    )


def local_bytes(tensors: Iterable[Any]) -> int:
    """Bytes of the storages on this rank: FSDP2 pads those of the last ranks."""
    own = [getattr(tensor, "_local_tensor", tensor) for tensor in tensors]
    storages = [tensor.untyped_storage() for tensor in own]
    return sum({each.data_ptr(): each.nbytes() for each in storages}.values())


def gradient_bytes(parameters: list[Any], way: str) -> int:
    gradients: list[Any] = [each.grad for each in parameters]
    if "cpu_offload" in way:
        # On CUDA each is a copy on the host; here it stays a view of the padded buffer.
        return sum(each._local_tensor.numel() * each.element_size() for each in gradients)
    return local_bytes(gradients)


def order_by_rank(model: Any, ranks: int) -> None:
    """Order the columns of GPT-2's queries, keys and values as tensor parallelism counts them."""
    for block in model.transformer.h:
        for tensor in (block.attn.c_attn.weight, block.attn.c_attn.bias):
            parts = tensor.detach().unflatten(-1, (3, ranks, -1))
            tensor.data = parts.transpose(-3, -2).flatten(-3).contiguous()


def measure(model: str, way: str, names: tuple[str, ...], **fields: Any) -> Answers:
    """Take two real steps; return each optimizer's bytes and the losses.

    AdamW trains. The others see its gradients and have a learning rate of 0.
    """
    scenario = scenario_of(model, way, device="cpu", **fields)
    workpiece = build(scenario, "cpu")
    if model == "gpt2" and "tp" in way and scenario.parallel:
        order_by_rank(workpiece.model, int(way[-1]))
    workpiece = replace(workpiece, model=spread(workpiece.model, scenario, "cpu"))
    parameters = list(workpiece.model.parameters())
    optimizers: dict[str, Any] = {
        name: make_optimizer(
            replace(scenario, optimizer=name, options={} if name == "adamw" else {"lr": 0.0}),
            parameters,
        )
        for name in names
    }
    losses: list[float] = []
    gradients = 0
    for _ in range(2):
        workpiece.model.zero_grad()
        loss = workpiece.loss(workpiece.batch)
        losses.append(loss.item())
        loss.backward()
        gradients = gradient_bytes(parameters, way)
        for optimizer in optimizers.values():
            optimizer.step()
    answers: Answers = {"losses": {"losses": losses}}
    for name, optimizer in optimizers.items():
        state = getattr(optimizer, "optim", optimizer).state
        answers[name] = {
            "parameters": local_bytes(parameters),
            "gradients": gradients,
            "optimizer_state": local_bytes(
                value for values in state.values() for value in values.values()
            ),
        }
    return answers


def simulated(model: str, way: str, name: str, **fields: Any) -> dict[str, int]:
    scenario = scenario_of(model, way, optimizer=name, **fields)
    memory = run_simulation(scenario, estimated=False).record.memory
    assert memory is not None
    return {
        "parameters": memory.parameters,
        "gradients": memory.gradients,
        "optimizer_state": memory.optimizer_state,
    }


def run_rank(rank: int, ranks: int, folder: Path) -> None:
    """Train in every way as one of real ranks, then simulate this rank."""
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/{ranks}", rank=rank, world_size=ranks
    )
    real = {
        f"{model} {way}": measure(model, way, names, ranks=ranks, rank=rank)
        for model in MODELS
        for way, names in WAYS[ranks].items()
    }
    # A rank that leaves during the other's communication would end that one too.
    dist.barrier()
    dist.destroy_process_group()
    predicted = {
        f"{model} {way}": {
            name: simulated(model, way, name, ranks=ranks, rank=rank) for name in names
        }
        for model in MODELS
        for way, names in WAYS[ranks].items()
    }
    if ranks == 4:
        # One process may simulate several ranks.
        following = simulated("gpt2", "fsdp2+tp:2", "adamw", ranks=ranks, rank=(rank + 1) % ranks)
        predicted["the next rank"] = {"adamw": following}
    answers = {"real": real, "simulated": predicted}
    (folder / f"{ranks}-{rank}.json").write_text(json.dumps(answers))


def run_all(folder: Path) -> None:
    # The ranks are forked, so that torch and the models' code are imported once.
    context = multiprocessing.get_context("fork")
    for model in MODELS:
        load_code(scenario_of(model, "ddp", ranks=2))
    for ranks in WAYS:
        processes = [
            context.Process(target=run_rank, args=(rank, ranks, folder)) for rank in range(ranks)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
    alone = {
        f"{model} {way}": measure(model, way, ("adamw",), parallel=None)
        for model in MODELS
        for way in ("ddp", "tp:4")
    }
    (folder / "alone.json").write_text(json.dumps(alone))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ranks")
    run = subprocess.run(
        [sys.executable, "-P", __file__, str(folder)],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    # Not by its status: gloo's threads now and then abort a process that has done its work and
    # leaves.
    assert len([*folder.glob("*-*.json")]) == sum(WAYS), run.stdout + run.stderr
    return folder


def answers_of(folder: Path, ranks: int, rank: int) -> dict[str, dict[str, Answers]]:
    return json.loads((folder / f"{ranks}-{rank}.json").read_text())


@NEEDS_GLOO
@pytest.mark.parametrize(("model", "ranks", "way"), CASES)
def test_every_rank_holds_the_bytes_that_its_simulation_says(
    folder: Path, model: str, ranks: int, way: str
) -> None:
    for rank in range(ranks):
        answers = answers_of(folder, ranks, rank)
        real, predicted = (answers[key][f"{model} {way}"] for key in ("real", "simulated"))
        assert {name: real[name] for name in predicted} == predicted, rank


@NEEDS_GLOO
def test_one_process_simulates_one_rank_after_another(folder: Path) -> None:
    for rank in range(4):
        real = answers_of(folder, 4, (rank + 1) % 4)["real"]["gpt2 fsdp2+tp:2"]
        assert answers_of(folder, 4, rank)["simulated"]["the next rank"]["adamw"] == real["adamw"]


@NEEDS_GLOO
def test_sizes_that_do_not_divide_leave_ranks_unlike_parts(folder: Path) -> None:
    """Without this, the comparison of every rank would be one of the first."""
    for way in ("fsdp2", "fsdp2+tp:2"):
        states = [
            answers_of(folder, 4, rank)["real"][f"gpt2 {way}"]["adamw"]["optimizer_state"]
            for rank in range(4)
        ]
        assert len(set(states)) > 1, way


@NEEDS_GLOO
@pytest.mark.parametrize(("model", "ranks", "way"), CASES)
def test_ranks_with_one_batch_have_the_losses_of_the_model_alone(
    folder: Path, model: str, ranks: int, way: str
) -> None:
    alone = json.loads((folder / "alone.json").read_text())
    wanted = alone[f"{model} {'tp:4' if way == 'tp:4' else 'ddp'}"]["losses"]["losses"]
    tolerance = 1e-3 if "bf16" in way else 1e-5
    for rank in range(ranks):
        losses = answers_of(folder, ranks, rank)["real"][f"{model} {way}"]["losses"]["losses"]
        assert losses == pytest.approx(wanted, rel=tolerance), rank


if __name__ == "__main__":
    run_all(Path(sys.argv[1]))
