"""Arguments of our constructors: options checked in torch's words, and parameters in groups."""

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

Group = dict[str, Any]


def require_not_negative(values: Mapping[str, float | Tensor]) -> None:
    """Raise ValueError for a value below 0, and for a tensor of more than one element."""
    for name, value in values.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ValueError(
                f"Tensor {'lr' if name == 'learning rate' else name} must be 1-element, got one of"
                f" shape {tuple(value.shape)}"
            )
        if not value >= 0.0:
            raise ValueError(f"Invalid {name}: {value}, must be >= 0")


def require_positive(values: Mapping[str, float | None]) -> None:
    """Raise ValueError for a value that is neither above 0 nor None."""
    for name, value in values.items():
        if value is not None and not value > 0.0:
            raise ValueError(f"Invalid {name}: {value}, must be > 0")


def require_fraction(values: Mapping[str, float]) -> None:
    """Raise ValueError for a value outside [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"Invalid {name}: {value}, must be in [0, 1)")


def require_betas(betas: tuple[float, float]) -> None:
    """Raise ValueError unless there are two decay rates in [0, 1)."""
    if len(betas) != 2:
        raise ValueError(f"Invalid betas: {betas}, must be two decay rates")
    require_fraction({f"beta parameter at index {index}": beta for index, beta in enumerate(betas)})


def groups_of(params: ParamsT) -> list[Group]:
    """Return parameters, (name, parameter) pairs or groups as groups; TypeError for a tensor."""
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but"
            f" got {type(params).__name__}"
        )
    members: list[Any] = list(params)
    if members and isinstance(members[0], dict):
        return [dict(group) for group in members]
    return [{"params": members}] if members else []


def split(group: Group, test: Callable[[Tensor], bool]) -> tuple[Group, Group]:
    """Return the group of the parameters that pass a test, and the group of all others.

    Names stay with their parameters, and both groups have the options.
    """
    members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    passed: list[Any] = [member for member in members if test(_tensor(member))]
    others: list[Any] = [member for member in members if not test(_tensor(member))]
    return {**group, "params": passed}, {**group, "params": others}


def _tensor(member: Tensor | tuple[str, Tensor]) -> Tensor:
    return member if isinstance(member, Tensor) else member[1]
