"""Plan: the jobs of each stage, the most valuable first."""

from collections.abc import Iterator
from dataclasses import asdict, replace
from typing import Any

from children import Job
from optprof.scenarios import Scenario
from record import OTHERS, listed

CONSTANTS = (
    "device",
    "workspaces",
    "bandwidth",
    "launches",
    "context",
    "small-steps",
    "reductions",
    "attention",
    "recurrent",
    "temporaries",
)
# Recordings that together cover each mechanism, the short ones first.
CORE = (
    "gpt2_fp32_adamw_foreach",
    "gpt2_fp32_adamw_loop",
    "gpt2_fp32_adamw_fused",
    "gpt2_fp32_sgd-sai_foreach",
    "gpt2_fp32_sm3_foreach",
    "gpt2_fp32_lamb16_foreach",
    "gpt2_bf16_adamw_foreach",
    "gpt2_amp-bf16_adamw_foreach",
    "gpt2_amp-fp16_adamw_foreach",
    "gpt2_fp32_adamw_foreach_checkpointing",
    "gpt2_fp32_adamw_foreach_expandable_segments-True",
    "gpt2_fp32_adamw_foreach_fsdp2-rank-3-of-8",
    "resnet50_fp32_adamw_foreach",
    "vit-b16_fp32_adamw_foreach",
    "llama2-7b_bf16_adamw_foreach",
    "llama2-7b_bf16_sm3_foreach_fsdp2-rank-0-of-64",
    "gpt2_fp32_adamw_foreach_ddp-rank-3-of-8",
    "gpt2-xl_fp32_sgd_foreach_out-of-memory",
    "gpt2_fp32_adafactor_foreach",
    "llama2-7b_fp32_adamw_foreach",
    "gpt2_fp32_adamw_foreach_two-micro-batches_clipped",
    "gpt2_amp-fp16_adamw_foreach_clipped",
    "gpt2_fp32_adamw_foreach_gradients-kept",
    "gpt2_fp32_adamw_foreach_eager",
    "gpt2_fp32_adamw_foreach_eight-sequences",
    "gpt2_bf16_adamw_fused",
    "gpt2_bf16_lamb16_foreach",
    "gpt2_bf16_sgd-sai_foreach",
    "gpt2_amp-bf16_sm3_foreach",
    "gpt2_amp-fp16_adamw_fused",
    "gpt2_amp-bf16_adamw_foreach_checkpointing",
    "resnet50_fp32_adamw_loop",
    "resnet50_fp32_sgd-sai_foreach",
    "vit-b16_fp32_lamb16_foreach",
    "vit-b16_fp32_adamw_foreach_checkpointing",
    "llama2-7b_bf16_sm3_foreach",
    "llama2-7b_bf16_adamw_foreach_checkpointing",
    "gpt2-medium_fp32_adamw_foreach",
    "gpt2-medium_amp-bf16_adamw_foreach_checkpointing",
    "gpt2-medium_bf16_adamw_loop",
    "gpt2-xl_bf16_adamw_foreach",
    "gpt2-xl_fp32_adamw_foreach",
    "gpt2-xl_fp32_sgd-sai_foreach",
)
# Runs that are recorded again under other settings of the allocator, which are predicted from them.
RERUN = (
    "gpt2_fp32_adamw_foreach",
    "gpt2_amp-bf16_adamw_foreach_checkpointing",
    "resnet50_fp32_adamw_foreach",
    "vit-b16_fp32_adamw_foreach",
    "gpt2_fp32_lamb16_foreach",
    "llama2-7b_bf16_adamw_foreach",
)
SETTINGS = (
    "expandable_segments:True",
    "max_split_size_mb:64",
    "roundup_power2_divisions:4",
    "max_split_size_mb:256",
)
OURS = ("sgd-sai", "sm3", "lamb", "lamb16")
_ONE_BILLION: dict[str, Any] = {"model": "llama2-7b", "config": {"num_hidden_layers": 4}}
_OPTIMIZERS: tuple[dict[str, Any], ...] = (
    *({"optimizer": "adamw", "implementation": how} for how in ("foreach", "loop", "fused")),
    *({"optimizer": name} for name in OURS),
)
# Options whose kernels differ, by optimizer.
_CHECKED = {
    "sm3": ["sm3", "sm3:momentum=0.9", "sm3:momentum=0.9,beta=0.95"],
    "sgd-sai": ["sgd-sai", "sgd-sai:momentum=0"],
    "lamb16": ["lamb16", "lamb16:weight_decay=0.01"],
    "lamb": ["lamb:weight_decay=0.01", "lamb:preset=nvidia", "lamb:preset=cybertronai"],
}
# The shapes of torchvision's ResNet-101: 314 tensors.
RESNET101: dict[str, Any] = {"model": "resnet50", "config": {"depths": [3, 4, 23, 3]}}
KERNEL_MODELS: dict[str, dict[str, Any]] = {
    "gpt2-xl fp32": {"model": "gpt2-xl", "dtype": "fp32"},
    "resnet101 fp32": {**RESNET101, "dtype": "fp32"},
    "gpt2-xl bf16": {"model": "gpt2-xl", "dtype": "bf16"},
    "llama-1b fp32": {**_ONE_BILLION, "dtype": "fp32"},
}
# The paper's claim: float32 on 80 GB. Shorter sequences follow in case the long ones do not fit.
_CLAIMS: tuple[dict[str, Any], ...] = tuple(
    {
        "model": "llama2-7b",
        "optimizer": "sgd-sai",
        "checkpointing": True,
        "sequence_length": length,
    }
    for length in (1024, 256)
)


def constants() -> Iterator[Job]:
    """Yield the groups of constants."""
    for name in CONSTANTS:
        yield Job(name=name, task="constants", limit=25)


