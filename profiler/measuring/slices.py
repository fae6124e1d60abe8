"""A part of a model that stands for all of it, so that an optimizer's step can be timed where the
model itself does not fit.

Layers are alike, so a few whole ones stand for all. What is in no layer, embeddings above all, is
unlike them (SM3 takes several times as long for an element of a large matrix), so it is timed
beside them, with rows left out where it is too large.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Slice:
    """Parameters like some of a model's: their shapes and dtypes, and how many times as many the
    model has of their kind.
    """

    tensors: list[tuple[torch.Size, torch.dtype]]
    scale: float

    @property
    def count(self) -> int:
        """How many numbers the tensors hold."""
        return sum(shape.numel() for shape, _ in self.tensors)


def take_slices(model: torch.nn.Module, *, bytes_per_parameter: float, budget: int) -> list[Slice]:
    """A slice of whole layers, at least one, and a slice of the rest, each in `budget` bytes at
    `bytes_per_parameter`.
    """
    layers = [_trained(layer.parameters()) for layer in _layers(model)]
    inside = {id(p) for layer in layers for p in layer}
    outside = [p for p in _trained(model.parameters()) if id(p) not in inside]
    room = budget / bytes_per_parameter
    slices = [_some_layers(layers, room)]
    return [*slices, _some_rows(outside, room)] if outside else slices


def _some_layers(layers: list[list[torch.nn.Parameter]], room: float) -> Slice:
    taken: list[torch.nn.Parameter] = []
    for layer in layers:
        if taken and _count(taken) + _count(layer) > room:
            break
        taken += layer
    return Slice(
        tensors=[(p.shape, p.dtype) for p in taken], scale=sum(map(_count, layers)) / _count(taken)
    )


def _some_rows(parameters: list[torch.nn.Parameter], room: float) -> Slice:
    share = min(1.0, room / _count(parameters))
    tensors = [
        (
            torch.Size([max(1, int(p.shape[0] * share)), *p.shape[1:]]) if p.dim() else p.shape,
            p.dtype,
        )
        for p in parameters
    ]
    return Slice(
        tensors=tensors, scale=_count(parameters) / sum(shape.numel() for shape, _ in tensors)
    )


def _layers(model: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the largest list of layers; without one, every module that holds parameters
    itself.
    """
    lists = [module for module in model.modules() if isinstance(module, torch.nn.ModuleList)]
    largest = max(lists, key=lambda layers: _count(layers.parameters()), default=None)
    if largest is not None and len(largest) > 1:
        return list(largest)
    return [module for module in model.modules() if _trained(module.parameters(recurse=False))]


def _trained(parameters: Iterable[torch.nn.Parameter]) -> list[torch.nn.Parameter]:
    return [p for p in parameters if p.requires_grad]


def _count(parameters: Iterable[torch.nn.Parameter]) -> int:
    return sum(p.numel() for p in parameters)
