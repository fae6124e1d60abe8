"""Sharded parameters (DTensor) and torch.distributed.checkpoint in two CPU processes or four.

Two have FSDP2's shards, four those of FSDP2 with tensor parallelism.
"""

# pyright: reportPrivateImportUsage=false

import os
import subprocess
import sys
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from optprof import optimizers
from optprof.optimizers import LAMB, LAMB16, SM3, SGDSaI, fused

RANKS = 2
SETTINGS: list[tuple[Any, dict[str, Any]]] = [
    (SGDSaI, {"lr": 1e-3}),
    (SGDSaI, {"lr": torch.tensor(1e-3), "foreach": True}),
    (SM3, {"momentum": 0.9}),
    (SM3, {"foreach": True}),
    (LAMB, {"weight_decay": 0.1, "foreach": True}),
    (LAMB, {"preset": "nvidia", "weight_decay": 0.1}),
    (LAMB16, {"lr": 1e-2}),
    (LAMB16, {"scale": "upstream"}),
]

OURS: dict[str, Any] = {"LAMB": LAMB, "LAMB16": LAMB16, "SGDSaI": SGDSaI, "SM3": SM3}
# What DTensor does not take in torch 2.13: fused steps but Adam's, and changes in place of what is
# summed up over ranks.
NOT_SHARDED = {
    ("adafactor", "loop"),
    ("adafactor", "foreach"),
    ("adagrad", "fused"),
    ("muon", "loop"),
    ("muon", "foreach"),
    ("sgd", "fused"),
}
# Of 7 rows one rank has 4 and the other 3, of 3 elements 2 and 1, of a single row all and nothing.
# SM3's kernels take 8 rows and 7 in different launches, so the order differs between the ranks.
UNEVEN = [(7, 5), (15, 3), (5, 7), (3,), (1, 4), (1,), (3, 2, 2, 2)]
NEEDS_GLOO = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch is built without gloo"
)


def model_of(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    # 3 rows do not divide into 2 shards, and of a layer norm of 1 the second rank holds nothing.
    return nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 1))


def train(model: nn.Module, optimizer: Any, steps: range = range(4)) -> None:
    for step in steps:
        torch.manual_seed(100 + step)
        optimizer.zero_grad()
        model(torch.randn(16, 8)).square().mean().backward()
        optimizer.step()


def weights(model: nn.Module) -> dict[str, Tensor]:
    return {name: whole(param.detach()) for name, param in model.named_parameters()}


def whole(tensor: Tensor) -> Tensor:
    return getattr(tensor, "full_tensor", lambda: tensor)().clone()


def assert_close(tensors: dict[str, Tensor], wanted: dict[str, Tensor], tolerance: float) -> None:
    for name, tensor in wanted.items():
        torch.testing.assert_close(
            tensors[name],
            tensor,
            rtol=tolerance,
            atol=tolerance,
            msg=lambda text, name=name: f"{name}: {text}",
        )


def sharded(factory: Any, options: dict[str, Any]) -> tuple[nn.Module, Any]:
    from torch.distributed.fsdp import fully_shard

    model = model_of()
    fully_shard(model)
    return model, factory(model.parameters(), **options)


def check_parity(factory: Any, options: dict[str, Any]) -> None:
    alone = model_of()
    train(alone, factory(alone.parameters(), **options))
    model, optimizer = sharded(factory, options)
    train(model, optimizer)
    assert_close(weights(model), weights(alone), 1e-5)


def check_shards_of_state(factory: Any) -> None:
    model, optimizer = sharded(factory, {})
    train(model, optimizer)
    rows = model.get_parameter("2.weight")
    local: Any = optimizer.state[rows]["accumulator_0"]
    # 4 rows over 2 ranks: each keeps the accumulators of its own, and all those of the columns.
    assert local.to_local().shape == (RANKS, 1)
    assert whole(optimizer.state[rows]["accumulator_1"]).shape == (1, 3)


