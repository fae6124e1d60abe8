"""Accumulation in two processes: DDP, FSDP2 and plain shards, against one process with all data."""

# pyright: reportPrivateImportUsage=false

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW

from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import (
    Accumulation,
    GradientNoiseScale,
    GradientNormThreshold,
    ScheduledBatch,
)

RANKS, DRAWS = 2, 12
NEEDS_GLOO = pytest.mark.skipif(
    not dist.is_available() or not dist.is_gloo_available(), reason="torch is built without gloo"
)


def model_of() -> nn.Module:
    torch.manual_seed(0)
    # 3 rows do not divide into 2 shards, and of a single row the second rank holds nothing.
    return nn.Sequential(nn.Linear(8, 3), nn.LayerNorm(3), nn.Linear(3, 4), nn.Linear(4, 1))


def batches() -> Tensor:
    return torch.randn(DRAWS, 16, 8, generator=torch.Generator().manual_seed(1))


def loss_of(model: nn.Module, batch: Tensor) -> Tensor:
    return (model(batch) - batch.sum(1, keepdim=True)).square().mean()


def train(
    model: nn.Module, wrapper: Accumulation, share: Callable[[Tensor], Tensor]
) -> tuple[list[bool], list[float]]:
    """Return whether each micro-batch stepped, and the mean's norm that decided."""
    stepped, norms = [], []
    for batch in batches():
        loss_of(model, share(batch)).backward()
        stepped.append(wrapper.step())
        norms.append(wrapper.last_grad_norm or 0.0 if stepped[-1] else wrapper.mean_norm())
    return stepped, norms


def my_half(batch: Tensor) -> Tensor:
    return batch.chunk(RANKS)[dist.get_rank()]


def whole(tensor: Tensor) -> Tensor:
    return getattr(tensor, "full_tensor", lambda: tensor)().detach()


def make(model: nn.Module, **options: Any) -> Accumulation:
    return GradientNormThreshold(AdamW(model.parameters(), lr=0.01), 1.4, max_draws=4, **options)


def check_like_one_process(
    model: nn.Module, alone: tuple[nn.Module, list[bool], list[float]], **options: Any
) -> None:
    twin, wanted, norms = alone
    stepped, decisive_norms = train(model, make(model, **options), my_half)
    assert stepped == wanted
    assert decisive_norms == pytest.approx(norms, rel=1e-4)
    for param, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(whole(param), other.detach(), rtol=1e-4, atol=1e-5)


def one_process() -> tuple[nn.Module, list[bool], list[float]]:
    """Train on whole batches, with a wrapper that sees one rank."""
    model = model_of()
    stepped, norms = train(model, make(model), lambda batch: batch)
    assert 2 < sum(stepped) < DRAWS
    return model, stepped, norms


def check_replicated_and_sharded() -> None:
    from torch.distributed.fsdp import fully_shard
    from torch.nn.parallel import DistributedDataParallel

    # Equal numbers on both ranks change nothing for it.
    alone = one_process()
    for buffered in (False, True):
        for views in (False, True):
            check_like_one_process(
                DistributedDataParallel(model_of(), gradient_as_bucket_view=views),
                alone,
                buffered=buffered,
            )
        for mode in ("replicated", "sharded"):
            # Either way: a DTensor's norm is that of the whole.
            sharded = model_of()
            fully_shard(sharded.get_submodule("0"))
            fully_shard(sharded)
            check_like_one_process(sharded, alone, buffered=buffered, distributed_mode=mode)


def check_plain_shards() -> None:
    """G9: the norm of shards is the root of the sum of their squares."""
    mine = Parameter(torch.tensor([3.0, 0.0] if dist.get_rank() == 0 else [0.0, 4.0]))
    wrapper = GradientNormThreshold(SGD([mine]), 1.0, distributed_mode="sharded")
    mine.square().sum().backward()
    assert not wrapper.step()
    assert wrapper.mean_norm() == pytest.approx(10.0)


def check_rules_that_gather() -> None:
    param = Parameter(torch.zeros(1))
    own = 2.0 if dist.get_rank() == 0 else 4.0
    # SBC: two ranks of 2 samples each.
    wrapper: Accumulation = ScheduledBatch(SGD([param]), 8, 2)
    assert [draw(wrapper, param, own) for _ in range(2)] == [False, True]
    # GNS: the norms of both ranks, 2 and 4: 2 / 10 <= 1 * 0.3 after one draw.
    wrapper = GradientNoiseScale(SGD([param]), 0.3)
    assert draw(wrapper, param, own)
    # MHT: metrics 2 and 4, mean 3 = the running mean: 3, 2, 4 have a standard error of 0.58, of
    # which the interval of 50 % takes 0.82.
    for error, wanted in ((0.17, True), (0.15, False)):
        wrapper = accumulation.create(f"mht:error={error},confidence=0.5", SGD([param]))
        (param * own).sum().backward()
        assert wrapper.step(loss=own) is wanted
        param.grad = None


