"""Bytes of tensors of every kind and of state wherever an optimizer keeps it, counted by hand."""

import weakref
from collections.abc import Callable, Iterator
from functools import lru_cache, partial
from importlib.util import find_spec
from itertools import cycle
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar
from weakref import WeakValueDictionary

import numpy
import pytest
import torch
from torch import Tensor
from torch.masked import masked_tensor
from torch.nn import Linear, Parameter
from torch.nn.parameter import UninitializedParameter

from optprof import optimizers
from optprof.optimizers.accumulation import GradientNormThreshold
from optprof.profiler.simulating.simulation import simulate
from optprof.profiler.training.state import (
    bytes_by_dtype,
    state_bytes,
    state_tensors,
    storage_bytes,
)
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build


class Slotted:
    """An object with tensors in slots, one under a private name, and an empty slot."""

    __slots__ = ("__basis", "never_set", "vector")

    def __init__(self) -> None:
        self.__basis = torch.zeros(3, 5, dtype=torch.float16)  # 30 bytes
        self.vector = torch.zeros(7)  # 28 bytes


class LowBit(Tensor):
    """A tensor that appears as float32 and is made of one byte per element and a scale."""

    codes: Tensor
    scale: Tensor

    @staticmethod
    def __new__(cls, codes: Tensor, scale: Tensor) -> "LowBit":
        made = Tensor._make_wrapper_subclass(cls, codes.shape, dtype=torch.float32)
        made.codes, made.scale = codes, scale
        return made

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        return ["codes", "scale"], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        raise NotImplementedError(f"{func} is no part of counting bytes")

    @classmethod
    def __tensor_unflatten__(
        cls, inner: dict[str, Tensor], meta: None, outer_size: Any, outer_stride: Any
    ) -> "LowBit":
        del meta, outer_size, outer_stride
        return cls(inner["codes"], inner["scale"])


def ragged(layout: torch.layout) -> Tensor:
    """Return six rows of three numbers, two of one sample and four of another."""
    return torch.nested.nested_tensor([torch.ones(2, 3), torch.ones(4, 3)], layout=layout)


