"""Models whose attention or experts were once simulated wrongly, compared with steps on the CPU.

A path of attention holds the same memory on every device. If CUDA runs the math kernel, the CPU is
set to it too; fused kernels have the same outputs on both.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention as attention

from optprof.profiler.simulating.replay import replay
from optprof.profiler.simulating.simulation import run_simulation
from optprof.scenarios import Scenario
from optprof.scenarios.factories import load

TOKENS, WIDTH, HEADS = 256, 128, 4
SIZES: dict[str, Any] = {
    "hidden_size": WIDTH,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": HEADS,
    "num_key_value_heads": 2,
    "vocab_size": 512,
    "use_cache": False,
}
Factory = tuple[torch.nn.Module, dict[str, torch.Tensor]]


class Layers(torch.nn.Module):
    """Four layers of attention between two projections; keys and values have `heads` heads."""

    def __init__(self, heads: int = HEADS, **options: Any) -> None:
        super().__init__()
        self.heads, self.options = heads, options
        sizes = WIDTH, heads * WIDTH // HEADS
        self.queries = torch.nn.ModuleList(torch.nn.Linear(WIDTH, sizes[0]) for _ in range(4))
        self.rest = torch.nn.ModuleList(torch.nn.Linear(WIDTH, 2 * sizes[1]) for _ in range(4))
        self.outputs = torch.nn.ModuleList(torch.nn.Linear(WIDTH, WIDTH) for _ in range(4))

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return a loss."""
        batch, tokens, _ = x.shape
        for queries, rest, outputs in zip(self.queries, self.rest, self.outputs, strict=True):
            query = queries(x).view(batch, tokens, HEADS, -1).transpose(1, 2)
            both = rest(x).view(batch, tokens, 2 * self.heads, -1).transpose(1, 2)
            key, value = both.chunk(2, 1)
            attended = attention(query, key, value, mask, **self.options)
            x = outputs(attended.transpose(1, 2).reshape(batch, tokens, WIDTH))
        return x.square().mean()


def batch_of(batch_size: int, sequence_length: int) -> dict[str, torch.Tensor]:
    return {"x": torch.zeros(batch_size, sequence_length, WIDTH)}


