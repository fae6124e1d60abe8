"""An optimizer in use: what it is inside of wrappers, its options and how its step runs.

Options are those of the parameter groups when watching begins. The learning rate is that of before
any scheduler, which torch's schedulers keep in the group as `initial_lr`: a scheduler changes it at
every step, and one training would be a scenario of its own at every epoch. The same holds for a
momentum that is cycled.
"""

import inspect
import sys
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import (
    Optimizer,
    _default_to_fused_or_foreach,  # pyright: ignore[reportPrivateImportUsage]
)

from optprof import optimizers
from optprof.optimizers.multi_tensor import MultiTensorOptimizer
from optprof.optimizers.sharded import local
from optprof.scenarios import schema
from optprof.scenarios.spec import Implementation

# The attributes in which wrappers keep what they wrap.
_INSIDE = ("optimizer", "base_optimizer", "_optimizer", "optim", "inner_optimizer")
# Entries of a group that are no options: torch's own, its schedulers', and those that `_way` reads.
_OTHERS = {
    "params",
    "param_names",
    "initial_lr",
    "max_lr",
    "min_lr",
    "max_momentum",
    "base_momentum",
    "swa_lr",
}
_OTHERS |= {"foreach", "fused", "compiled"}
# Of an option; a table shows a few.
_MOST_VALUES = 1_000
# Lists and dicts in an option; a list may hold itself.
_MOST_DEPTH = 6


def counted_optimizer(given: Any) -> Optimizer:
    """Return the optimizer whose groups and state count, inside wrappers that only pass steps on.

    Such are accelerate's, and objects that are no optimizers but have one. ValueError for others.
    """
    optimizer = given
    while not isinstance(optimizer, Optimizer) or _passes_on(optimizer):
        optimizer = _inside(optimizer)
        if optimizer is None:
            raise ValueError(
                f"watch takes a torch.optim.Optimizer, got {type(given).__name__}; give it the"
                " optimizer itself"
            )
    if not hasattr(optimizer, "param_groups"):
        raise ValueError(
            f"{type(optimizer).__name__} has no parameter groups; call"
            " torch.optim.Optimizer.__init__ in its constructor"
        )
    return optimizer


