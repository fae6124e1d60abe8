"""Factories: `module:factory`, the user's code that returns a model, or a model and a batch."""

import importlib
import importlib.util
import inspect
import random
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from difflib import get_close_matches
from functools import reduce
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock

import torch
from torch.nn.parameter import is_lazy

from .batches import by_name, map_tensors
from .spec import Scenario
from .without_data import ModulesOn, is_for_want_of_data, replace_tensors

# Values for arguments of a factory that have no default, if the scenario sets none.
_DEFAULTS: Mapping[str, Any] = {
    "batch_size": 1,
    "sequence_length": None,
    "attention": "sdpa",
    "dtype": torch.float32,
}
# The most elements of an integer tensor of a model that keeps its values.
_MOST_STEERING = 1 << 22


def load(name: str) -> Callable[..., Any]:
    """Import the function or class named `module:factory` or `path/file.py:factory`.

    Raises ValueError if there is none. Exceptions of the module's own code pass through.
    """
    place, _, attribute = name.rpartition(":")
    with autocast_can_be_made(), _without_arguments():
        module = (
            _module_of_file(name, Path(place).expanduser())
            if place.endswith(".py")
            else _module(name, place)
        )
    try:
        factory = reduce(getattr, attribute.split("."), module)
    except AttributeError as error:
        raise ValueError(f"model {name!r} cannot be loaded: {error}") from error
    if not callable(factory) or isinstance(factory, torch.nn.Module):
        raise ValueError(
            f"model {name!r} must be a function that returns a model, got {type(factory).__name__}"
        )
    return factory


def _module(name: str, place: str) -> ModuleType:
    if not all(map(str.isidentifier, place.split("."))):
        raise ValueError(
            f"model {name!r} cannot be loaded: {place!r} is no module; write module:factory or"
            " path/file.py:factory"
        )
    try:
        return importlib.import_module(place)
    except ModuleNotFoundError as error:
        # A module that it imports may be the missing one.
        if not f"{place}.".startswith(f"{error.name}."):
            raise
        raise ValueError(f"model {name!r} cannot be loaded: {error}") from error


