"""An optimizer in use: the one inside its wrappers, its options and how its step runs.

Options are those of the parameter groups when the watch begins. A scheduler changes the learning
rate at every step, and each epoch would become a scenario of its own. So the learning rate is the
one before any scheduler, which torch's schedulers keep in the group as `initial_lr`. The same holds
for a cycled momentum.
"""

import inspect
from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import suppress
from hashlib import sha256
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.optim.optimizer import Optimizer

from optprof import optimizers
from optprof.optimizers.sharded import local
from optprof.optimizers.ways import SWITCHES, way_of_group
from optprof.scenarios import schema
from optprof.scenarios.spec import Implementation

# The attributes in which wrappers keep the wrapped optimizer.
_INSIDE = ("optimizer", "base_optimizer", "_optimizer", "optim", "inner_optimizer")
# Entries of a group that are not options: torch's own, its schedulers', and the switches of ways.
_NO_OPTIONS = {
    "params",
    "param_names",
    "initial_lr",
    "max_lr",
    "min_lr",
    "max_momentum",
    "base_momentum",
    "swa_lr",
    *SWITCHES,
}
# Values of one option; a table shows a few.
_MOST_VALUES = 1_000
# Nested lists and dicts in an option; a list may contain itself.
_MOST_DEPTH = 6


def counted_optimizer(wrapper: Any) -> Optimizer:
    """Return the optimizer whose groups and state count, inside wrappers that only forward steps.

    Examples are accelerate's wrapper and an object that is not an optimizer but has one. Raises
    ValueError for an object without an optimizer.
    """
    optimizer = wrapper
    while not isinstance(optimizer, Optimizer) or _forwards(optimizer):
        optimizer = _inside(optimizer)
        if optimizer is None:
            raise ValueError(
                f"watch takes a torch.optim.Optimizer, got {type(wrapper).__name__}; pass the"
                " optimizer itself"
            )
    if not hasattr(optimizer, "param_groups"):
        raise ValueError(
            f"{type(optimizer).__name__} has no parameter groups; call"
            " torch.optim.Optimizer.__init__ in its constructor"
        )
    return optimizer


def hooked_optimizer(optimizer: Optimizer) -> Optimizer:
    """Return the outermost optimizer whose steps run hooks; raise ValueError without one."""
    hooked: Any = optimizer
    while not _runs_hooks(hooked):
        hooked = _inside(hooked)
        if hooked is None:
            name = type(optimizer).__name__
            raise ValueError(
                f"{name}.step runs no hooks; call torch.optim.Optimizer.__init__ in its constructor"
            )
    return hooked


def stepped_parameters(optimizer: Optimizer) -> list[torch.nn.Parameter]:
    """Return the parameters of all groups."""
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def elements(parameters: Iterable[torch.Tensor]) -> int:
    """Return the number of elements of the parameters on this rank."""
    return sum(local(parameter).numel() for parameter in parameters if not is_lazy(parameter))


