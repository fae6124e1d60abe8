"""A slice of a model: whole layers, so that an optimizer's step can be timed where the model itself does not fit."""

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Parameters of some whole layers, without data, and which share of the model's parameters they are."""

    parameters: list[torch.nn.Parameter]
    share: float

    @property
    def count(self) -> int:
        """How many parameters the slice has."""
        return _count(self.parameters)


def take_slice(model: torch.nn.Module, *, bytes_per_parameter: float, budget: int) -> Slice:
    """As many of the model's layers as fit in `budget` bytes at `bytes_per_parameter`, at least one."""
    total = sum(p.numel() for p in model.parameters())
    taken: list[torch.nn.Parameter] = []
    for layer in _layers(model):
        candidates = [p for p in layer.parameters() if p.requires_grad]
        if taken and _count(taken + candidates) * bytes_per_parameter > budget:
            break
        taken += candidates
    return Slice(parameters=taken, share=_count(taken) / total)


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the largest list of layers; without one, every module that holds parameters itself."""
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    largest = max(lists, key=lambda layers: _count(list(layers.parameters())), default=None)
    if largest is not None and len(largest) > 1:
        return list(largest)
    return [module for module in model.modules() if next(module.parameters(recurse=False), None) is not None]


def _count(parameters: list[torch.nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
