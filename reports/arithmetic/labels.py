"""Labels: what an optimizer is called in a table or a picture, so that two that differ never share
a name.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from optprof.profiler.records.record import Memory, Record
from optprof.profiler.safety.plain import plain
from optprof.scenarios.spec import DType, Scenario

# Options that decide how many bytes an optimizer keeps; a table shows them, whatever their value.
BYTE_OPTIONS = ("momentum", "amsgrad", "centered", "beta1", "rank", "state_dtype")
# Without an entry, the usual momentum is none.
USUAL_MOMENTUM = {"muon": 0.95, "scion": 0.1, "sgd": 0.9, "sgd-sai": 0.9}

# Torch's names of dtypes and ours, in the order in which a mixed model's are told.
_SHORT_DTYPES: Mapping[str, DType] = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}

OptimizerKey = tuple[str, str]
_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def optimizer_key(scenario: Scenario) -> OptimizerKey:
    """What makes two scenarios ask for the same optimizer: its name and all its options."""
    return scenario.optimizer, _ENCODER.encode(scenario.options)


def labels(records: Iterable[Record]) -> dict[OptimizerKey, str]:
    """A label for each optimizer of a run: its name, then the options that change its bytes or tell
    it from its namesakes.
    """
    return scenario_labels(record.scenario for record in records)


def scenario_labels(scenarios: Iterable[Scenario]) -> dict[OptimizerKey, str]:
    """The same for scenarios that have no records."""
    options = {optimizer_key(scenario): scenario.options for scenario in scenarios}
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _), own in options.items():
        namesakes.setdefault(name, []).append(own)
    differing = {name: _differing(alike) for name, alike in namesakes.items()}
    return {key: _label(key[0], own, differing[key[0]]) for key, own in options.items()}


def model_traits(scenario: Scenario) -> tuple[str, ...]:
    """What the scenario trains of its model, where that is not all of the published one:
    n_layer=24, LoRA of rank 8.
    """
    rank = scenario.lora_rank
    return (
        *(f"{key}={_plain(value)}" for key, value in scenario.config.items()),
        *((f"LoRA of rank {rank}",) if rank else ()),
    )


def training_traits(scenario: Scenario) -> tuple[str, ...]:
    """How the scenario trains, where that is not torch's usual way: bf16 autocast, checkpointed, 4
    micro-batches.
    """
    named = (
        (scenario.amp, f"{scenario.amp} autocast"),
        (scenario.checkpointing, "checkpointed"),
        (scenario.attention not in (None, "sdpa"), f"{scenario.attention} attention"),
        (scenario.micro_batches > 1, f"{scenario.micro_batches} micro-batches"),
        (scenario.accumulate, f"accumulating by {scenario.accumulate}"),
        (scenario.max_grad_norm, f"clipped to {scenario.max_grad_norm}"),
        (not scenario.set_to_none, "gradients kept"),
        (scenario.gpu, f"on {scenario.gpu}"),
        (scenario.alloc_conf, scenario.alloc_conf),
    )
    return tuple(text for applies, text in named if applies)


def dtype_name(scenario: Scenario, memory: Memory | None = None) -> str:
    """The dtypes of the scenario's parameters, as a record counted them: "bf16", "fp32+bf16".

    Without a record the one that was asked for, "own" where a factory chooses.
    """
    held = dict(memory.parameters_by_dtype) if memory else {}
    names = [short for name, short in _SHORT_DTYPES.items() if held.pop(name, None) is not None]
    return "+".join((*names, *sorted(held))) or scenario.dtype or "own"


def byte_options(options: Mapping[str, Any]) -> str:
    """The options that decide the bytes of the state: "momentum=0.9"; empty where there are
    none.
    """
    return ", ".join(f"{name}={_plain(options[name])}" for name in BYTE_OPTIONS if name in options)


def unusual_bytes(name: str, options: Mapping[str, Any]) -> list[str]:
    """The options that make this optimizer keep more or less than it is known for."""
    unusual = [option for option in ("amsgrad", "centered") if options.get(option)]
    if (options.get("momentum", USUAL_MOMENTUM.get(name)) or 0) != USUAL_MOMENTUM.get(name, 0):
        unusual.append("momentum")
    return unusual


def shortened(label: str, length: int = 40) -> str:
    """Return the label on one line, cut in its middle where it would not fit a picture."""
    label = " ".join(plain(label).split())
    if len(label) <= length:
        return label
    return f"{label[: length // 2 - 1]}…{label[-(length // 2) :]}"


def _differing(namesakes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the options in which optimizers of one name are not all alike."""
    missing = object()
    named = {option for own in namesakes for option in own}
    first = {option: namesakes[0].get(option, missing) for option in named}
    return {
        option
        for option in named
        if any(own.get(option, missing) != first[option] for own in namesakes)
    }


def _label(name: str, own: Mapping[str, Any], differing: Collection[str]) -> str:
    asked = (*unusual_bytes(name, own), *(option for option in own if option in differing))
    shown = dict.fromkeys(option for option in asked if option in own)
    text = ", ".join(f"{option}={_plain(own[option])}" for option in shown)
    return f"{name} ({text})" if text else name


def _plain(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value)


def columns(models: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Return the names of the models that have each number of parameters; one may have several."""
    names: dict[int, dict[str, None]] = {}
    for count, model in models:
        names.setdefault(count, {})[model] = None
    return {count: ", ".join(alike) for count, alike in names.items()}