def core_recordings() -> Iterator[Job]:
    """Yield the recordings that together cover each mechanism."""
    scenarios = listed()
    for name in CORE:
        yield _recording(name, scenarios[name])


def other_recordings() -> Iterator[Job]:
    """Yield all other recordings, small models first."""
    size = ("resnet50", "vit-b16", "gpt2_", "gpt2-medium", "llama2-7b", "gpt2-xl")
    rest = {name: scenario for name, scenario in listed().items() if name not in CORE}
    for begin in size:
        for name, scenario in rest.items():
            if name.startswith(begin):
                yield _recording(name, scenario)


def rerun_name(name: str, conf: str) -> str:
    """Return the name of a recording under other settings."""
    return f"settings {name} {conf}"


def is_rerun(name: str) -> bool:
    """Return whether a recording ran under other settings."""
    return name.startswith("settings ")


def settings() -> Iterator[Job]:
    """Yield reruns under other settings, those of one run together."""
    scenarios = listed()
    for name in RERUN:
        for conf in SETTINGS:
            scenario = replace(scenarios[name], alloc_conf=conf)
            yield _recording(rerun_name(name, conf), scenario)


def _recording(name: str, scenario: Scenario) -> Job:
    return Job(name=name, task="record", arguments={"scenario": asdict(scenario)}, limit=40)


def kernels() -> Iterator[Job]:
    """Yield checks of the kernels, then steps alone; compiled ones, slow to make, come last.

    An optimizer has a process of its own: the states of all do not fit on 80 GB.
    """
    for name, specs in _CHECKED.items():
        arguments = {"specs": specs, "graph": name}
        yield Job(name=f"check {name}", task="kernel-check", arguments=arguments, limit=30)
    for model in KERNEL_MODELS:
        for name in _CHECKED:
            yield _kernel_steps(model, name, [(name, "fused"), (name, "foreach")], limit=25)
        yield _kernel_steps(model, "torch", [("adamw", "fused"), ("sgd", "fused")], limit=25)
    for model in KERNEL_MODELS:
        for name in _CHECKED:
            ways = [(name, "fused"), (name, "compiled")]
            yield _kernel_steps(model, f"{name} compiled", ways, limit=60)


def _kernel_steps(model: str, name: str, ways: list[tuple[str, str]], *, limit: float) -> Job:
    scenario = Scenario(device="cuda", workload="state", **KERNEL_MODELS[model])
    return Job(
        name=f"kernels {model} {name}",
        task="kernel-steps",
        arguments={"scenario": asdict(scenario), "ways": ways},
        limit=limit,
    )


def harness() -> Iterator[Job]:
    """Yield measured training steps; the paper's claim, a single scenario, comes early."""
    yield from (_measured({"model": "gpt2", **how}) for how in _OPTIMIZERS)
    yield from (_measured(claim, limit=60, steps=5) for claim in _CLAIMS)
    models: tuple[dict[str, Any], ...] = ({"model": "gpt2-xl"}, _ONE_BILLION)
    for dtype in ("fp32", "bf16"):
        for model in models if dtype == "fp32" else (*models, {"model": "gpt2"}):
            yield from (_measured({**model, **how, "dtype": dtype}) for how in _OPTIMIZERS)


def _measured(fields: dict[str, Any], *, limit: float = 30, steps: int = 30) -> Job:
    scenario = Scenario(device="cuda", steps=steps, **fields)
    return _measuring(scenario, seconds=1.0, limit=limit)


def _measuring(scenario: Scenario, *, seconds: float, limit: float, trace: bool = False) -> Job:
    parts = (
        scenario.model,
        scenario.optimizer,
        scenario.implementation,
        scenario.dtype or "own",
        scenario.workload,
    )
    length = () if scenario.sequence_length is None else (str(scenario.sequence_length),)
    return Job(
        name=" ".join((*parts, *length)),
        task="measure",
        arguments={"scenario": asdict(scenario), "seconds": seconds, "trace": trace},
        limit=limit,
    )


def optimizer_steps() -> Iterator[Job]:
    """Yield optimizer steps alone, then some with the times of their kernels."""
    ways: tuple[dict[str, Any], ...] = (
        *_OPTIMIZERS,
        *({"optimizer": name, "implementation": "loop"} for name in OURS),
        *({"optimizer": "sgd", "implementation": how} for how in ("foreach", "loop", "fused")),
        {"optimizer": "adafactor"},
    )
    # Each step has its own process, so that none runs at the clocks of another.
    for model in ("gpt2-xl", "gpt2"):
        for how in ways:
            scenario = Scenario(device="cuda", workload="state", steps=50, model=model, **how)
            yield _measuring(scenario, seconds=1.0, limit=25)
    for how in _OPTIMIZERS:
        scenario = Scenario(device="cuda", workload="state", steps=6, model="gpt2", **how)
        yield _measuring(scenario, seconds=0.5, limit=25, trace=True)


def mechanisms() -> dict[str, set[str]]:
    """Return the core recordings of each mechanism; a test requires at least one."""
    by_mechanism: dict[str, set[str]] = {}
    for name in CORE:
        scenario = listed()[name]
        tags = [scenario.model, scenario.dtype, scenario.optimizer, scenario.implementation]
        tags += [f"amp {scenario.amp}"] if scenario.amp else []
        tags += ["checkpointing"] if scenario.checkpointing else []
        tags += [scenario.alloc_conf] if scenario.alloc_conf else []
        tags += [scenario.parallel] if scenario.parallel else []
        tags += [name.rpartition("_")[2]] if name in OTHERS else []
        for tag in tags:
            by_mechanism.setdefault(tag, set()).add(name)
    return by_mechanism
