"""Accumulation with torch's schedulers, checkpoints, GradScaler, closures and infinite gradients.

G1 to G12 are defects of torch-gqc 0.7 and 0.10; a test's name has the defect that it excludes. G3
is in test_accumulation_schedules, G9 in test_accumulation_ranks.
"""

import copy
import io
import pickle
import warnings
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import SGD, AdamW, Rprop
from torch.optim.lr_scheduler import ExponentialLR, LambdaLR

from optprof.optimizers import accumulation
from optprof.optimizers.accumulation import (
    Accumulation,
    GradientNoiseScale,
    GradientNormThreshold,
    MetricHypothesisTest,
    ScheduledBatch,
    torch_gqc,
)

INF, NAN = float("inf"), float("nan")
SPECS = ("gnr", "gns:buffered=true", "gns", "gnts", "gnts:buffered=true", "mht", "sbc:batch_size=2")
ORIGINAL = {
    "GNTS": lambda sgd: torch_gqc.OptimizerWrapperGNTS(sgd, 32),
    "GNR": torch_gqc.OptimizerWrapperGNR,
    "GNS": lambda sgd: torch_gqc.OptimizerWrapperGNS(sgd, max_batch_draws=32),
    "MHT": lambda sgd: torch_gqc.OptimizerWrapperMHT(sgd, 32, "replicated", 0.1),
    "SBC": lambda sgd: torch_gqc.OptimizerWrapperSBC(sgd, 2, 32),
}
BUFFERED = pytest.mark.parametrize("buffered", [False, True])


def plain(*shape: int) -> tuple[Parameter, SGD]:
    """Return a parameter of zeros and SGD with a rate of 1, which subtracts the mean gradient."""
    param = Parameter(torch.zeros(shape or (2,)))
    return param, SGD([param], lr=1.0)


def draw(wrapper: Accumulation, param: Tensor, gradient: Sequence[float], loss: Any = None) -> bool:
    (param * torch.tensor(gradient, dtype=param.dtype)).sum().backward()
    return wrapper.step(loss=loss)


def saved(state: dict[str, Any]) -> dict[str, Any]:
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


@pytest.mark.parametrize("spec", SPECS)
def test_g1_every_wrapper_is_saved_loaded_and_grows(spec: str) -> None:
    param, other = Parameter(torch.ones(3)), Parameter(torch.ones(2))
    wrapper = accumulation.create(spec, AdamW([param], lr=0.1))
    wrapper.add_param_group({"params": [other], "lr": 0.2})
    twin_params = [param.detach().clone().requires_grad_(), other.detach().clone().requires_grad_()]
    for gradient in ((1, 2, 3), (3, 0, 1), (1, 1, 1)):
        other.grad = torch.ones(2) if other.grad is None else other.grad.add_(1)
        draw(wrapper, param, gradient, 1.0)
    twin = accumulation.create(
        spec, AdamW([{"params": [twin_params[0]]}, {"params": [twin_params[1]]}])
    )
    with torch.no_grad():
        for mine, theirs in zip(twin_params, (param, other), strict=True):
            mine.copy_(theirs)
    twin.load_state_dict(saved(wrapper.state_dict()))
    assert twin.statistics() == wrapper.statistics()
    for gradient in ((2, 2, 2), (0, 1, 0), (5, 5, 5)):
        assert draw(wrapper, param, gradient, 1.0) == draw(twin, twin_params[0], gradient, 1.0)
    assert torch.equal(twin_params[0], param)
    assert torch.equal(twin_params[1], other)
    assert twin.statistics() == wrapper.statistics()


def test_a_checkpoint_of_the_optimizer_alone_starts_a_window_and_ours_loads_into_it() -> None:
    param, sgd = plain()
    wrapper = GradientNormThreshold(sgd, threshold=0.1)
    draw(wrapper, param, (1, 0))
    sgd.load_state_dict(wrapper.state_dict())
    wrapper.load_state_dict(SGD([param], lr=5.0).state_dict())
    assert (wrapper.num_draws, param.grad, wrapper.param_groups[0]["lr"]) == (0, None, 5.0)


