"""The bytes of every optimizer of the catalogue: its state by hand, and a step's temporaries."""

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

from optprof import optimizers
from optprof.optimizers import zoo
from optprof.profiler.training.state import state_bytes

# Bytes of a parameter's state.
STATE_BYTES: dict[str, Callable[[Parameter], int]] = {
    "adafactor": lambda p: (
        p.itemsize * (p.numel() // p.shape[-1] + p.numel() // p.shape[-2]) + 4
        if p.dim() > 1
        else p.nbytes + 4
    ),
    "adagrad": lambda p: p.nbytes + 4,
    "adam": lambda p: 2 * p.nbytes + 4,
    "adamw": lambda p: 2 * p.nbytes + 4,
    "lamb": lambda p: 8 * p.numel() + 4,
    "lamb:preset=cybertronai": lambda p: 8 * p.numel(),
    "lamb:preset=nvidia,weight_decay=0.1": lambda p: 8 * p.numel() + 4,
    "lamb16": lambda p: 2 * p.numel() + 12,
    "muon": lambda p: p.nbytes if p.dim() == 2 else 2 * p.nbytes + 4,
    "rmsprop": lambda p: p.nbytes + 4,
    "sgd": lambda p: p.nbytes,
    "sgd-sai": lambda p: p.nbytes + 4,
    "sgd-sai:momentum=0": lambda _: 4,
    "sm3": lambda p: 4 * (sum(p.shape) if p.dim() else 1),
    "sm3:momentum=0.9,beta=0.9": lambda p: 4 * (sum(p.shape) if p.dim() else 1) + p.nbytes,
}


def skip_where_absent(spec: str) -> None:
    name = spec.partition(":")[0]
    if name not in optimizers.available():
        pytest.skip(f"needs {zoo.ZOO[name].package}")


def stepped(spec: str, params: list[Parameter], **options: Any) -> Optimizer:
    optimizer = optimizers.create(spec, params, **options)
    for param in params:
        param.grad = torch.ones_like(param)
    optimizer.step()
    return optimizer


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "spec", sorted(STATE_BYTES.keys() | optimizers.available("optprof", "torch"))
)
def test_state_costs_the_bytes_that_the_formula_says(spec: str, dtype: torch.dtype) -> None:
    params = [
        Parameter(torch.ones(shape, dtype=dtype)) for shape in [(), (5,), (3, 4), (2, 3, 2, 2)]
    ]
    optimizer = stepped(spec, params)
    for param in params:
        assert sum(value.nbytes for value in optimizer.state[param].values()) == STATE_BYTES[spec](
            param
        )


SHAPES = [(), (5,), (3, 4), (2, 3, 2, 2)]
Bytes = tuple[int, int, int, int]
LIKE: Bytes = (4, 20, 48, 96)  # float32, like the parameter
BYTE: Bytes = (1, 5, 12, 24)
ONE: Bytes = (4, 4, 4, 4)
ONLY_VECTORS: Bytes = (4, 20, 0, 0)


def float32(**bytes_by_key: Bytes) -> dict[str, tuple[str, Bytes]]:
    return {key: ("float32", found) for key, found in bytes_by_key.items()}


