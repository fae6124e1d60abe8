"""SM3's fixes of its original: sparse gradients, NaN, and options that change during training."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter

from optprof.optimizers import SM3


def embed(param: Parameter, rows: list[int]) -> Tensor:
    """Return an embedding's sparse gradient of some rows, with a weight for each column."""
    looked_up = torch.nn.functional.embedding(
        torch.tensor(rows, dtype=torch.long), param, sparse=True
    )
    (grad,) = torch.autograd.grad((looked_up * torch.arange(1.0, 1 + param.shape[1])).sum(), param)
    return grad


@pytest.mark.parametrize("maximize", [False, True])
def test_a_sparse_gradient_does_what_the_dense_one_does(maximize: bool) -> None:
    torch.manual_seed(0)
    sparse = Parameter(torch.randn(6, 3))
    dense = Parameter(sparse.detach().clone())
    pair = SM3([sparse], maximize=maximize), SM3([dense], maximize=maximize)
    # A dense step first: all accumulators are there, and must go on alike.
    for step, rows in enumerate([[0], [1, 1, 4], [0, 5, 0], [2]]):
        sparse.grad = embed(sparse, rows)
        dense.grad = sparse.grad.to_dense()
        if step == 0:
            sparse.grad = dense.grad.clone()
        for optimizer in pair:
            optimizer.step()
        torch.testing.assert_close(sparse, dense)
        for key, value in pair[1].state[dense].items():
            torch.testing.assert_close(pair[0].state[sparse][key], value)


def test_a_sparse_gradient_counts_a_row_once_and_keeps_its_rows_alone() -> None:
    param = Parameter(torch.zeros(4, 2))
    optimizer = SM3([param], lr=0.1)
    # Row 2 twice: its gradient is (2, 4), uncoalesced.
    param.grad = embed(param, [2, 0, 2])
    assert not param.grad.is_coalesced()
    optimizer.step()
    assert set(optimizer.state[param]) == {"accumulator_0"}
    assert optimizer.state[param]["accumulator_0"].tolist() == [[4.0], [0.0], [16.0], [0.0]]
    torch.testing.assert_close(
        param.detach(), -0.1 * torch.tensor([[1.0, 1.0], [0.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    )


@pytest.mark.parametrize("beta", [0.0, 0.5])
def test_rows_that_are_absent_keep_weights_and_accumulators(beta: float) -> None:
    param = Parameter(torch.ones(5, 2))
    optimizer = SM3([param], beta=beta)
    for rows in ([0, 1], [1], [1], [1]):
        param.grad = embed(param, rows)
        optimizer.step()
        if rows == [0, 1]:
            first = param.detach()[0].clone(), optimizer.state[param]["accumulator_0"][0].clone()
            untouched = param.detach()[2:].clone()
    assert torch.equal(param[0], first[0])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert torch.equal(optimizer.state[param]["accumulator_0"][0], first[1])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert torch.equal(param[2:], untouched)  # pyright: ignore[reportPossiblyUnboundVariable]


@pytest.mark.parametrize("starts_dense", [False, True])
def test_a_sparse_gradient_of_no_row_changes_nothing(starts_dense: bool) -> None:
    param = Parameter(torch.ones(4, 2))
    optimizer = SM3([param], beta=0.5)
    first = embed(param, [0, 2])
    for grad in (first.to_dense() if starts_dense else first, embed(param, [])):
        before = param.detach().clone(), copy.deepcopy(optimizer.state[param])
        param.grad = grad
        optimizer.step()
    assert torch.equal(param, before[0])  # pyright: ignore[reportPossiblyUnboundVariable]
    assert set(optimizer.state[param]) == (
        {"accumulator_0", "accumulator_1"} if starts_dense else {"accumulator_0"}
    )
    for key, value in before[1].items():  # pyright: ignore[reportPossiblyUnboundVariable]
        assert torch.equal(optimizer.state[param][key], value)


def test_an_embedding_and_dense_layers_train_together_with_momentum() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Embedding(10, 4, sparse=True), torch.nn.Linear(4, 3))
    optimizer = SM3(model.parameters(), momentum=0.9, foreach=True)
    tokens, targets = torch.arange(10), torch.arange(10) % 3
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = torch.nn.functional.cross_entropy(model(tokens), targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2


def test_a_sparse_gradient_without_rows_is_refused() -> None:
    param = Parameter(torch.ones(3, 2))
    param.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="one sparse dimension; got one with 2"):
        SM3([param]).step()


@pytest.mark.parametrize("shape", [(4,), (4, 3), (4, 3, 2)])
@pytest.mark.parametrize("foreach", [False, True])
def test_nan_in_a_gradient_stays_in_its_place(shape: tuple[int, ...], foreach: bool) -> None:
    torch.manual_seed(0)
    param = Parameter(torch.randn(shape))
    optimizer = SM3([param], foreach=foreach)
    for step in range(5):
        param.grad = torch.randn(shape)
        if step == 1:
            param.grad.view(-1)[5 % param.numel()] = torch.nan
        optimizer.step()
    assert param.isnan().sum() == 1
    assert not any(value.isnan().any() for value in optimizer.state[param].values())


def test_momentum_can_come_later() -> None:
    param = Parameter(torch.zeros(3, 2))
    optimizer = SM3([param], lr=1.0)
    param.grad = torch.ones_like(param)
    optimizer.step()
    assert "momentum_buffer" not in optimizer.state[param]
    optimizer.param_groups[0]["momentum"] = 0.5
    optimizer.step()
    # Half of 1 / sqrt(2): the average starts at 0.
    torch.testing.assert_close(
        optimizer.state[param]["momentum_buffer"], torch.full((3, 2), 0.5 / 2**0.5)
    )


def test_accumulators_stay_float32_when_a_half_precision_state_is_loaded() -> None:
    param = Parameter(torch.ones(3, 2, dtype=torch.bfloat16))
    param.grad = torch.full_like(param, 1.0)
    optimizer = SM3([param])
    for _ in range(300):
        optimizer.step()
    loaded: Any = SM3([param])
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    loaded.step()
    assert loaded.state[param]["accumulator_0"].tolist() == [[301.0]] * 3