def test_g2_frozen_parameters_stay_and_late_groups_are_averaged() -> None:
    frozen, param = Parameter(torch.ones(2), requires_grad=False), Parameter(torch.zeros(1))
    late = Parameter(torch.zeros(1))
    wrapper = ScheduledBatch(SGD([frozen, param], lr=1.0), 2)
    wrapper.add_param_group({"params": [late]})
    for _ in range(2):
        (param + 0.1 * late).sum().backward()
        wrapper.step()
    assert (frozen.tolist(), param.item()) == ([1.0, 1.0], -1.0)
    torch.testing.assert_close(late.detach(), torch.tensor([-0.1]))


def test_an_unused_parameter_counts_as_zeros_where_it_is_unused() -> None:
    params = [Parameter(torch.zeros(1)) for _ in range(3)]
    for buffered in (False, True):
        wrapper = ScheduledBatch(SGD(params, lr=1.0), 2, buffered=buffered)
        for used in (params[:1], params[:2]):
            torch.cat(list(used)).sum().backward()
            wrapper.step()
    assert [param.item() for param in params] == [-2.0, -1.0, 0.0]


@BUFFERED
def test_g4_it_is_an_optimizer_that_schedulers_copies_and_pickles_take(buffered: bool) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    wrapper = ScheduledBatch(AdamW(model.parameters(), lr=0.5), 3, buffered=buffered)
    assert isinstance(wrapper, torch.optim.Optimizer)
    scheduler = ExponentialLR(wrapper, gamma=0.1)
    batches = torch.randn(6, 4, 3)

    def go_on(model: nn.Module, wrapper: Accumulation) -> list[Tensor]:
        for batch in batches[2:]:
            model(batch).square().mean().backward()
            wrapper.step()
        return list(model.parameters())

    for batch in batches[:2]:
        model(batch).square().mean().backward()
        wrapper.step()
    scheduler.step()
    # In the middle of a window, with its draws.
    copies = [copy.deepcopy((model, wrapper)), pickle.loads(pickle.dumps((model, wrapper)))]
    wanted = go_on(model, wrapper)
    assert wrapper.num_steps == 2
    for twin in copies:
        assert twin[1].param_groups[0]["lr"] == 0.05
        assert all(map(torch.equal, go_on(*twin), wanted))


@pytest.mark.parametrize("name", [*SPECS, *ORIGINAL])
def test_every_wrapper_is_copied_and_pickled_with_its_draws(name: str) -> None:
    param, _ = plain(3)
    inner = AdamW([param], lr=0.1)
    wrapper = ORIGINAL[name](inner) if name in ORIGINAL else accumulation.create(name, inner)
    wrapper.target.value *= 0.9
    for gradient in ((1, 2, 3), (3, 0, 1), (1, 1, 1)):
        draw(wrapper, param, gradient, 1.0)
    for twin_param, twin in (
        copy.deepcopy((param, wrapper)),
        pickle.loads(pickle.dumps((param, wrapper))),
    ):
        assert type(twin) is type(wrapper)
        assert twin.statistics() == wrapper.statistics()
        assert twin.param_groups[0]["params"][0] is twin_param
        torch.testing.assert_close(twin_param.grad, param.grad)
    for gradient in ((2, 2, 2), (0, 1, 0), (5, 5, 5)):
        assert draw(wrapper, param, gradient, 1.0) == draw(twin, twin_param, gradient, 1.0)
    assert torch.equal(twin_param, param)


@pytest.mark.parametrize(
    "spec",
    [
        "gns:tolerance=0.05",
        "gns:tolerance=0.05,buffered=true",
        "gns:estimator=mccandlish",
        "mht:error=0.2",
    ],
)
def test_a_scaler_changes_no_decision(spec: str) -> None:
    runs = []
    for scale in (None, 1024.0):
        param, sgd = plain()
        wrapper = accumulation.create(spec, sgd)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale or 1.0, enabled=scale is not None)
        stepped = []
        for gradient in ((2.0, 0.0), (3.0, 1.0), (1.0, 0.0), (4.0, 1.0), (2.0, 1.0), (2.0, 0.5)):
            scaler.scale((param * torch.tensor(gradient)).sum()).backward()
            stepped.append(scaler.step(wrapper, loss=sum(gradient)))
            scaler.update()
        runs.append((stepped, param.tolist()))
    assert runs[0] == runs[1]
    assert set(runs[0][0]) == {False, True}


