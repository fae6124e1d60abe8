"""What a scenario trains: the model, one batch, and the loss, built from configuration alone on any device."""

import importlib
import inspect
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from . import models
from .spec import Scenario

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(frozen=True, kw_only=True)
class Workpiece:
    """A model in training mode and the batch that it is trained on.

    `batch` holds keyword arguments of `model.forward`; it is empty when a `module:factory` gave none, which does for the workload "state".
    """

    model: torch.nn.Module
    batch: Mapping[str, Any]

    def loss(self, batch: Mapping[str, Any]) -> torch.Tensor:
        """The scalar loss of one forward pass; TypeError when the model's output has none."""
        output = self.model(**batch)
        loss = output if isinstance(output, torch.Tensor) else getattr(output, "loss", None)
        if not isinstance(loss, torch.Tensor) or loss.numel() != 1:
            raise TypeError(
                f"{type(self.model).__name__} must return a scalar loss, or an object with one as .loss, got {type(output).__name__}"
            )
        return loss


def build(scenario: Scenario, device: str) -> Workpiece:
    """The scenario's model and batch on `device` ("meta" holds no data); weights and batch are random from the scenario's seed.

    Whole-number inputs (token ids, labels) are on the CPU and small: their values steer model code, and a caller moves them.
    """
    torch.manual_seed(scenario.seed)
    entry = models.describe(scenario.model)
    if entry is None:
        return _own(scenario, device)
    model = _from_configuration(entry, DTYPES[scenario.dtype], device)
    return Workpiece(model=model, batch=_batch(entry, scenario, device))


def _from_configuration(entry: models.ModelEntry, dtype: torch.dtype, device: str) -> torch.nn.Module:
    import transformers

    logging.getLogger("transformers").setLevel(logging.ERROR)
    config = transformers.AutoConfig.for_model(entry.architecture, **entry.config)
    auto = transformers.AutoModelForImageClassification if entry.positions is None else transformers.AutoModelForCausalLM
    with torch.device(device):
        return auto.from_config(config, dtype=dtype).train()


def _batch(entry: models.ModelEntry, scenario: Scenario, device: str) -> dict[str, torch.Tensor]:
    size = scenario.batch_size
    if entry.positions is None:
        pixels = torch.randn(size, 3, 224, 224, dtype=DTYPES[scenario.dtype], device=device)
        return {"pixel_values": pixels, "labels": torch.randint(entry.config["num_labels"], (size,))}
    length = models.sequence_length(scenario.model, scenario.sequence_length)
    assert length is not None
    tokens = torch.randint(32_000, (size, length))
    return {"input_ids": tokens, "labels": tokens}


def load_factory(name: str) -> Callable[..., Any]:
    """The function that `module:factory` names; ValueError when there is none."""
    module, _, attribute = name.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"model {name!r} cannot be loaded: {error}") from error


def _asked(scenario: Scenario, factory: Callable[..., Any]) -> dict[str, Any]:
    takes = inspect.signature(factory).parameters
    for name, usual in (("batch_size", 1), ("sequence_length", None)):
        if name not in takes and getattr(scenario, name) != usual:
            raise ValueError(f"model {scenario.model!r} takes no {name}, got {getattr(scenario, name)}; leave it out")
    return {name: getattr(scenario, name) for name in ("batch_size", "sequence_length") if name in takes}


def _own(scenario: Scenario, device: str) -> Workpiece:
    """Call `module:factory`: it returns a model, or a model and its batch, a mapping of forward's arguments.

    A factory that takes `batch_size` or `sequence_length` is given the scenario's.
    """
    factory = load_factory(scenario.model)
    with torch.device(device):
        made = factory(**_asked(scenario, factory))
    model, batch = made if isinstance(made, tuple) else (made, {})
    if not isinstance(model, torch.nn.Module):
        raise ValueError(f"model {scenario.model!r} must return a torch.nn.Module, or one and its batch, got {type(model).__name__}")
    if not isinstance(batch, Mapping):
        raise ValueError(f"the batch of {scenario.model!r} must be a mapping of forward's arguments, got {type(batch).__name__}")
    if scenario.workload == "train" and not batch:
        raise ValueError(f"model {scenario.model!r} gave no batch to train on; return (model, batch), or ask for --workload state")
    return Workpiece(model=model.to(device=device, dtype=DTYPES[scenario.dtype]).train(), batch=batch)
