"""LAMB16: its state, its steps by hand, and the original's numbers against a float64 rule."""

import copy
import io
import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import Parameter
from torch.utils._python_dispatch import TorchDispatchMode

from optprof.optimizers import LAMB16
from optprof.profiler.tracing.trace import Recorder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Use one thread: tensors this small gain nothing from a second one."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def student(n: int, steps: int, seed: int = 0) -> Iterator[Tensor]:
    """Return samples of Student's t with 3 degrees of freedom and log-normal scales."""
    generator = torch.Generator().manual_seed(seed)
    scales = torch.randn(n, generator=generator).exp_()
    for _ in range(steps):
        chi_squared = torch.randn(3, n, generator=generator).square_().sum(0)
        yield scales * torch.randn(n, generator=generator) / torch.sqrt(chi_squared / 3)


def decoded(state: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    return state["exp_avg"].float() * state["exp_avg_scale"], state["exp_avg_sq"].float() * state[
        "exp_avg_sq_scale"
    ]


def step_on(optimizer: torch.optim.Optimizer, param: Parameter, grad: Tensor) -> None:
    param.grad = grad
    optimizer.step()


# The targets.


# With a hundred or a thousand elements, a few dominate the norm of v, and float8_e5m2 stores each
# of them to a fifth.
@pytest.mark.parametrize(("n", "seeds"), [(10**2, 12), (10**3, 6), (10**4, 2), (10**5, 1)])
def test_the_stored_moments_stay_right_under_heavy_tailed_gradients(n: int, seeds: int) -> None:
    steps = 1000
    params = [Parameter(torch.zeros(n)) for _ in range(seeds)]
    optimizer = LAMB16(params, foreach=True)
    first, second, stuck = (
        torch.zeros(seeds, n),
        torch.zeros(seeds, n),
        torch.ones(seeds, n, dtype=torch.bool),
    )
    for step, grads in enumerate(
        zip(*(student(n, steps, seed) for seed in range(seeds)), strict=True)
    ):
        earlier = torch.stack([param.detach() for param in params])
        for param, grad in zip(params, grads, strict=True):
            param.grad = grad
        optimizer.step()
        taken = torch.stack(grads)
        first.lerp_(taken, 0.1)
        second.mul_(0.999).addcmul_(taken, taken, value=0.001)
        if step >= steps - 20:
            stuck &= torch.stack([param.detach() for param in params]) == earlier
    for param, m_wanted, v_wanted in zip(params, first.double(), second.double(), strict=True):
        m, v = (moment.double() for moment in decoded(optimizer.state[param]))
        assert torch.nn.functional.cosine_similarity(m, m_wanted, dim=0) >= 0.99
        assert m.norm() / m_wanted.norm() == pytest.approx(1.0, abs=0.05)
        assert v.norm() / v_wanted.norm() == pytest.approx(1.0, abs=0.1)
        assert v.isfinite().all()
    assert not stuck.any()


@pytest.mark.parametrize("n", [1, 2, 7, 1000, 300_000])
def test_rounding_does_not_change_the_norm_of_the_second_moment(n: int) -> None:
    torch.manual_seed(0)
    params = [Parameter(torch.randn(n)) for _ in range(3)]
    optimizer = LAMB16(params)
    second = [torch.zeros(n, dtype=torch.float64) for _ in params]
    for _ in range(3):
        for param, square in zip(params, second, strict=True):
            param.grad = torch.randn(n)
            square.mul_(0.999).addcmul_(param.grad.double(), param.grad.double(), value=0.001)
        optimizer.step()
        for param, square in zip(params, second, strict=True):
            _, v = decoded(optimizer.state[param])
            assert v.double().norm().item() == pytest.approx(square.norm().item(), rel=1e-5)
            # The next step begins with these moments.
            square.copy_(v)


def test_an_outlier_freezes_no_coordinate() -> None:
    # The original stores infinity for these second moments, after which their weights never move
    # again.
    torch.manual_seed(0)
    param = Parameter(torch.zeros(100_000))
    optimizer = LAMB16([param])
    outliers = torch.randn(100_000)
    outliers[:3] = torch.tensor([30.0, -300.0, 30_000.0])
    before = param.detach()
    for step in range(30):
        if step == 20:
            before = param.detach().clone()
        step_on(optimizer, param, outliers if step == 5 else torch.randn(100_000))
    assert (param != before).all()
    assert decoded(optimizer.state[param])[1].isfinite().all()


def test_a_moment_too_small_to_store_makes_no_giant_step() -> None:
    # m / sqrt(v) cannot exceed 7.3 for any gradients at these betas; with v stored as 0 and a
    # nonzero m it could reach m / eps.
    torch.manual_seed(0)
    grads = torch.full((4096,), 1e-5)
    grads[0] = 1.0
    param = Parameter(torch.ones(4096))
    optimizer = LAMB16([param], trust_scale=0.0)
    for step in range(50):
        before = param.detach().clone()
        step_on(optimizer, param, grads * torch.randn(4096) if step < 40 else torch.zeros(4096))
        assert (param - before).abs().max() <= 7.3 * 1e-3 * 1.01


def test_moments_without_gradients_fade() -> None:
    # Rounded to nearest, the smallest numbers would never fade: 0.9 of them is nearer to them
    # than to 0.
    param = Parameter(torch.zeros(1000))
    optimizer = LAMB16([param])
    grad = torch.logspace(-6, 0, 1000)
    for step in range(300):
        step_on(optimizer, param, grad if step < 20 else torch.where(grad == 1, 1.0, 0.0))
    m, _ = decoded(optimizer.state[param])
    assert (m[:-1] == 0).all()
    assert m[-1] == pytest.approx(1.0, rel=1e-3)


def test_a_second_moment_grows_by_increments_far_below_its_last_place() -> None:
    # 0.999 of v and a thousandth of 4: nearest rounding stays at 1, a quarter of which is the last
    # place.
    param = Parameter(torch.zeros(1000))
    optimizer = LAMB16([param])
    grad = torch.ones(1000)
    grad[0] = 8.0
    for step in range(3000):
        step_on(optimizer, param, grad if step < 1500 else torch.where(grad == 1, 2.0, grad))
    wanted = (1 - 0.999**1500) * 0.999**1500 + 4 * (1 - 0.999**1500)
    # Rounding in turns has no bias for constant values, and a few percent for a value that grows by
    # its own rounding.
    assert decoded(optimizer.state[param])[1][1:].mean() == pytest.approx(wanted, rel=0.05)


# The first step is worked out by hand; the second repeats it.


def test_the_largest_element_is_stored_at_a_power_of_two() -> None:
    # m = (0.1, 0.2), s_m = 0.2 / 256; v = (0.001, 0.004), s_v = 0.004 / 32768.
    param = Parameter(torch.ones(2))
    optimizer = LAMB16([param], weight_decay=0.0)
    step_on(optimizer, param, torch.tensor([1.0, -2.0]))
    state = optimizer.state[param]
    assert state["exp_avg"].float().tolist() == [128.0, -256.0]
    assert state["exp_avg_sq"].float().tolist() == [8192.0, 32768.0]
    assert state["exp_avg_scale"].item() == pytest.approx(0.2 / 256)
    assert state["exp_avg_sq_scale"].item() == pytest.approx(0.004 / 32768)
    # r = +-sqrt(10), over whose clip of 1 the weights of 1 have the same size: phi = 1.
    torch.testing.assert_close(
        param.detach(), 1 - 1e-3 * torch.tensor([1.0, -1.0]) * 10**0.5, rtol=1e-5, atol=0
    )


def test_no_random_number_is_drawn_and_a_run_repeats_bit_for_bit() -> None:
    before = torch.get_rng_state()
    runs = []
    for _ in range(2):
        param = Parameter(torch.zeros(5000))
        optimizer = LAMB16([param])
        for grad in student(5000, 10):
            step_on(optimizer, param, grad)
        runs.append((param.detach(), optimizer.state[param]["exp_avg"].view(torch.uint8)))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(runs[0][0], runs[1][0])
    assert torch.equal(runs[0][1], runs[1][1])


@pytest.mark.parametrize("way", ["state_dict", "deepcopy"])
def test_the_rounding_goes_on_where_it_was(way: str) -> None:
    param = Parameter(torch.zeros(5000))
    optimizer = LAMB16([param])
    for grad in student(5000, 10):
        step_on(optimizer, param, grad)
    twin, other = copy.deepcopy((param, optimizer))
    if way == "state_dict":
        file = io.BytesIO()
        torch.save(optimizer.state_dict(), file)
        file.seek(0)
        other = LAMB16([twin])
        other.load_state_dict(torch.load(file, weights_only=True))
    for grad in student(5000, 10, seed=1):
        step_on(optimizer, param, grad)
        step_on(other, twin, grad)
    assert torch.equal(param, twin)
    assert torch.equal(
        optimizer.state[param]["exp_avg_sq"].view(torch.uint8),
        other.state[twin]["exp_avg_sq"].view(torch.uint8),
    )


def test_rows_of_a_strided_parameter_are_rounded_like_those_of_a_contiguous_one() -> None:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(96, 80, generator=generator)
    params = Parameter(values.clone()), Parameter(values.T.contiguous().T)
    assert not params[1].is_contiguous()
    optimizers = [LAMB16([param]) for param in params]
    for _ in range(5):
        grad = torch.randn(96, 80, generator=generator)
        for optimizer, param in zip(optimizers, params, strict=True):
            step_on(optimizer, param, grad)
    torch.testing.assert_close(params[1].detach(), params[0].detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_small_tensors_packed_together_are_updated_bit_for_bit_as_one_by_one(
    weight_decay: float, dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(0)
    # The largest is sliced, one is strided, and the sums of the others are more than one pack
    # holds.
    shapes = [(300, 256), (7,), (), (128, 70), (80, 96), (9000,), (3, 5, 2, 2), (1,)]
    runs = []
    for foreach in (False, True):
        params = [
            Parameter(torch.randn(shape, generator=generator.manual_seed(1), dtype=dtype))
            for shape in shapes
        ]
        params[4].data = params[4].data.T.contiguous().T
        runs.append((params, LAMB16(params, weight_decay=weight_decay, foreach=foreach)))
    for step in range(5):
        for index, shape in enumerate(shapes):
            # One has its first gradient late, and so is rounded in other turns than its neighbours.
            late = index == 3 and step < 2
            grad = torch.randn(shape, generator=generator, dtype=dtype)
            for params, _ in runs:
                params[index].grad = None if late else grad.clone()
        for _, optimizer in runs:
            optimizer.step()
    (loop, by_loop), (packed, by_packs) = runs
    for one, other in zip(loop, packed, strict=True):
        assert torch.equal(one, other)
        for key, value in by_loop.state[one].items():
            assert value.float().equal(by_packs.state[other][key].float())


class Operations(TorchDispatchMode):
    """Count the operations on tensors with data; a view is none."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        self.count += not func.is_view
        return func(*args, **(kwargs or {}))


def test_foreach_takes_a_fraction_of_the_operations_of_the_loop() -> None:
    counts = []
    for foreach in (False, True):
        params = [
            Parameter(torch.empty(shape, device="meta"))
            for shape in [(50257, 768), *[(768, 2304), (768,), (768,)] * 24]
        ]
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer = LAMB16(params, foreach=foreach)
        optimizer.step()
        with Operations() as operations:
            optimizer.step()
        counts.append(operations.count)
    assert counts[1] < counts[0] / 5


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("spoiler", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_spoils_its_tensor_alone(
    spoiler: float, foreach: bool
) -> None:
    params = [Parameter(torch.ones(8)), Parameter(torch.ones(8))]
    optimizer = LAMB16(params, foreach=foreach)
    for param in params:
        param.grad = torch.ones(8)
    params[0].grad = torch.tensor([spoiler] + [1.0] * 7)
    optimizer.step()
    assert params[0].isnan().all()
    assert params[1].isfinite().all()


def test_gradients_of_zero_leave_zero_moments() -> None:
    param = Parameter(torch.ones(8))
    optimizer = LAMB16([param])
    step_on(optimizer, param, torch.zeros(8))
    assert torch.equal(param.detach(), torch.ones(8))
    assert all((moment == 0).all() for moment in decoded(optimizer.state[param]))


# The original.


def original(
    w: Tensor, grads: list[Tensor], lr: float, weight_decay: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Apply the rule in float64 and return the codes of its moments."""
    eps, n = 1e-6, w.numel()
    q_m, q_v, s_m, s_v = (
        torch.zeros_like(w),
        torch.zeros_like(w),
        torch.ones((), dtype=w.dtype),
        torch.ones((), dtype=w.dtype),
    )
    for g in grads:
        m = 0.9 * (q_m * s_m) + 0.1 * g
        v = 0.999 * (q_v * s_v) + 0.001 * g * g
        s_m, s_v = (x.square().clamp(max=10).sum().sqrt() / n + eps for x in (m, v))
        q_m = (m / s_m).clamp(-15, 15).to(torch.float8_e4m3fn).double()
        q_v = (v.clamp(0, 10) / s_v).to(torch.float8_e5m2).double()
        r = m / (v.sqrt() + eps) + weight_decay * w
        size_w, size_r = (x.square().clamp(eps, 1).sum().sqrt() / n for x in (w, r))
        w = w - lr * ((size_w / size_r * 1e-3 / lr) ** 0.382).clamp(0, 2) * r
    return w, q_m, q_v


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("foreach", [False, True])
def test_the_scale_upstream_gives_the_numbers_of_the_original(foreach: bool, seed: int) -> None:
    # A moment within float32's error of the middle between two float8 numbers may be stored as
    # either: a flip, which moves its weight by more than 1e-5 in the steps that follow. Of 40 x
    # 2,000 roundings to places 2^-3 and 2^-2 wide, at 2^-24, few can be so close.
    generator = torch.Generator().manual_seed(seed)
    start, grads = (
        torch.randn(2000, generator=generator),
        [torch.randn(2000, generator=generator) for _ in range(40)],
    )
    param = Parameter(start.clone())
    optimizer = LAMB16([param], lr=1e-2, weight_decay=0.1, scale="upstream", foreach=foreach)
    for grad in grads:
        step_on(optimizer, param, grad)
    wanted, q_m, q_v = original(
        start.double(), [grad.double() for grad in grads], lr=1e-2, weight_decay=0.1
    )
    state = optimizer.state[param]
    flipped = (state["exp_avg"].double() != q_m) | (state["exp_avg_sq"].double() != q_v)
    apart = ((param.double() - wanted).abs() > 1e-5 + 1e-5 * wanted.abs()) | flipped
    assert apart.sum() <= 4


def test_the_scale_upstream_keeps_no_step() -> None:
    param = Parameter(torch.ones(10))
    optimizer = LAMB16([param], scale="upstream")
    step_on(optimizer, param, torch.ones(10))
    assert set(optimizer.state[param]) == {
        "exp_avg",
        "exp_avg_sq",
        "exp_avg_scale",
        "exp_avg_sq_scale",
    }


def test_a_scale_without_a_name_is_refused() -> None:
    with pytest.raises(ValueError, match="Invalid scale: 'rms', must be one of max, upstream"):
        LAMB16([Parameter(torch.ones(1))], scale="rms")


# Bytes.


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("scale", ["max", "upstream"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("largest", [(256, 256), (2048, 4096)])
def test_a_step_holds_at_most_two_float32_tensors_of_the_largest_parameters_size(
    largest: tuple[int, int], dtype: torch.dtype, scale: str, foreach: bool
) -> None:
    shapes: list[Any] = [largest, *[(128, 128)] * 4, (64,)]
    recorder = Recorder()
    with recorder.phase("build"):
        params = [Parameter(torch.empty(shape, dtype=dtype, device="meta")) for shape in shapes]
        for param in params:
            param.grad = torch.empty_like(param)
        optimizer = LAMB16(params, weight_decay=0.1, scale=scale, foreach=foreach)
        optimizer.step()
    with recorder.phase("step"):
        optimizer.step()
    assert peak(recorder) <= 2 * 4 * math.prod(largest)


def peak(recorder: Recorder) -> int:
    live = most = 0
    for event in recorder.segments[-1].events:
        nbytes = recorder.allocations.nbytes[event if event >= 0 else ~event]
        live += nbytes if event >= 0 else -nbytes
        most = max(most, live)
    return most
