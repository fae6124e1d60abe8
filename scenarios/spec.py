"""Scenario: one question to the profiler, as plain data.

What does this optimizer cost on this model, with this batch and dtype, on this device?
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from hashlib import sha256
from typing import Annotated, Any, Literal, TypedDict, get_type_hints

from msgspec import Meta

from . import schema
from .parallel import require_ranks
from .schema import Name

Implementation = Literal["loop", "foreach", "fused", "compiled"]
Workload = Literal["train", "state"]
DType = Literal["fp32", "bf16", "fp16", "fp64"]
AutocastDType = Literal["bf16", "fp16"]
Attention = Literal["sdpa", "eager"]
Device = Literal["sim", "cpu", "cuda"]

# Other names that people write for a value, by field; upper case and "torch." do not matter.
_SYNONYMS: Mapping[str, Mapping[str, str]] = {
    "device": {"gpu": "cuda", "cpu": "cpu", "sim": "sim", "auto": "auto"},
    "dtype": {
        "float32": "fp32",
        "float": "fp32",
        "single": "fp32",
        "bfloat16": "bf16",
        "float16": "fp16",
        "half": "fp16",
        "float64": "fp64",
        "double": "fp64",
    },
}
_FIELD_OF = {"amp": "dtype"}

# Every micro-batch is traced or run, which takes 25 ms or more. A sum has a few thousand gradients.
MOST_MICRO_BATCHES = 1 << 13
# The micro-batches of all steps of a simulation: ten minutes of GPT-2.
MOST_SIMULATED = 1 << 14
# A record keeps the times and the loss of each.
MOST_STEPS = schema.MOST_ITEMS
# Points of a scene or rows of a table come in millions, tokens of a context too.
MOST_IN_BATCH = MOST_TOKENS = 1 << 24
# Adapters as wide as the widest hidden state.
MOST_RANK = 1 << 16
# The largest training runs had 16,384 GPUs (Llama 3 405B).
MOST_RANKS = 1 << 14
# Gradients are clipped in float32: below its least normal number a factor would become 0.
LEAST_NORM, MOST_NORM = 2.0**-126, 2.0**127


def usual(name: str, value: Any) -> Any:
    """Return the usual name of a field's value: "bf16" for "bfloat16", "cuda" for "gpu"."""
    synonyms = _SYNONYMS.get(_FIELD_OF.get(name, name))
    if synonyms is None or not isinstance(value, str):
        return value
    text = value.lower().removeprefix("torch.")
    return synonyms.get(text, text if text in synonyms.values() else value)


