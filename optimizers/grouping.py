"""Parameters in groups: the lists that torch's optimizers take, read alike and split by a test."""

from collections.abc import Callable
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

Group = dict[str, Any]


def groups_of(params: ParamsT) -> list[Group]:
    """`params` as a list of groups: parameters, (name, parameter) pairs and groups are all given as
    groups; TypeError for a lone tensor.
    """
    if isinstance(params, Tensor):
        raise TypeError(
            "params argument given to the optimizer should be an iterable of Tensors or dicts, but"
            f" got {type(params).__name__}"
        )
    given: list[Any] = list(params)
    return (
        [dict(group) for group in given]
        if given and isinstance(given[0], dict)
        else [{"params": given}]
        if given
        else []
    )


def split(group: Group, test: Callable[[Tensor], bool]) -> tuple[Group, Group]:
    """The group of the parameters that pass and the group of the others, names beside them and
    options in both.
    """
    members = [group["params"]] if isinstance(group["params"], Tensor) else list(group["params"])
    passed: list[Any] = [member for member in members if test(_tensor(member))]
    others: list[Any] = [member for member in members if not test(_tensor(member))]
    return {**group, "params": passed}, {**group, "params": others}


def _tensor(member: Tensor | tuple[str, Tensor]) -> Tensor:
    return member if isinstance(member, Tensor) else member[1]