@BUFFERED
def test_g5_a_scaler_s_scale_is_taken_out_once(buffered: bool) -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 4, buffered=buffered)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    stepped = []
    for _ in range(4):
        scaler.scale((param * torch.tensor([1.0, 2.0])).sum()).backward()
        stepped.append(scaler.step(wrapper))
        scaler.update()
    assert stepped == [False, False, False, True]
    assert param.tolist() == [-1.0, -2.0]
    assert wrapper.last_grad_norm == pytest.approx(5**0.5)


@BUFFERED
def test_a_scale_that_grows_within_a_window_leaves_a_mean(buffered: bool) -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 4, buffered=buffered)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
    for gradient in (1.0, 3.0, 5.0, 7.0):
        scaler.scale((param * gradient).sum()).backward()
        scaler.step(wrapper)
        scaler.update()
    # In .grad the two draws before the scale doubled count half: (1/2 + 3/2 + 5 + 7) / 3.
    assert param.tolist() == pytest.approx([-4.0, -4.0] if buffered else [-14 / 3, -14 / 3])


def test_a_scaler_s_overflow_drops_the_window_and_lowers_the_scale() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for gradient in (1.0, INF, 3.0, 5.0):
        scaler.scale((param * gradient).sum()).backward()
        scaler.step(wrapper)
        scaler.update()
    assert param.tolist() == [-4.0, -4.0]
    assert (wrapper.num_dropped, scaler.get_scale()) == (2, 512.0)


def test_unscaling_by_hand_is_refused_where_it_would_go_wrong() -> None:
    param, sgd = plain()
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for wrapper, fits in (
        (ScheduledBatch(sgd, 2), False),
        (ScheduledBatch(sgd, 2, buffered=True), True),
    ):
        sgd.zero_grad()
        scaler.scale((param * torch.tensor([1.0, 2.0])).sum()).backward()
        scaler.unscale_(wrapper)
        if fits:
            assert not scaler.step(wrapper)
            assert wrapper.mean_norm() == pytest.approx(5**0.5)
        else:
            with pytest.raises(RuntimeError, match="buffered=True"):
                scaler.step(wrapper)
        scaler.update()


@pytest.mark.parametrize("bad", [NAN, INF, -INF])
def test_g6_a_bad_micro_batch_never_reaches_the_weights(bad: float) -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2)
    assert not draw(wrapper, param, (1, 1))
    with pytest.warns(UserWarning, match="not finite"):
        assert not draw(wrapper, param, (1, bad))
    assert (wrapper.num_dropped, wrapper.num_draws, param.grad) == (2, 0, None)
    # The next window begins with the next micro-batch, without another warning.
    assert [draw(wrapper, param, g) for g in ((2, 0), (bad, 0), (4, 0), (6, 0))] == [
        False,
        False,
        False,
        True,
    ]
    assert param.tolist() == [-5.0, 0.0]
    assert wrapper.num_batches == wrapper.num_dropped + 2


@pytest.mark.parametrize("bad", [NAN, INF])
def test_g6_buffers_drop_a_bad_micro_batch_alone(bad: float) -> None:
    param, sgd = plain()
    wrapper = GradientNoiseScale(sgd, tolerance=10, buffered=True)
    draw(wrapper, param, (1, 1))
    with pytest.warns(UserWarning, match="not finite"):
        assert not draw(wrapper, param, (1, bad))
    assert (wrapper.num_dropped, wrapper.num_draws) == (1, 1)
    assert draw(wrapper, param, (3, 3))
    assert param.tolist() == [-2.0, -2.0]


