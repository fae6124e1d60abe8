"""Accumulation wrappers against sequences by hand, and their promises in every case."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD

from optprof import optimizers
from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import (
    Accumulation,
    GradientNoiseScale,
    GradientNormRescaler,
    GradientNormThreshold,
    MetricHypothesisTest,
    ScheduledBatch,
)

ONE_LINE = r"^[^\n]*$"
NAN = float("nan")
MAKERS: dict[str, Callable[..., Accumulation]] = {
    "gnts": lambda optimizer, **options: GradientNormThreshold(
        optimizer, 0.1, max_draws=3, **options
    ),
    "sbc": lambda optimizer, **options: ScheduledBatch(optimizer, 3, **options),
    "gns": lambda optimizer, **options: GradientNoiseScale(optimizer, 1e-9, max_draws=3, **options),
}


def plain(*shape: int) -> tuple[Parameter, SGD]:
    """Return a parameter of zeros and SGD with a rate of 1, which subtracts the mean gradient."""
    param = Parameter(torch.zeros(shape or (2,)))
    return param, SGD([param], lr=1.0)


def draw(wrapper: Accumulation, param: Tensor, gradient: Sequence[float], loss: Any = None) -> bool:
    (param * torch.tensor(gradient, dtype=param.dtype)).sum().backward()
    return wrapper.step(loss=loss)


def test_it_steps_once_the_mean_norm_is_low() -> None:
    param, sgd = plain()
    wrapper = GradientNormThreshold(sgd, threshold=1.0)
    # Norms of the means: 2; |(2, 2)| / 2 = 1.41; |(2, 2)| / 3 = 0.94.
    assert [draw(wrapper, param, g) for g in ((2, 0), (0, 2), (0, 0))] == [False, False, True]
    torch.testing.assert_close(param.detach(), torch.tensor([-2 / 3, -2 / 3]))
    assert wrapper.last_grad_norm == pytest.approx(8**0.5 / 3)
    assert draw(wrapper, param, (0.6, 0.8))
    torch.testing.assert_close(param.detach(), torch.tensor([-2 / 3 - 0.6, -2 / 3 - 0.8]))


def test_it_steps_after_max_draws_whatever_the_norm() -> None:
    param, sgd = plain()
    wrapper = GradientNormThreshold(sgd, threshold=0.1, max_draws=2)
    assert [draw(wrapper, param, (4, 0)) for _ in range(4)] == [False, True, False, True]
    assert param.tolist() == [-8.0, 0.0]


def test_it_brings_every_gradient_to_its_norm() -> None:
    param, sgd = plain()
    wrapper = GradientNormRescaler(sgd, norm=0.5)
    assert [draw(wrapper, param, g) for g in ((3, 4), (0, 0))] == [True, True]
    torch.testing.assert_close(param.detach(), torch.tensor([-0.3, -0.4]))
    assert wrapper.last_grad_norm == 0.0


def test_it_steps_once_a_batch_is_full() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, batch_size=20, micro_batch_size=8)
    assert [draw(wrapper, param, (3, 0)) for _ in range(6)] == [False, False, True] * 2
    wrapper.target.value = 9
    assert [draw(wrapper, param, (3, 0)) for _ in range(4)] == [False, True] * 2


def test_it_steps_once_the_norms_of_micro_batches_agree() -> None:
    param, sgd = plain()
    wrapper = GradientNoiseScale(sgd, tolerance=0.1)
    # Norms 2 and 4: 2 / 10 <= 2 * 0.1. Norms 1 and 3: 2 / 5 > 0.2; 1, 3 and 2: 1 / (14 / 3) = 0.214
    # <= 0.3.
    assert [draw(wrapper, param, (g, 0)) for g in (2, -4, 1, 3, 2)] == [
        False,
        True,
        False,
        False,
        True,
    ]


def test_mccandlish_steps_once_the_batch_is_as_large_as_the_noise() -> None:
    param, sgd = plain()
    wrapper = GradientNoiseScale(sgd, tolerance=0.2, estimator="mccandlish", decay=0.0)
    # (3, 1), (3, -1): tr(Sigma) 2, |G|^2 8, 0.25 <= 2 * 0.2.
    assert [draw(wrapper, param, g) for g in ((3, 1), (3, -1))] == [False, True]
    assert wrapper.statistics()["noise_scale"] == pytest.approx(0.25)
    # (3, 2), (3, -2): tr(Sigma) 8, |G|^2 5, 1.6 > 0.4; with (3, 0) 4 and 9 - 4 / 3, 0.52 <= 0.6.
    assert [draw(wrapper, param, g) for g in ((3, 2), (3, -2), (3, 0))] == [False, False, True]
    assert wrapper.statistics()["noise_scale"] == pytest.approx(4 / (9 - 4 / 3))


def test_it_steps_once_the_loss_is_known() -> None:
    param, sgd = plain()
    wrapper = MetricHypothesisTest(sgd, error=0.1, confidence=0.5, rate=0.5)
    # The first is its own running mean. 12 makes that 11: with 12 the mean 11.5 is known to 0.5 at
    # a level of 0.5.
    assert draw(wrapper, param, (1, 0), 10.0)
    assert draw(wrapper, param, (1, 0), torch.tensor(12.0))
    # 15 makes it 13, and 13, 15 are 14 +- 1; 7 makes it 10, and 10, 7 are 8.5 +- 1.5 > 0.85.
    assert draw(wrapper, param, (1, 0), 15.0)
    assert not draw(wrapper, param, (1, 0), 7.0)
    assert wrapper.statistics()["running_mean"] == 10.0


@pytest.mark.parametrize("buffered", [False, True])
@pytest.mark.parametrize("name", MAKERS)
def test_a_window_is_a_step_on_the_mean(name: str, buffered: bool) -> None:
    torch.manual_seed(0)
    model, batches = nn.Linear(4, 3), torch.randn(6, 5, 4)
    twin = nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    wrapper, adam = (
        MAKERS[name](torch.optim.AdamW(model.parameters()), buffered=buffered),
        torch.optim.AdamW(twin.parameters()),
    )
    stepped = []
    for batch in batches:
        model(batch).square().mean().backward()
        stepped.append(wrapper.step())
    for three in batches.split(3):
        adam.zero_grad()
        twin(three).square().mean().backward()
        adam.step()
    assert stepped == [False, False, True] * 2
    for param, wanted in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(param, wanted)


def test_one_draw_is_the_optimizer_itself_to_the_bit() -> None:
    torch.manual_seed(0)
    model, twin = nn.Linear(4, 3), nn.Linear(4, 3)
    twin.load_state_dict(model.state_dict())
    wrapper, adam = (
        GradientNormThreshold(torch.optim.AdamW(model.parameters()), 1e9),
        torch.optim.AdamW(twin.parameters()),
    )
    for batch in torch.randn(4, 5, 4):
        for net, optimizer in ((model, wrapper), (twin, adam)):
            net(batch).square().mean().backward()
            optimizer.step()
            optimizer.zero_grad()
    assert all(
        torch.equal(one, other)
        for one, other in zip(model.parameters(), twin.parameters(), strict=True)
    )


def test_the_sum_takes_no_tensor_of_its_own() -> None:
    param, sgd = plain()
    wrapper = GradientNormThreshold(sgd, threshold=0.1)
    draw(wrapper, param, (1, 0))
    grad = param.grad
    draw(wrapper, param, (1, 0))
    assert param.grad is grad
    assert grad is not None
    assert grad.tolist() == [2.0, 0.0]
    assert not [name for name, value in vars(wrapper).items() if isinstance(value, Tensor)]


def test_counts_say_how_many_steps_and_draws_were_made() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 3, max_draws=8)
    assert wrapper.statistics() == {
        "num_draws": 0,
        "physical_batch_size": 1,
        **wrapper.vital_statistics(),
    }
    assert "last_num_draws" not in wrapper.statistics()
    for _ in range(5):
        draw(wrapper, param, (1, 0))
    statistics = wrapper.statistics()
    assert (
        statistics["num_batches"],
        statistics["num_steps"],
        statistics["num_draws"],
        statistics["last_num_draws"],
    ) == (5, 1, 2, 3)
    assert (statistics["logical_batch_size"], statistics["lr"], statistics["last_grad_norm"]) == (
        3,
        1.0,
        1.0,
    )
    assert "num_draws" not in wrapper.vital_statistics()


def test_options_that_differ_between_groups_are_marked() -> None:
    params = [Parameter(torch.zeros(2)), Parameter(torch.zeros(2))]
    wrapper = GradientNormThreshold(
        SGD([{"params": params[:1], "lr": 1.0}, {"params": params[1:], "lr": 3.0}])
    )
    assert wrapper.statistics()["lr*"] == 2.0
    assert wrapper.statistics("max")["lr*"] == 3.0
    with pytest.raises(ValueError, match="'median'"):
        wrapper.statistics("median")  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("text", "kind", "target"),
    [
        ("gnts:threshold=0.8", GradientNormThreshold, 0.8),
        ("gnr:norm=2", GradientNormRescaler, 2),
        ("gns:tolerance=0.5,estimator=mccandlish,buffered=true", GradientNoiseScale, 0.5),
        ("sbc:batch_size=32,micro_batch_size=4", ScheduledBatch, 32),
        ("mht:error=0.05,confidence=0.9", MetricHypothesisTest, 0.05),
    ],
)
def test_a_wrapper_is_made_from_text(text: str, kind: type[Accumulation], target: float) -> None:
    wrapper = optimizers.accumulation.create(text, plain()[1])
    assert type(wrapper) is kind
    assert wrapper.target.value == target


def test_the_catalogue_describes_every_wrapper() -> None:
    assert accumulation.available() == ("gnr", "gns", "gnts", "mht", "sbc")
    assert all(accumulation.describe(name).summary for name in accumulation.available())
    assert accumulation.option_defaults("gnts:threshold=0.8", max_draws=8) == {
        "threshold": 0.8,
        "max_draws": 8,
        "distributed_mode": "replicated",
        "buffered": False,
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("gnst", "gnts"),
        ("gnts:treshold=1", "threshold"),
        ("gnts:threshold=0", "threshold: 0"),
        ("gnts:threshold=-1", "-1"),
        ("gnts:threshold=low", "low"),
        ("gnts:max_draws=0", "max_draws must be a whole number >= 1, got 0"),
        ("gnts:max_draws=1.5", "1.5"),
        ("gnts:distributed_mode=fsdp", "replicated, sharded"),
        ("gnr:norm=0", "norm: 0"),
        ("gns:tolerance=0", "tolerance: 0"),
        ("gns:estimator=mean", "norms, mccandlish"),
        ("gns:decay=1", "decay: 1"),
        ("sbc", "sbc needs batch_size; write sbc:batch_size=VALUE"),
        ("sbc:batch_size=0", "batch_size: 0"),
        ("sbc:batch_size=65", "raise max_draws"),
        ("mht:error=0", "error: 0"),
        ("mht:confidence=1.0", "confidence: 1.0"),
    ],
)
def test_bad_arguments_are_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=ONE_LINE) as caught:
        accumulation.create(text, plain()[1])
    assert message in str(caught.value)


def test_other_objects_and_optimizers_that_cannot_wait_are_refused() -> None:
    param, _ = plain()
    with pytest.raises(TypeError, match="got Linear"):
        GradientNormThreshold(nn.Linear(2, 2))  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="LBFGS"):
        GradientNormThreshold(torch.optim.LBFGS([param]))


@pytest.mark.parametrize("metric", [None, "low", NAN, torch.ones(2)])
def test_a_metric_that_is_missing_or_none_is_refused(metric: Any) -> None:
    param, sgd = plain()
    with pytest.raises(ValueError, match="loss"):
        draw(MetricHypothesisTest(sgd), param, (1, 0), metric)
