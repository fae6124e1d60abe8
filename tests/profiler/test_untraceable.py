"""Models that a simulation refuses in one line, and values of the batch that it follows."""

import logging
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from optprof.profiler.simulating.simulation import simulate
from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.untraceable import UntraceableError
from optprof.profiler.tracing.values import with_value
from optprof.scenarios import Scenario

_LIBRARY = torch.library.Library("untraceable", "DEF")
_LIBRARY.define("twice(Tensor x) -> Tensor")
_LIBRARY.impl("twice", lambda x: 2 * x, "CPU")


class Refusing(nn.Module):
    """A module whose backward pass runs an operation without a fake kernel, from no Python line."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x * 1
        x.register_hook(torch.ops.untraceable.twice)
        return x.sum()


class NumpyGradient(torch.autograd.Function):
    """A function whose gradient is computed by numpy."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        del ctx
        return 2 * x

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        del ctx
        return torch.from_numpy(np.sin(gradients[0].cpu().numpy()))


def tokens() -> torch.Tensor:
    """Return 8 rows of 6 integers; the last two of each are padding."""
    ids = torch.arange(48, device="cpu").view(8, 6) % 9 + 1
    ids[:, 4:] = 0
    return ids


def traced(run: Callable[[torch.Tensor, torch.Tensor], object]) -> tuple[Recorder, object]:
    """Run a program on an 8 x 16 activation and on known 8 x 6 integers with two zeros a row."""
    x = torch.empty(8, 16, device="meta", requires_grad=True)
    recorder = Recorder()
    with recorder.phase("build"):
        recorder.allocate(x, "input")
        twin = with_value(tokens())
        recorder.allocate(twin, "input")
    recorder.segments.clear()
    with cuda_kernels(), recorder.phase("forward"):
        result = run(x * 1, twin)
    return recorder, result


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda x, _: x.detach().numpy(), "turns a tensor into a numpy array"),
        (lambda x, _: np.asarray(x.detach()), "turns a tensor into a numpy array"),
        (lambda x, _: torch.equal(x, x + 1), "reads a tensor's value back"),
        (lambda x, _: torch.allclose(x, x), "reads a tensor's value back"),
        (lambda x, _: torch.linalg.lstsq(x, x).solution, "runs aten.linalg_lstsq.default"),
        (
            lambda x, _: torch.ops.untraceable.twice(x.detach()),
            "an operation of its own without a fake kernel; give it one",
        ),
        (
            lambda x, _: x.cuda(),
            "calls CUDA, which a simulation does not have; use --device cuda",
        ),
        (
            lambda x, _: torch.cuda.synchronize() or x,
            "calls CUDA, which a simulation does not have",
        ),
        (
            lambda x, _: torch.cuda.Event().record() or x,
            "calls CUDA, which a simulation does not have",
        ),
        (
            lambda x, _: x + torch.ones(16, device="cpu"),
            "mixes tensors of the CPU with the device's",
        ),
        (
            lambda x, _: NumpyGradient.apply(x).sum().backward(),
            "copies a tensor's values to the host",
        ),
        (lambda x, _: x.masked_select(x > 0), "makes a tensor whose size depends on values"),
    ],
)
@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU can be called")
def test_code_that_needs_values_is_refused_with_the_user_s_line(
    run: Callable[..., object], words: str
):
    with pytest.raises(UntraceableError) as raised:
        traced(run)
    text = str(raised.value)
    assert "\n" not in text
    assert text.startswith("test_untraceable.py, line ") or "/test_untraceable.py, line " in text
    assert words in text
    assert "--device" in text or "device=x.device" in text


def test_an_operation_in_a_library_is_refused_with_the_user_s_line_too(
    tmp_path: Any, monkeypatch: pytest.MonkeyPatch
):
    folder = tmp_path / "site-packages"
    folder.mkdir()
    (folder / "routing_library.py").write_text("def route(x):\n    return x[x > 0]\n")
    monkeypatch.syspath_prepend(str(folder))
    import routing_library  # pyright: ignore[reportMissingImports]

    with pytest.raises(
        UntraceableError,
        match=(
            r"^routing_library\.py, line 2 \(called from \S*test_untraceable\.py, line \d+\) makes"
            r" a tensor"
        ),
    ):
        traced(lambda x, _: routing_library.route(x))