TWO_AVERAGES = float32(exp_avg=LIKE, exp_avg_sq=LIKE)
COVERS = float32(
    accumulator_0=(4, 20, 12, 8),
    accumulator_1=(0, 0, 16, 12),
    accumulator_2=(0, 0, 0, 8),
    accumulator_3=(0, 0, 0, 8),
)
# A (3, 4) matrix projected to rank 2: two moments of 4 x 2 and a basis of 2 x 3.
LOW_RANK = float32(exp_avg=(4, 20, 32, 96), exp_avg_sq=(4, 20, 32, 96), projector=(0, 0, 24, 0))
# By key: the dtype, and the bytes for float32 parameters of SHAPES, 0 where there is none.
STATE_BY_KEY: dict[str, dict[str, tuple[str, Bytes]]] = {
    "adafactor": float32(
        row_var=(0, 0, 12, 2 * 3 * 2 * 4),
        col_var=(0, 0, 16, 2 * 3 * 2 * 4),
        variance=ONLY_VECTORS,
        step=ONE,
    ),
    "adagrad": float32(sum=LIKE, step=ONE),
    "adam": {**TWO_AVERAGES, **float32(step=ONE)},
    "adam-mini": float32(m=LIKE, v_mean=ONE, dimension=ONE),
    "adamw": {**TWO_AVERAGES, **float32(step=ONE)},
    "adamw:amsgrad=True": {**TWO_AVERAGES, **float32(max_exp_avg_sq=LIKE, step=ONE)},
    "adamw4bit-torchao": {**TWO_AVERAGES, **float32(step=ONE, lr=ONE)},
    # Two tables of 256 numbers, which the states of larger tensors share.
    "adamw8bit-bnb": float32(state1=LIKE, state2=LIKE, name2qmap=(2048, 2048, 2048, 2048)),
    "adamw8bit-torchao": {**TWO_AVERAGES, **float32(step=ONE, lr=ONE)},
    "adamwfp8-torchao": {**TWO_AVERAGES, **float32(step=ONE, lr=ONE)},
    "adan": {**TWO_AVERAGES, **float32(exp_avg_diff=LIKE, previous_grad=LIKE)},
    "ademamix": {**TWO_AVERAGES, **float32(exp_avg_slow=LIKE)},
    "apollo:rank=2": {**LOW_RANK, **float32(scaling_grad=(0, 0, 4, 0))},
    "apollo": TWO_AVERAGES,
    # Of four axes, the last two are rows and columns: 2 x 3 x 2 of the one and 2 x 3 x 2 of the
    # other.
    "came": {
        **float32(
            exp_avg=LIKE,
            exp_avg_sq=ONLY_VECTORS,
            RMS=ONE,
            exp_avg_sq_row=(0, 0, 12, 48),
            exp_avg_sq_col=(0, 0, 16, 48),
        ),
        **float32(exp_avg_res_row=(0, 0, 12, 48), exp_avg_res_col=(0, 0, 16, 48)),
    },
    "fira:rank=2": {**LOW_RANK, **float32(scaling_grad=(0, 0, 4, 0))},
    "fira": TWO_AVERAGES,
    "flash-adamw": {
        "exp_avg::quantized": ("int8", BYTE),
        "exp_avg::scales": ("float16", (2, 2, 2, 2)),
        "exp_avg_sq::quantized": ("uint8", BYTE),
        "exp_avg_sq::scales": ("float16", (2, 2, 2, 2)),
    },
    "galore:rank=2": LOW_RANK,
    "galore": TWO_AVERAGES,
    "lamb": {**TWO_AVERAGES, **float32(step=ONE)},
    "lamb:preset=cybertronai": TWO_AVERAGES,
    "lamb16": {
        "exp_avg": ("float8_e4m3fn", BYTE),
        "exp_avg_sq": ("float8_e5m2", BYTE),
        **float32(exp_avg_scale=ONE, exp_avg_sq_scale=ONE, step=ONE),
    },
    "lion": float32(exp_avg=LIKE),
    "muon": float32(
        momentum_buffer=(0, 0, 48, 0),
        exp_avg=(4, 20, 0, 96),
        exp_avg_sq=(4, 20, 0, 96),
        step=(4, 4, 0, 4),
    ),
    # Two numbers are kept in each parameter group.
    "prodigy": {**TWO_AVERAGES, **float32(s=LIKE, p0=LIKE, d_numerator=ONE, d_de_nom=ONE)},
    # Of four axes, the first is rows and all others are columns.
    "racs": float32(s=(4, 20, 12, 8), q=(4, 4, 16, 48), theta=ONE),
    "rmsprop": float32(square_avg=LIKE, step=ONE),
    "schedule-free-adamw": float32(z=LIKE, exp_avg_sq=LIKE),
    "scion": float32(d=LIKE),
    "sgd": float32(momentum_buffer=LIKE),
    "sgd:momentum=0": {},
    "sgd-sai": float32(gsnr=ONE, momentum_buffer=LIKE),
    "sgd-sai:momentum=0": float32(gsnr=ONE),
    "sm3": COVERS,
    "sm3:momentum=0.9": {**COVERS, **float32(momentum_buffer=LIKE)},
    # 3 x 3 and 4 x 4; 2 x 2 three times and 3 x 3: what is averaged, and its eigenvectors.
    "soap": {**TWO_AVERAGES, **float32(GG=(0, 0, 4 * 25, 4 * 21), Q=(0, 0, 4 * 25, 4 * 21))},
    "tiger": float32(exp_avg=LIKE),
}


