"""Spread a model and its optimizer over ranks by torch's own wrappers.

The process group exists already: a real one, or the fake one of a simulation.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from optprof.optimizers.sharded import is_sharded
from optprof.scenarios import Scenario
from optprof.scenarios.parallel import Parallel, read_parallel
from optprof.scenarios.workpiece import DTYPES

Make = Callable[[Any], torch.optim.Optimizer]


def spread(model: nn.Module, scenario: Scenario, device: str) -> nn.Module:
    """Return the model as this rank trains it; `device` is the type that the meshes are of.

    Raises ValueError for a model that cannot be spread this way.
    """
    if scenario.parallel is None:
        return model
    way = read_parallel(scenario.parallel)
    sizes = {"data": scenario.ranks // way.tensor, "tensor": way.tensor}
    if way.data is None or way.tensor == 1:
        del sizes["data" if way.data is None else "tensor"]
    mesh = init_device_mesh(device, tuple(sizes.values()), mesh_dim_names=tuple(sizes))
    if way.tensor > 1:
        # DTensor takes most of a second to load.
        from .tensor_parallel import share_layers

        share_layers(model, mesh["tensor"], scenario)
    if way.data in ("ddp", "zero1"):
        return nn.parallel.DistributedDataParallel(model, process_group=mesh.get_group())
    if way.data == "fsdp2":
        _shard(model, mesh["data"], way, scenario)
    return model


def _shard(model: nn.Module, mesh: DeviceMesh, way: Parallel, scenario: Scenario) -> None:
    """Shard each block of the model, and the rest with the root."""
    from torch.distributed.fsdp import CPUOffloadPolicy, MixedPrecisionPolicy, fully_shard

    options: dict[str, Any] = {"mesh": mesh}
    if not way.reshard_after_forward:
        # Otherwise torch decides: the root, whose backward comes first, stays gathered.
        options["reshard_after_forward"] = False
    if way.mixed_precision or way.reduce:
        reduced = way.reduce or "fp32"
        options["mp_policy"] = MixedPrecisionPolicy(
            param_dtype=DTYPES[way.mixed_precision] if way.mixed_precision else None,
            reduce_dtype=DTYPES[reduced],
        )
    if way.cpu_offload:
        options["offload_policy"] = CPUOffloadPolicy(pin_memory=scenario.device == "cuda")
    for block in blocks(model):
        fully_shard(block, **options)
    fully_shard(model, **options)


def blocks(model: nn.Module) -> list[nn.Module]:
    """Return the modules that are sharded, and gathered, one by one.

    transformers' models name their classes in `_no_split_modules`, which accelerate follows too. In
    other models they are the items of each outermost ModuleList.
    """
    names = getattr(model, "_no_split_modules", None)
    found: list[nn.Module] = []
    stack = [model]
    while stack:
        module = stack.pop()
        for child in module.children():
            is_block = type(child).__name__ in names if names else isinstance(module, nn.ModuleList)
            if is_block and next(child.parameters(), None) is not None:
                found.append(child)
            else:
                stack.append(child)
    return found


def splitting_state(scenario: Scenario, make: Make) -> Make:
    """Return a maker of the scenario's optimizer that keeps the state of this rank's part alone.

    It is `make` itself unless the scenario asks for ZeRO-1.
    """
    if scenario.parallel is None or read_parallel(scenario.parallel).data != "zero1":
        return make

    def made(parameters: Sequence[Any]) -> torch.optim.Optimizer:
        from torch.distributed.optim import ZeroRedundancyOptimizer

        if any(isinstance(each, tuple) for each in parameters):
            raise ValueError(
                f"zero1 splits plain parameters, and {scenario.optimizer} needs their names; use"
                " ddp or fsdp2"
            )
        try:
            return ZeroRedundancyOptimizer(parameters, optimizer_class=_local(make))
        except AssertionError as error:
            raise ValueError(
                f"zero1 takes optimizers with one group of parameters, and {scenario.optimizer}"
                " makes several; use ddp or fsdp2"
            ) from error

    return made


def _local(make: Make) -> Any:
    """Return `make` as the optimizer class that ZeroRedundancyOptimizer calls with groups."""

    def made(groups: Sequence[Mapping[str, Any]]) -> torch.optim.Optimizer:
        return make([parameter for group in groups for parameter in group["params"]])

    return made


def elements_by_rank(
    optimizer: torch.optim.Optimizer, parameters: Sequence[Any], scenario: Scenario
) -> tuple[int, ...]:
    """Return, for each rank, the elements of the trained parameters whose state it keeps."""
    if scenario.parallel is None:
        return ()
    if isinstance(partition := getattr(optimizer, "_partition_parameters", None), Callable):
        return tuple(
            sum(each.numel() for group in groups for each in group["params"])
            for groups in partition()
        )
    counts = np.zeros(scenario.ranks, np.int64)
    for parameter in parameters:
        if parameter.requires_grad:
            counts += _elements(parameter, scenario.ranks)
    return tuple(counts.tolist())


def _elements(parameter: Any, ranks: int) -> "np.ndarray[Any, Any]":
    """Return the elements of each rank's part; the last axis of a mesh splits first."""
    sizes = [np.full(ranks, size, np.int64) for size in parameter.shape]
    if is_sharded(parameter):
        coordinates = np.unravel_index(np.arange(ranks), parameter.device_mesh.shape)
        axes = zip(coordinates, parameter.device_mesh.shape, parameter.placements, strict=True)
        for place, count, placement in reversed(list(axes)):
            if not placement.is_replicate():
                # As torch.chunk: all parts are of one size except the last ones.
                part = -(-sizes[placement.dim] // count)
                sizes[placement.dim] = np.clip(sizes[placement.dim] - place * part, 0, part)
    return np.prod(sizes, axis=0) if sizes else np.ones(ranks, np.int64)
