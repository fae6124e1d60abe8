"""A model in use: its name and configuration, whatever wraps it."""

import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from hashlib import sha256
from typing import Any, cast

import torch
from torch import nn

from optprof.scenarios.schema import MOST_NAME, shortened
from optprof.scenarios.spec import DType

from .live_optimizer import elements

_DTYPES: Mapping[torch.dtype, DType] = {
    torch.float32: "fp32",
    torch.bfloat16: "bf16",
    torch.float16: "fp16",
    torch.float64: "fp64",
}
# Names of the only child of a wrapper: DataParallel, torch.compile, FSDP1 and others.
_WRAPPED = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}


def model_name(model: nn.Module | str | None) -> str:
    """Return "module:Class" of the model inside all wrappers, or the given name with a colon."""
    if isinstance(model, nn.Module):
        return _full_name(_class_of(_unwrapped(model)[-1]))
    return shortened(model if model and ":" in model else f"own:{model or 'model'}", MOST_NAME)


def model_config(
    model: nn.Module | str | None,
    parameters: Sequence[nn.Parameter],
    stepped: Iterable[nn.Parameter],
) -> dict[str, Any]:
    """Return what distinguishes models of one name: size, trained part, dtypes, wrappers, rank."""
    config: dict[str, Any] = {"parameters": elements(parameters)}
    trained = elements(parameter for parameter in stepped if parameter.requires_grad)
    if trained != config["parameters"]:
        config["trained"] = trained
    if frozen := elements(parameter for parameter in parameters if not parameter.requires_grad):
        # The rest is trained by no optimizer, but has gradients.
        config["frozen"] = frozen
    if parameters_dtype(parameters) is None:
        config["dtypes"] = _dtypes(parameters)
    if isinstance(model, nn.Module):
        *around, inside = _unwrapped(model)
        wrappers = [
            name
            for module in (*around, inside)
            for name in _wrapper_names(module, module is not inside)
        ]
        config |= {"wrapped_by": wrappers} if wrappers else {}
        if _is_from_torch(_class_of(inside)):
            # The name of nn.Sequential does not describe its layers.
            layers = re.sub(r" at 0x\w+", "", repr(inside))
            config["layers"] = sha256(layers.encode()).hexdigest()[:8]
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        config["ranks"] = torch.distributed.get_world_size()
        # Otherwise the records of equal ranks, in one folder, would be of one scenario.
        config["rank"] = torch.distributed.get_rank()
    return config


def parameters_dtype(parameters: Sequence[nn.Parameter]) -> DType | None:
    """Return the dtype of all parameters; None if they differ or no scenario has that dtype."""
    dtypes = {parameter.dtype for parameter in parameters}
    return _DTYPES.get(dtypes.pop()) if len(dtypes) == 1 else None


def _dtypes(parameters: Sequence[nn.Parameter]) -> str:
    """Return the number of elements of each dtype, in words."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        counts[parameter.dtype] += elements([parameter])
    return " and ".join(
        f"{count:,} {str(dtype).removeprefix('torch.')}" for dtype, count in counts.most_common()
    )


def _unwrapped(model: nn.Module) -> list[nn.Module]:
    """Return the model and the modules it wraps, down to the first that wraps none."""
    modules = [model]
    while (inside := _inside(modules[-1])) is not None:
        modules.append(inside)
    return modules


def _inside(model: nn.Module) -> nn.Module | None:
    children = dict(model.named_children())
    base: Any = getattr(model, "get_base_model", None)
    if "base_model" in children and callable(base):
        # A model of peft.
        return cast(nn.Module, base())
    is_wrapper = children.keys() <= _WRAPPED and not dict(model.named_parameters(recurse=False))
    return next(iter(children.values()), None) if is_wrapper else None


def _wrapper_names(module: nn.Module, is_around: bool) -> Iterator[str]:
    kind = type(module)
    if is_around:
        yield kind.__qualname__ if _is_from_torch(kind) else _full_name(kind)
    # fully_shard and replicate put their class before the module's own.
    yield from (
        base.__qualname__
        for base in kind.__bases__
        if _is_made(kind) and not issubclass(base, nn.Module)
    )
    if getattr(module, "_compiled_call_impl", None) is not None:
        yield "compile"


def _class_of(model: nn.Module) -> type:
    """Return the user's class, behind a class that torch made, as parametrize does."""
    return next(
        kind for kind in type(model).__mro__ if issubclass(kind, nn.Module) and not _is_made(kind)
    )


def _is_made(kind: type) -> bool:
    return _is_from_torch(kind) and not hasattr(
        sys.modules.get(kind.__module__), kind.__qualname__.partition(".")[0]
    )


def _is_from_torch(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _full_name(kind: type) -> str:
    return shortened(f"{kind.__module__}:{kind.__qualname__}", MOST_NAME)
