"""Promises of every optimizer of the catalogue, so a new one is tested at once.

Broken promises of other packages' optimizers are listed here by name and reason, and tested too: a
failure that goes away fails the test.
"""

import copy
import io
import math
import pickle
from collections.abc import Iterable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.optimizer import Optimizer

from optprof import optimizers
from optprof.profiler.training.state import state_tensors

OURS = optimizers.available("optprof")
SETTINGS = (
    "sgd-sai:momentum=0",
    "sm3:momentum=0.9,beta=0.9",
    "lamb:preset=nvidia,weight_decay=0.1",
    "lamb:preset=cybertronai",
)
ZOO, LOW_BIT = (
    optimizers.available("pytorch_optimizer"),
    optimizers.available("bitsandbytes", "torchao"),
)
# With their default rank of 128 they would project none of the small matrices of these tests.
LOW_RANK = tuple(f"{name}:rank=2" for name in ("apollo", "fira", "galore") if name in ZOO)
SPECS = (*optimizers.available(), *SETTINGS, *LOW_RANK)
EACH_DTYPE = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
SHAPES = [(), (5,), (3, 4), (2, 3, 2, 2)]


Reasons = dict[str, str]


def because(reason: str, *names: str) -> Reasons:
    """Return the same reason for several names."""
    return dict.fromkeys(names, reason)


IN_PLACE = because("turns the gradient round in place", *ZOO, *LOW_RANK)
LOST = because("keeps options in attributes, which a copy loses", *ZOO, *LOW_RANK, *LOW_BIT)
PROJECTED = because(
    "its projection is an object of a class of its own, which torch.load does not take", *LOW_RANK
)
READS_BACK = {
    "adafactor": "reads the norms of parameters and updates back",
    "apollo:rank=2": "reads the norm of the update back",
    "fira:rank=2": "reads the norm of the update back",
    "prodigy": "reads its learning rate back",
}
TORCHS_FUSED = tuple(
    f"{spec} fused"
    for spec in optimizers.available("torch")
    if "fused" in optimizers.implementations(spec, "cpu")
)
BY_GROUP = because(
    "counts steps by group: a late parameter is corrected as if it were as old as the others",
    *(
        "adan",
        "ademamix",
        "apollo",
        "fira",
        "flash-adamw",
        "galore",
        "schedule-free-adamw",
        "soap",
        *LOW_RANK,
    ),
)


def every(*failing: Reasons, **more: str) -> pytest.MarkDecorator:
    """Parametrize over all optimizers and settings; `failing` and `more` give known failures."""
    return pytest.mark.parametrize(
        "spec", [pytest.param(spec, marks=_marks(spec, *failing, more)) for spec in SPECS]
    )


def every_way(*failing: Reasons, **more: str) -> pytest.MarkDecorator:
    """Parametrize over all optimizers' loop, foreach and fused; a failure may name "racs loop"."""
    ways = [
        (spec, way)
        for spec in SPECS
        for way in ("loop", "foreach", "fused")
        if way in optimizers.implementations(spec, "cpu")
    ]
    marks = {
        pair: _marks(pair[0], *failing, more) or _marks(" ".join(pair), *failing) for pair in ways
    }
    given = [pytest.param(*pair, marks=[*marks[pair], *_needing(pair[1])]) for pair in ways]
    return pytest.mark.parametrize(("spec", "implementation"), given)


def _needing(way: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.compiler] if way == "fused" else []


def _marks(name: str, *failing: Reasons) -> list[pytest.MarkDecorator]:
    return [
        pytest.mark.xfail(reason=reasons[name], strict=True)
        for reasons in failing
        if name in reasons
    ]


EVERY, EVERY_WAY = every(), every_way()


def parameters(
    dtype: torch.dtype = torch.float32,
    shapes: Iterable[tuple[int, ...]] = SHAPES,
    device: str = "cpu",
) -> list[Parameter]:
    generator = torch.Generator().manual_seed(0)
    return [
        Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes
    ]


def take_steps(
    optimizer: Optimizer, params: Iterable[Parameter], steps: Iterable[int] = range(3)
) -> None:
    for step in steps:
        generator = torch.Generator().manual_seed(100 + step)
        for param in params:
            param.grad = torch.randn(param.shape, generator=generator).to(param)
        torch.manual_seed(step)  # for those that draw a projection
        optimizer.step()