def test_random_numbers_of_a_generator_of_the_device_are_followed():
    def draw(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        generator = torch.Generator(device=x.device).manual_seed(3)
        assert isinstance(generator, torch.Generator)
        assert isinstance(torch.default_generator, torch.Generator)
        assert not isinstance(x, torch.Generator)
        return x + torch.randn(x.shape, generator=generator, device=x.device)

    recorder, _ = traced(draw)
    # The input times 1, the random numbers and the sum.
    assert recorder.allocations.nbytes[-3:] == [8 * 16 * 4] * 3
    assert torch.Generator is type(torch.default_generator)


class WithoutRanks(DistributedDataParallel):
    """DistributedDataParallel without the process group that it needs."""

    def __init__(self, module: nn.Module) -> None:
        nn.Module.__init__(self)
        self.module = module


@pytest.mark.filterwarnings("ignore:.torch.jit")
@pytest.mark.parametrize(
    ("wrap", "words"),
    [
        (WithoutRanks, "is in DistributedDataParallel"),
        (torch.jit.script, "is compiled by torch.jit"),
        (lambda module: torch.jit.trace(module, torch.zeros(2, 4)), "is compiled by torch.jit"),
    ],
)
@pytest.mark.parametrize("workload", ["train", "state"])
def test_a_module_whose_operations_do_not_show_its_memory_is_refused(
    wrap: Callable[[nn.Module], nn.Module],
    words: str,
    workload: Any,
    monkeypatch: pytest.MonkeyPatch,
):
    module = ModuleType("wrapped_model")
    vars(module)["build"] = lambda: (
        wrap(nn.Linear(4, 4, device="cpu")),
        {"input": torch.zeros(4, 4)},
    )
    monkeypatch.setitem(sys.modules, "wrapped_model", module)
    with pytest.raises(
        UntraceableError, match=rf"^the model {words}.*; (return|leave) .*--device cpu"
    ):
        simulate(Scenario(model="wrapped_model:build", workload=workload))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_batch_of_strided_layout_is_refused(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("nested_model")
    batch = torch.nested.nested_tensor([torch.zeros(2, 4), torch.zeros(3, 4)])
    vars(module)["build"] = lambda: (nn.Linear(4, 4), {"input": batch})
    monkeypatch.setitem(sys.modules, "nested_model", module)
    with pytest.raises(
        UntraceableError,
        match=r"^a tensor of the batch is a nested tensor of strided layout; use layout",
    ):
        simulate(Scenario(model="nested_model:build"))


def test_the_user_s_own_error_is_not_taken_for_a_missing_value():
    def run(_: torch.Tensor, __: torch.Tensor) -> None:
        raise NotImplementedError("override me")

    with pytest.raises(NotImplementedError, match="override me"):
        traced(run)
    with pytest.raises(RuntimeError, match=r"reduction dim|shapes") as raised:
        traced(lambda x, _: x @ x)
    assert not isinstance(raised.value, UntraceableError)


def test_a_module_with_an_untraceable_backward_pass_is_named(monkeypatch: pytest.MonkeyPatch):
    module = ModuleType("refusing_model")
    model = nn.Sequential(nn.Linear(16, 16, device="meta"), Refusing())
    vars(module)["build"] = lambda: (model, {"input": torch.empty(4, 16, device="meta")})
    monkeypatch.setitem(sys.modules, "refusing_model", module)
    with pytest.raises(UntraceableError, match=r"^the backward pass of 1 runs untraceable\.twice"):
        simulate(Scenario(model="refusing_model:build"))


@pytest.mark.parametrize(
    "run",
    [
        lambda x, ids: x.masked_select(ids[:, :1] > 4),
        lambda _, ids: torch.unique(ids),
        lambda _, ids: torch.unique(ids, dim=0),
        lambda _, ids: torch.unique_consecutive(ids[0]),
        lambda _, ids: torch.bincount(ids.flatten()),
        lambda x, ids: torch.repeat_interleave(x, (ids != 0).sum(-1), dim=0),
        lambda x, ids: x[torch.where(ids[:, 0] > 4)[0]],
        lambda x, ids: x[: int((ids != 0).sum(-1).max())],
        lambda x, ids: nn.utils.rnn.pad_sequence([x[:n] for n in (ids != 0).sum(-1).tolist()]),
        lambda x, _: torch.cat(
            [*torch.split(x, [int(n) for n in torch.tensor([3, 5], device=x.device)])]
        ),
        lambda _, ids: functional.one_hot(ids),
        lambda x, ids: (
            x if torch.equal(ids, ids.clone()) and torch.allclose(ids * 1.0, ids * 1.0) else x[:1]
        ),
    ],
)
def test_sizes_that_follow_from_the_batch_equal_those_of_a_real_run(
    run: Callable[..., torch.Tensor],
):
    _, result = traced(run)
    assert isinstance(result, torch.Tensor)
    assert result.is_meta
    assert result.shape == run(torch.randn(8, 16, device="cpu"), tokens()).shape


def test_tensors_can_be_printed_formatted_and_logged(
    caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
):
    def run(x: torch.Tensor, ids: torch.Tensor) -> str:
        print(x)
        with caplog.at_level(logging.INFO):
            logging.getLogger("model").info("mean %s", x.mean())
        return f"{x.mean():.3f} {ids.max():03d} {x.mean()}"

    _, text = traced(run)
    assert str(text).startswith("nan 009 tensor(")
    assert "device='meta'" in capsys.readouterr().out
    with pytest.raises(TypeError, match="unsupported format string"):
        format(torch.empty((), device="meta"), ".3f")


def test_a_loss_that_checks_its_arguments_is_followed():
    _, loss = traced(lambda x, _: functional.gaussian_nll_loss(x, x, x.exp()))
    assert isinstance(loss, torch.Tensor)
    # User code that such a function calls is not a check.
    with pytest.raises(UntraceableError, match="reads a tensor's value back"):
        traced(
            lambda x, _: functional.triplet_margin_with_distance_loss(
                x, x, x, distance_function=lambda a, b: (a - b) * bool(a.any())
            )
        )


def test_distributions_that_check_their_arguments_are_followed():
    _, sample = traced(lambda x, _: torch.distributions.Normal(x, x.exp()).rsample())
    assert isinstance(sample, torch.Tensor)
    assert sample.shape == (8, 16)


def test_ctc_holds_forward_variables_for_the_longest_target_with_blanks():
    steps, batch, labels = 12, 2, 16
    recorder = Recorder()
    with recorder.phase("build"):
        logits = torch.empty(steps, batch, labels, device="meta", requires_grad=True)
        targets, lengths = (
            with_value(torch.ones(batch, 5, dtype=torch.int64)),
            with_value(torch.tensor([5, 3])),
        )
        for tensor in (logits, targets, lengths):
            recorder.allocate(tensor, "input")
    recorder.segments.clear()
    with cuda_kernels(), recorder.phase("forward"):
        loss = functional.ctc_loss(
            logits, targets, torch.full((batch,), steps, device="meta"), lengths, reduction="sum"
        )
    log_alpha = 4 * batch * steps * (2 * 5 + 1)
    assert log_alpha in recorder.allocations.nbytes
    with cuda_kernels(), recorder.phase("backward"):
        loss.backward()
    assert recorder.allocations.nbytes.count(log_alpha) == 2
    assert logits.grad is not None
    assert logits.grad.shape == (steps, batch, labels)


def test_a_jagged_batch_is_followed():
    recorder = Recorder()
    layer = nn.Linear(16, 4, device="meta")
    parts = [torch.randn(3, 16, device="cpu"), torch.randn(5, 16, device="cpu")]
    batch = with_value(torch.nested.nested_tensor(parts, layout=torch.jagged, device="cpu"))
    with recorder.phase("build"):
        recorder.allocate(batch, "input")
    assert sorted(recorder.allocations.nbytes) == [8 * 3, 4 * 8 * 16]
    recorder.segments.clear()
    with recorder.phase("forward"):
        assert layer(batch).values().shape == (8, 4)
    assert 4 * 8 * 4 in recorder.allocations.nbytes


def test_a_strided_nested_tensor_and_flex_attention_are_refused_in_one_line():
    from torch.nn.attention.flex_attention import flex_attention

    with pytest.raises(UntraceableError, match="nested tensor of strided layout"):
        traced(lambda x, _: torch.nested.nested_tensor([x[:3].detach(), x[3:].detach()]))
    with pytest.raises(
        UntraceableError, match="flex_attention, which a simulation does not follow"
    ):
        traced(
            lambda x, _: flex_attention(
                x.view(1, 2, 4, 16), x.view(1, 2, 4, 16), x.view(1, 2, 4, 16)
            )
        )


def test_unsupported_tensors_are_refused_by_name():
    layer = nn.LazyLinear(4, device="meta")
    recorder = Recorder(layer)
    with (
        recorder.phase("build"),
        pytest.raises(UntraceableError, match="weight has no shape before the first forward pass"),
    ):
        recorder.allocate(layer.weight, "parameter")