def live_options(optimizer: Optimizer) -> dict[str, Any]:
    """Return the hyper-parameters as plain data, as a list by group if they differ.

    A wrapper has the options of the wrapped optimizer, its name, and the arguments of its own
    constructor that it keeps.
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
    # A group without parameters runs nothing.
    by_group["implementation"] = [
        way_of_group(optimizer, group) for group in optimizer.param_groups if group["params"]
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
    return {schema.shortened(str(name), 100): _limited(value) for name, value in options.items()}


def _limited(value: Any) -> Any:
    """Return the value, or a text with the hash of a list as long as thousands of groups."""
    if not isinstance(value, list) or len(value) <= _MOST_VALUES:
        return value
    return f"{len(value):,} values, {sha256(repr(value).encode()).hexdigest()[:8]}"


def live_implementation(optimizer: Optimizer) -> Implementation:
    """Return how the step runs; if groups differ, for most elements."""
    while isinstance(inside := _inside(optimizer), Optimizer):
        optimizer = inside
    counts: Counter[Implementation] = Counter()
    for group in optimizer.param_groups:
        # Plus one, for a group whose parameters have no elements yet.
        counts[way_of_group(optimizer, group)] += 1 + elements(group["params"])
    ((way, _),) = counts.most_common(1)
    return way


def _inside(optimizer: Any) -> Any:
    """Return the optimizer, or another wrapper, in an attribute of the object; else None."""
    kept = (getattr(optimizer, name, None) for name in _INSIDE)
    return next(
        (one for one in kept if isinstance(one, Optimizer) or _inside_of_wrapper(one)), None
    )


def _inside_of_wrapper(kept: Any) -> bool:
    return any(isinstance(getattr(kept, name, None), Optimizer) for name in _INSIDE)


def _forwards(optimizer: Optimizer) -> bool:
    """Return whether the optimizer is a wrapper that shares state and hooks with the wrapped."""
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
    defaults, name_of = optimizer.defaults, optimizers.name_of(optimizer)
    is_foreign = ":" in name_of
    arguments = _arguments(optimizer) if is_foreign else set(optimizers.option_defaults(name_of))
    options: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for entries in (defaults, *groups) for name in entries):
        if name in _NO_OPTIONS:
            continue
        values = [_plain(group.get(name, defaults.get(name))) for group in groups]
        if name in defaults and name not in arguments:
            # An entry that is no argument may change at every step: Prodigy's `d`, schedule-free's
            # `k`.
            values = [_plain(defaults[name])] * len(groups) if is_foreign else []
        elif name not in defaults and defaults and all(value == values[0] for value in values):
            values = []
        if values:
            options[name] = values
    return options


def _before_schedulers(group: Mapping[str, Any]) -> dict[str, Any]:
    entries = dict(group)
    if "initial_lr" in entries:
        entries["lr"] = entries["initial_lr"]
    if "max_momentum" in entries and "momentum" in entries:
        entries["momentum"] = entries["max_momentum"]
    elif "max_momentum" in entries and "betas" in entries:
        entries["betas"] = (entries["max_momentum"], *entries["betas"][1:])
    return entries


def _arguments(optimizer: Optimizer) -> set[str]:
    """Return the names of the arguments of the constructors of all its classes."""
    kinds = [
        kind
        for kind in type(optimizer).__mro__
        if "__init__" in vars(kind) and kind not in (Optimizer, object)
    ]
    return {name for kind in kinds for name in inspect.signature(vars(kind)["__init__"]).parameters}


def _kept_arguments(optimizer: Optimizer) -> dict[str, Any]:
    """Return the arguments of its constructor that are attributes or entries of its groups."""
    arguments: dict[str, Any] = {}
    for name in sorted(_arguments(optimizer) - _NO_OPTIONS - {*_INSIDE, "defaults"}):
        value = getattr(
            optimizer, name, getattr(optimizer, f"_{name}", optimizer.param_groups[0].get(name))
        )
        if value is not None:
            # `value` of a target that schedulers drive, or of a member of an enumeration.
            arguments[name] = _plain(getattr(value, "value", value))
    return arguments


def _plain(value: Any, depth: int = 0) -> Any:
    """Return the value as data that a record can store, or the name of its class."""
    if depth < _MOST_DEPTH and isinstance(value, Mapping):
        return {
            schema.shortened(str(name), 100): _plain(item, depth + 1)
            for name, item in value.items()
        }
    if depth < _MOST_DEPTH and isinstance(value, list | tuple):
        return [_plain(item, depth + 1) for item in value]
    number: Any = value
    with suppress(ValueError, TypeError, RuntimeError):
        # Tensors and NumPy's numbers.
        number = value.item() if hasattr(value, "item") else value
    kind = next((kind for kind in (bool, int, float, str) if isinstance(number, kind)), None)
    if kind is None and value is not None:
        # Without printing it: a CUDA tensor would wait for the device.
        return getattr(value, "__qualname__", type(value).__qualname__)[:100]
    try:
        number = kind(number) if kind else number
        schema.require_plain(number, "an option")
        return number
    except ValueError:
        # Python refuses to print a number of more than 4,300 digits.
        is_long = isinstance(number, int) and number.bit_length() > 300
        return schema.shown(number) if is_long else ascii(number)[:100]
