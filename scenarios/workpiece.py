"""Build a scenario's model, batch and loss, from configuration alone, on any device."""

import logging
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, cast

import torch

from . import factories, models
from .batches import map_tensors
from .schema import shortened
from .spec import Scenario

DTYPES = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
    "fp64": torch.float64,
}


@dataclass(frozen=True, kw_only=True)
class Workpiece:
    """A model in training mode and its batch.

    `batch` has keyword arguments of `model.forward`. It is empty if a `module:factory` returns
    none, which is enough for the workload "state".
    """

    model: torch.nn.Module
    batch: Mapping[str, Any]

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """Return the scalar loss of one forward pass.

        Raises TypeError if the output has none, ValueError if it depends on no trained parameter.
        """
        output = self.model(**batch)
        loss, name = _loss_in(output), type(self.model).__name__
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            got = (
                f"Tensor of shape {tuple(loss.shape)}"
                if isinstance(loss, torch.Tensor)
                else type(output).__name__
            )
            if loss is None and hasattr(output, "loss"):
                got += " without a loss; give the batch its labels"
            raise TypeError(
                f"{name} must return a scalar loss, or one as .loss, under the key 'loss' or first"
                f" in a tuple, got {got}"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"the loss of {name} follows from no trained parameter; leave detach() and"
                " no_grad() out of its way"
            )
        return loss


def _loss_in(output: Any) -> Any:
    if isinstance(output, Mapping):
        return cast(Mapping[str, Any], output).get("loss")
    if isinstance(output, tuple | list) and output and not hasattr(output, "loss"):
        return cast(Sequence[Any], output)[0]
    return output if isinstance(output, torch.Tensor) else getattr(output, "loss", None)


def build(scenario: Scenario, device: str) -> Workpiece:
    """Build the scenario's model and batch on `device`, random from its seed; "meta" has no data.

    Integer inputs (token ids, labels) stay on the CPU, since their values steer model code. The
    caller moves them, all of a factory's batch, and the model's small integer tensors. Raises
    ValueError for options that the model does not support: an unknown configuration key,
    checkpointing, another attention.
    """
    torch.manual_seed(scenario.seed)
    entry = models.describe(scenario.model)
    if entry is None:
        model, batch = _from_factory(scenario, device)
    else:
        model, batch = _from_configuration(entry, scenario, device), _batch(entry, scenario, device)
    if scenario.lora_rank is not None:
        with torch.device(device):
            model = _with_adapters(model, scenario.model, scenario.lora_rank)
    if scenario.checkpointing:
        _enable_checkpointing(scenario.model, model)
    return Workpiece(model=model, batch=batch)


def load_code(scenario: Scenario) -> None:
    """Import the code of a catalogue's model, which takes seconds; none for a factory."""
    entry = models.describe(scenario.model)
    if entry is not None:
        import transformers

        _auto(transformers, entry)
        import_module(f"transformers.models.{entry.architecture}.modeling_{entry.architecture}")
        if scenario.lora_rank is not None:
            import_module("peft")


def _from_configuration(
    entry: models.ModelEntry, scenario: Scenario, device: str
) -> torch.nn.Module:
    import transformers

    models.require_size(scenario.config, "config")
    logging.getLogger("transformers").setLevel(logging.ERROR)
    unchanged = transformers.AutoConfig.for_model(entry.architecture, **entry.config)
    for key in scenario.config:
        if not hasattr(unchanged, key):
            raise ValueError(
                f"{factories.unknown_key(key, list(unchanged.to_dict()))} in the configuration of"
                f" {scenario.model}"
            )
    attention = (
        {} if scenario.attention in (None, "sdpa") else {"attn_implementation": scenario.attention}
    )
    if attention and entry.architecture == "resnet":
        raise ValueError(
            f"{scenario.model} has no attention, got {scenario.attention!r}; leave it out"
        )
    auto = _auto(transformers, entry)
    try:
        config = transformers.AutoConfig.for_model(
            entry.architecture, **{**entry.config, **scenario.config}
        )
        with torch.device(device):
            return auto.from_config(
                config, dtype=DTYPES[scenario.dtype or "fp32"], **attention
            ).train()
    except Exception as error:
        # transformers raises many kinds of errors for values that contradict each other.
        if not scenario.config:
            raise
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        failure = shortened(f"{dict(scenario.config)}: {reason}", 400)
        raise ValueError(f"{scenario.model} cannot be built with {failure}") from error


