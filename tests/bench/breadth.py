"""Simulate every small causal language model and image classifier of transformers, and train it.

    python tests/bench/breadth.py [NAME ...] [--seconds 120]

Each has two layers. A configuration passes if the simulations with AdamW and with SM3 have the
parameters and the state of a real step on the CPU, to the byte, and a peak within 1 % of it. The
others are lines of tests/data/breadth_failures.txt, a list that may only shrink: the run fails for
a configuration outside of it, and names those in it that pass. Each has its own process and time
limit.
"""

import argparse
import logging
import multiprocessing
import sys
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import transformers
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from optprof.profiler.simulating import simulation, training
from optprof.profiler.simulating.simulation import run_simulation
from optprof.profiler.tracing.grouped_mm import grouped_mm
from optprof.profiler.tracing.trace import Recorder
from optprof.profiler.training.iteration import Iteration
from optprof.profiler.training.optimizer import make_optimizer
from optprof.profiler.training.state import state_bytes
from optprof.scenarios import Scenario
from optprof.scenarios.workpiece import build

FAILURES = Path(__file__).parent.parent / "data" / "breadth_failures.txt"
OPTIMIZERS = ("adamw", "sm3")
LANGUAGE = tuple(modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)
VISION = tuple(
    name
    for name in modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    if name not in LANGUAGE
)
BATCH, LENGTH, CLASSES = 2, 32, 10
CLOSE = 0.01

# The reason of a type begins so if it cannot be built or trained here: nothing can be compared.
UNTRAINED = "not trained for real"

# The values of a configuration's entries, at any depth.
SMALL: Mapping[str, Any] = {
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input"), 256),
    **dict.fromkeys(("pad_token_id", "bos_token_id"), 0),
    **dict.fromkeys(
        ("eos_token_id", "sep_token_id", "decoder_start_token_id", "cls_token_id", "mask_token_id"),
        1,
    ),
    **dict.fromkeys(
        (
            "num_hidden_layers",
            "n_layer",
            "n_layers",
            "num_layers",
            "encoder_layers",
            "decoder_layers",
        ),
        2,
    ),
    **dict.fromkeys(
        ("num_encoder_layers", "num_decoder_layers", "num_hidden_layers_decoder", "num_blocks"), 2
    ),
    **dict.fromkeys(
        (
            "hidden_size",
            "d_model",
            "n_embd",
            "dim",
            "emb_dim",
            "embedding_size",
            "embedding_dim",
            "word_embed_proj_dim",
        ),
        64,
    ),
    **dict.fromkeys(
        (
            "num_attention_heads",
            "n_head",
            "n_heads",
            "num_heads",
            "encoder_attention_heads",
            "decoder_attention_heads",
        ),
        4,
    ),
    **dict.fromkeys(("num_encoder_attention_heads", "num_decoder_attention_heads"), 4),
    **dict.fromkeys(
        (
            "intermediate_size",
            "ffn_dim",
            "encoder_ffn_dim",
            "decoder_ffn_dim",
            "d_ff",
            "n_inner",
            "ffn_hidden_size",
        ),
        128,
    ),
    **dict.fromkeys(
        (
            "head_dim",
            "attention_head_size",
            "d_kv",
            "v_head_dim",
            "qk_nope_head_dim",
            "qk_rope_head_dim",
            "rotary_dim",
        ),
        16,
    ),
    **dict.fromkeys(
        ("q_lora_rank", "kv_lora_rank", "moe_intermediate_size", "shared_expert_intermediate_size"),
        32,
    ),
    **dict.fromkeys(("expert_ffn_hidden_size", "attention_head_dim"), 32),
    **dict.fromkeys(
        (
            "num_experts",
            "num_local_experts",
            "n_routed_experts",
            "moe_num_experts",
            "zero_expert_num",
        ),
        4,
    ),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k"), 2),
    **dict.fromkeys(("n_group", "topk_group"), 1),
    **dict.fromkeys(
        ("max_position_embeddings", "n_positions", "n_ctx", "max_seq_len", "max_target_positions"),
        64,
    ),
    "encoder_hash_byte_group_vocab": 256,
    "hidden_size_global": 64,
    "image_size": 64,
}
HEAD: Mapping[str, Any] = {"head_dim": 16}
# Without a mask these read whether the first or last token is padding, by indices whose values a
# trace never has.
MASKED = ("big_bird", "megatron-bert", "reformer", "rembert", "roformer")
# Entries that some types need instead.
SPECIAL: Mapping[str, Mapping[str, Any]] = {
    "cohere_compass_text": {
        "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0}}
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 128, "hidden_size": 64},
    },
    "deepseek_v2": {"num_experts_per_tok": 2},
    "donut-swin": {"image_size": 224},
    "dots1": {"n_routed_experts": 4, "num_experts_per_tok": 2, "n_shared_experts": 1},
    "gemma3n_text": {"num_kv_shared_layers": 0},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "hunyuan_v1_dense": HEAD,
    "hunyuan_v1_moe": HEAD,
    "kimi_linear": {"num_experts_per_token": 2, "num_expert_group": 1},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 1},
    "ministral": HEAD,
    "nemotron": {"num_key_value_heads": 4},
    "perceiver": {
        "num_latents": 16,
        "d_latents": 64,
        "num_self_attends_per_block": 2,
        "num_self_attention_heads": 4,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds": False},
    "siglip2": {
        "vision_config": {
            "num_patches": 16,
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
        }
    },
    "swin": {"image_size": 224},
    "xmod": {"default_language": "en_XX"},
    "zamba": {
        "layers_block_type": ["hybrid", "hybrid"],
        "n_mamba_heads": 2,
        "mamba_dt_rank": 4,
        "use_mamba_kernels": False,
    },
    "zamba2": {
        "layers_block_type": ["hybrid", "hybrid"],
        "n_mamba_heads": 8,
        "use_mamba_kernels": False,
    },
}


