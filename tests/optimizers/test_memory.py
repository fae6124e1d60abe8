"""The bytes of every optimizer: what its state keeps, by hand, and what a step of ours holds on top."""

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.optimizer import Optimizer
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import optimizers

# Bytes of a parameter's state.
STATE_BYTES: dict[str, Callable[[Parameter], int]] = {
    "adafactor": lambda p: p.itemsize * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) + 4 if p.dim() > 1 else p.nbytes + 4,
    "adagrad": lambda p: p.nbytes + 4,
    "adam": lambda p: 2 * p.nbytes + 4,
    "adamw": lambda p: 2 * p.nbytes + 4,
    "lamb": lambda p: 2 * p.nbytes + 4,
    "lamb:preset=cybertronai": lambda p: 2 * p.nbytes,
    "lamb:preset=nvidia,weight_decay=0.1": lambda p: 2 * p.nbytes + 4,
    "lamb16": lambda p: 2 * p.numel() + 12,
    "muon": lambda p: p.nbytes if p.dim() == 2 else 2 * p.nbytes + 4,
    "rmsprop": lambda p: p.nbytes + 4,
    "sgd": lambda p: p.nbytes,
    "sgd-sai": lambda p: p.nbytes + 4,
    "sgd-sai:momentum=0": lambda _: 4,
    "sm3": lambda p: 4 * (sum(p.shape) if p.dim() else 1),
    "sm3:momentum=0.9,beta=0.9": lambda p: 4 * (sum(p.shape) if p.dim() else 1) + p.nbytes,
}


def stepped(spec: str, params: list[Parameter], **options: Any) -> Optimizer:
    optimizer = optimizers.create(spec, params, **options)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("spec", sorted(STATE_BYTES.keys() | optimizers.available("optprof", "torch")))
def test_state_costs_the_bytes_that_the_formula_says(spec: str, dtype: torch.dtype) -> None:
    params = [Parameter(torch.ones(shape, dtype=dtype)) for shape in [(), (5,), (3, 4), (2, 3, 2, 2)]]
    optimizer = stepped(spec, params)
    for param in params:
        assert sum(value.nbytes for value in optimizer.state[param].values()) == STATE_BYTES[spec](param)


FLOAT32, TWO_AVERAGES = torch.float32, {"exp_avg": (torch.float32, 4, 20, 48, 96), "exp_avg_sq": (torch.float32, 4, 20, 48, 96)}
STEP = {"step": (FLOAT32, 4, 4, 4, 4)}
COVERS = {
    "accumulator_0": (FLOAT32, 4, 20, 12, 8),
    "accumulator_1": (FLOAT32, None, None, 16, 12),
    "accumulator_2": (FLOAT32, None, None, None, 8),
    "accumulator_3": (FLOAT32, None, None, None, 8),
}
# By key: the dtype, and the bytes for float32 parameters of shape (), (5,), (3, 4) and (2, 3, 2, 2).
STATE_BY_KEY: dict[str, dict[str, tuple[Any, ...]]] = {
    "adagrad": {"sum": (FLOAT32, 4, 20, 48, 96), **STEP},
    "adam": {**TWO_AVERAGES, **STEP},
    "adamw": {**TWO_AVERAGES, **STEP},
    "lamb": {**TWO_AVERAGES, **STEP},
    "lamb:preset=cybertronai": TWO_AVERAGES,
    "lamb16": {
        "exp_avg": (torch.float8_e4m3fn, 1, 5, 12, 24),
        "exp_avg_sq": (torch.float8_e5m2, 1, 5, 12, 24),
        "exp_avg_scale": (FLOAT32, 4, 4, 4, 4),
        "exp_avg_sq_scale": (FLOAT32, 4, 4, 4, 4),
        **STEP,
    },
    "rmsprop": {"square_avg": (FLOAT32, 4, 20, 48, 96), **STEP},
    "sgd": {"momentum_buffer": (FLOAT32, 4, 20, 48, 96)},
    "sgd-sai": {"gsnr": (FLOAT32, 4, 4, 4, 4), "momentum_buffer": (FLOAT32, 4, 20, 48, 96)},
    "sgd-sai:momentum=0": {"gsnr": (FLOAT32, 4, 4, 4, 4)},
    "sm3": COVERS,
    "sm3:momentum=0.9": {**COVERS, "momentum_buffer": (FLOAT32, 4, 20, 48, 96)},
}


@pytest.mark.parametrize("spec", STATE_BY_KEY)
def test_state_has_these_keys_dtypes_and_bytes(spec: str) -> None:
    params = [Parameter(torch.ones(shape)) for shape in [(), (5,), (3, 4), (2, 3, 2, 2)]]
    optimizer = stepped(spec, params)
    for index, param in enumerate(params, 1):
        found = {key: (value.dtype, value.nbytes) for key, value in optimizer.state[param].items()}
        assert found == {key: (row[0], row[index]) for key, row in STATE_BY_KEY[spec].items() if row[index] is not None}


class Peak(TorchDispatchMode):
    """Counts the bytes that live at most among the tensors made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        known = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if isinstance(tensor, Tensor)}
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor) and tensor.untyped_storage()._cdata not in known | self.seen:
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, nbytes = storage._cdata, storage.nbytes()

        def free() -> None:
            self.live -= nbytes
            self.seen.discard(key)

        self.seen.add(key)
        self.live += nbytes
        self.most = max(self.most, self.live)
        weakref.finalize(storage, free)


@pytest.mark.parametrize("implementation", ["loop", "foreach"])
@pytest.mark.parametrize(
    ("spec", "dtype", "tensors"),
    [
        ("sgd-sai", torch.float32, 0),
        ("sm3", torch.float32, 1),
        ("sm3:momentum=0.9", torch.float32, 1),
        ("sm3:momentum=0.9", torch.bfloat16, 1.5),
        ("lamb:weight_decay=0.1", torch.float32, 1),
        ("lamb:preset=nvidia,weight_decay=0.1", torch.float32, 2),
        ("lamb16:weight_decay=0.1", torch.float32, 3),
        ("lamb16:weight_decay=0.1", torch.bfloat16, 3),
    ],
)
def test_a_step_holds_few_temporaries_of_the_largest_parameters_size(
    spec: str, dtype: torch.dtype, tensors: float, implementation: Any
) -> None:
    shapes = [(128, 128), *[(64, 64)] * 9, (64,)]
    params = [Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
    optimizer = stepped(spec, params, implementation=implementation)
    with Peak() as peak:
        optimizer.step()
    scalars_and_axes = 4096
    assert peak.most <= tensors * 4 * 128 * 128 + scalars_and_axes