@dataclass(frozen=True)
class Option:
    """Describe the option that the command line makes of a field.

    `names` are the option's names; without a long one it has the field's. `unset` says in --help
    what holds without the option; else `default` does, or the field's own default. `variables` are
    environment variables that set the option too.
    """

    help: str
    names: tuple[str, ...] = ()
    unset: str | None = None
    default: str | None = None
    variables: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A question to the profiler: a model, an optimizer, and how a step runs.

    `model` is a name of `scenarios.models` or `module:factory`; `config` replaces entries of its
    configuration. `optimizer` is a name of the optimizer catalogue or `module:Class`; `options` are
    its keyword arguments. The `workload` "train" is whole training steps. "state" holds parameters
    and gradients and takes one optimizer step on a fresh device, nothing else.

    A step runs forward and backward `micro_batches` times on `batch_size` sequences of
    `sequence_length` tokens (None for models that read no text). It clips gradients to
    `max_grad_norm` unless that is None, steps the optimizer, and runs zero_grad, with `set_to_none`
    or without. With `accumulate`, a name of `optprof.optimizers.accumulation` with its options, the
    wrapper decides after each micro-batch whether to step; a measured course is then `steps`
    micro-batches of the text that comes with optprof.

    `dtype` is that of parameters and gradients: fp32 for a model of the catalogue. With None, each
    parameter of `module:factory` keeps the dtype that the factory gave it. `amp` runs the forward
    pass of fp32 parameters under autocast, fp16 with a GradScaler. `attention` is "sdpa" for a
    model of the catalogue; None leaves it to the factory. `checkpointing` recomputes a layer's
    activations in the backward pass. `lora_rank` freezes the model and trains adapters of that
    rank.

    `ranks` processes, each with a GPU of its own, share the work by `parallel`, as in
    `scenarios.parallel`; `batch_size` and `micro_batches` are those of each. A simulation is of one
    of them, `rank`; a measurement starts all of them.

    `gpu` names an entry of `scenarios.hardware`; without it a simulated device has unlimited
    memory, and step times are estimated for `hardware.DEFAULT_GPU`. `alloc_conf` is a text that
    PYTORCH_CUDA_ALLOC_CONF takes. A value outside a field's limits is a ValueError. Scenarios are
    equal if their `key` is.
    """

    model: Name
    config: Annotated[
        Mapping[str, Any],
        Option(
            "An entry of the model's configuration, as in n_layer=24; may be repeated.",
            ("--model-config", "-c"),
        ),
    ] = field(default_factory=dict)
    optimizer: Name = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    implementation: Annotated[
        Implementation,
        Option(
            "How the step runs: loop, foreach, fused or compiled (measured only).",
            unset="the optimizer's fastest on a CPU, torch's choice on CUDA",
        ),
    ] = "foreach"
    workload: Annotated[
        Workload,
        Option(
            "train (whole steps) or state (only parameters, gradients and the optimizer's step)."
        ),
    ] = "train"
    dtype: Annotated[
        DType | None,
        Option(
            "fp32, bf16, fp16 or fp64, for parameters and batch; --amp is mixed precision.",
            unset="fp32, or what the factory made",
        ),
    ] = None
    amp: Annotated[
        AutocastDType | None,
        Option(
            "Mixed precision: fp32 parameters, autocast to bf16 or fp16, fp16 with a GradScaler.",
            unset="off",
        ),
    ] = None
    batch_size: Annotated[
        int,
        Meta(ge=1, le=MOST_IN_BATCH),
        Option("Sequences or images in a batch.", ("-B",), unset="1, or the factory's own"),
    ] = 1
    sequence_length: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_TOKENS)] | None,
        Option("Tokens in a sequence.", ("--seq-len", "-T"), unset="1024, or the factory's own"),
    ] = None
    micro_batches: Annotated[
        int,
        Meta(ge=1, le=MOST_MICRO_BATCHES),
        Option("Batches whose gradients are accumulated for one step."),
    ] = 1
    accumulate: Annotated[
        Name | None,
        Option(
            "Train on text and decide after each batch whether to step, as in gnts:threshold=0.8;"
            " names: `optprof list accumulations`.",
            unset="off",
        ),
    ] = None
    max_grad_norm: Annotated[
        Annotated[float, Meta(ge=LEAST_NORM, le=MOST_NORM)] | None,
        Option("Clip the gradients to this norm.", ("--clip-grad-norm",), unset="off"),
    ] = None
    set_to_none: Annotated[
        bool,
        Option(
            "Call zero_grad(set_to_none=False), which zeroes gradients and keeps their memory.",
            ("--keep-gradients",),
        ),
    ] = True
    checkpointing: Annotated[
        bool, Option("Recompute each layer's activations in the backward pass.")
    ] = False
    attention: Annotated[
        Attention | None,
        Option(
            "sdpa (the fused kernel that CUDA picks) or eager.", unset="sdpa, or the factory's own"
        ),
    ] = None
    lora_rank: Annotated[
        Annotated[int, Meta(ge=1, le=MOST_RANK)] | None,
        Option("Freeze the model and train LoRA adapters of this rank.", ("--lora",), unset="off"),
    ] = None
    ranks: Annotated[
        int,
        Meta(ge=1, le=MOST_RANKS),
        Option("Processes, each with its own GPU, that share the work by --parallel."),
    ] = 1
    rank: Annotated[
        int, Meta(ge=0, le=MOST_RANKS - 1), Option("The rank to simulate, counted from 0.")
    ] = 0
    parallel: Annotated[
        Name | None,
        Option(
            "How ranks share the work: ddp, zero1, fsdp2 (with options, as in"
            " fsdp2:mixed_precision=bf16), tp:N or fsdp2+tp:N.",
            unset="off",
        ),
    ] = None
    device: Annotated[
        Device,
        Option(
            "auto (simulate CUDA and measure this machine), sim, cpu or cuda.",
            ("-d",),
            default="auto",
        ),
    ] = "sim"
    gpu: Annotated[
        Name | None,
        Option(
            "The GPU to simulate, with its memory and its speed.",
            unset="unlimited memory, and the speed of a100-80",
        ),
    ] = None
    alloc_conf: Annotated[
        Name,
        Option(
            "Settings of CUDA's allocator, as in PYTORCH_CUDA_ALLOC_CONF.",
            variables=("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"),
        ),
    ] = ""
    seed: Annotated[int, Meta(ge=0, le=schema.MOST_WHOLE), Option("Seed of weights and batch.")] = 0
    steps: Annotated[
        int,
        Meta(ge=2, le=MOST_STEPS),
        Option("Training steps, 2 or more.", unset="2 simulated, at most 100 measured"),
    ] = 2

    def __post_init__(self) -> None:
        values = vars(self)
        if len(values) < len(self.__dataclass_fields__):
            # A decoder leaves defaults to the class.
            values = {name: getattr(self, name) for name in self.__dataclass_fields__}
            vars(self).clear()
        if ":" not in str(values["model"]):
            # Models of the catalogue have these defaults.
            values = {
                **values,
                "dtype": values["dtype"] or "fp32",
                "attention": values["attention"] or "sdpa",
            }
        values |= {name: usual(name, values[name]) for name in ("device", "dtype", "amp")}
        values = schema.check(_FIELDS, values)
        vars(self).update(values)
        schema.require_plain({name: values[name] for name in _FREE})
        if self.accumulate is not None:
            self._check_accumulate()
        require_ranks(self.parallel, self.ranks, self.rank)
        if self.amp is not None and self.dtype not in (None, "fp32"):
            raise ValueError(
                f"amp runs fp32 parameters under autocast, got dtype {self.dtype!r} with amp"
                f" {self.amp!r}; leave one of them out"
            )
        if self.device == "sim" and self.steps * self.micro_batches > MOST_SIMULATED:
            raise ValueError(
                f"steps times micro_batches is at most {MOST_SIMULATED} in a simulation, which"
                f" follows each; got {self.steps} times {self.micro_batches}; ask for fewer steps,"
                " or for --device cpu or cuda alone"
            )

    @property
    def key(self) -> bytes:
        """Digest of all fields; a list and a tuple of the same items have the same digest."""
        values = {name: value for name, value in vars(self).items() if name not in _LATER}
        values |= self.added
        return sha256(_ENCODER.encode(values).encode()).digest()

    @property
    def added(self) -> dict[str, Any]:
        """The fields added since the first records, those that differ from their defaults."""
        values = vars(self)
        return {name: values[name] for name, unset in _LATER.items() if values[name] != unset}

    def __eq__(self, other: object) -> bool:
        return self.key == other.key if isinstance(other, Scenario) else NotImplemented

    def __hash__(self) -> int:
        return hash(self.key)

    def _check_accumulate(self) -> None:
        if self.parallel is not None:
            raise ValueError(
                f"accumulate is for one process, got parallel {self.parallel!r}; leave one of them"
                " out, or use micro_batches"
            )
        required = {
            "workload": "train",
            "micro_batches": 1,
            "max_grad_norm": None,
            "set_to_none": True,
        }
        for name, value in required.items():
            if getattr(self, name) != value:
                raise ValueError(
                    f"accumulate goes with {name} {value!r} alone, got {getattr(self, name)!r}"
                )


# The digest names the files of older runs too: their names need this text.
_ENCODER = json.JSONEncoder(sort_keys=True)
# The digests of older runs have exactly these fields, so no new field is listed here.
_FIRST = (
    "model config optimizer options implementation workload dtype amp batch_size sequence_length"
    " micro_batches accumulate max_grad_norm set_to_none checkpointing attention lora_rank device"
    " gpu alloc_conf seed steps"
)
# The other fields and their defaults.
_LATER = {one.name: one.default for one in fields(Scenario) if one.name not in _FIRST.split()}
# Texts and mappings: msgspec does not check their contents.
_FREE = ("model", "config", "optimizer", "options", "accumulate", "parallel", "gpu", "alloc_conf")
# Checking against the class itself would make another instance, whose check would make another.
_FIELDS: Any = TypedDict(
    "_FIELDS",
    get_type_hints(Scenario, include_extras=True),  # pyright: ignore[reportArgumentType]
)
