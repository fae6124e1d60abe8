"""Simulations of other people's models, judged by real steps of the same factories on the CPU."""

from collections.abc import Callable
from itertools import accumulate
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional

from optprof.profiler import simulate
from optprof.profiler.running import plan
from optprof.profiler.running.plan import comparison
from optprof.profiler.simulating.fitting import Fitting
from optprof.profiler.simulating.training import trace_model
from optprof.profiler.training.accumulating import simulated_draws
from optprof.scenarios import Scenario, factories
from optprof.scenarios.settings import own_settings
from optprof.scenarios.workpiece import build

BF16 = torch.bfloat16


class Net(nn.Module):
    """Two layers and a loss."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 256), nn.Linear(256, 64)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu()).square().mean()


def plain(batch_size: int = 8):
    return Net(), {"x": torch.randn(batch_size, 64)}


class Mixed(nn.Module):
    """A bf16 table under fp32 layers, and an fp64 norm."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(500, 64).to(BF16)
        self.layer, self.norm = nn.Linear(64, 64), nn.LayerNorm(64, dtype=torch.float64)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        return self.norm(self.layer(self.table(ids).float()).double()).square().mean()


def mixed(batch_size: int = 2):
    return Mixed(), {"ids": torch.randint(500, (batch_size, 16))}