def _module_of_file(name: str, path: Path) -> ModuleType:
    """Import the module in a file, as part of its package or as a script with its neighbours."""
    path = path.resolve()
    if not path.is_file():
        raise ValueError(f"model {name!r} cannot be loaded: there is no file {path}")
    for dotted in _names_of(path):
        folder = str(path.parents[dotted.count(".")])
        if folder not in sys.path:
            sys.path.append(folder)
        spec = importlib.util.find_spec(dotted)
        if spec is not None and spec.origin == str(path):
            return importlib.import_module(dotted)
    # Another module has this name.
    if str(path) not in sys.modules:
        spec = importlib.util.spec_from_file_location(str(path), path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        sys.modules[str(path)] = module
    return sys.modules[str(path)]


def _names_of(path: Path) -> list[str]:
    """Return the names under which a file may be imported: in its packages, and alone."""
    parts = [path.stem]
    for folder in path.parents:
        if not (folder / "__init__.py").is_file():
            break
        parts.insert(0, folder.name)
    return [
        name
        for name in dict.fromkeys((".".join(parts), path.stem))
        if all(map(str.isidentifier, name.split(".")))
    ]


def _without_arguments() -> AbstractContextManager[Any]:
    """Hide the arguments of the command line, which are not for the user's code."""
    return mock.patch.object(sys, "argv", sys.argv[:1])


@contextmanager
def autocast_can_be_made() -> Iterator[None]:
    """Allow code to create `torch.autocast("cuda")` on a machine without CUDA.

    Models keep it as an attribute or decorate their `forward` with it, and a simulation enters it.
    Torch would disable it permanently.
    """
    missing = mock.patch.object(torch.cuda.amp.common, "amp_definitely_not_available", new=_never)
    supported = mock.patch.object(torch.cuda, "is_bf16_supported", new=_always)
    with missing, supported:
        yield


def _never() -> bool:
    return False


def _always(including_emulation: bool = True) -> bool:
    del including_emulation
    return True


def own_size(name: str, size: str) -> int | None:
    """Return the default of `size` ("batch_size") in a factory's signature, if it has one."""
    parameter = _parameters(load(name)).get(size)
    value = None if parameter is None else parameter.default
    return value if isinstance(value, int) and not isinstance(value, bool) and value > 0 else None


def takes(name: str, argument: str) -> bool:
    """Return whether a factory has an argument of that name."""
    return argument in _parameters(load(name))


def call(
    scenario: Scenario, device: str, dtype: torch.dtype | None
) -> tuple[torch.nn.Module, Mapping[str, Any]]:
    """Call the scenario's factory; return the model on `device`, and the batch.

    On "meta" the model's tensors have no data, except small integer tensors: their values steer
    model code, as those of the batch do, and the caller moves them. A factory that needs values
    while it builds is called again on the CPU. Raises ValueError for a wrong return value.
    """
    factory = load(scenario.model)
    arguments = arguments_of(scenario, dtype)
    _seed(scenario.seed)
    try:
        try:
            return _made(scenario, factory, arguments, device, device)
        except (RuntimeError, TypeError) as error:
            if device != "meta" or not is_for_want_of_data(error):
                raise
        _seed(scenario.seed)
        return _made(scenario, factory, arguments, "cpu", device)
    except (AssertionError, RuntimeError) as error:
        if torch.cuda.is_available() or not any(word in str(error) for word in ("CUDA", "NVIDIA")):
            raise
        advice = "this machine has no CUDA; leave the device out, the model is moved to it"
        raise ValueError(
            f"model {scenario.model!r} needs CUDA ({_line_of(error)}); {advice}"
        ) from error


def _seed(seed: int) -> None:
    """Seed every random generator that a factory and its model may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    if (numpy := sys.modules.get("numpy")) is not None:
        # numpy takes 32 bits, and torch 64.
        numpy.random.seed(seed % (1 << 32))


def _line_of(error: Exception) -> str:
    """Return the innermost line outside torch and optprof that raised an error."""
    frames = traceback.extract_tb(error.__traceback__)
    others = str(Path(torch.__file__).parent), str(Path(__file__).parent)
    own = [frame for frame in frames if not frame.filename.startswith(others)]
    return f"{Path(own[-1].filename).name}, line {own[-1].lineno}"


def _parameters(factory: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    try:
        return inspect.signature(factory).parameters
    except (TypeError, ValueError):
        # Some functions written in C have no signature.
        return {}


def arguments_of(scenario: Scenario, dtype: torch.dtype | None = None) -> dict[str, Any]:
    """Return the arguments of the scenario's factory: sizes, dtype and configuration.

    Raises ValueError for an argument that it does not take, and for a missing one.
    """
    takes = _parameters(load(scenario.model))
    takes_all = any(parameter.kind is parameter.VAR_KEYWORD for parameter in takes.values())
    sizes = {
        "batch_size": scenario.batch_size,
        "sequence_length": scenario.sequence_length,
        "attention": scenario.attention,
    }
    arguments: dict[str, Any] = {}
    for name, value in {**sizes, "dtype": dtype}.items():
        if name in takes:
            required = takes[name].default is inspect.Parameter.empty
            if value is not None or required:
                arguments[name] = _DEFAULTS[name] if value is None else value
        elif name in sizes and value not in (None, _DEFAULTS[name]):
            if not takes_all:
                raise ValueError(
                    f"model {scenario.model!r} takes no {name}, got {value}; leave it out"
                )
            arguments[name] = value
    for key in scenario.config:
        if key not in takes and not takes_all:
            raise ValueError(
                f"{unknown_key(key, list(takes))} among the arguments of model {scenario.model!r}"
            )
    arguments |= scenario.config
    _require_all(scenario.model, takes, arguments)
    return arguments


def _require_all(
    model: str, takes: Mapping[str, inspect.Parameter], arguments: Mapping[str, Any]
) -> None:
    for name, parameter in takes.items():
        by_keyword = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        if by_keyword and parameter.default is parameter.empty and name not in arguments:
            if name == "self":
                raise ValueError(
                    f"model {model!r} is a method; name a function, a class or a static method"
                )
            raise ValueError(
                f"model {model!r} must be given {name!r}; say --model-config {name}=VALUE"
            )


def unknown_key(key: str, known: list[str]) -> str:
    """Return words for an unknown key, with the known keys that are near."""
    near = get_close_matches(key, known, n=3)
    return f"no {key!r}{' (near: ' + ', '.join(near) + ')' if near else ''}"


def _made(
    scenario: Scenario,
    factory: Callable[..., Any],
    arguments: Mapping[str, Any],
    built_on: str,
    device: str,
) -> tuple[torch.nn.Module, Mapping[str, Any]]:
    """Call the factory with its modules on `built_on`, and move the model to `device`."""
    autocast = autocast_can_be_made() if device == "meta" else nullcontext()
    modules = nullcontext() if built_on == "cpu" else ModulesOn(built_on)
    with autocast, _without_arguments(), modules:
        made = factory(**arguments)
    pair = made if isinstance(made, list | tuple) and len(made) == 2 else (made, {})
    model: Any = pair[0]
    if not isinstance(model, torch.nn.Module):
        raise ValueError(
            f"model {scenario.model!r} must return a torch.nn.Module, or one and its batch, got"
            f" {type(model).__name__}"
        )
    try:
        batch = by_name(model, pair[1])
    except ValueError as error:
        raise ValueError(f"the batch of {scenario.model!r} {error}") from error
    if scenario.workload == "train" and not batch:
        raise ValueError(
            f"model {scenario.model!r} gave no batch to train on; return (model, batch), or ask for"
            " --workload state"
        )
    _give_shapes(scenario.model, model, batch)
    if device == "meta":
        replace_tensors(model, _without_data)
    else:
        model = model.to(device=device)
    return model, batch


def _give_shapes(name: str, model: torch.nn.Module, batch: Mapping[str, Any]) -> None:
    """Run a lazy model once, as its users do before they create the optimizer."""
    lazy = next(filter(is_lazy, model.parameters()), None)
    if lazy is None:
        return
    if not batch:
        raise ValueError(
            f"model {name!r} has lazy parameters and no batch to give them shapes; return (model,"
            " batch)"
        )
    device = lazy.device
    with torch.no_grad():
        model(**map_tensors(lambda tensor: tensor.to(device), batch))


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor on "meta", or itself if its values may steer the model."""
    is_whole = not tensor.is_floating_point() and not tensor.is_complex()
    steers = is_whole and tensor.numel() <= _MOST_STEERING
    # Only a trace can follow a sparse tensor.
    return tensor if steers or tensor.layout is not torch.strided else tensor.to("meta")