def kind_of(name: str) -> Any:
    """Return the class of a model type."""
    names: Any = modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    if name in VISION:
        names = modeling_auto.MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING_NAMES
    return getattr(transformers, names[name] if isinstance(names[name], str) else names[name][0])


def small(name: str) -> Any:
    """Return a small configuration of a model type.

    Of a model that is more than a language model, it is the language model's.
    """
    usual: Any = CONFIG_MAPPING[name]()
    if not isinstance(usual, kind_of(name).config_class):
        usual = usual.get_text_config(decoder=True)
    config = type(usual)(**{**_shrunk(usual), **SPECIAL.get(name, {})})
    config._attn_implementation = "eager"
    for part in (config, config.get_text_config(decoder=True)):
        if hasattr(part, "use_cache"):
            part.use_cache = False
    if name in VISION:
        config.num_labels = CLASSES
    return config


def _shrunk(usual: Any) -> dict[str, Any]:
    """Return the smaller entries of a configuration and of those inside it."""
    entries = {key: value for key, value in vars(usual).items() if not isinstance(value, bool)}
    changed: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, transformers.PreTrainedConfig):
            changed[key] = _shrunk(value)
        elif key == "depths":
            changed[key] = [1] * len(value)
        elif key in SMALL and isinstance(value, int):
            changed[key] = SMALL[key] if value > 2 or "token_id" in key else value
    heads = entries.get("num_key_value_heads")
    if isinstance(heads, int):
        changed["num_key_value_heads"] = min(
            heads, 4 if heads == entries.get("num_attention_heads") else 2
        )
    return changed


def made(name: str) -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """Return a model of the type and a batch, for a scenario."""
    config, kind = small(name), kind_of(name)
    return kind(config), _batch(name, config, kind.main_input_name)