def test_every_name_of_the_catalogue_has_its_bytes_written_here() -> None:
    named = {*optimizers.available("optprof", "torch"), *zoo.ZOO}
    assert {spec.partition(":")[0] for spec in STATE_BY_KEY} == named


@pytest.mark.parametrize("spec", STATE_BY_KEY)
def test_state_has_these_keys_dtypes_and_bytes(spec: str) -> None:
    skip_where_absent(spec)
    for place, shape in enumerate(SHAPES):
        by_key_dtype = state_bytes(stepped(spec, [Parameter(torch.ones(shape))])).by_key_dtype
        assert by_key_dtype == {
            key: {dtype: row[place]}
            for key, (dtype, row) in STATE_BY_KEY[spec].items()
            if row[place]
        }


def both_averages(**by_dtype: int) -> dict[str, dict[str, int]]:
    return {"exp_avg": by_dtype, "exp_avg_sq": by_dtype}


CODES, SCALES, TABLE, STEP = (
    64 * 64,
    64 * 64 // 256 * 4,
    256 * 4,
    {"step": {"float32": 4}, "lr": {"float32": 4}},
)
# Low-bit optimizers keep few numbers whole: here for a (64, 64) parameter, the smallest that they
# shorten.
LOW_BIT: dict[str, dict[str, dict[str, int]]] = {
    "adamw4bit-torchao": {**both_averages(uint8=CODES // 2, float32=2 * SCALES + 16 * 4), **STEP},
    "adamw8bit-bnb": {
        "state1": {"uint8": CODES},
        "state2": {"uint8": CODES},
        "absmax1": {"float32": SCALES},
        "absmax2": {"float32": SCALES},
        "qmap1": {"float32": TABLE},
        "qmap2": {"float32": TABLE},
    },
    "adamw8bit-torchao": {**both_averages(uint8=CODES, float32=SCALES + TABLE), **STEP},
    "adamwfp8-torchao": {**both_averages(float8_e4m3fn=CODES, float32=SCALES), **STEP},
}


@pytest.mark.parametrize("spec", LOW_BIT)
def test_low_bit_state_has_these_keys_dtypes_and_bytes(spec: str) -> None:
    skip_where_absent(spec)
    assert state_bytes(stepped(spec, [Parameter(torch.ones(64, 64))])).by_key_dtype == LOW_BIT[spec]


class Peak(TorchDispatchMode):
    """Count the most bytes alive at once in tensors made inside."""

    def __init__(self) -> None:
        super().__init__()
        self.live = self.most = 0
        self.seen: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        known = {
            tensor.untyped_storage()._cdata
            for tensor in tree_leaves((args, kwargs))
            if isinstance(tensor, Tensor)
        }
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if (
                isinstance(tensor, Tensor)
                and tensor.untyped_storage()._cdata not in known | self.seen
            ):
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
        ("lamb:weight_decay=0.1", torch.bfloat16, 1),
        ("lamb:preset=nvidia,weight_decay=0.1", torch.float32, 2),
        ("lamb:preset=nvidia,weight_decay=0.1", torch.bfloat16, 1.5),
        ("lamb16:weight_decay=0.1", torch.float32, 2),
        ("lamb16:weight_decay=0.1", torch.bfloat16, 2),
    ],
)
def test_a_step_holds_few_temporaries_of_the_largest_parameters_size(
    spec: str, dtype: torch.dtype, tensors: float, implementation: Any
) -> None:
    shapes = [(256, 256), *[(128, 128)] * 9, (64,)]
    params = [Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
    optimizer = stepped(spec, params, implementation=implementation)
    with Peak() as peak:
        optimizer.step()
    scalars_and_axes = 4096
    assert peak.most <= tensors * 4 * 256 * 256 + scalars_and_axes


LARGEST, OTHER, ALL = 4 * 128 * 128, 4 * 64 * 64, 4 * (128 * 128 + 9 * 64 * 64 + 64)
# Bytes that a step of torch's and of others holds at most, by its loop and by its foreach, of
# float32 parameters: the largest, nine others and a vector. A loop that gives up its temporaries
# only when the next tensor's are there holds one of each.
TRANSIENT: dict[str, tuple[int, ...]] = {
    "adafactor": (LARGEST + OTHER, ALL),
    "adagrad": (LARGEST + OTHER, 2 * ALL),
    "adam": (2 * LARGEST, ALL),
    "adam-mini": (LARGEST, ALL),
    "adamw": (2 * LARGEST, ALL),
    "adamw8bit-bnb": (0,),
    "adan": (LARGEST + OTHER, ALL),
    "ademamix": (2 * LARGEST + OTHER, 2 * ALL),
    "apollo:rank=32": (LARGEST + 2 * OTHER, LARGEST + 2 * OTHER),
    "came": (2 * LARGEST + OTHER, 2 * ALL),
    "fira:rank=32": (2 * LARGEST + 2 * OTHER, 2 * LARGEST + 2 * OTHER),
    "flash-adamw": (7 * LARGEST + OTHER,),
    "galore:rank=32": (LARGEST + 2 * OTHER, LARGEST + 2 * OTHER),
    "lion": (LARGEST + OTHER, ALL),
    "muon": (3 * LARGEST, 3 * LARGEST),
    "prodigy": (LARGEST + OTHER, ALL + LARGEST),
    "racs": (LARGEST + OTHER, ALL + 2 * LARGEST),
    "rmsprop": (LARGEST + OTHER, ALL),
    "schedule-free-adamw": (2 * LARGEST, 2 * ALL),
    "scion": (2 * LARGEST, 2 * ALL + 3 * OTHER),
    "sgd": (0, 0),
    "soap": (6 * LARGEST,),
    "tiger": (LARGEST, ALL),
}


def test_the_transient_bytes_of_every_other_name_are_written_here() -> None:
    ours, compiled = (
        optimizers.available("optprof"),
        {name for name in zoo.ZOO if name.endswith("torchao")},
    )
    assert {spec.partition(":")[0] for spec in TRANSIENT} == {
        *optimizers.available("torch"),
        *zoo.ZOO,
    } - {*ours} - compiled


@pytest.mark.parametrize(
    ("spec", "way"),
    [(spec, way) for spec, row in TRANSIENT.items() for way in ("loop", "foreach")[: len(row)]],
)
def test_a_step_of_other_packages_holds_these_temporaries(spec: str, way: Any) -> None:
    skip_where_absent(spec)
    torch.manual_seed(0)
    params = [Parameter(torch.randn(shape)) for shape in [(128, 128), *[(64, 64)] * 9, (64,)]]
    optimizer = optimizers.create(spec, params, implementation=way)
    # SOAP's second step is the first to update anything.
    for _ in range(2):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer.step()
    with Peak() as peak:
        optimizer.step()
    scalars_and_axes = 4096
    assert peak.most == pytest.approx(TRANSIENT[spec][way == "foreach"], abs=scalars_and_axes)
