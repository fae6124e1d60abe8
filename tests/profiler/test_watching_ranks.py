"""The ranks of a watched training: a record each, in one folder, and one row of a report."""
# pyright: reportPrivateImportUsage=false

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import multiprocessing, nn

import optprof
from optprof.profiler.records.store import RunStore
from optprof.reports.arithmetic.findings import Findings

RANKS = 2
# Five rows for two ranks: three and two of them.
ROWS, COLUMNS = 5, 8


def run_rank(rank: int, folder: str) -> None:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    store = f"file://{folder}/rendezvous"
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=RANKS)
    torch.set_num_threads(1)
    try:
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(COLUMNS, ROWS, bias=False))
        fully_shard(model, mesh=init_device_mesh("cpu", (RANKS,)))
        optimizer = torch.optim.AdamW(model.parameters())
        with optprof.watch(optimizer, model=model, out=f"{folder}/run"):
            for _ in range(4):
                model(torch.ones(2, COLUMNS)).square().mean().backward()
                optimizer.step()
                optimizer.zero_grad()
        dist.barrier()
        print("done", flush=True)
    finally:
        dist.destroy_process_group()


# Two processes import torch, which takes most of the time.
@pytest.mark.skipif(not dist.is_gloo_available(), reason="torch is built without gloo")
def test_the_report_has_the_ranks_of_a_watched_training_side_by_side(tmp_path: Path):
    run = subprocess.run(
        [sys.executable, "-P", __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.stdout.count("done") == RANKS, run.stdout + run.stderr
    records = RunStore(tmp_path / "run").read_standing()
    assert len(records) == RANKS
    (row,) = Findings.of(records).ranks
    parts = [4 * rows * COLUMNS for rows in (3, 2)]
    # FSDP2 pads the second rank's parameters and gradients to three rows; the state has two.
    assert [(one.rank, one.parameters, one.gradients) for one in row.each] == [
        (0, parts[0], parts[0]),
        (1, parts[0], parts[0]),
    ]
    # Two moments, and a float32 step count for the one parameter.
    assert [one.optimizer_state for one in row.each] == [2 * part + 4 for part in parts]
    assert (row.count, row.rank, row.differ) == (RANKS, 0, True)
    assert (row.total, row.is_bound) == (2 * sum(parts) + 8, False)
    assert row.record.ranks is not None
    assert row.record.ranks.slowest in (0, 1)


if __name__ == "__main__":
    multiprocessing.spawn(run_rank, (sys.argv[1],), RANKS)