def draw(wrapper: Accumulation, param: Tensor, own: float) -> bool:
    (param * own).sum().backward()
    return wrapper.step()


def check_a_bad_rank() -> None:
    """All ranks drop a gradient that only one rank sees as not finite."""
    param = Parameter(torch.zeros(1))
    wrapper = ScheduledBatch(SGD([param]), 4)
    bad = dist.get_rank() == 1
    wrapper._warned.add(
        "a micro-batch's gradient is not finite; it was dropped, and num_dropped counts what was"
    )
    assert [
        draw(wrapper, param, float("nan") if bad and index == 1 else 1.0) for index in range(4)
    ] == [False, False, False, True]
    assert (wrapper.num_dropped, float(param)) == (2, pytest.approx(-1e-3))


def check_a_rank_without_gradients() -> None:
    """A rank without gradients blocks no other; if no rank has any, nothing is drawn."""
    for make in (
        lambda sgd: GradientNormThreshold(sgd, 1e-9),
        lambda sgd: GradientNormThreshold(sgd, 1e-9, distributed_mode="sharded"),
        lambda sgd: GradientNormThreshold(sgd, 1e-9, buffered=True),
        lambda sgd: GradientNoiseScale(sgd, 1e-9),
    ):
        param = Parameter(torch.zeros(1))
        wrapper = make(SGD([param]))
        assert not wrapper.step()
        if dist.get_rank() == 0:
            (3 * param).sum().backward()
        assert not wrapper.step()
        assert (wrapper.num_batches, wrapper.num_draws, wrapper.mean_norm()) == (1, 1, 3.0)
    assert wrapper.history == [3.0, 0.0]


def check_refusals() -> None:
    from torch.distributed.fsdp import fully_shard

    model = model_of()
    fully_shard(model)
    with pytest.raises(ValueError, match="buffered=True"):
        GradientNoiseScale(SGD(model.parameters()))
    wrapper = GradientNoiseScale(SGD(model.parameters()), 1e9, buffered=True)
    for batch in batches()[:2]:
        loss_of(model, my_half(batch)).backward()
        wrapper.step()
    assert wrapper.num_steps == 1


def check_checkpoint(folder: str) -> None:
    """torch.distributed.checkpoint saves the optimizer inside; each rank saves its window."""
    import torch.distributed.checkpoint as dcp
    from torch.distributed.checkpoint.state_dict import (
        get_optimizer_state_dict,
        set_optimizer_state_dict,
    )
    from torch.distributed.fsdp import fully_shard

    def sharded() -> tuple[nn.Module, Accumulation]:
        model = model_of()
        fully_shard(model)
        return model, ScheduledBatch(AdamW(model.parameters(), lr=0.01), 3 * RANKS)

    def go_on(model: nn.Module, wrapper: Accumulation, chosen: Tensor) -> None:
        for batch in chosen:
            loss_of(model, my_half(batch)).backward()
            wrapper.step()

    model, wrapper = sharded()
    go_on(model, wrapper, batches()[:5])
    state = {
        "model": model.state_dict(),
        "optimizer": get_optimizer_state_dict(model, wrapper.optimizer),
    }
    dcp.save(state, checkpoint_id=folder)
    window = wrapper.state_dict()["accumulation"]
    go_on(model, wrapper, batches()[5:9])

    fresh, other = sharded()
    state = {
        "model": fresh.state_dict(),
        "optimizer": get_optimizer_state_dict(fresh, other.optimizer),
    }
    dcp.load(state, checkpoint_id=folder)
    fresh.load_state_dict(state["model"])
    set_optimizer_state_dict(fresh, other.optimizer, state["optimizer"])
    other.load_state_dict({**other.optimizer.state_dict(), "accumulation": window})
    go_on(fresh, other, batches()[5:9])
    assert other.num_steps == wrapper.num_steps == 3
    for param, twin in zip(model.parameters(), fresh.parameters(), strict=True):
        assert torch.equal(whole(param), whole(twin))


def run_rank(rank: int, folder: str) -> None:
    dist.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=RANKS
    )
    torch.set_num_threads(1)
    try:
        check_replicated_and_sharded()
        check_plain_shards()
        check_rules_that_gather()
        check_a_bad_rank()
        check_a_rank_without_gradients()
        check_refusals()
        check_checkpoint(f"{folder}/checkpoint")
        # A rank that leaves during the other's communication would end that one too.
        dist.barrier()
        print("done", flush=True)
    finally:
        dist.destroy_process_group()


@NEEDS_GLOO
def test_two_ranks_decide_as_one_process_and_alike(tmp_path: Path) -> None:
    run = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    # Not by its status: gloo's threads now and then abort a process that has done its work and
    # leaves.
    assert run.stdout.count("done") == RANKS, run.stdout + run.stderr


if __name__ == "__main__":
    torch.multiprocessing.spawn(run_rank, (sys.argv[1],), RANKS)