@pytest.mark.parametrize(
    ("make", "nbytes"),
    [
        # Four numbers with two int64 indices each.
        (lambda: torch.eye(4).to_sparse(), 4 * 4 + 2 * 4 * 8),
        # Twice as many, before duplicates are added up.
        (lambda: torch.eye(4).to_sparse() + torch.eye(4).to_sparse(), 2 * (4 * 4 + 2 * 4 * 8)),
        # One index per number, and one more offset than rows or columns.
        (
            lambda: torch.sparse_csr_tensor([0, 1, 2, 3], [0, 1, 2], torch.ones(3), (3, 3)),
            3 * 4 + 3 * 8 + 4 * 8,
        ),
        (
            lambda: torch.sparse_csc_tensor([0, 1, 2, 3], [0, 1, 2], torch.ones(3), (3, 3)),
            3 * 4 + 3 * 8 + 4 * 8,
        ),
        # Two blocks of four numbers.
        (
            lambda: torch.sparse_bsr_tensor([0, 1, 2], [0, 1], torch.ones(2, 2, 2), (4, 4)),
            2 * 4 * 4 + 2 * 8 + 3 * 8,
        ),
        (
            lambda: torch.sparse_bsc_tensor([0, 1, 2], [0, 1], torch.ones(2, 2, 2), (4, 4)),
            2 * 4 * 4 + 2 * 8 + 3 * 8,
        ),
        # The (2, 2) sizes of a nested tensor are not data; the offsets of a jagged one are.
        (lambda: ragged(torch.strided), 18 * 4),
        (lambda: ragged(torch.jagged), 18 * 4 + 3 * 8),
        (lambda: torch.ones(4, 4).to_mkldnn(), 16 * 4),
        (lambda: masked_tensor(torch.ones(3), torch.tensor([True, False, True])), 3 * 4 + 3),
        (lambda: LowBit(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(1)), 24 + 4),
        (lambda: torch.quantize_per_tensor(torch.ones(5), 0.1, 0, torch.qint8), 5),
        (UninitializedParameter, 0),
        (lambda: None, 0),
    ],
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_tensor_of_any_kind_counts_the_memory_behind_it(
    make: Callable[[], Tensor | None], nbytes: int
) -> None:
    tensor = make()
    assert storage_bytes([tensor, tensor]) == nbytes


def test_a_shared_storage_counts_once_under_one_dtype() -> None:
    flat = torch.zeros(10)
    rows = torch.eye(4, dtype=torch.float64).to_sparse()
    assert bytes_by_dtype([flat, flat[2:], None, rows]) == {
        "float32": 40,
        "float64": 32,
        "int64": 64,
    }


def holding(**entries: Any) -> torch.optim.Optimizer:
    """Return an optimizer of one (4, 6) parameter whose state has these entries."""
    param = Parameter(torch.zeros(4, 6))
    optimizer = torch.optim.SGD([param])
    optimizer.state[param].update(entries)
    return optimizer


def test_tensors_in_attributes_and_slots_of_objects_are_state() -> None:
    projector = SimpleNamespace(
        rank=2, bases=(torch.zeros(4, 2), [torch.zeros(2, 6)]), kind=Slotted
    )
    state = state_bytes(holding(projector=projector, slotted=Slotted(), exp_avg=torch.zeros(4, 2)))
    assert state.by_key_dtype == {
        "projector": {"float32": 4 * 8 + 4 * 12},
        "slotted": {"float16": 30, "float32": 28},
        "exp_avg": {"float32": 32},
    }


def test_a_tensor_made_of_others_counts_their_bytes() -> None:
    moment = LowBit(torch.zeros(4, 6, dtype=torch.uint8), torch.zeros(1))
    assert state_bytes(holding(moment=moment)).by_key_dtype == {
        "moment": {"uint8": 24, "float32": 4}
    }


def test_an_object_that_contains_itself_is_searched_once() -> None:
    ring = SimpleNamespace(tensor=torch.zeros(5))
    ring.again = [ring, {"tensor": ring.tensor}]
    assert state_bytes(holding(ring=ring, twin=ring)).total == 20


def test_parameters_their_views_and_models_are_not_state() -> None:
    optimizer = holding(model=Linear(3, 3), package=torch)
    (param,) = optimizer.param_groups[0]["params"]
    optimizer.state[param].update(
        param=param, flat=param.detach().view(-1), row=SimpleNamespace(row=param.data[1])
    )
    assert list(state_tensors(optimizer)) == []


def two_layers() -> list[Parameter]:
    """Return weights of 24 and 5 numbers in bfloat16: 96 and 20 bytes in float32."""
    return [
        Parameter(torch.ones(4, 6, dtype=torch.bfloat16)),
        Parameter(torch.ones(5, dtype=torch.bfloat16)),
    ]


MASTERS = 96 + 20


class Plain(torch.optim.SGD):
    """An optimizer without state; a function below adds some."""

    kept: Any
    optim: Any


def masters_of(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        param.detach().float().clone()
        for group in optimizer.param_groups
        for param in group["params"]
    ]


def in_a_list_of_pairs(optimizer: Plain) -> None:
    optimizer.kept = list(
        zip(optimizer.param_groups[0]["params"], masters_of(optimizer), strict=True)
    )


def in_a_dict_by_parameter(optimizer: Plain) -> None:
    optimizer.kept = dict(
        zip(optimizer.param_groups[0]["params"], masters_of(optimizer), strict=True)
    )


def as_keys_of_a_dict(optimizer: Plain) -> None:
    optimizer.kept = dict.fromkeys(masters_of(optimizer))


def in_a_group(optimizer: Plain) -> None:
    optimizer.param_groups[0]["kept"] = masters_of(optimizer)


def in_a_partial_function(optimizer: Plain) -> None:
    optimizer.kept = partial(print, masters_of(optimizer))


def in_a_closure(optimizer: Plain) -> None:
    masters = masters_of(optimizer)
    optimizer.kept = lambda: masters


def in_the_defaults_of_a_function(optimizer: Plain) -> None:
    weight, bias = masters_of(optimizer)

    def keep(weight: Tensor = weight, *, bias: Tensor = bias) -> None:
        del weight, bias

    optimizer.kept = keep


def in_a_cache(optimizer: Plain) -> None:
    optimizer.kept = lru_cache(lambda: masters_of(optimizer))
    optimizer.kept()


def in_iterators(optimizer: Plain) -> None:
    masters = masters_of(optimizer)
    optimizer.kept = cycle(masters[:1]), iter(masters[1:])


def in_a_generator(optimizer: Plain) -> None:
    def step_by_step() -> Iterator[int]:
        masters = masters_of(optimizer)
        yield len(masters)

    optimizer.kept = step_by_step()
    next(optimizer.kept)


def in_the_keys_of_a_dict(optimizer: Plain) -> None:
    optimizer.kept = dict.fromkeys(enumerate(masters_of(optimizer)))


def in_numpy_arrays(optimizer: Plain) -> None:
    # A view keeps its array alive.
    optimizer.kept = [master.numpy().copy()[:1] for master in masters_of(optimizer)]


def in_an_array_of_tensors(optimizer: Plain) -> None:
    optimizer.kept = numpy.empty(2, object)
    optimizer.kept[:] = masters_of(optimizer)


def in_the_object_of_a_method(optimizer: Plain) -> None:
    optimizer.kept = Keeper(masters_of(optimizer)).update


class Keeper:
    def __init__(self, masters: list[Tensor]) -> None:
        self.masters = masters

    def update(self) -> None:
        """Do nothing."""

    def hook(self, *_: Any) -> None:
        """Do nothing after a step."""


def as_attributes_of_the_parameters(optimizer: Plain) -> None:
    for param, master in zip(
        optimizer.param_groups[0]["params"], masters_of(optimizer), strict=True
    ):
        param.kept = master


@pytest.mark.parametrize(
    "put",
    [
        in_a_list_of_pairs,
        in_a_dict_by_parameter,
        as_keys_of_a_dict,
        in_a_group,
        in_a_partial_function,
        in_a_closure,
        in_the_defaults_of_a_function,
        in_a_cache,
        in_iterators,
        in_a_generator,
        in_the_keys_of_a_dict,
        in_numpy_arrays,
        in_an_array_of_tensors,
        in_the_object_of_a_method,
        as_attributes_of_the_parameters,
    ],
)
def test_copies_of_the_weights_are_state_wherever_they_are_kept(
    put: Callable[[Plain], None],
) -> None:
    optimizer = Plain(two_layers())
    put(optimizer)
    assert state_bytes(optimizer).by_key_dtype == {"kept": {"float32": MASTERS}}


def test_arrays_of_dtypes_unknown_to_torch_are_counted() -> None:
    optimizer = Plain(two_layers())
    optimizer.kept = (
        numpy.zeros((3, 5), "datetime64[s]"),
        numpy.zeros((2, 3), ">f4"),
        numpy.zeros((4, 6), order="F"),
    )
    assert state_bytes(optimizer).by_key_dtype == {
        "kept": {"uint8": 15 * 8 + 6 * 4, "float64": 24 * 8}
    }


def test_an_array_that_shares_a_parameter_s_memory_is_not_state() -> None:
    param = Parameter(torch.zeros(5))
    optimizer = Plain([param])
    optimizer.kept = [param.detach().numpy()[1:], param.untyped_storage()]
    assert list(state_tensors(optimizer)) == []


def test_a_storage_is_state() -> None:
    assert state_bytes(holding(kept=torch.zeros(5).untyped_storage())).by_key == {"kept": 20}


def test_tensors_in_class_attributes_are_state() -> None:
    class Sharing(Plain):
        masters: ClassVar[list[Tensor]] = [torch.zeros(5)]

    assert state_bytes(Sharing(two_layers())).by_key == {"masters": 20}


def test_a_module_that_is_not_the_model_is_state() -> None:
    model, average = Linear(3, 3), torch.nn.BatchNorm1d(5)
    optimizer = Plain(model.parameters())
    optimizer.kept = [model, average]
    assert state_bytes(optimizer).total == 0
    # Weight, bias, mean and variance, and the number of batches.
    assert state_bytes(optimizer, model.parameters()).by_key == {"kept": 4 * 20 + 8}


def test_locals_in_the_traceback_of_a_kept_exception_are_not_state() -> None:
    optimizer = Plain(two_layers())
    batch = torch.zeros(5)
    try:
        raise ValueError(batch.numel())
    except ValueError as error:
        optimizer.kept = error
    assert list(state_tensors(optimizer)) == []


def test_the_state_of_a_wrapped_optimizer_keeps_its_keys() -> None:
    optimizer = Plain(two_layers())
    optimizer.optim = inner = torch.optim.SGD(optimizer.param_groups[0]["params"], momentum=0.9)
    for param in optimizer.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    inner.step()
    assert state_bytes(optimizer).by_key_dtype == {"momentum_buffer": {"bfloat16": MASTERS // 2}}


def test_copies_that_a_wrapped_optimizer_trains_are_state() -> None:
    optimizer = Plain(two_layers())
    optimizer.optim = inner = torch.optim.SGD(map(Parameter, masters_of(optimizer)), momentum=0.9)
    for param in inner.param_groups[0]["params"]:
        param.grad = torch.ones_like(param)
    inner.step()
    assert state_bytes(optimizer).by_key == {"momentum_buffer": MASTERS, "params": MASTERS}


def test_copies_in_the_groups_are_state_if_the_model_is_known() -> None:
    params = two_layers()
    optimizer = torch.optim.SGD([Parameter(param.detach().float()) for param in params])
    assert state_bytes(optimizer).total == 0
    assert state_bytes(optimizer, params).by_key == {"params": MASTERS}


def test_frozen_parameters_and_buffers_of_a_known_model_are_not_state() -> None:
    model = torch.nn.BatchNorm1d(5)
    model.bias.requires_grad_(False)
    optimizer = Plain([model.weight])
    optimizer.kept = [*model.named_parameters(), *model.named_buffers()]
    assert state_bytes(optimizer).total == 20 * 3 + 8
    assert state_bytes(optimizer, [*model.parameters(), *model.buffers()]).total == 0


def test_a_flat_buffer_is_not_state_while_gradients_are_in_it() -> None:
    param = Parameter(torch.zeros(5))
    optimizer = Plain([param])
    optimizer.kept = torch.zeros(8)
    param.grad = optimizer.kept[:5]
    assert state_bytes(optimizer).total == 0
    param.grad = None
    assert state_bytes(optimizer).by_key == {"kept": 32}


def test_gradients_in_attributes_of_a_parameter_are_not_state() -> None:
    param: Any = Parameter(torch.zeros(5))
    param.main_grad = torch.zeros(5)
    param.prev_grad = torch.zeros(5)
    optimizer = Plain([param])
    optimizer.kept = [param.main_grad]
    assert state_bytes(optimizer).by_key == {"prev_grad": 20}


def test_a_tensor_learning_rate_is_state() -> None:
    assert state_bytes(torch.optim.SGD(two_layers(), lr=torch.tensor(0.1))).by_key == {"lr": 4}


def test_hooks_and_scalers_of_the_training_loop_are_not_state() -> None:
    tensor = torch.zeros(5)
    optimizer = Plain(two_layers())
    optimizer.register_step_post_hook(Keeper([tensor]).hook)
    optimizer.kept = (
        torch.amp.GradScaler("cpu"),
        weakref.ref(tensor),
        weakref.proxy(tensor),
        WeakValueDictionary({1: tensor}),
    )
    assert list(state_tensors(optimizer)) == []


def test_the_pending_sum_of_an_accumulation_is_state() -> None:
    params = two_layers()
    wrapper = GradientNormThreshold(torch.optim.SGD(params), threshold=1e-9, buffered=True)
    for param in params:
        param.grad = torch.ones_like(param)
    assert not wrapper.step()
    assert state_bytes(wrapper).by_key == {"_sum": MASTERS}


def test_objects_nested_deeper_than_python_can_recurse_are_searched() -> None:
    chain: list[Any] = [torch.zeros(5)]
    for _ in range(100_000):
        chain = [chain]
    assert state_bytes(holding(chain=chain)).total == 20
    # Free link by link: freeing a chain at once recurses too.
    while isinstance(chain[0], list):
        chain = chain.pop()


@pytest.mark.filterwarnings("ignore")
@pytest.mark.skipif(not torch.distributed.is_available(), reason="needs torch.distributed")
def test_the_shard_of_a_zero_redundancy_optimizer_is_state(tmp_path: Path) -> None:
    from torch.distributed.optim import ZeroRedundancyOptimizer

    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{tmp_path / 'ranks'}", rank=0, world_size=1
    )
    try:
        params = [Parameter(torch.zeros(4, 6)), Parameter(torch.zeros(5))]
        optimizer = ZeroRedundancyOptimizer(
            params, optimizer_class=torch.optim.AdamW, parameters_as_bucket_view=True
        )
        for param in params:
            param.grad = torch.ones_like(param)
        optimizer.step()
        assert state_bytes(optimizer).by_key == {"exp_avg": 116, "exp_avg_sq": 116, "step": 8}
    finally:
        torch.distributed.destroy_process_group()


def galore_state(shapes: Iterator[torch.Size], rank: int) -> dict[str, int]:
    """Return the bytes of two moments and a basis for each shape.

    A matrix has moments of `rank` columns for its longer side, and a basis of `rank` rows for its
    shorter one. Other parameters have moments of their own shape.
    """
    nbytes = {"exp_avg": 0, "exp_avg_sq": 0, "projector": 0}
    for shape in shapes:
        projected = len(shape) == 2 and min(shape) > rank
        moment = 4 * (max(shape) * rank if projected else shape.numel())
        basis = 4 * min(shape) * rank if projected else 0
        nbytes = {
            "exp_avg": nbytes["exp_avg"] + moment,
            "exp_avg_sq": nbytes["exp_avg_sq"] + moment,
            "projector": nbytes["projector"] + basis,
        }
    return nbytes


@pytest.mark.skipif(find_spec("pytorch_optimizer") is None, reason="needs the extra zoo")
def test_the_projection_of_galore_is_counted_on_real_tensors() -> None:
    params = [Parameter(torch.randn(shape)) for shape in [(8, 12), (5,)]]
    optimizer = optimizers.create("galore:rank=2", params)
    for param in params:
        param.grad = torch.randn_like(param)
    optimizer.step()
    # A moment has 12 x 2 and 5 numbers, the projection 2 x 8.
    assert state_bytes(optimizer).by_key == {
        "exp_avg": 4 * (24 + 5),
        "exp_avg_sq": 4 * (24 + 5),
        "projector": 4 * 16,
    }


@pytest.mark.skipif(find_spec("pytorch_optimizer") is None, reason="needs the extra zoo")
@pytest.mark.parametrize("name", ["galore", "fira", "apollo:rank=128"])
def test_the_projection_is_counted_in_simulation(name: str) -> None:
    spec, options = optimizers.parse(name)
    memory = simulate(
        Scenario(
            model="gpt2", optimizer=spec, options=options, workload="state", implementation="loop"
        )
    ).memory
    shapes = (
        p.shape for p in build(Scenario(model="gpt2", workload="state"), "meta").model.parameters()
    )
    assert memory is not None
    expected = galore_state(shapes, rank=128)
    assert {key: memory.state_by_key[key] for key in expected} == expected
