"""The recorder, compared with programs counted by hand and with torch.profiler on real runs."""

from collections.abc import Callable

import pytest
import torch

from optprof.profiler.tracing.kernels import cuda_kernels
from optprof.profiler.tracing.samples import Samples
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.tracing.untraceable import UntraceableError
from optprof.profiler.tracing.values import with_value


def stream(recorder: Recorder) -> list[int]:
    """Return the bytes of each event in order, negative for a free."""
    nbytes = recorder.allocations.nbytes
    return [
        nbytes[event] if event >= 0 else -nbytes[~event]
        for segment in recorder.segments
        for event in segment.events
    ]


def test_allocations_and_frees_have_the_order_of_the_program():
    recorder = Recorder()
    with recorder.phase("forward"):
        a = torch.empty(256, device="meta")
        b = a + 1
        c = b.view(16, 16)
        del a, b
        d = c.sum()
        del c, d
    assert stream(recorder) == [1024, 1024, -1024, 4, -1024, -4]


def test_a_training_step_has_the_events_that_torch_profiler_saw_on_the_cpu():
    def network() -> torch.nn.Module:
        return torch.nn.Sequential(
            torch.nn.Linear(64, 128), torch.nn.Tanh(), torch.nn.Linear(128, 32)
        )

    def step(model: torch.nn.Module, x: torch.Tensor) -> None:
        loss = model(x).exp().sum()
        loss.backward()

    model, x = network(), torch.randn(16, 64)
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as real:
        step(model, x)
    with torch.device("meta"):
        model, x = network(), torch.empty(16, 64)
    recorder = Recorder()
    with recorder.phase("build"):
        for tensor in (*model.parameters(), x):
            recorder.allocate(tensor, "parameter")
    recorder.segments.clear()
    with recorder.phase("forward"):
        step(model, x)
    assert real.profiler is not None
    assert real.profiler.kineto_results is not None
    events = real.profiler.kineto_results.events()
    measured = [event.nbytes() for event in events if event.name() == "[memory]"]  # pyright: ignore[reportAttributeAccessIssue]
    assert stream(recorder) == measured


def test_a_tensor_without_elements_is_recorded_and_takes_nothing():
    recorder = Recorder()
    with recorder.phase("build"):
        empty = torch.nn.Parameter(torch.empty(0, 4, device="meta"))
        assert recorder.allocations.nbytes[recorder.allocate(empty, "parameter")] == 0
        del empty
    assert stream(recorder) == []


def test_tensors_kept_for_the_backward_pass_are_activations_and_others_temporaries():
    x = torch.empty(1024, device="meta", requires_grad=True)
    recorder = Recorder()
    with recorder.phase("build"):
        recorder.allocate(x, "input")
    with recorder.phase("forward", "activation"):
        loss = ((x * 2).exp() + 1).sum()
    assert recorder.allocations.categories == [
        "input",
        "temporary",
        "activation",
        "temporary",
        "activation",
    ]
    assert loss.shape == ()


def test_code_that_branches_on_positions_takes_its_real_branch():
    recorder = Recorder()
    tokens = torch.arange(8)
    with recorder.phase("forward"):
        positions = with_value(tokens) * 2
        positions[3] = 0
        assert bool((positions == torch.arange(0, 16, 2, device="meta")).all()) is False
        assert int(positions.sum()) == 56 - 6


def test_a_selection_by_a_known_mask_has_its_real_size():
    recorder = Recorder()
    x = torch.empty(8, 100, device="meta", requires_grad=True)
    places = with_value(torch.arange(8))
    with recorder.phase("build"):
        recorder.allocate(x, "input")
    recorder.segments.clear()
    with recorder.phase("forward"):
        mask = places % 3 == 0
        picked = x[mask]
        assert picked.shape == (3, 100)
        assert mask.nonzero().tolist() == [[0], [3], [6]]
    # The remainder, the mask, its true places, and the selection; then the true places again.
    assert stream(recorder) == [64, 8, -64, 24, 1200, -24, 24, -24]


def test_masks_of_ones_are_known_until_they_are_overwritten_with_unknown_values():
    recorder = Recorder()
    with recorder.phase("forward"):
        mask = torch.ones(2, 4, device="meta")
        mask[:, 1:] *= 0
        assert bool(mask.sum() == 2)
        mask[0] = torch.empty(4, device="meta")
        with pytest.raises(UntraceableError, match=r"line \d+, reads a tensor's value back"):
            bool(mask.sum() == 2)