def assert_equal(params: list[Parameter], wanted: list[Parameter]) -> None:
    for param, reference in zip(params, wanted, strict=True):
        torch.testing.assert_close(param, reference, rtol=0, atol=0)


@every(
    {"adam-mini": "keeps float32 moments of float64 parameters"},
    scion="its foreach normalises with another eps",
)
def test_loop_and_foreach_agree(spec: str) -> None:
    tensors = {}
    for implementation in ("loop", "foreach"):
        if implementation not in optimizers.implementations(spec):
            pytest.skip(f"has no {implementation}")
        params = parameters(torch.float64)
        optimizer = optimizers.create(spec, params, implementation=implementation)
        take_steps(optimizer, params)
        states = [tensor.double() for _, tensor in state_tensors(optimizer)]
        tensors[implementation] = [*params, *states]
    for loop, foreach in zip(*tensors.values(), strict=True):
        torch.testing.assert_close(loop, foreach, rtol=1e-12, atol=1e-12)


@every_way(
    READS_BACK,
    because("refuses tensors without data", *TORCHS_FUSED),
    {"racs loop": "reads the norm of the update back"},
)
@EACH_DTYPE
def test_it_runs_on_meta_tensors_and_so_reads_none_back(
    spec: str, dtype: torch.dtype, implementation: Any
) -> None:
    params = parameters(dtype, device="meta")
    take_steps(optimizers.create(spec, params, implementation=implementation), params)


@every(PROJECTED, scion="keeps an enumeration in its groups, which torch.load does not take")
def test_a_saved_state_goes_on_bit_for_bit(spec: str) -> None:
    params = [*parameters(), *parameters(torch.bfloat16)]
    optimizer = optimizers.create(spec, params)
    take_steps(optimizer, params)
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    file.seek(0)
    twins = copy.deepcopy(params)
    loaded = optimizers.create(spec, twins)
    loaded.load_state_dict(torch.load(file, weights_only=True))
    for param, twin in zip(params, twins, strict=True):
        assert layout(loaded.state[twin]) == layout(optimizer.state[param])
    take_steps(optimizer, params, range(3, 6))
    take_steps(loaded, twins, range(3, 6))
    assert_equal(twins, params)


@pytest.mark.parametrize(
    ("saved", "own"),
    [
        (torch.float32, torch.bfloat16),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float64),
    ],
)
@pytest.mark.parametrize("spec", [*OURS, *SETTINGS])
def test_a_state_loaded_for_another_dtype_is_stored_as_if_made_for_it(
    spec: str, saved: torch.dtype, own: torch.dtype
) -> None:
    params, twins, others = parameters(saved), parameters(own), parameters(own)
    optimizer, loaded, made_there = (
        optimizers.create(spec, each) for each in (params, twins, others)
    )
    take_steps(optimizer, params)
    loaded.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    take_steps(made_there, others)
    for twin, other in zip(twins, others, strict=True):
        assert layout(loaded.state[twin]) == layout(made_there.state[other])
    take_steps(loaded, twins, range(3, 6))
    assert all(twin.isfinite().all() for twin in twins)


def layout(state: Any) -> Any:
    """Return dtype, shape and device of every tensor in a state, and all other values."""
    if isinstance(state, Tensor):
        return state.dtype, state.shape, state.device
    if isinstance(state, dict):
        return {key: layout(value) for key, value in state.items()}
    return [layout(value) for value in state] if isinstance(state, list) else state