@BUFFERED
def test_finite_gradients_with_an_infinite_sum_are_dropped(buffered: bool) -> None:
    param, sgd = plain(1)
    wrapper = GradientNoiseScale(sgd, tolerance=100, buffered=buffered)
    assert [draw(wrapper, param, (3e38,)) for _ in range(2)] == [False, False]
    assert (wrapper.num_dropped, wrapper.num_draws, param.item()) == (2, 0, 0.0)


def test_g7_the_pending_sum_is_copied_into_the_checkpoint() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2)
    draw(wrapper, param, (1, 0))
    state = wrapper.state_dict()
    draw(wrapper, param, (3, 0))
    assert param.tolist() == [-2.0, 0.0]
    assert state["accumulation"]["num_draws"] == 1
    with torch.no_grad():
        param.zero_()
    wrapper.load_state_dict(state)
    draw(wrapper, param, (5, 0))
    assert param.tolist() == [-3.0, 0.0]
    # Nothing was added to the loaded sum.
    assert state["accumulation"]["sum"][0].tolist() == [1.0, 0.0]


def test_g7_a_scaled_sum_goes_on_in_buffers_too() -> None:
    param, sgd = plain()
    wrapper, buffered = (
        ScheduledBatch(sgd, 2),
        ScheduledBatch(SGD([param], lr=1.0), 2, buffered=True),
    )
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    scaler.scale(param.sum()).backward()
    scaler.step(wrapper)
    buffered.load_state_dict(wrapper.state_dict())
    param.grad = None
    draw(buffered, param, (3, 3))
    assert param.tolist() == [-2.0, -2.0]


def test_g8_hooks_skip_frozen_parameters_follow_thawed_ones_and_can_be_removed() -> None:
    params = [Parameter(torch.zeros(1)) for _ in range(3)]
    params[1].requires_grad_(False)
    wrapper = GradientNoiseScale(SGD(params, lr=1.0), tolerance=1e-9)

    def norms(weights: Sequence[float]) -> list[float]:
        sum(
            weight * param.sum() for weight, param in zip(weights, params, strict=True) if weight
        ).backward()  # pyright: ignore
        wrapper.step()
        return wrapper.history

    # The third has no gradient in the first micro-batch, and no stale norm in the last.
    assert norms((3, 0, 0)) == [3]
    params[1].requires_grad_(True)
    assert norms((3, 0, 4)) == [3, 5]
    assert norms((0, 4, 3)) == [3, 5, 5]
    assert norms((2, 0, 0)) == [3, 5, 5, 2]
    wrapper.close()
    assert not any(param._backward_hooks for param in params)


def test_g8_hooks_go_with_their_wrapper() -> None:
    param, sgd = plain()
    wrapper = GradientNoiseScale(sgd)
    assert param._backward_hooks
    del wrapper
    assert not param._backward_hooks


def test_g8_a_gradient_set_by_hand_is_not_taken_for_a_micro_batch() -> None:
    param, sgd = plain()
    param.grad = torch.ones(2)
    with pytest.raises(RuntimeError, match="buffered=True"):
        GradientNoiseScale(sgd).step()


def test_norms_go_with_the_gradients_that_are_cleared() -> None:
    param, sgd = plain(1)
    wrapper = GradientNoiseScale(sgd, tolerance=1e-9)
    (9 * param).sum().backward()
    wrapper.zero_grad()
    draw(wrapper, param, (2,))
    assert wrapper.history == [2.0]
    (9 * param).sum().backward()
    wrapper.load_state_dict(sgd.state_dict())
    draw(wrapper, param, (3,))
    assert wrapper.history == [3.0]


def test_two_backward_passes_are_not_taken_for_one_micro_batch() -> None:
    param, sgd = plain(1)
    wrapper, buffered = (
        GradientNoiseScale(sgd),
        GradientNoiseScale(SGD([param], lr=1.0), buffered=True),
    )
    param.sum().backward()
    with pytest.raises(RuntimeError, match="a second backward pass before step"):
        param.sum().backward()
    wrapper.close()
    param.grad = None
    for _ in range(2):
        param.sum().backward()
    buffered.step()
    assert buffered.history == [2.0]


