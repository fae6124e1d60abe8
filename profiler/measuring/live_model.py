"""A model in use: its name and what makes it another question, whatever is wrapped around it."""

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
# The one child of a module that wraps another: of DataParallel, torch.compile, FSDP1 and others.
_WRAPPED = {
    "module",
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
}


def model_name(model: nn.Module | str | None) -> str:
    """Return the class inside of all wrappers, or the given name; with a colon."""
    if isinstance(model, nn.Module):
        return _full_name(_class_of(_unwrapped(model)[-1]))
    return shortened(model if model and ":" in model else f"own:{model or 'model'}", MOST_NAME)


def model_config(
    model: nn.Module | str | None,
    parameters: Sequence[nn.Parameter],
    stepped: Iterable[nn.Parameter],
) -> dict[str, Any]:
    """Return what tells models of one name apart: size, the part trained, dtypes, wrappers,
    ranks.
    """
    config: dict[str, Any] = {"parameters": elements(parameters)}
    trained = elements(parameter for parameter in stepped if parameter.requires_grad)
    if trained != config["parameters"]:
        config["trained"] = trained
    if frozen := elements(parameter for parameter in parameters if not parameter.requires_grad):
        # What is neither trained nor frozen has gradients that nobody steps on.
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
        if _is_torch_s(_class_of(inside)):
            # The name of nn.Sequential says nothing of its layers.
            config["layers"] = sha256(re.sub(r" at 0x\w+", "", repr(inside)).encode()).hexdigest()[
                :8
            ]
    if (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    ):
        config["ranks"] = torch.distributed.get_world_size()
    return config


def parameters_dtype(parameters: Sequence[nn.Parameter]) -> DType | None:
    """Return the dtype of all parameters, None where they differ or no scenario has it."""
    found = {parameter.dtype for parameter in parameters}
    return _DTYPES.get(found.pop()) if len(found) == 1 else None


def _dtypes(parameters: Sequence[nn.Parameter]) -> str:
    """The number of elements of each dtype, in words."""
    counts: Counter[torch.dtype] = Counter()
    for parameter in parameters:
        counts[parameter.dtype] += elements([parameter])
    return " and ".join(
        f"{count:,} {str(dtype).removeprefix('torch.')}" for dtype, count in counts.most_common()
    )


def _unwrapped(model: nn.Module) -> list[nn.Module]:
    """The model and the modules inside of it, down to the first that wraps no other."""
    found = [model]
    while (inside := _inside(found[-1])) is not None:
        found.append(inside)
    return found


def _inside(model: nn.Module) -> nn.Module | None:
    children = dict(model.named_children())
    base: Any = getattr(model, "get_base_model", None)
    if "base_model" in children and callable(base):
        # A model of peft's.
        return cast(nn.Module, base())
    is_wrapper = children.keys() <= _WRAPPED and not dict(model.named_parameters(recurse=False))
    return next(iter(children.values()), None) if is_wrapper else None


def _wrapper_names(module: nn.Module, is_around: bool) -> Iterator[str]:
    kind = type(module)
    if is_around:
        yield kind.__qualname__ if _is_torch_s(kind) else _full_name(kind)
    # fully_shard and replicate put a class of theirs before the module's own.
    yield from (
        base.__qualname__
        for base in kind.__bases__
        if _is_made(kind) and not issubclass(base, nn.Module)
    )
    if getattr(module, "_compiled_call_impl", None) is not None:
        yield "compile"


def _class_of(model: nn.Module) -> type:
    """The class that somebody wrote, behind one that torch made, as parametrize does."""
    return next(
        kind for kind in type(model).__mro__ if issubclass(kind, nn.Module) and not _is_made(kind)
    )


def _is_made(kind: type) -> bool:
    return _is_torch_s(kind) and not hasattr(
        sys.modules.get(kind.__module__), kind.__qualname__.partition(".")[0]
    )


def _is_torch_s(kind: type) -> bool:
    return kind.__module__.partition(".")[0] == "torch"


def _full_name(kind: type) -> str:
    return shortened(f"{kind.__module__}:{kind.__qualname__}", MOST_NAME)