@every(LOST)
@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_a_copy_goes_on_alone(spec: str, way: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    take_steps(optimizer, params)
    if way == "deepcopy":
        twins, twin = copy.deepcopy((params, optimizer))
    else:
        file = io.BytesIO()
        torch.save((params, optimizer), file)
        file.seek(0)
        twins, twin = torch.load(file, weights_only=False)
    take_steps(optimizer, params, range(3, 6))
    take_steps(twin, twins, range(3, 6))
    assert_equal(twins, params)


@pytest.mark.parametrize("spec", [*OURS, *SETTINGS])
def test_pickle_itself_takes_an_optimizer_and_its_scheduler(spec: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=2, gamma=0.5)
    train(optimizer, scheduler, params, range(3))
    twins, twin, other = pickle.loads(pickle.dumps((params, optimizer, scheduler)))
    assert other.optimizer is twin
    for param, same in zip(params, twins, strict=True):
        assert layout(twin.state[same]) == layout(optimizer.state[param])
    train(optimizer, scheduler, params, range(3, 6))
    train(twin, other, twins, range(3, 6))
    assert_equal(twins, params)


def train(
    optimizer: Optimizer, scheduler: LRScheduler, params: list[Parameter], steps: range
) -> None:
    for step in steps:
        take_steps(optimizer, params, [step])
        scheduler.step()


def assert_gradients_are_left(optimizer: Optimizer, params: list[Parameter]) -> None:
    take_steps(optimizer, params)
    before = [
        (param.grad, param.grad._version, param.grad.clone())
        for param in params
        if param.grad is not None
    ]
    optimizer.step()
    for param, (grad, version, value) in zip(params, before, strict=True):
        assert param.grad is grad
        assert grad._version == version
        assert torch.equal(grad, value)


@every({"schedule-free-adamw": "makes the update in the gradient's place"})
def test_gradients_are_left_as_they_were(spec: str) -> None:
    params = parameters()
    assert_gradients_are_left(optimizers.create(spec, params), params)


@every(IN_PLACE, because("has no maximize", "muon", *LOW_BIT))
def test_gradients_are_left_as_they_were_by_one_that_maximizes(spec: str) -> None:
    params = parameters()
    assert_gradients_are_left(optimizers.create(spec, params, maximize=True), params)


@every(
    because("has no maximize", "muon", *LOW_BIT),
    adan="its first difference is that to a gradient not turned round",
)
def test_maximizing_is_minimizing_the_negative(spec: str) -> None:
    up, down = parameters(), parameters()
    ascent, descent = (
        optimizers.create(spec, up, maximize=True),
        optimizers.create(spec, down),
    )
    for seed in range(3):
        torch.manual_seed(seed)
        for one, other in zip(up, down, strict=True):
            other.grad = torch.randn_like(other)
            one.grad = -other.grad
        for optimizer in (ascent, descent):
            torch.manual_seed(seed)
            optimizer.step()
    assert_equal(up, down)


@EVERY
def test_it_prints_nothing(spec: str, capfd: pytest.CaptureFixture[str]) -> None:
    params = parameters()
    take_steps(optimizers.create(spec, params), params)
    assert capfd.readouterr() == ("", "")


@EVERY
def test_the_closure_is_called_once_with_gradients_enabled(spec: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    losses = []

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = torch.stack([param.square().sum() for param in params]).sum()
        loss.backward()
        losses.append(loss)
        return loss

    with torch.no_grad():
        assert optimizer.step(closure) is losses[0]  # pyright: ignore[reportArgumentType, reportCallIssue]
    assert len(losses) == 1


@every({"adamw8bit-bnb": "its kernels write where autograd does not look"})
def test_a_step_bumps_the_versions_that_autograd_watches(spec: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    versions = [param._version for param in params]
    take_steps(optimizer, params)
    assert all(param._version > version for param, version in zip(params, versions, strict=True))


@every(adagrad="allocates its state when it is made")
def test_a_step_without_gradients_changes_nothing(spec: str) -> None:
    params = parameters()
    optimizer = optimizers.create(spec, params)
    optimizer.step()
    assert_equal(params, parameters())
    assert not any(optimizer.state.values())


@every(adagrad="allocates its state when it is made")
def test_a_frozen_parameter_stays_and_costs_nothing(spec: str) -> None:
    frozen, *others = parameters()
    frozen.requires_grad_(False)
    optimizer = optimizers.create(spec, [frozen, *others])
    take_steps(optimizer, others)
    assert torch.equal(frozen, parameters()[0])
    assert not optimizer.state.get(frozen)


@every(
    BY_GROUP,
    {"adam-mini": "makes its own groups, by name"},
    prodigy="has one learning rate, which all gradients find together",
)
def test_a_late_parameter_starts_as_if_it_were_alone(spec: str) -> None:
    params, alone = parameters(), parameters()[-1:]
    optimizer = optimizers.create(spec, params[:2])
    take_steps(optimizer, params[:2])
    optimizer.add_param_group({"params": params[2:]})
    take_steps(optimizer, params[:3])
    optimizer.zero_grad()
    # Its first gradient comes after six steps of others.
    take_steps(optimizer, params[-1:])
    take_steps(optimizers.create(spec, alone), alone)
    assert_equal(params[-1:], alone)


@every(
    adafactor="divides by the root of the number of elements",
    scion="reshapes to rows of a length that none has",
)
def test_an_empty_parameter_is_stepped(spec: str) -> None:
    params = parameters(shapes=[(0,), (0, 3), (2, 3)])
    take_steps(optimizers.create(spec, params), params)
    assert params[-1].isfinite().all()


@every_way(
    because(
        "takes a gradient's elements as they lie in memory, in an order that need not be the"
        " parameter's",
        *TORCHS_FUSED,
    )
)
def test_the_memory_format_of_a_parameter_does_not_matter(spec: str, implementation: Any) -> None:
    params = parameters(shapes=[(2, 3, 4, 5)])
    others = [Parameter(param.detach().to(memory_format=torch.channels_last)) for param in params]
    for each in (params, others):
        take_steps(optimizers.create(spec, each, implementation=implementation), each)
    torch.testing.assert_close(others, params, rtol=1e-4, atol=1e-5)


@every(
    {"adam-mini": "makes its own groups, by name"},
    prodigy="goes by the learning rate of the first group",
)
def test_options_of_a_group_win(spec: str) -> None:
    still, moving = parameters(), parameters()
    optimizer = optimizers.create(spec, [{"params": still, "lr": 0.0}, {"params": moving}])
    take_steps(optimizer, [*still, *moving])
    assert_equal(still, parameters())
    assert not any(
        torch.equal(param, start) for param, start in zip(moving, parameters(), strict=True)
    )


# Prodigy finds its rate from a guess of 1e-6, which takes it more steps than these.
RATES: dict[str, dict[str, Any]] = {"prodigy": {"lr": 1.0, "d0": 1e-3}, "racs": {"lr": 0.05}}


@EVERY_WAY
def test_a_few_steps_lower_the_loss_of_a_convex_problem(spec: str, implementation: Any) -> None:
    torch.manual_seed(0)
    inputs, weight, bias = (
        torch.randn(32, 4),
        Parameter(torch.ones(3, 4)),
        Parameter(torch.zeros(3)),
    )
    targets = inputs @ torch.randn(4, 3) + 1
    options = RATES.get(spec, {"lr": 0.01})
    optimizer = optimizers.create(spec, [weight, bias], implementation=implementation, **options)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = torch.nn.functional.mse_loss(inputs @ weight.T + bias, targets)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.95 * losses[0]


@pytest.mark.parametrize(
    ("names", "option", "value"),
    [
        (optimizers.available("optprof", "torch"), "lr", -0.5),
        (OURS, "lr", math.nan),
        (("adam", "adamw", "lamb", "lamb16"), "betas", (0.9, 1.5)),
        (("lamb", "lamb16"), "betas", (0.9, 0.99, 1.5)),
        (("adam", "adamw", "lamb", "lamb16", "sm3", "sgd-sai"), "eps", -0.5),
        (("lamb16",), "eps", 0.0),
        (("adam", "adamw", "sgd", "lamb", "lamb16", "sgd-sai"), "weight_decay", -0.5),
        (("sm3", "sgd-sai"), "momentum", 1.0),
        (("sm3",), "beta", 1.0),
        (("lamb16",), "trust_scale", -0.5),
        (("lamb",), "preset", "peper"),
        (("lamb",), "trust_clip", -0.5),
    ],
)
def test_a_wrong_value_is_refused_by_name(names: tuple[str, ...], option: str, value: Any) -> None:
    wrong = value[1] if option == "betas" else value
    options: dict[str, Any] = {option: value}
    for name in names:
        with pytest.raises(ValueError, match=str(wrong)):
            optimizers.create(name, parameters(), **options)


@EVERY
def test_an_empty_list_of_parameters_is_refused(spec: str) -> None:
    with pytest.raises(ValueError, match="empty parameter list"):
        optimizers.create(spec, [])


@pytest.mark.parametrize("name", sorted({*OURS} - {"sm3"}))
def test_sparse_gradients_are_refused_where_they_are_not_supported(name: str) -> None:
    embedding = Parameter(torch.ones(3, 2))
    embedding.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(
        RuntimeError,
        match=r"does not support sparse gradients, got one of layout torch\.sparse_coo",
    ):
        optimizers.create(name, [embedding]).step()
