"""An optimizer around another that passes for it: the same groups, state and defaults, and hooks,
pickles and checkpoints of its own.
"""

from typing import Any

from torch.optim.optimizer import Optimizer

from ..loading import require_form

# What torch.optim.Optimizer makes anew when it is unpickled, and the `step` that a scheduler puts
# in its place.
_MADE_ANEW = ("_optimizer_", "_zero_grad_profile_name", "_warned_", "step")


class Around(Optimizer):
    """An optimizer whose groups, state and defaults are those of the `optimizer` inside, whoever
    changes them.

    Hooks on it run at each of its own calls, hooks on the optimizer inside at that one's.
    Subclasses say in `_extra_state` and `_load_extra_state` what a checkpoint holds beside the
    state of the optimizer inside, under the key `extra_key`.
    """

    extra_key = "around"

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        super().__setstate__({})

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The groups of the optimizer inside."""
        return self._groups()

    @param_groups.setter
    def param_groups(self, groups: list[dict[str, Any]]) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.param_groups = groups

    @property
    def state(self) -> Any:
        """The state of the optimizer inside."""
        return self.optimizer.state

    @state.setter
    def state(self, state: Any) -> None:  # pyright: ignore[reportIncompatibleVariableOverride]
        self.optimizer.state = state

    @property
    def defaults(self) -> dict[str, Any]:
        """The defaults of the optimizer inside."""
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
        """Plain data and tensors, none of which is the live one."""
        raise NotImplementedError

    def _checked_extra(self, extra: Any) -> dict[str, Any]:
        """Return what a checkpoint holds under `extra_key` as it is to be taken up; ValueError
        where it does not fit.
        """
        raise NotImplementedError

    def _load_extra_state(self, extra: dict[str, Any] | None) -> None:
        """Take up what `_extra_state` gave and `_checked_extra` found right; None for a checkpoint
        of the optimizer inside alone.
        """
        raise NotImplementedError

    def state_dict(self) -> dict[str, Any]:
        """The state of the optimizer inside, which that one can load, with a key more for what is
        kept around it.
        """
        for hook in self._optimizer_state_dict_pre_hooks.values():
            hook(self)
        found = {**self.optimizer.state_dict(), self.extra_key: self._extra_state()}
        for hook in self._optimizer_state_dict_post_hooks.values():
            found = hook(self, found) or found
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up a state, of this or of the optimizer inside alone."""
        require_form(state_dict)
        given = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            given = hook(self, given) or given
        extra = given.pop(self.extra_key, None)
        checked = None if extra is None else self._checked_extra(extra)
        self.optimizer.load_state_dict(given)
        self._load_extra_state(checked)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        """Every attribute but those that torch makes anew."""
        return {
            name: value for name, value in self.__dict__.items() if not name.startswith(_MADE_ANEW)
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take up a pickle or a copy."""
        self.__dict__.update(state)
        super().__setstate__({})
