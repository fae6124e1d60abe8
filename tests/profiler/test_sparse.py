"""Simulated sparse gradients and matrices, compared with real steps on the CPU and by hand."""

import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import nn

from optprof.profiler.simulating.simulation import simulate
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.untraceable import UntraceableError
from optprof.profiler.tracing.values import with_value
from optprof.profiler.training.optimizer import make_optimizer
from optprof.profiler.training.state import state_bytes
from optprof.scenarios import Scenario

ROWS, WIDTH, TOKENS = 300, 16, 40
# Every third row occurs twice.
IDS = torch.arange(TOKENS, device="cpu") % 30 * 3


class Rows(nn.Module):
    """An embedding with sparse gradients and a dense head."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, sparse=True)
        self.head = nn.Linear(WIDTH, 1)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.table(ids)).square().mean()


class Bags(nn.Module):
    """Bags of an embedding, averaged, with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(ROWS, WIDTH, mode="mean", sparse=True)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.table(ids).square().mean()


class Only(Bags):
    """An embedding alone, as SparseAdam needs it."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(ROWS, WIDTH, padding_idx=0, sparse=True)


class Graph(nn.Module):
    """A layer whose rows are mixed by a sparse matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: torch.Tensor, edges: torch.Tensor) -> torch.Tensor:
        return torch.sparse.mm(edges, self.layer(x)).square().mean()


def own(
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    build: Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]],
) -> str:
    """Return the name of a new factory for scenarios: traces are kept by that name."""
    module = ModuleType(f"sparse_models_{name}")
    module.build = build  # pyright: ignore[reportAttributeAccessIssue]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    return f"{module.__name__}:build"


def of_ids(kind: type[nn.Module]) -> Callable[[], tuple[nn.Module, dict[str, torch.Tensor]]]:
    return lambda: (kind(), {"ids": IDS.view(4, 10)})


def data(tensor: torch.Tensor) -> int:
    """Return the bytes of a gradient's numbers, and of the indices of a sparse one."""
    parts = (tensor._indices(), tensor._values()) if tensor.is_sparse else (tensor,)
    return sum(part.numel() * part.element_size() for part in parts)


@pytest.mark.parametrize(
    ("kind", "optimizer"),
    [
        (Rows, "sm3"),
        (Rows, "torch.optim:SGD"),
        (Rows, "torch.optim:Adagrad"),
        (Bags, "sm3"),
        (Bags, "torch.optim:Adagrad"),
        (Bags, "torch.optim:SparseAdam"),
        (Only, "torch.optim:SparseAdam"),
    ],
)
@pytest.mark.filterwarnings("ignore:Sparse invariant")
def test_gradients_and_state_equal_those_of_a_real_step(
    monkeypatch: pytest.MonkeyPatch, kind: type[nn.Module], optimizer: str
):
    scenario = Scenario(
        model=own(monkeypatch, kind.__name__, of_ids(kind)),
        optimizer=optimizer,
        implementation="loop",
        steps=2,
    )
    memory = simulate(scenario).memory
    assert memory is not None
    model, batch = of_ids(kind)()
    real = make_optimizer(
        scenario, list(model.parameters()), [name for name, _ in model.named_parameters()]
    )
    for _ in range(2):
        real.zero_grad()
        model(**batch).backward()
        real.step()
    assert memory.gradients == sum(data(p.grad) for p in model.parameters() if p.grad is not None)
    assert memory.optimizer_state == state_bytes(real).total


def events(recorder: Recorder) -> list[int]:
    """Return the bytes of each event, negative for a free."""
    nbytes = recorder.allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in recorder.segments
        for event in segment.events
    ]


def of_tensors(stream: list[int]) -> list[int]:
    """Return the stream without scalars, which are tensors on the CPU."""
    return [nbytes for nbytes in stream if abs(nbytes) > 8]