@pytest.mark.parametrize(
    ("read", "words"),
    [
        (lambda x: x[x > 0], "makes a tensor whose size depends on values"),
        (lambda x: x.nonzero(), "makes a tensor whose size depends on values"),
        (lambda x: x.tolist(), "copies a tensor's values to the host"),
        (lambda x: x.cpu(), "copies a tensor's values to the host"),
    ],
)
def test_sizes_that_depend_on_activations_are_refused_in_one_line(
    read: Callable[[torch.Tensor], object], words: str
):
    recorder = Recorder()
    with (
        recorder.phase("forward"),
        pytest.raises(UntraceableError, match=rf"test_trace\.py, line \d+, {words}"),
    ):
        read(torch.empty(4, device="meta"))


def test_reading_back_an_activation_is_refused_with_its_line():
    recorder = Recorder()
    with (
        recorder.phase("forward"),
        pytest.raises(
            UntraceableError, match=r"test_trace\.py, line \d+, reads a tensor's value back"
        ),
    ):
        torch.empty(4, device="meta").sum().item()


def test_samples_answer_the_read_backs_of_an_optimizer():
    recorder = Recorder(samples=Samples())
    with recorder.phase("step"):
        # The square root of the sum of four ones.
        assert torch.ones(4, device="meta").norm().item() == 2


@pytest.mark.parametrize(
    ("dtype", "kernel_bytes"),
    [
        # Memory-efficient attention: the output and 4 bytes for each query for the backward pass.
        # Its seed and offset are on the host.
        (torch.float32, [2 * 4 * 64 * 32 * 4, 2 * 4 * 64 * 4]),
        # Flash attention: the same in half precision, then the random state (16 B) and an unused
        # number (8 B).
        (torch.bfloat16, [2 * 4 * 64 * 32 * 2, 2 * 4 * 64 * 4, 16, 8]),
    ],
)
def test_attention_takes_cuda_s_fused_kernel_and_never_holds_the_scores(
    dtype: torch.dtype, kernel_bytes: list[int]
):
    q = torch.empty(2, 4, 64, 32, dtype=dtype, device="meta", requires_grad=True)
    recorder = Recorder()
    with recorder.phase("build"):
        recorder.allocate(q, "input")
    with cuda_kernels((8, 0)), recorder.phase("forward"):
        out = torch.nn.functional.scaled_dot_product_attention(q, q, q, is_causal=True)
    assert out.requires_grad
    assert [size for size in stream(recorder)[1:] if size > 0] == kernel_bytes


def test_dropout_keeps_one_byte_for_each_element():
    x = torch.empty(1000, device="meta", requires_grad=True)
    recorder = Recorder()
    with recorder.phase("build"):
        recorder.allocate(x, "input")
    with cuda_kernels(), recorder.phase("forward"):
        y = torch.nn.functional.dropout(x, 0.1)
    assert stream(recorder)[1:] == [4000, 1000]
    assert y.requires_grad


def test_torch_s_own_kernels_are_back_after_tracing():
    x = torch.empty(8, device="meta")
    with cuda_kernels():
        pass
    recorder = Recorder()
    with recorder.phase("forward"):
        torch.nn.functional.dropout(x, 0.1)
    assert 32 in stream(recorder)
    assert 8 not in stream(recorder)


@pytest.mark.parametrize("values", [None, 0])
def test_a_repeated_part_returns_tensors_of_its_own(values: int | None):
    """With values followed (0), a part runs each time; without, once for each key."""
    runs: list[int] = []

    def part() -> dict[str, torch.Tensor]:
        runs.append(1)
        noise = torch.ones(512, device="meta")
        return {"state": (noise + noise).sum()}

    recorder = Recorder(first=3, samples=Samples(values))
    with recorder.phase("step"):
        first = recorder.repeat("key", part)["state"]
        recorder.name(recorder.number(first), "optimizer_state", "first")
        second = recorder.repeat("key", part)["state"]
        del first
        third = recorder.repeat("key", part)["state"]
    nbytes = recorder.allocations.nbytes
    events = [
        nbytes[event - 3] if event >= 0 else -nbytes[~event - 3]
        for event in recorder.segments[0].events
    ]
    # The sum of `noise` with itself is freed as soon as it is reduced, `noise` at the end.
    one = [2048, 2048, 4, -2048, -2048]
    assert events == [*one, *one, -4, *one]
    assert len(runs) == (1 if values is None else 3)
    assert recorder.number(second) != recorder.number(third)
    sources = recorder.allocations.sources
    assert sources[recorder.number(second) - 3].module == ""
    assert recorder.allocations.categories[recorder.number(third) - 3] == "temporary"
