"""A scenario: one question to the profiler, as plain data.

What does this optimizer cost on this model, with this batch and dtype, on this device?
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Implementation = Literal["loop", "foreach", "fused", "compiled"]
Workload = Literal["train", "state"]
DType = Literal["fp32", "bf16", "fp16", "fp64"]
AutocastDType = Literal["bf16", "fp16"]
Attention = Literal["sdpa", "eager"]
Device = Literal["sim", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is asked: a model, an optimizer and how the step is run.

    `model` is a name of `scenarios.models` or `module:factory`, `config` what its configuration is to say instead; `optimizer` a name of
    the optimizer catalogue or `module:Class`, `options` its keyword arguments. `workload` "train" is whole training steps; "state" holds
    parameters and gradients and takes one optimizer step on a fresh device, nothing else.

    A step is `micro_batches` times forward and backward of `batch_size` sequences of `sequence_length` tokens (None for models that read
    no text), gradients clipped to `max_grad_norm` where that is given, the optimizer's step, and zero_grad, with `set_to_none` or without.
    With `accumulate`, a name of `optimizers.accumulation` with its options, each micro-batch is followed by the decision whether to step; a
    measured course is then `steps` micro-batches of the text that comes with optprof.
    `dtype` is that of parameters and gradients: fp32 for a model of the catalogue, and where it is None each parameter of `module:factory`
    keeps the dtype that the factory gave it; `amp` runs the forward pass of fp32 parameters under autocast, fp16 with a GradScaler.
    `checkpointing` recomputes a layer's activations in the backward pass; `lora_rank` freezes the model and trains adapters of that rank.

    `gpu` names an entry of `scenarios.hardware`; without it a simulated device never runs out. `alloc_conf` is a text as
    PYTORCH_CUDA_ALLOC_CONF takes it. Raises ValueError for a value outside what a field allows.
    """

    model: str
    config: Mapping[str, Any] = field(default_factory=dict)
    optimizer: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    implementation: Implementation = "foreach"
    workload: Workload = "train"
    dtype: DType | None = None
    amp: AutocastDType | None = None
    batch_size: int = 1
    sequence_length: int | None = None
    micro_batches: int = 1
    accumulate: str | None = None
    max_grad_norm: float | None = None
    set_to_none: bool = True
    checkpointing: bool = False
    attention: Attention = "sdpa"
    lora_rank: int | None = None
    device: Device = "sim"
    gpu: str | None = None
    alloc_conf: str = ""
    seed: int = 0
    steps: int = 2

    def __post_init__(self) -> None:
        if self.dtype is None and isinstance(self.model, str) and ":" not in self.model:
            object.__setattr__(self, "dtype", "fp32")
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(str(each) for each in allowed if each is not None)}, got {value!r}")
        for name, (least, optional) in _LEAST.items():
            value = getattr(self, name)
            if value is None and optional:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")
        norm = self.max_grad_norm
        if norm is not None and (not isinstance(norm, int | float) or isinstance(norm, bool) or not norm > 0):
            raise ValueError(f"max_grad_norm must be a number > 0, got {norm!r}")
        if self.accumulate is not None:
            self._check_accumulate()
        if self.amp is not None and self.dtype not in (None, "fp32"):
            raise ValueError(f"amp keeps its master weights in fp32, got dtype {self.dtype!r} with amp {self.amp!r}")

    def _check_accumulate(self) -> None:
        usual = {"workload": "train", "micro_batches": 1, "max_grad_norm": None, "set_to_none": True}
        for name, value in usual.items():
            if getattr(self, name) != value:
                raise ValueError(f"accumulate goes with {name} {value!r} alone, got {getattr(self, name)!r}")


_CHOICES: dict[str, tuple[object, ...]] = {
    "implementation": get_args(Implementation),
    "workload": get_args(Workload),
    "dtype": (None, *get_args(DType)),
    "amp": (None, *get_args(AutocastDType)),
    "set_to_none": (True, False),
    "checkpointing": (True, False),
    "attention": get_args(Attention),
    "device": get_args(Device),
}
# Whole numbers: the least that each may be, and whether it may be None.
_LEAST: dict[str, tuple[int, bool]] = {
    "batch_size": (1, False),
    "sequence_length": (1, True),
    "micro_batches": (1, False),
    "lora_rank": (1, True),
    "steps": (2, False),
    "seed": (0, False),
}