def test_a_group_that_is_added_is_watched_at_once() -> None:
    frozen, late = Parameter(torch.ones(1), requires_grad=False), Parameter(torch.zeros(1))
    wrapper = GradientNoiseScale(SGD([frozen], lr=1.0), tolerance=1e-9)
    wrapper.add_param_group({"params": [late]})
    draw(wrapper, late, (2,))
    assert wrapper.history == [2.0]


def test_g10_any_optimizer_is_wrapped_and_the_learning_rate_is_its_own() -> None:
    param = Parameter(torch.zeros(2))
    wrapper = GradientNormThreshold(Rprop([param], lr=0.5), 5.0)
    LambdaLR(wrapper.target, lambda _: 2.0)
    assert (wrapper.param_groups[0]["lr"], wrapper.target.value) == (0.5, 10.0)
    assert draw(wrapper, param, (1, -1))
    assert param.tolist() == [-0.5, 0.5]


def test_g11_buffers_sum_half_precision_without_error() -> None:
    torch.manual_seed(0)
    gradients = torch.randn(64, 1000).bfloat16() + 0.25
    mean = gradients.double().mean(0)
    errors = []
    for buffered in (False, True):
        param = Parameter(torch.zeros(1000, dtype=torch.bfloat16))
        seen = SGD([param], lr=1.0)
        wrapper = ScheduledBatch(seen, 64, buffered=buffered)
        for gradient in gradients:
            (param * gradient).sum().backward()
            wrapper.step()
        errors.append(((param.double() + mean).norm() / mean.norm()).item())
        assert param.dtype == torch.bfloat16
    # One rounding to 8 bits, relative 2^-9 at most, against 64 of them.
    assert errors[1] < 2**-9 < 2 * errors[1] < errors[0]


@BUFFERED
def test_g12_a_closure_is_called_once_with_gradients_and_its_loss_kept(buffered: bool) -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2, buffered=buffered)
    calls = []

    def closure() -> Tensor:
        calls.append(torch.is_grad_enabled())
        wrapper.zero_grad()
        loss = (param * torch.tensor([1.0, 2.0])).sum() + len(calls)
        loss.backward()
        return loss

    assert not wrapper.step(closure)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore" if not buffered else "error")
        assert wrapper.step(closure)
    assert (calls, float(wrapper.loss), wrapper.loss.requires_grad) == ([True, True], 2.0, False)
    assert param.tolist() == [-1.0, -2.0]


def test_a_closure_s_loss_is_the_metric_of_a_hypothesis_test() -> None:
    param, sgd = plain()
    wrapper = MetricHypothesisTest(sgd)

    def closure() -> Tensor:
        loss = (param - 1).square().sum()
        loss.backward()
        return loss

    assert wrapper.step(closure=closure)
    assert wrapper.running_mean == 2.0
    assert not MetricHypothesisTest(sgd, error=1e-9, max_draws=2).step(loss=torch.tensor(1.0))
    # As the first argument too, as for torch's optimizers and in accelerate.
    other = MetricHypothesisTest(SGD([param], lr=0.0))
    assert other.step(closure)
    assert other.running_mean == float(other.loss)


def test_zero_grad_keeps_the_draws_and_warns_once() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 3)
    wrapper.zero_grad()
    draw(wrapper, param, (1, 0))
    with pytest.warns(UserWarning, match="zero_grad"):
        wrapper.zero_grad()
    draw(wrapper, param, (2, 0))
    wrapper.zero_grad()
    draw(wrapper, param, (3, 0))
    assert param.tolist() == [-2.0, 0.0]


def test_a_sum_that_the_model_clears_is_missed_and_buffers_keep_theirs() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2)
    draw(wrapper, param, (1, 0))
    param.grad = None
    with pytest.raises(RuntimeError, match=r"model.zero_grad\(\)"):
        draw(wrapper, param, (3, 0))
    kept = ScheduledBatch(SGD([param], lr=1.0), 2, buffered=True)
    for gradient in ((1, 0), (3, 0)):
        param.grad = None
        draw(kept, param, gradient)
    assert param.tolist() == [-2.0, 0.0]