def check_checkpoint(factory: Any, options: dict[str, Any], folder: str) -> None:
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

    fresh, fresh_optimizer = sharded(factory, options)
    # Before training, this call makes a step with gradients of zero at a learning rate of 0.
    get_state_dict(fresh, fresh_optimizer)
    assert_close(weights(fresh), weights(model_of()), 0.0)

    model, optimizer = sharded(factory, options)
    train(model, optimizer)
    model_state, optimizer_state = get_state_dict(model, optimizer)
    dcp.save({"model": model_state, "optimizer": optimizer_state}, checkpoint_id=folder)
    train(model, optimizer, range(4, 7))

    model_state, optimizer_state = get_state_dict(fresh, fresh_optimizer)
    read = {"model": model_state, "optimizer": optimizer_state}
    dcp.load(read, checkpoint_id=folder)
    set_state_dict(
        fresh, fresh_optimizer, model_state_dict=read["model"], optim_state_dict=read["optimizer"]
    )
    train(fresh, fresh_optimizer, range(4, 7))
    assert_close(weights(fresh), weights(model), 0.0)


def check_untouched_by_an_early_checkpoint() -> None:
    from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict

    plain, plain_optimizer = sharded(SGDSaI, {"lr": 1e-3})
    train(plain, plain_optimizer)
    model, optimizer = sharded(SGDSaI, {"lr": 1e-3})
    get_optimizer_state_dict(model, optimizer)
    train(model, optimizer)
    assert_close(weights(model), weights(plain), 0.0)


def check_uneven_shards(factory: Any, options: dict[str, Any]) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    mesh = init_device_mesh("cpu", (RANKS,))
    generator = torch.Generator().manual_seed(0)
    whole_ones = [nn.Parameter(torch.randn(shape, generator=generator)) for shape in UNEVEN]
    spread = [
        nn.Parameter(distribute_tensor(param.detach(), mesh, [Shard(0)])) for param in whole_ones
    ]
    alone, optimizer = factory(whole_ones, **options), factory(spread, **options)
    for _ in range(4):
        for param, twin in zip(whole_ones, spread, strict=True):
            param.grad = torch.randn(param.shape, generator=generator)
            twin.grad = distribute_tensor(param.grad, mesh, [Shard(0)])
        alone.step()
        optimizer.step()
    for param, twin in zip(whole_ones, spread, strict=True):
        torch.testing.assert_close(whole(twin.detach()), param.detach(), rtol=1e-5, atol=1e-5)


class Tokens(nn.Module):
    """A model whose sizes do not divide by the ranks: of the head's 3 rows one rank has none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(7, 8)
        self.up, self.down = nn.Linear(8, 6), nn.Linear(6, 8)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        hidden = self.down(self.up(self.embedding(tokens)).relu())
        return self.head(self.norm(hidden))


def spread_over_a_mesh(model: nn.Module, *, splits_columns: bool) -> None:
    """Split the model's matrices over 2 ranks, and what is left over 2 more, as FSDP2 does."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard
    from torch.distributed.tensor import Replicate
    from torch.distributed.tensor.parallel import (
        ColwiseParallel,
        RowwiseParallel,
        parallelize_module,
    )

    mesh = init_device_mesh("cpu", (2, 2), mesh_dim_names=("data", "tensor"))
    plan: dict[str, Any] = {
        "embedding": RowwiseParallel(input_layouts=Replicate()),
        "head": ColwiseParallel(output_layouts=Replicate()),
        "up": ColwiseParallel(),
        "down": RowwiseParallel(),
    }
    if not splits_columns:
        plan |= {"up": ColwiseParallel(output_layouts=Replicate())}
        del plan["down"]
    parallelize_module(model, mesh["tensor"], plan)
    fully_shard(model, mesh=mesh["data"])


def check_mesh(factory: Any, options: dict[str, Any]) -> None:
    # LAMB16 rounds a shard of columns by other thresholds than in the whole matrix.
    alone, model = Tokens(), Tokens()
    spread_over_a_mesh(model, splits_columns=factory is not LAMB16)
    optimizer, twin = factory(alone.parameters(), **options), factory(model.parameters(), **options)
    for step in range(4):
        tokens = torch.arange(14).view(2, 7) * (step + 1) % 7
        for each, stepped in ((alone, optimizer), (model, twin)):
            stepped.zero_grad()
            each(tokens).square().mean().backward()
            stepped.step()
    assert_close(weights(model), weights(alone), 1e-5)