def _batch(name: str, config: Any, main_input: str) -> dict[str, torch.Tensor]:
    tokens = torch.randint(2, 200, (BATCH, LENGTH), device="cpu")
    side = getattr(config, "image_size", 64)
    side = side[0] if isinstance(side, list | tuple) else side
    if name == "git":
        return {
            "input_ids": tokens,
            "labels": tokens.clone(),
            "pixel_values": torch.randn(BATCH, 3, 64, 64),
        }
    if name.startswith("musicgen"):
        # The model has a row per codebook.
        rows = tokens.repeat_interleave(config.num_codebooks, 0)
        return {"input_ids": rows, "labels": tokens[..., None].repeat(1, 1, config.num_codebooks)}
    if name not in VISION:
        mask = {"attention_mask": torch.ones_like(tokens)} if name in MASKED else {}
        return {"input_ids": tokens, "labels": tokens.clone(), **mask}
    labels = torch.zeros(BATCH, dtype=torch.long, device="cpu")
    if main_input == "input_ids":
        return {"input_ids": tokens, "labels": tokens.clone() if name == "shieldgemma2" else labels}
    if name == "siglip2":
        # Patches, and their number in each direction.
        return {
            "pixel_values": torch.randn(BATCH, 16, 3 * 16 * 16),
            "pixel_attention_mask": torch.ones(BATCH, 16, dtype=torch.long, device="cpu"),
            "spatial_shapes": torch.full((BATCH, 2), 4, device="cpu"),
            "labels": labels,
        }
    return {
        main_input: torch.randn(BATCH, getattr(config, "num_channels", 3), side, side),
        "labels": labels,
    }


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Bytes of parameters and optimizer state, and the most bytes of tensors alive at once."""

    parameters: int
    state: int
    peak: int


def scenario_of(name: str, optimizer: str) -> Scenario:
    """Return two steps of a model type, with the optimizer as a loop over the parameters."""
    return Scenario(
        model="breadth:made", config={"name": name}, optimizer=optimizer, implementation="loop"
    )


@contextmanager
def grouped_products(*_: Any) -> Iterator[set[Any]]:
    """Give meta tensors the grouped matrix products of every dtype; torch's are bfloat16 only."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_grouped_mm", grouped_mm, "Meta", allow_override=True)
    yield set()
    library._destroy()


@contextmanager
def as_on_the_cpu() -> Iterator[None]:
    """Leave CUDA's own kernels, workspaces and temporaries out of simulations."""

    def recorder(*args: Any, workspaces: Any = None, **named: Any) -> Recorder:
        del workspaces
        return Recorder(*args, **named)

    simulation._model_trace.cache_clear()
    with (
        mock.patch.object(training, "Recorder", recorder),
        mock.patch.object(training, "cuda_kernels", grouped_products),
    ):
        yield
    simulation._model_trace.cache_clear()


def simulated(scenario: Scenario) -> tuple[Counts, set[str]]:
    """Return the counts of a simulation, and the operations that it recorded."""
    result = run_simulation(scenario)
    memory, nbytes = result.record.memory, result.allocations.nbytes
    assert memory is not None
    total = peak = 0
    for segment in result.segments:
        for event in segment.events:
            total += nbytes[event] if event >= 0 else -nbytes[~event]
            peak = max(peak, total)
    counts = Counts(parameters=memory.parameters, state=memory.optimizer_state, peak=peak)
    return counts, {source.op for source in result.allocations.sources}


def measured(scenario: Scenario, operations: set[str]) -> Counts:
    """Count real steps on the CPU by torch.profiler's allocator events, without any dispatch mode.

    The bytes are counted between `operations`: memory that a CPU kernel allocates and frees is not
    a tensor of the program.
    """
    workpiece = build(scenario, "cpu")
    parameters = list(workpiece.model.parameters())
    optimizer = make_optimizer(
        scenario, parameters, [name for name, _ in workpiece.model.named_parameters()]
    )
    batch = {name: value.clone() for name, value in workpiece.batch.items()}
    # Adagrad allocates its state before the first step.
    state = [
        value
        for own in optimizer.state.values()
        for value in own.values()
        if isinstance(value, torch.Tensor)
    ]
    tensors = (*parameters, *workpiece.model.buffers(), *batch.values(), *state)
    by_storage = {tensor.untyped_storage()._cdata: tensor for tensor in tensors}
    start = sum(tensor.untyped_storage().nbytes() for tensor in by_storage.values())
    iteration = Iteration(scenario, workpiece, batch, optimizer, lambda _: nullcontext(), "cpu")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True
    ) as profile:
        for _ in range(scenario.steps):
            iteration.gradients()
            iteration.step()
            optimizer.zero_grad()
    storages = {p.untyped_storage()._cdata: p.untyped_storage().nbytes() for p in parameters}
    return Counts(
        parameters=sum(storages.values()),
        state=state_bytes(optimizer).total,
        peak=start + _peak(profile, operations),
    )