def test_a_part_of_the_sum_that_is_cleared_is_missed_too() -> None:
    params = [Parameter(torch.zeros(1)) for _ in range(3)]
    wrapper = ScheduledBatch(SGD(params, lr=1.0), 3)
    (params[0] + params[1]).sum().backward()
    wrapper.step()
    # The third has its first gradient, so it misses nothing.
    (params[0] + params[1] + params[2]).sum().backward()
    wrapper.step()
    params[1].grad = None
    with pytest.raises(RuntimeError, match=r"model.zero_grad\(\)"):
        draw(wrapper, params[0], (1,))


def test_a_step_without_gradients_draws_nothing() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 1)
    assert not wrapper.step()
    assert (wrapper.num_batches, param.tolist()) == (0, [0.0, 0.0])


def test_hooks_run_at_every_draw_or_at_every_step() -> None:
    param, sgd = plain()
    wrapper = ScheduledBatch(sgd, 2)
    calls: list[str] = []
    wrapper.register_step_post_hook(lambda *_: calls.append("draw"))
    # Clipping belongs here: what is clipped is the mean.
    sgd.register_step_pre_hook(
        lambda *_: calls.append(f"step {nn.utils.clip_grad_norm_([param], 0.5).item()}")
    )
    wrapper.register_state_dict_post_hook(lambda _, state: {**state, "note": 1})
    wrapper.register_load_state_dict_pre_hook(
        lambda _, state: {key: value for key, value in state.items() if key != "note"}
    )
    for _ in range(2):
        draw(wrapper, param, (3, 4))
    assert calls == ["draw", "step 5.0", "draw"]
    torch.testing.assert_close(param.detach(), torch.tensor([-0.3, -0.4]))
    state = wrapper.state_dict()
    assert state["note"] == 1
    wrapper.load_state_dict(state)


def test_sparse_and_complex_gradients_are_drawn() -> None:
    embedding, weight = (
        nn.Embedding(4, 2, sparse=True),
        Parameter(torch.zeros(2, dtype=torch.complex64)),
    )
    with torch.no_grad():
        embedding.weight.zero_()
    for buffered in (False, True):
        wrapper = ScheduledBatch(SGD([embedding.weight, weight], lr=1.0), 2, buffered=buffered)
        for rows in ([0, 0], [1, 2]):
            (embedding(torch.tensor(rows)).sum() + (weight * (1 - 2j)).real.sum()).backward()
            wrapper.step()
        # Twice row 0 in the first, rows 1 and 2 in the second: halves of (2, 1, 1); a complex
        # gradient of |1 + 2j|.
        assert wrapper.last_grad_norm == pytest.approx((2 * (1 + 0.25 + 0.25) + 2 * 5) ** 0.5)
    assert embedding.weight[:, 0].tolist() == [-2.0, -1.0, -1.0, 0.0]


def test_the_names_of_the_original_drive_the_target_by_lr() -> None:
    param, sgd = plain()
    wrapper = torch_gqc.OptimizerWrapperSBC(sgd, 2)
    scheduler = LambdaLR(wrapper, lambda step: 4.0 + step)
    # Targets of 4, 5 and 6 samples, two at a time: two draws; then the target is 6, three.
    stepped = []
    for _ in range(5):
        stepped.append(draw(wrapper, param, (1, 0)))
        scheduler.step()
    assert stepped == [False, False, True, False, False]
    assert wrapper.target.value == 9
    assert sgd.param_groups[0]["lr"] == 1.0
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(param.sum()).backward()
    scaler.step(wrapper)
    state = saved(wrapper.state_dict())
    ScheduledBatch(SGD([param]), 2).load_state_dict(state)


@pytest.mark.parametrize("name", ORIGINAL)
def test_every_name_of_the_original_takes_its_arguments(name: str) -> None:
    param, sgd = plain()
    made = ORIGINAL[name](sgd)
    draw(made, param, (1, 0), 1.0)
    assert draw(made, param, (1, 0), 1.0)
    assert made.max_draws == (1 if isinstance(made, torch_gqc.OptimizerWrapperGNR) else 32)