def check_training(folder: str) -> None:
    for index, (factory, options) in enumerate(SETTINGS):
        if dist.get_rank() == 0:
            print(factory.__name__, options, flush=True)
        check_parity(factory, options)
        check_checkpoint(factory, options, f"{folder}/{index}")
    check_shards_of_state(SM3)
    check_untouched_by_an_early_checkpoint()


def check_torch_s_own(folder: str) -> None:
    for name in optimizers.available("torch"):
        for way in optimizers.implementations(name):
            if dist.get_rank() == 0:
                print(name, way, flush=True)

            def factory(
                params: Iterable[nn.Parameter], name: str = name, way: Any = way
            ) -> Optimizer:
                # Muon takes matrices alone.
                taken = [param for param in params if name != "muon" or param.dim() == 2]
                return optimizers.create(name, taken, implementation=way)

            if (name, way) in NOT_SHARDED:
                with pytest.raises(
                    (NotImplementedError, RuntimeError), match=r"sharding strategy|placement"
                ):
                    check_parity(factory, {})
            else:
                check_parity(factory, {})
                check_checkpoint(factory, {}, f"{folder}/{name}-{way}")


def has_triton_kernels(factory: Any) -> bool:
    """Return whether CUDA's kernels can run here on CPU tensors, interpreted."""
    name = f"{fused.__package__}.cuda.{factory.kernels}"
    return (
        bool(factory.kernels)
        and os.environ.get("TRITON_INTERPRET") == "1"
        and find_spec("triton") is not None
        and find_spec(name) is not None
    )


def run_rank(rank: int, folder: str, name: str, ranks: int) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks
    )
    torch.set_num_threads(1)
    try:
        if name == "training":
            check_training(folder)
        elif name == "torch":
            check_torch_s_own(folder)
        elif name == "mesh":
            for factory, options in SETTINGS:
                if dist.get_rank() == 0:
                    print(factory.__name__, options, flush=True)
                check_mesh(factory, options)
        else:
            for foreach in (False, True):
                check_uneven_shards(OURS[name], {"foreach": foreach})
            if has_triton_kernels(OURS[name]):
                fused.KERNELS["cpu"] = "triton"
                check_uneven_shards(OURS[name], {"fused": True})
        # A rank that leaves during the other's communication would end that one too.
        dist.barrier()
        print("done", flush=True)
    finally:
        dist.destroy_process_group()


def run_ranks(folder: Path, what: str, ranks: int = RANKS) -> None:
    run = subprocess.run(
        [sys.executable, __file__, str(folder), what, str(ranks)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # Not by its status: gloo's threads now and then abort a process that has done its work and
    # leaves.
    assert run.stdout.count("done") == ranks, run.stdout + run.stderr


@NEEDS_GLOO
def test_sharded_training_is_training_and_its_checkpoints_go_on(tmp_path: Path) -> None:
    run_ranks(tmp_path, "training")


@NEEDS_GLOO
def test_torch_s_own_are_sharded_as_docs_say(tmp_path: Path) -> None:
    run_ranks(tmp_path, "torch")


@NEEDS_GLOO
@pytest.mark.parametrize("name", sorted(OURS))
def test_shards_of_unlike_size_and_empty_ones_make_the_step_of_the_whole(
    name: str, tmp_path: Path
) -> None:
    run_ranks(tmp_path, name)


@NEEDS_GLOO
def test_fsdp2_with_tensor_parallelism_makes_the_step_of_the_whole(tmp_path: Path) -> None:
    run_ranks(tmp_path, "mesh", ranks=4)


if __name__ == "__main__":
    _, path, what, ranks = sys.argv
    # Forked, so that the four import torch once.
    torch.multiprocessing.start_processes(
        run_rank, (path, what, int(ranks)), int(ranks), start_method="fork"
    )