@pytest.mark.parametrize("set_to_none", [True, False])
@pytest.mark.parametrize("kind", [Rows, Only])
def test_the_events_of_accumulated_gradients_equal_those_of_a_real_step(
    kind: type[nn.Module],
    set_to_none: bool,
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    def train(model: nn.Module, ids: torch.Tensor) -> None:
        for step in range(4):
            (model(ids) / 2).backward()
            if step % 2:
                model.zero_grad(set_to_none)

    model, ids = kind(), IDS.view(4, 10)
    train(model, ids)
    real = cpu_events(lambda: train(model, ids))
    recorder = Recorder()
    with torch.device("meta"):
        model = kind()
    with recorder.phase("build"):
        twin = with_value(ids)
        for tensor in (*model.parameters(), twin):
            recorder.allocate(tensor, "parameter")
    with recorder.phase("forward"):
        train(model, twin)
    recorder.segments.clear()
    with recorder.phase("forward"):
        train(model, twin)
    assert of_tensors(events(recorder)) == of_tensors(real)


def entries(ids: torch.Tensor, *, values: torch.Tensor | None = None) -> torch.Tensor:
    """Return a sparse meta tensor of rows, with known entries."""
    values = torch.empty(len(ids), WIDTH, device="meta") if values is None else values
    return torch.sparse_coo_tensor(
        with_value(ids[None]), values, (ROWS, WIDTH), check_invariants=False
    )


def test_merged_entries_have_the_distinct_rows_of_the_batch():
    recorder = Recorder()
    with recorder.phase("backward"):
        gradient = entries(IDS)
        gradient = gradient.coalesce()
        assert gradient._nnz() == 30
        again = (gradient + gradient).coalesce()
    assert again._nnz() == 30
    assert again.is_coalesced()
    assert again._values().shape == (30, WIDTH)


def test_merging_sorts_with_two_buffers_and_keeps_the_memory_of_all_indices():
    recorder = Recorder()
    with recorder.phase("build"):
        gradient = entries(IDS)
    recorder.segments.clear()
    with recorder.phase("step"):
        merged = gradient.coalesce()
    flat, values = 8 * TOKENS, 4 * 30 * WIDTH
    # The flat indices, their places, the first of each; the sort's buffer; the sums.
    assert events(recorder) == [flat, flat, flat, 2 * flat, -2 * flat, values, -flat, -flat]
    assert merged._indices().untyped_storage().nbytes() == flat


def test_merging_unknown_entries_is_refused_with_its_line():
    recorder = Recorder()
    words = r"test_sparse\.py, line \d+, merges equal entries of a sparse tensor"
    with recorder.phase("backward"):
        indices, values = (
            torch.empty(1, 8, 5, device="meta").argmax(-1),
            torch.empty(8, WIDTH, device="meta"),
        )
        gradient = torch.sparse_coo_tensor(indices, values, (ROWS, WIDTH), check_invariants=False)
        with pytest.raises(UntraceableError, match=words):
            gradient.coalesce()


def test_an_unsupported_operation_on_sparse_tensors_is_refused_with_its_line():
    recorder = Recorder()
    with (
        recorder.phase("clip"),
        pytest.raises(
            UntraceableError, match=r"test_sparse\.py, line \d+, runs aten.* on a sparse tensor"
        ),
    ):
        torch.sin(entries(IDS))


@pytest.mark.parametrize("fields", [{"micro_batches": 3}, {"set_to_none": False}, {"amp": "fp16"}])
def test_ways_of_training_on_sparse_gradients_are_followed(
    monkeypatch: pytest.MonkeyPatch, fields: dict[str, Any]
):
    memory = simulate(
        Scenario(model=own(monkeypatch, "Rows", of_ids(Rows)), optimizer="sm3", steps=3, **fields)
    ).memory
    assert memory is not None
    draws = fields.get("micro_batches", 1)
    # The head's gradient is dense, and the batch holds the indices of one draw.
    assert memory.gradients == draws * TOKENS * (4 * WIDTH + 8) + 4 * (WIDTH + 1)
    assert memory.optimizer_state == 4 * (ROWS + 1 + WIDTH + 1)


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:Sparse invariant checks")
@pytest.mark.parametrize("layout", ["coalesced", "as it came", "csr"])
def test_a_product_with_a_sparse_matrix_of_the_batch_is_followed(
    monkeypatch: pytest.MonkeyPatch, layout: str
):
    def build() -> tuple[nn.Module, dict[str, Any]]:
        places = torch.stack(
            [torch.arange(200, device="cpu") % 50, torch.arange(200, device="cpu") % 30]
        )
        edges = torch.sparse_coo_tensor(
            places, torch.ones(200, device="cpu"), (50, 50), device="cpu"
        )
        edges = (
            edges.coalesce()
            if layout == "coalesced"
            else edges.to_sparse_csr()
            if layout == "csr"
            else edges
        )
        return Graph(), {"x": torch.randn(50, WIDTH), "edges": edges}

    memory = simulate(
        Scenario(model=own(monkeypatch, layout.split()[0], build), optimizer="sgd")
    ).memory
    assert memory is not None
    assert memory.gradients == 4 * WIDTH * (WIDTH + 1)
    # The dense input, 8 bytes for each index and 4 for each value, of 150 distinct entries if
    # they are merged.
    stored = {
        "coalesced": 150 * (2 * 8 + 4),
        "as it came": 200 * (2 * 8 + 4),
        "csr": 150 * (8 + 4) + 51 * 8,
    }[layout]
    assert memory.peak_by_category is not None
    assert memory.peak_by_category["input"] == pytest.approx(4 * 50 * WIDTH + stored, abs=3 * 512)


def test_a_step_of_sparse_gradients_has_no_time_estimate(
    monkeypatch: pytest.MonkeyPatch,
):
    record = simulate(
        Scenario(model=own(monkeypatch, "Rows", of_ids(Rows)), optimizer="sm3", gpu="a100-80")
    )
    assert record.estimate is None