class Quantized(nn.Module):
    """A base of whole numbers with fp16 scales, and a trained adapter of complex numbers' real
    parts.
    """

    def __init__(self) -> None:
        super().__init__()
        self.base = nn.Parameter(
            torch.randint(-8, 8, (256, 256), dtype=torch.int8), requires_grad=False
        )
        self.scale = nn.Parameter(torch.rand(256, 1, dtype=torch.float16), requires_grad=False)
        self.adapter = nn.Parameter(torch.randn(256, dtype=torch.complex64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x @ (self.base * self.scale).float().t() * self.adapter).abs().square().mean()


def quantized(batch_size: int = 2):
    return Quantized(), {"x": torch.randn(batch_size, 256)}


class Masked(nn.Module):
    """Selects the elements of a mask, which may be floating-point, and branches on it."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(500, 64), nn.Linear(64, 8)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        hidden = self.table(ids)
        if not mask.all():
            hidden, labels = hidden[mask.bool()], labels[mask.bool()]
        return functional.cross_entropy(self.layer(hidden), labels)


def masked(batch_size: int = 3):
    mask = torch.ones(batch_size, 16)
    mask[:, 11:] = 0
    return Masked(), {
        "ids": torch.randint(500, (batch_size, 16)),
        "mask": mask,
        "labels": torch.randint(8, (batch_size, 16)),
    }


def masked_by_position(batch_size: int = 3):
    model, batch = masked(batch_size)
    return model, list(batch.values())


class Steered(nn.Module):
    """Applies its layer as often as a buffer says."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 64)
        self.times: torch.Tensor
        self.register_buffer("times", torch.tensor([3, 4]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for _ in range(int(self.times.sum())):
            x = self.layer(x)
        return x.mean()


def steered(batch_size: int = 2):
    return Steered(), {"x": torch.randn(batch_size, 64)}


def lazy(batch_size: int = 2):
    return LazyLoss(), {"x": torch.randn(batch_size, 3, 9, 9)}


class LazyLoss(nn.Module):
    """Shapes that are known after one forward pass; its loss comes in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.LazyConv2d(16, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(10)
        )

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.layers(x).square().mean()}


def nested(batch_size: int = 2):
    x = torch.randn(batch_size, 64)
    return Nested(), {"parts": {"x": [x, x + 1], "more": (torch.zeros(7),)}}


class Nested(nn.Module):
    """Reads a batch of two levels."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Net()

    def forward(self, parts: Any) -> torch.Tensor:
        return self.net(parts["x"][0]) + self.net(parts["x"][1]) + parts["more"][0].mean()


class Doubled(Net):
    """Makes a table in its forward pass, in torch's default dtype."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) + torch.rand(64, 64, device=x.device).cos().mean()


def doubled(batch_size: int = 2):
    torch.set_default_dtype(torch.float64)
    return Doubled(), {"x": torch.randn(batch_size, 64)}


def bytes_of(tensors: Any) -> int:
    return sum(
        {
            tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors
        }.values()
    )


def scenario_of(name: str, **options: Any) -> Scenario:
    return Scenario(
        model=f"{__name__}:{name}", **{"optimizer": "adamw", "batch_size": 2, **options}
    )


@pytest.mark.parametrize(
    "name",
    [
        "plain",
        "mixed",
        "quantized",
        "masked",
        "masked_by_position",
        "steered",
        "lazy",
        "nested",
        "doubled",
    ],
)
@own_settings()
def test_bytes_are_those_of_a_real_step(name: str):
    memory = simulate(scenario_of(name)).memory
    assert memory is not None
    work = build(scenario_of(name), "cpu")
    parameters = list(work.model.parameters())
    optimizer = torch.optim.AdamW(
        [parameter for parameter in parameters if parameter.requires_grad]
    )
    work.loss(work.batch).backward()
    gradients = bytes_of(parameter.grad for parameter in parameters if parameter.grad is not None)
    optimizer.step()
    state = bytes_of(tensor for tensors in optimizer.state.values() for tensor in tensors.values())
    assert (memory.parameters, memory.gradients, memory.optimizer_state) == (
        bytes_of(parameters),
        gradients,
        state,
    )


def test_a_default_dtype_of_the_factory_s_own_is_that_of_its_training():
    # A table of 64 x 64 doubles and its cosine.
    events = stream(scenario_of("doubled"))
    assert events.count(64 * 64 * 8) == events.count(-64 * 64 * 8) == 2 * 2
    assert torch.get_default_dtype() == torch.float32


def stream(scenario: Scenario) -> list[int]:
    """Bytes of each event of the steps of a trace, scalars left out; frees are negative."""
    trace = trace_model(scenario)
    sizes, events = (
        trace.allocations.nbytes,
        [event for step in trace.steps for segment in step for event in segment.events],
    )
    return [
        size for event in events if abs(size := sizes[event] if event >= 0 else -sizes[~event]) > 8
    ]


def test_a_model_takes_the_branch_that_it_takes_with_data():
    allocations = trace_model(scenario_of("steered")).allocations
    outputs = [
        nbytes
        for nbytes, source in zip(allocations.nbytes, allocations.sources, strict=True)
        if source.op == "aten::addmm"
    ]
    # Seven times forward, in each of two steps.
    assert outputs.count(2 * 64 * 4) == 2 * (3 + 4)
    # Eleven of sixteen positions in two sequences, 64 floats each.
    assert stream(scenario_of("masked")).count(2 * 11 * 64 * 4) > 0


class ByBlock(Net):
    """Runs under its own autocast."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=BF16):
            return super().forward(x)


class ByDevice(Net):
    """Selects autocast by its tensor's device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast(x.device.type, dtype=BF16):
            return super().forward(x)


class ByDecorator(Net):
    """Makes its autocast with the class, as a decorator."""

    with factories.autocast_can_be_made():
        decorator = torch.autocast("cuda", dtype=BF16)

    @decorator
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


class ByAttribute(Net):
    """Makes its autocast with the model, as an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.autocast = torch.autocast("cuda", dtype=BF16)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with self.autocast:
            return super().forward(x)


class WithIsland(Net):
    """Switches autocast off again before anything runs, by the name of its tensor's device."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=BF16), torch.autocast(x.device.type, enabled=False):
            return super().forward(x)


def by_block():
    return ByBlock(), {"x": torch.randn(32, 64)}


def by_device():
    return ByDevice(), {"x": torch.randn(32, 64)}


def by_decorator():
    return ByDecorator(), {"x": torch.randn(32, 64)}


def by_attribute():
    return ByAttribute(), {"x": torch.randn(32, 64)}


def with_island():
    return WithIsland(), {"x": torch.randn(32, 64)}


@pytest.mark.parametrize("name", ["by_block", "by_device", "by_decorator", "by_attribute"])
def test_a_model_s_own_autocast_is_what_amp_does(name: str):
    assert stream(scenario_of(name, batch_size=1)) == stream(
        scenario_of("plain", batch_size=32, amp="bf16")
    )
    assert stream(scenario_of("plain", batch_size=32)) != stream(
        scenario_of("plain", batch_size=32, amp="bf16")
    )


def test_an_island_without_autocast_is_in_full_precision():
    assert stream(scenario_of("with_island", batch_size=1)) == stream(
        scenario_of("plain", batch_size=32)
    )


class Cubed(torch.autograd.Function):
    """A user's autograd function that computes in float32 under autocast."""

    @staticmethod
    @torch.amp.custom_fwd(device_type="cuda", cast_inputs=torch.float32)
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(x)
        return x**3

    @staticmethod
    @torch.amp.custom_bwd(device_type="cuda")
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        (x,) = ctx.saved_tensors
        assert x.dtype == torch.float32
        return 3 * x**2 * gradients[0]


class Custom(Net):
    """Passes bf16 to a function that needs float32."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cuda", dtype=BF16):
            return Cubed.apply(self.first(x)).mean()  # pyright: ignore


def custom():
    return Custom(), {"x": torch.randn(32, 64)}


def test_a_users_autograd_function_gets_the_dtype_that_it_declares():
    assert simulate(scenario_of("custom", batch_size=1)).outcome == "ok"


def large():
    return nn.Sequential(*(nn.Linear(4096, 4096) for _ in range(4))), {
        "input": torch.zeros(1, 4096)
    }


def test_building_a_model_without_data_allocates_next_to_nothing(
    cpu_events: Callable[[Callable[[], object]], list[int]],
):
    taken = cpu_events(lambda: build(scenario_of("large", batch_size=1), "meta"))
    assert max(accumulate(taken), default=0) < 1 << 20


def of_eight(batch_size: int = 8, sequence_length: int = 128):
    return Net(), {"x": torch.randn(batch_size, sequence_length, 64)}


def of_any_length(batch_size: int, sequence_length: int):
    return Net(), {"x": torch.randn(batch_size, sequence_length, 64)}


def test_a_plan_says_the_sizes_that_the_factory_will_have():
    def sizes(**options: Any) -> set[tuple[int, int | None]]:
        scenarios = plan.plan(comparison(optimizers=["adamw"], device="sim", **options))
        return {(scenario.batch_size, scenario.sequence_length) for scenario in scenarios}

    assert sizes(models=[f"{__name__}:of_eight"]) == {(8, 128)}
    assert sizes(models=[f"{__name__}:of_eight"], batch_size=2) == {(2, 128)}
    assert sizes(models=[f"{__name__}:of_eight"], config={"batch_size": 3}) == {(3, 128)}
    # The curve over sizes needs the length too, if the factory has no default.
    assert sizes(models=[f"{__name__}:of_any_length"], sequence_length=5) == {(1, 5)}
    assert sizes(models=["gpt2"], workload="state") == {(1, 1024)}


def test_micro_batches_are_counted_by_the_factory_s_batch():
    scenario, *_ = plan.plan(
        comparison(
            models=[f"{__name__}:of_eight"],
            optimizers=["adamw"],
            device="sim",
            accumulate="sbc:batch_size=8",
        )
    )
    assert simulated_draws(scenario) == 1


def test_each_model_is_made_once_for_all_optimizers(monkeypatch: pytest.MonkeyPatch):
    made: list[str] = []
    monkeypatch.setattr(
        plan,
        "build",
        lambda scenario, device: made.append(scenario.model) or build(scenario, device),
    )
    monkeypatch.setattr(plan, "_dtypes_of", {})
    for optimizer in ("adamw", "sm3", "sgd"):
        plan.plan(
            comparison(
                models=["tiny"], optimizers=[optimizer, "adam"], device="sim", checkpointing=True
            )
        )
    assert made == ["tiny"]


def test_a_gpu_without_bf16_refuses_a_model_that_has_some():
    with pytest.raises(
        ValueError, match="t4 has no hardware for bf16; ask for fp32, or for another GPU"
    ):
        plan.plan(
            comparison(models=[f"{__name__}:mixed"], optimizers=["adamw"], device="sim", gpu="t4")
        )
    assert Fitting().fit(scenario_of("mixed", gpu="t4")).reason == "t4 has no hardware for bf16"
    assert Fitting().fit(scenario_of("plain", gpu="t4")).reason is None


def of_even(batch_size: int = 8):
    if batch_size % 2:
        raise ValueError("an even batch, please")
    # A t4 has no room for the largest batch that is tried.
    return Net(), {"x": torch.randn(batch_size, 1000, 64)}


def test_a_factory_may_refuse_some_batch_sizes():
    fit = Fitting().fit(scenario_of("of_even", gpu="t4"))
    assert fit.fits
    assert fit.largest_batch is None


def test_a_batch_that_cannot_be_chosen_has_no_largest():
    assert (
        Fitting()
        .fit(scenario_of("large", batch_size=1, workload="state", gpu="a100-40"))
        .largest_batch
        is None
    )