def _auto(transformers: Any, entry: models.ModelEntry) -> Any:
    return (
        transformers.AutoModelForImageClassification
        if entry.positions is None
        else transformers.AutoModelForCausalLM
    )


def _with_adapters(model: torch.nn.Module, name: str, rank: int) -> torch.nn.Module:
    """Return the frozen model with LoRA adapters of this rank."""
    entry = models.describe(name)
    if entry is None or entry.architecture not in models.ADAPTED:
        raise ValueError(
            f"adapters go into {', '.join(models.ADAPTED)} models, got {name!r}; leave the rank out"
        )
    try:
        import peft
    except ImportError as error:
        raise ValueError(
            'LoRA needs the package peft, which is not installed; pip install "optprof[lora]"'
        ) from error
    config = peft.LoraConfig(r=rank, target_modules=list(models.ADAPTED[entry.architecture]))
    with warnings.catch_warnings():
        # peft warns that GPT-2 keeps its weights transposed, which it handles, and uses an old name
        # for checkpointing.
        warnings.filterwarnings("ignore", message="fan_in_fan_out|.*is_gradient_checkpointing")
        return peft.get_peft_model(model, config).train()


def _enable_checkpointing(name: str, model: torch.nn.Module) -> None:
    """Recompute each layer in the backward pass, without re-entering autograd, as Trainer does."""
    enable = getattr(model, "activation_checkpointing_enable", None) or getattr(
        model, "gradient_checkpointing_enable", None
    )
    if enable is None:
        raise ValueError(
            f"{name} has no method gradient_checkpointing_enable; give its class one, or leave"
            " checkpointing out"
        )
    try:
        enable({"use_reentrant": False})
    except ValueError as error:
        raise ValueError(f"{name} cannot be checkpointed: {error}") from error


def _batch(entry: models.ModelEntry, scenario: Scenario, device: str) -> dict[str, torch.Tensor]:
    size, config = scenario.batch_size, {**entry.config, **scenario.config}
    if entry.positions is None:
        side = config.get("image_size", 224)
        pixels = torch.randn(
            size,
            config.get("num_channels", 3),
            side,
            side,
            dtype=DTYPES[scenario.dtype or "fp32"],
            device=device,
        )
        return {"pixel_values": pixels, "labels": torch.randint(config["num_labels"], (size,))}
    length = models.sequence_length(scenario.model, scenario.sequence_length, scenario.config)
    assert length is not None
    tokens = torch.randint(config.get("vocab_size", 32_000), (size, length))
    return {"input_ids": tokens, "labels": tokens}


def _from_factory(scenario: Scenario, device: str) -> tuple[torch.nn.Module, Mapping[str, Any]]:
    """Return the model and batch of `module:factory`, in the scenario's dtype if it has one.

    A factory that takes the dtype applies it itself.
    """
    dtype = DTYPES[scenario.dtype] if scenario.dtype else None
    model, batch = factories.call(scenario, device, dtype)
    if dtype is not None and not factories.takes(scenario.model, "dtype"):

        def converted(tensor: torch.Tensor) -> torch.Tensor:
            # Complex tensors stay as they are: most of these dtypes have no complex counterpart.
            return tensor.to(dtype) if tensor.is_floating_point() else tensor

        model, batch = model._apply(converted), map_tensors(converted, batch)
    return model.train(), batch
