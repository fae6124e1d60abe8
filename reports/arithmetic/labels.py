"""Labels: one name for each optimizer of a run, the same in every table and picture."""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from optprof.profiler.records.fits import Fit
from optprof.profiler.records.record import Memory, Record
from optprof.profiler.safety.plain import plain
from optprof.scenarios.spec import DType, Scenario

# Older records do not say which options decide the bytes: these do, if an optimizer has them.
_OLDER_BYTE_OPTIONS = ("momentum", "amsgrad", "centered", "beta1", "rank", "state_dtype")
# The first three are usually off, except these momenta.
_OLDER_MOMENTUM = {"muon": 0.95, "scion": 0.1, "sgd": 0.9, "sgd-sai": 0.9}

# Torch's names of dtypes and ours, in the order in which a label lists those of a mixed model.
_SHORT_DTYPES: Mapping[str, DType] = {
    "float64": "fp64",
    "float32": "fp32",
    "bfloat16": "bf16",
    "float16": "fp16",
}

# The fields that `ranks_text` puts into words.
_OF_RANKS = ("ranks", "rank", "parallel")
OptimizerKey = tuple[str, str]
_ENCODER = json.JSONEncoder(sort_keys=True, default=str)


def optimizer_key(scenario: Scenario) -> OptimizerKey:
    """Return a key that two scenarios share if they name one optimizer with the same options."""
    return scenario.optimizer, _ENCODER.encode(scenario.options)


def labels(records: Iterable[Record | Fit]) -> dict[OptimizerKey, str]:
    """Label each optimizer of a run with its name and the options that set it apart.

    These are the options that give its state unusual bytes, and those in which optimizers of the
    same name differ.
    """
    options: dict[OptimizerKey, Mapping[str, Any]] = {}
    unusual: dict[OptimizerKey, list[str]] = {}
    for record in records:
        key = optimizer_key(record.scenario)
        options.setdefault(key, record.scenario.options)
        # A failed record does not say which options decide, another of the same optimizer may.
        unusual[key] = unusual.get(key) or unusual_options(record)
    namesakes: dict[str, list[Mapping[str, Any]]] = {}
    for (name, _), own in options.items():
        namesakes.setdefault(name, []).append(own)
    differing = {name: _differing(alike) for name, alike in namesakes.items()}
    return {
        key: _label(key[0], own, unusual[key], differing[key[0]]) for key, own in options.items()
    }


def model_traits(scenario: Scenario) -> tuple[str, ...]:
    """Return the changes to the published model: n_layer=24, LoRA of rank 8."""
    rank = scenario.lora_rank
    return (
        *(f"{key}={_plain(value)}" for key, value in scenario.config.items()),
        *((f"LoRA of rank {rank}",) if rank else ()),
    )


def training_traits(scenario: Scenario) -> tuple[str, ...]:
    """Return the differences from torch's default training: bf16 autocast, 4 micro-batches."""
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
        (scenario.parallel, ranks_text(scenario)),
    )
    others = {name: value for name, value in scenario.added.items() if name not in _OF_RANKS}
    added = (f"{name}={_plain(value)}" for name, value in others.items())
    return (*(text for applies, text in named if applies), *added)


def ranks_text(scenario: Scenario) -> str:
    """Return how ranks share the work: fsdp2 on 8 ranks; and the rank if it is not the first."""
    count = f"{scenario.ranks:,} rank{'' if scenario.ranks == 1 else 's'}"
    return f"{scenario.parallel} on {count}" + (f", rank {scenario.rank}" if scenario.rank else "")


def dtype_name(scenario: Scenario, memory: Memory | None = None) -> str:
    """Return the dtypes of the parameters as a record counted them: "bf16", "fp32+bf16".

    Without a record, return the scenario's dtype, or "own dtype" for a factory that chooses.
    """
    nbytes = dict(memory.parameters_by_dtype) if memory else {}
    names = [short for name, short in _SHORT_DTYPES.items() if nbytes.pop(name, None) is not None]
    return "+".join((*names, *sorted(nbytes))) or scenario.dtype or "own dtype"


def byte_options(record: Record) -> str:
    """Return the options that decide the bytes of the state: "momentum=0.9", or empty."""
    options = record.scenario.options
    return ", ".join(f"{name}={_plain(options[name])}" for name in _usual_options(record))


def unusual_options(record: Record | Fit) -> list[str]:
    """Return the options whose values give the state unusual bytes, in alphabetical order."""
    options, usual = record.scenario.options, _usual_options(record)
    return sorted(name for name, value in usual.items() if options[name] != value)


def _usual_options(record: Record | Fit) -> dict[str, Any]:
    """Return the usual value of each option that decides the bytes of the state."""
    options, usual = record.scenario.options, record.deciding_options
    if usual is None:
        usual = {name: options.get(name) for name in _OLDER_BYTE_OPTIONS}
        usual |= {name: False for name in _OLDER_BYTE_OPTIONS[:3] if usual[name]}
        if record.scenario.optimizer in _OLDER_MOMENTUM:
            usual["momentum"] = _OLDER_MOMENTUM[record.scenario.optimizer]
    return {name: value for name, value in usual.items() if name in options}


def shortened(label: str, length: int = 40) -> str:
    """Return the label on one line, its middle cut out if it is too long for a picture."""
    label = " ".join(plain(label).split())
    if len(label) <= length:
        return label
    return f"{label[: length // 2 - 1]}…{label[-(length // 2) :]}"


def _differing(namesakes: Sequence[Mapping[str, Any]]) -> set[str]:
    """Return the options in which optimizers of one name differ."""
    missing = object()
    named = {option for own in namesakes for option in own}
    first = {option: namesakes[0].get(option, missing) for option in named}
    return {
        option
        for option in named
        if any(own.get(option, missing) != first[option] for own in namesakes)
    }


def _label(
    name: str, own: Mapping[str, Any], unusual: Sequence[str], differing: Collection[str]
) -> str:
    shown = dict.fromkeys((*unusual, *(option for option in own if option in differing)))
    text = ", ".join(f"{option}={_plain(own[option])}" for option in shown)
    return f"{name} ({text})" if text else name


def _plain(value: Any) -> str:
    return f"({', '.join(map(str, value))})" if isinstance(value, list | tuple) else str(value)


def columns(models: Iterable[tuple[int, str]]) -> dict[int, str]:
    """Return, for each number of parameters, the names of the models that have it."""
    names: dict[int, dict[str, None]] = {}
    for count, model in models:
        names.setdefault(count, {})[model] = None
    return {count: ", ".join(alike) for count, alike in names.items()}