def _peak(profile: Any, operations: set[str]) -> int:
    """Return the highest sum of the allocator's events outside of operations."""
    events = sorted(profile.profiler.kineto_results.events(), key=lambda event: event.start_ns())
    total = peak = inside_until = 0
    for event in events:
        if event.start_ns() > inside_until:
            peak = max(peak, total)
            # An operation in place makes no tensor. Between dtypes a CPU casts into temporaries,
            # and CUDA's kernels cast each value that they read.
            if event.name() in operations or event.name().endswith("_"):
                inside_until = event.end_ns()
        if event.name() == "[memory]":
            total += event.nbytes()
    return max(peak, total)


def failure(name: str) -> str | None:
    """Return in one line why a model type does not pass; None if it does."""
    scenarios = [scenario_of(name, optimizer) for optimizer in OPTIMIZERS]
    try:
        workpiece = build(scenarios[0], "cpu")
        workpiece.loss(workpiece.batch).backward()
    except Exception as error:  # A wrong configuration or batch may raise anything.
        return f"{UNTRAINED}: {_line(error)}"
    try:
        # For CUDA first, as users do.
        for scenario in scenarios:
            simulated(scenario)
        with as_on_the_cpu():
            ours = [simulated(scenario) for scenario in scenarios]
    except Exception as error:
        return f"not simulated: {_line(error)}"
    for scenario, (counts, operations) in zip(scenarios, ours, strict=True):
        real = measured(scenario, operations)
        for field in ("parameters", "state"):
            if getattr(counts, field) != getattr(real, field):
                return (
                    f"{field} with {scenario.optimizer}: {getattr(counts, field)} bytes, really"
                    f" {getattr(real, field)}"
                )
        if abs(counts.peak - real.peak) > CLOSE * real.peak:
            return (
                f"peak with {scenario.optimizer}:"
                f" {100 * (counts.peak - real.peak) / real.peak:+.1f} %"
            )
    return None


def _line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:200]


def _answer(name: str, answers: Any) -> None:
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    answers.send(failure(name))


def alone(name: str, seconds: float) -> str | None:
    """Return `failure` from a process that may die and has a time limit."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_answer, args=(name, theirs))
    process.start()
    theirs.close()
    try:
        if not ours.poll(seconds):
            return f"not done in {seconds:g} seconds"
        return ours.recv()
    except EOFError:
        process.join()
        return f"its process ended with status {process.exitcode}"
    finally:
        process.kill()
        process.join()


def listed_failures() -> dict[str, str]:
    """Return the reasons of the listed failures by name."""
    lines = [
        line for line in FAILURES.read_text().splitlines() if line and not line.startswith("#")
    ]
    return {name: reason for name, _, reason in (line.partition(": ") for line in lines)}


def main() -> int:
    """Run some model types, or all; return 1 unless exactly the listed ones fail."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="model types; all without")
    parser.add_argument("--seconds", type=float, default=120.0, help="time limit of each")
    options = parser.parse_args()
    names = options.names or [*LANGUAGE, *VISION]
    listed = listed_failures()
    reasons: dict[str, str | None] = {}
    for name in names:
        start = time.monotonic()
        reasons[name] = alone(name, options.seconds)
        print(
            f"{name:32} {time.monotonic() - start:5.1f} s  {reasons[name] or 'passes'}", flush=True
        )
    judged = [reason for reason in reasons.values() if not (reason or "").startswith(UNTRAINED)]
    passing = judged.count(None)
    share = f" ({100 * passing / len(judged):.1f} %)" if judged else ""
    print(
        f"{passing} of {len(judged)} pass{share}; {len(names) - len(judged)} cannot be trained here"
    )
    failed = [name for name, reason in reasons.items() if reason and name not in listed]
    passed = [name for name, reason in reasons.items() if not reason and name in listed]
    for name in failed:
        print(f"{name} fails and is not on the list")
    for name in passed:
        print(f"{name} passes now; take it off {FAILURES.name}")
    return 1 if failed or passed else 0


# A scenario finds the factory by this module's name, which a script does not have.
sys.modules.setdefault("breadth", sys.modules[__name__])
if __name__ == "__main__":
    sys.exit(main())