def hooked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the outermost optimizer whose steps run hooks; ValueError where none does."""
    found: Any = optimizer
    while not _runs_hooks(found):
        found = _inside(found)
        if found is None:
            name = type(optimizer).__name__
            raise ValueError(
                f"{name}.step runs no hooks; call torch.optim.Optimizer.__init__ in its constructor"
            )
    return found


def stepped_parameters(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def elements(parameters: Iterable[torch.Tensor]) -> int:
    """Return how many elements of the parameters this rank has."""
    return sum(local(parameter).numel() for parameter in parameters if not is_lazy(parameter))


def live_options(optimizer: Optimizer) -> dict[str, Any]:
    """Return the hyper-parameters as plain data, each group's in a list where they differ.

    The options of an optimizer around another are those of that one, its name, and the arguments
    of its own constructor that it has kept.
    """
    inside = _inside(optimizer)
    if isinstance(inside, Optimizer):
        return {
            **live_options(inside),
            **_kept_arguments(optimizer),
            "optimizer": optimizers.name_of(inside),
        }
    by_group = _options_by_group(optimizer)
    if ":" in optimizers.name_of(optimizer):
        kept = _kept_arguments(optimizer).items()
        values = {
            name: value for name, value in kept if isinstance(value, bool | int | float | str)
        }
        by_group |= {
            name: [values[name]] * len(optimizer.param_groups)
            for name in values
            if name not in by_group
        }
    # A group without parameters runs in no way.
    by_group["implementation"] = [
        _way(optimizer, group) for group in optimizer.param_groups if group["params"]
    ]
    differing = {
        name for name, values in by_group.items() if any(value != values[0] for value in values)
    }
    options = {
        name: values if name in differing else values[0] for name, values in by_group.items()
    }
    if "implementation" not in differing:
        del options["implementation"]
    if differing:
        options["elements"] = [elements(group["params"]) for group in optimizer.param_groups]
    return {schema.shortened(str(name), 100): _told(value) for name, value in options.items()}


def _told(value: Any) -> Any:
    """The value, and of a group for each of thousands of layers a text that tells it from
    others.
    """
    if not isinstance(value, list) or len(value) <= _MOST_VALUES:
        return value
    return f"{len(value):,} values, {sha256(repr(value).encode()).hexdigest()[:8]}"


def live_implementation(optimizer: Optimizer) -> Implementation:
    """Return how the step runs; of most elements, where groups differ."""
    while isinstance(inside := _inside(optimizer), Optimizer):
        optimizer = inside
    counts: Counter[Implementation] = Counter()
    for group in optimizer.param_groups:
        # One more, for a group whose parameters have no elements yet.
        counts[_way(optimizer, group)] += 1 + elements(group["params"])
    ((way, _),) = counts.most_common(1)
    return way


def _inside(optimizer: Any) -> Any:
    """The optimizer, or another wrapper of it, that an object keeps; None where it keeps none."""
    kept = (getattr(optimizer, name, None) for name in _INSIDE)
    return next(
        (one for one in kept if isinstance(one, Optimizer) or _inside_of_wrapper(one)), None
    )


def _inside_of_wrapper(kept: Any) -> bool:
    return any(isinstance(getattr(kept, name, None), Optimizer) for name in _INSIDE)


def _passes_on(optimizer: Optimizer) -> bool:
    inside = _inside(optimizer)
    if not isinstance(inside, Optimizer) or optimizer.state is not inside.state:
        return False
    hooks = "_optimizer_step_pre_hooks"
    return not _runs_hooks(optimizer) or vars(optimizer)[hooks] is vars(inside).get(hooks)


def _runs_hooks(optimizer: Any) -> bool:
    return "_optimizer_step_pre_hooks" in vars(optimizer) and hasattr(
        type(optimizer).step, "hooked"
    )


def _options_by_group(optimizer: Optimizer) -> dict[str, list[Any]]:
    groups = [_before_schedulers(group) for group in optimizer.param_groups]
    defaults, known_as = optimizer.defaults, optimizers.name_of(optimizer)
    is_foreign = ":" in known_as
    arguments = _arguments(optimizer) if is_foreign else set(optimizers.option_defaults(known_as))
    found: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for entries in (defaults, *groups) for name in entries):
        if name in _OTHERS:
            continue
        values = [_plain(group.get(name, defaults.get(name))) for group in groups]
        if name in defaults and name not in arguments:
            # What is no argument may change with every step: Prodigy's `d`, schedule-free's `k`.
            values = [_plain(defaults[name])] * len(groups) if is_foreign else []
        elif name not in defaults and defaults and all(value == values[0] for value in values):
            values = []
        if values:
            found[name] = values
    return found


def _before_schedulers(group: Mapping[str, Any]) -> dict[str, Any]:
    found = dict(group)
    if "initial_lr" in found:
        found["lr"] = found["initial_lr"]
    if "max_momentum" in found and "momentum" in found:
        found["momentum"] = found["max_momentum"]
    elif "max_momentum" in found and "betas" in found:
        found["betas"] = (found["max_momentum"], *found["betas"][1:])
    return found


def _arguments(optimizer: Optimizer) -> set[str]:
    """The names of all arguments of the constructors of its classes."""
    kinds = [
        kind
        for kind in type(optimizer).__mro__
        if "__init__" in vars(kind) and kind not in (Optimizer, object)
    ]
    return {name for kind in kinds for name in inspect.signature(vars(kind)["__init__"]).parameters}


def _kept_arguments(optimizer: Optimizer) -> dict[str, Any]:
    """The arguments of its constructor that are attributes of it, or entries of its groups."""
    found: dict[str, Any] = {}
    for name in sorted(_arguments(optimizer) - _OTHERS - {*_INSIDE, "defaults"}):
        value = getattr(
            optimizer, name, getattr(optimizer, f"_{name}", optimizer.param_groups[0].get(name))
        )
        if value is not None:
            # A target that schedulers drive, or a member of an enumeration.
            found[name] = _plain(getattr(value, "value", value))
    return found


def _way(optimizer: Optimizer, group: Mapping[str, Any]) -> Implementation:
    """Return how the step of a group runs; torch settles it where the group leaves it open."""
    if group.get("compiled"):
        return "compiled"
    if group.get("fused"):
        return "fused"
    foreach = group.get("foreach")
    if foreach is None and "foreach" in group and _is_left_to_torch(optimizer, group):
        _, foreach = _default_to_fused_or_foreach(
            group["params"], bool(group.get("differentiable")), use_fused=False
        )
    return "foreach" if foreach else "loop"


def _is_left_to_torch(optimizer: Optimizer, group: Mapping[str, Any]) -> bool:
    if isinstance(optimizer, MultiTensorOptimizer):
        return True
    if group.get("fused") is not None:
        # Torch takes fused=False for a choice.
        return False
    if (
        isinstance(optimizer, torch.optim.Adam)
        and isinstance(group.get("lr"), torch.Tensor)
        and not group.get("capturable")
    ):
        return False
    # Adafactor, whose module does not know torch's choice, is a loop unless foreach is True.
    modules = [
        sys.modules.get(kind.__module__)
        for kind in type(optimizer).__mro__
        if kind is not Optimizer
    ]
    return any(hasattr(module, _default_to_fused_or_foreach.__name__) for module in modules)


def _plain(value: Any, depth: int = 0) -> Any:
    """The value as data that a record can hold, or a text that names what it is."""
    if depth < _MOST_DEPTH and isinstance(value, Mapping):
        return {
            schema.shortened(str(name), 100): _plain(item, depth + 1)
            for name, item in value.items()
        }
    if depth < _MOST_DEPTH and isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    number: Any = value
    with suppress(ValueError, TypeError, RuntimeError):
        # Tensors and numpy's numbers.
        number = value.item() if hasattr(value, "item") else value
    kind = next((kind for kind in (bool, int, float, str) if isinstance(number, kind)), None)
    if kind is None and value is not None:
        # No error that would print it: a tensor of CUDA takes a wait for the device.
        return getattr(value, "__qualname__", type(value).__qualname__)[:100]
    try:
        number = kind(number) if kind else number
        schema.require_plain(number, "an option")
        return number
    except ValueError:
        # Python writes no number of more than 4,300 digits.
        is_long = isinstance(number, int) and number.bit_length() > 300
        return schema.shown(number) if is_long else ascii(number)[:100]
