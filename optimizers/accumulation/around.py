"""An optimizer around another that passes for it: same groups, state and defaults, own hooks."""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, Literal

from torch import Tensor
from torch.optim.optimizer import Optimizer

from ..loading import require_form

Aggregate = Literal["mean", "max", "min"]
_AGGREGATES = {"mean": fmean, "max": max, "min": min}
# Attributes that torch.optim.Optimizer makes again when it is unpickled, and the `step` by which a
# scheduler replaces the method.
_MADE_AGAIN = ("_optimizer_", "_zero_grad_profile_name", "_warned_", "step")


class Around(Optimizer):
    """An optimizer with the groups, state and defaults of the `optimizer` inside.

    Its hooks run at each of its own calls, those of the optimizer inside at that one's. A
    checkpoint has the state of the optimizer inside and, under `extra_key`, what subclasses add by
    `_extra_state` and `_load_extra_state`.
    """

    extra_key = "around"

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        super().__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """Return the groups of the optimizer inside."""
        return self._groups()

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """Return the state of the optimizer inside."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """Return the defaults of the optimizer inside."""
        return self.optimizer.defaults

    @defaults.setter
    def defaults(self, defaults: dict[str, Any]) -> None:
        self.optimizer.defaults = defaults

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the optimizer inside."""
        self.optimizer.add_param_group(param_group)

    def _groups(self) -> list[dict[str, Any]]:
        return self.optimizer.param_groups

    def _extra_state(self) -> dict[str, Any]:
        """Return plain data and copies of tensors."""
        raise NotImplementedError

    def _checked_extra(self, extra: Any) -> dict[str, Any]:
        """Return a checkpoint's extra state, converted; ValueError if it does not fit."""
        raise NotImplementedError

    def _load_extra_state(self, extra: dict[str, Any] | None) -> None:
        """Load a checked extra state, None for a checkpoint of the optimizer inside alone."""
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the optimizer inside, which can load it, with one key more."""
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        state_dict = {**self.optimizer.state_dict(), self.extra_key: self._extra_state()}
        for hook in self._optimizer_state_dict_post_hooks.values():
            state_dict = hook(self, state_dict) or state_dict
        return state_dict

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state of this optimizer or of the one inside."""
        require_form(state_dict)
        incoming = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            incoming = hook(self, incoming) or incoming
        extra = incoming.pop(self.extra_key, None)
        checked = None if extra is None else self._checked_extra(extra)
        self.optimizer.load_state_dict(incoming)
        self._load_extra_state(checked)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """Return all attributes except those that torch makes again."""
        return {
            name: value for name, value in self.__dict__.items() if not name.startswith(_MADE_AGAIN)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle or a copy."""
        self.__dict__.update(state)
        super().__setstate__({})


def group_statistics(groups: Sequence[Mapping[str, Any]], aggregate: Aggregate) -> dict[str, float]:
    """Return every number that all groups have, such as `lr`, as one flat dictionary.

    If groups differ the name ends in `*` and the value is their mean, max or min.
    """
    if aggregate not in _AGGREGATES:
        raise ValueError(f"aggregate must be one of {', '.join(_AGGREGATES)}, got {aggregate!r}")
    statistics: dict[str, float] = {}
    for name in groups[0]:
        values = [_number(group.get(name)) for group in groups]
        numbers = [value for value in values if value is not None]
        if len(numbers) < len(values):
            continue
        if all(value == numbers[0] for value in numbers):
            statistics[name] = numbers[0]
        else:
            statistics[f"{name}*"] = _AGGREGATES[aggregate](numbers)
    return statistics


def _number(value: Any) -> float | None:
    if isinstance(value, Tensor):
        return value.item() if value.dim() == 0 else None
    return value if isinstance(value, int | float) else None
