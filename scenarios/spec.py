"""A scenario: one question to the profiler, as plain data.

What does this optimizer cost on this model, with this batch and dtype, on this device?
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

Implementation = Literal["loop", "foreach"]
Workload = Literal["train", "state"]
DType = Literal["fp32", "bf16"]
Device = Literal["sim", "cpu", "cuda"]


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """What is asked: a model, an optimizer and how the step is run.

    `model` is a name of `scenarios.models` or `module:factory`; `optimizer` a name of the optimizer catalogue or `module:Class`,
    `options` its keyword arguments. `workload` "train" is whole training steps; "state" holds parameters and gradients and takes one
    optimizer step on a fresh device, nothing else. `sequence_length` counts tokens and is None for models that read no text.
    Raises ValueError for a value outside what a field allows.
    """

    model: str
    optimizer: str = "adamw"
    options: Mapping[str, Any] = field(default_factory=dict)
    implementation: Implementation = "foreach"
    workload: Workload = "train"
    dtype: DType = "fp32"
    batch_size: int = 1
    sequence_length: int | None = None
    device: Device = "sim"
    seed: int = 0
    steps: int = 2

    def __post_init__(self) -> None:
        for name, allowed in _CHOICES.items():
            value = getattr(self, name)
            if value not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, least in (("batch_size", 1), ("sequence_length", 1), ("steps", 2), ("seed", 0)):
            value = getattr(self, name)
            if value is None and name == "sequence_length":
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"{name} must be a whole number >= {least}, got {value!r}")


_CHOICES: dict[str, tuple[str, ...]] = {
    "implementation": get_args(Implementation),
    "workload": get_args(Workload),
    "dtype": get_args(DType),
    "device": get_args(Device),
}