def masked(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    mask = torch.ones(1, 1, sequence_length, sequence_length, dtype=torch.bool)
    return Layers(), {**batch_of(batch_size, sequence_length), "mask": mask}


def biased(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    mask = torch.ones(sequence_length, sequence_length)
    return Layers(), {**batch_of(batch_size, sequence_length), "mask": mask}


def broadcast(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    return Layers(heads=1, is_causal=True), batch_of(batch_size, sequence_length)


def grouped(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    return Layers(heads=2, is_causal=True, enable_gqa=True), batch_of(batch_size, sequence_length)


def language_model(config: Any, batch_size: int, sequence_length: int) -> Factory:
    from transformers import AutoModelForCausalLM

    ids = torch.ones(batch_size, sequence_length, dtype=torch.int64)
    return AutoModelForCausalLM.from_config(config), {"input_ids": ids, "labels": ids}


def falcon(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    from transformers import FalconConfig

    return language_model(FalconConfig(multi_query=True, **SIZES), batch_size, sequence_length)


def mistral(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    from transformers import MistralConfig

    config = MistralConfig(sliding_window=64, **SIZES)
    return language_model(config, batch_size, sequence_length)


def mixtral(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    from transformers import MixtralConfig

    config = MixtralConfig(num_local_experts=4, **SIZES)
    return language_model(config, batch_size, sequence_length)


def qwen3_moe(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    from transformers import Qwen3MoeConfig

    experts: dict[str, Any] = {"moe_intermediate_size": 64, "num_experts": 8}
    config = Qwen3MoeConfig(**SIZES, **experts)
    return language_model(config, batch_size, sequence_length)


def deepseek(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    from transformers import DeepseekV2Config

    sizes: dict[str, Any] = {**SIZES, "num_key_value_heads": HEADS}
    config = DeepseekV2Config(
        **sizes,
        kv_lora_rank=32,
        q_lora_rank=None,
        qk_rope_head_dim=16,
        qk_nope_head_dim=32,
        v_head_dim=32,
        n_routed_experts=4,
        num_experts_per_tok=2,
        moe_intermediate_size=64,
        first_k_dense_replace=1,
    )
    return language_model(config, batch_size, sequence_length)


class ByMath(torch.nn.Module):
    """A model that selects the math kernel."""

    def __init__(self, model: torch.nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, **batch: torch.Tensor) -> torch.Tensor:
        """Return a loss."""
        with sdpa_kernel(SDPBackend.MATH):
            return loss_of(self.model(**batch))


def masked_by_math(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    model, batch = masked(batch_size, sequence_length)
    return ByMath(model), batch


def deepseek_by_math(batch_size: int = 1, sequence_length: int = TOKENS) -> Factory:
    model, batch = deepseek(batch_size, sequence_length)
    return ByMath(model), batch


def simulated(factory: str, **options: Any) -> int:
    """Return the bytes of tensors at the peak, without requests of CUDA's kernels."""
    scenario = Scenario(model=f"{__name__}:{factory}", sequence_length=TOKENS, **options)
    simulation = run_simulation(scenario)
    requests = {event for number in simulation.allocations.requests for event in (number, ~number)}
    return replay(
        [
            replace(each, events=[event for event in each.events if event not in requests])
            for each in simulation.segments
        ],
        simulation.allocations,
        keep=(),
    ).peak_allocated


def loss_of(outputs: Any) -> torch.Tensor:
    return outputs if isinstance(outputs, torch.Tensor) else outputs.loss


def measured(factory: str) -> int:
    """Return the peak bytes of two real steps, as torch.profiler sees them."""
    model, batch = load(f"{__name__}:{factory}")()
    optimizer = torch.optim.AdamW(model.parameters(), foreach=True)
    activities = [torch.profiler.ProfilerActivity.CPU]
    with torch.profiler.profile(activities=activities, profile_memory=True) as real:
        for _ in range(2):
            loss_of(model(**batch)).backward()
            optimizer.step()
            optimizer.zero_grad()
    resident = {
        tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes()
        for tensor in (*model.parameters(), *model.buffers(), *batch.values())
    }
    assert real.profiler is not None
    assert real.profiler.kineto_results is not None
    live = top = sum(resident.values())
    for event in real.profiler.kineto_results.events():
        if event.name() == "[memory]":
            live += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue]
            top = max(top, live)
    return top


@pytest.mark.parametrize("factory", ["masked", "biased", "mistral"])
def test_a_model_with_a_fused_kernel_peaks_as_on_the_cpu(factory: str):
    assert simulated(factory) == pytest.approx(measured(factory), rel=0.02)


@pytest.mark.parametrize("factory", ["broadcast", "grouped", "falcon", "mixtral", "qwen3_moe"])
def test_a_model_with_the_math_kernel_peaks_as_on_the_cpu(factory: str):
    with sdpa_kernel(SDPBackend.MATH):
        real = measured(factory)
    assert simulated(factory) == pytest.approx(real, rel=0.01)


@pytest.mark.parametrize("factory", ["masked", "deepseek"])
def test_a_model_that_selects_the_math_kernel_peaks_as_on_the_cpu(factory: str):
    peak = simulated(f"{factory}_by_math")
    assert peak == pytest.approx(measured(f"{factory}_by_math"), rel=0.01)
    assert simulated(factory) < peak


@pytest.mark.parametrize(
    "options",
    [
        {"amp": "bf16"},
        {"dtype": "bf16"},
        {"amp": "fp16", "gpu": "t4"},
    ],
)
@pytest.mark.parametrize("factory", ["mixtral", "qwen3_moe", "deepseek"])
def test_all_models_train_in_half_precision(factory: str, options: dict[str, Any]):
    assert simulated(factory, **options) > 0
