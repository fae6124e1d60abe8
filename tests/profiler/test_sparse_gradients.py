"""Sparse gradients of an embedding, measured on the CPU and counted by hand."""

from pathlib import Path
from typing import Any

import pytest

from optprof.profiler import measure
from optprof.profiler.measuring.files import Files
from optprof.profiler.measuring.slices import measure_slices
from optprof.profiler.records.record import Record
from optprof.scenarios import Scenario

OWN = """
import torch
from torch import nn


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.out = nn.Embedding(100, 8, sparse=True), nn.Linear(8, 1)

    def forward(self, ids):
        return self.out(self.table(ids)).square().mean()


class Alone(Table):
    def __init__(self):
        super().__init__()
        self.out = nn.Identity()


# Each row is read once, so that gradients which are added up do not grow.
def ids(): return {"ids": torch.arange(20, device="cpu").view(4, 5)}
def table(): return Table(), ids()
def alone(): return Alone(), ids()
"""
# An int64 index and 8 numbers for each of 20 rows; 8 weights and a bias of the other layer.
ROWS, OUT = 20 * (8 + 8 * 4), 9 * 4


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sparse_table.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr("optprof.profiler.measuring.harness.WARM_UP_LIMIT", 0.0)


def scenario(model: str, optimizer: str, **changes: Any) -> Scenario:
    usual: dict[str, Any] = {"implementation": "loop", "device": "cpu", "steps": 2}
    return Scenario(
        **{**usual, "model": f"sparse_table:{model}", "optimizer": optimizer, **changes}
    )


def gradients_and_state(record: Record) -> tuple[int, int]:
    assert record.memory is not None
    return record.memory.gradients, record.memory.optimizer_state


@pytest.mark.parametrize("workload", ["train", "state"])
def test_sparse_gradients_are_measured(workload: str) -> None:
    # SM3 keeps a number for each row of the table, each row and column of the layer, and the bias.
    record = measure(scenario("table", "sm3", workload=workload))
    assert gradients_and_state(record) == (ROWS + OUT, 4 * (100 + 1 + 8 + 1))
    record = measure(scenario("alone", "torch.optim:SparseAdam", workload=workload))
    assert gradients_and_state(record) == (ROWS, 2 * 4 * 100 * 8)
    assert record.watched is not None
    assert record.watched.tensors_at_peak["gradient"] == ROWS


def test_clipping_sparse_gradients_is_refused() -> None:
    with pytest.raises(
        ValueError, match="torch clips no sparse gradients; leave out max_grad_norm"
    ):
        measure(scenario("table", "sgd", max_grad_norm=1.0))


def test_a_model_with_sparse_gradients_is_not_timed_on_slices() -> None:
    with pytest.raises(
        MemoryError, match="with sparse gradients its step cannot be timed on parts of it"
    ):
        measure_slices(scenario("table", "sm3"), budget=1 << 20, bytes_per_parameter=8, seconds=0.1)


def test_operations_on_sparse_gradients_have_times_and_no_bytes(tmp_path: Path) -> None:
    watched = measure(scenario("table", "sm3"), files=Files(trace=tmp_path / "trace")).watched
    assert watched is not None
    assert "_coalesce" in {operation.name for operation in watched.operations}
    assert {operation.bytes for operation in watched.operations} == {None}
