"""Loading: a checkpoint's state, checked before any of it is taken up.

A checkpoint may come from another version, from a converter or from a file format that knows no
tensors. What would end in a KeyError or in wrong numbers some steps later is refused at once.
"""

# pyright: reportPrivateImportUsage=false

import reprlib
from collections import Counter
from collections.abc import Collection, Hashable, Mapping
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .lasting import lasting
from .sharded import is_sharded

State = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


class Loading(Optimizer):
    """An optimizer that knows what its state looks like, and loads no other.

    A number becomes the tensor that a new state has in its place, and each tensor comes into the
    dtype in which it is kept here; torch alone would cast all to their parameter's. What is kept
    under other names stays as it is, on the parameter's device.
    """

    def _shapes(self, param: Tensor, options: dict[str, Any]) -> Shapes:
        """Shapes of all that a real parameter's state may hold, by name."""
        raise NotImplementedError

    def _needed(self, param: Tensor, options: dict[str, Any], held: Collection[str]) -> set[str]:
        """Names without which a state that holds these others is not whole."""
        raise NotImplementedError

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        """Return the dtype in which a state of a real parameter is kept; a step count is
        float32.
        """
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; ValueError, and nothing changed, where a part of it does not fit."""
        require_form(state_dict)
        loaded: list[State] = []

        def set_aside(_: Optimizer, given: dict[str, Any]) -> dict[str, Any]:
            require_form(given)
            loaded.extend(self._checked(given))
            return {**given, "state": {}}

        def put_back(_: Optimizer) -> None:
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            self.state.update(
                (param, state) for param, state in zip(params, loaded, strict=True) if state
            )

        # After every hook that may change what is loaded, before every hook that may look at what
        # was.
        hooks = (
            self.register_load_state_dict_pre_hook(set_aside),
            self.register_load_state_dict_post_hook(put_back, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _checked(self, given: Mapping[str, Any]) -> list[State]:
        """Return the states of all parameters in order; empty ones where there is none."""
        groups, states = given["param_groups"], given["state"]
        if [len(group["params"]) for group in groups] != [
            len(group["params"]) for group in self.param_groups
        ]:
            # Torch has words for this.
            return []
        for group in groups:
            self._require_options(group)
        keys = [key for group in groups for key in group["params"]]
        times = Counter(keys)
        for key in states:
            if times[key] != 1:
                raise ValueError(
                    f"{type(self).__name__} cannot load the state of parameter {key!r}: found it "
                    f"{times[key]} times in 'param_groups', expected it once"
                )
        return [
            self._checked_state(key, param, {**self.defaults, **group}, states.get(key, {}))
            for group, own in zip(groups, self.param_groups, strict=True)
            for key, param in zip(group["params"], own["params"], strict=True)
        ]

    def _require_options(self, group: Mapping[str, Any]) -> None:
        """ValueError where an option that is a number, or a pair of them, is something else."""
        for name, usual in self.defaults.items():
            value = group.get(name, usual)
            if is_number(usual) and not (
                value is None or isinstance(value, Tensor) or is_number(value)
            ):
                expected = "a number"
            elif isinstance(usual, tuple) and not (
                isinstance(value, list | tuple) and len(value) == len(usual)
            ):
                expected = f"{len(usual)} numbers"
            else:
                continue
            raise ValueError(
                f"{type(self).__name__} cannot load the option {name!r}: found {found_as(value)},"
                f" expected {expected}"
            )

    def _checked_state(self, key: Any, param: Tensor, options: dict[str, Any], state: Any) -> State:
        if not isinstance(state, Mapping):
            raise self._refusal("the state", key, found_as(state), "a dict of tensors")
        if not state:
            return {}
        param = param.detach()
        seen = torch.view_as_real(param) if param.is_complex() else param
        shapes, needed = self._shapes(seen, options), self._needed(seen, options, state.keys())
        for name in needed - state.keys():
            found = f"only {', '.join(map(repr, state))}"
            raise self._refusal(
                repr(name), key, found, described(shapes[name], self._kind(name, seen))
            )
        taken: State = {}
        with lasting():
            for name, value in state.items():
                if name not in shapes:
                    taken[name] = value.to(param.device) if isinstance(value, Tensor) else value
                # Torch-SM3 keeps a 0 in the place of the buffer that it has not.
                elif name in needed or not is_number(value) or value:
                    taken[name] = self._taken(name, key, value, seen, shapes[name])
        return taken

    def _taken(
        self, name: str, key: Any, value: Any, param: Tensor, shape: tuple[int, ...]
    ) -> Tensor:
        dtype = self._kind(name, param)
        tensor = as_tensor(value)
        if tensor is None or not _fits(tensor, param, shape):
            raise self._refusal(repr(name), key, found_as(value), described(shape, dtype))
        if not shape and not is_sharded(tensor):
            tensor = tensor.reshape(())
        kept = _lasting_copy(
            tensor, tensor.to(torch.device("cpu") if name == "step" else param.device, dtype)
        )
        if kept.is_meta:
            return kept
        if name == "step" and not (0 <= kept.item() < torch.inf and kept.item() % 1 == 0):
            raise self._refusal(repr(name), key, found_as(value), "a count of steps")
        if not _keeps_values(tensor, kept):
            raise self._refusal(
                repr(name), key, found_as(value), f"numbers that {_name(dtype)} holds"
            )
        return kept

    def _kind(self, name: str, param: Tensor) -> torch.dtype:
        return torch.float32 if name == "step" else self._state_dtype(name, param)

    def _refusal(self, what: str, key: Any, found: str, expected: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} cannot load {what} of parameter {key!r}: found {found},"
            f" expected {expected}"
        )


def require_form(state_dict: Any) -> None:
    """ValueError for what is not a `state_dict` of an optimizer."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"an optimizer's state_dict is a dict, got {found_as(state_dict)}")
    states, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(states, Mapping):
        raise ValueError(f"'state' of an optimizer's state_dict is a dict, got {found_as(states)}")
    if not isinstance(groups, list) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups
    ):
        raise ValueError(
            "'param_groups' of an optimizer's state_dict is a list of dicts with 'params', got"
            f" {found_as(groups)}"
        )
    for key in chain.from_iterable(group["params"] for group in groups):
        if not isinstance(key, Hashable):
            raise ValueError(
                f"'params' of an optimizer's state_dict has numbers or names, got {found_as(key)}"
            )


def is_number(value: Any) -> bool:
    """Return whether it is a real number of Python's or numpy's, True and False aside."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def as_tensor(value: Any) -> Tensor | None:
    """A tensor, number or array of numpy as a tensor; None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    if not is_number(value) and not isinstance(value, np.ndarray):
        return None
    try:
        # A copy: an array's memory is its owner's.
        return torch.tensor(value, dtype=None if isinstance(value, np.ndarray) else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def described(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """A tensor in words."""
    return f"{_name(dtype)} tensor of shape {tuple(shape)}"


def found_as(value: Any) -> str:
    """Describe what a checkpoint holds, in a few words on one line."""
    if isinstance(value, Tensor) and value.is_nested:
        # It has no shape.
        return f"nested {_name(value.dtype)} tensor"
    if isinstance(value, Tensor):
        kinds = (
            "sharded" if is_sharded(value) else "",
            "" if value.layout is torch.strided else str(value.layout).removeprefix("torch."),
        )
        places = "on meta, " if value.is_meta else ""
        numbers = (
            f" ({value.item()})"
            if value.numel() == 1 and not value.is_meta and value.layout is torch.strided
            else ""
        )
        words = [*filter(None, kinds), described(tuple(value.shape), value.dtype)]
        return f"{places}{' '.join(words)}{numbers}"
    if value is None:
        return "None"
    return " ".join(f"{reprlib.repr(value)} ({type(value).__name__})".split())


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _fits(tensor: Tensor, param: Tensor, shape: tuple[int, ...]) -> bool:
    """Return whether a tensor is one of real numbers, of this shape, where the parameter is."""
    if (
        tensor.is_nested
        or tensor.layout is not torch.strided
        or tensor.is_quantized
        or tensor.dtype is torch.bool
        or tensor.is_complex()
    ):
        return False
    if tensor.is_meta and not param.is_meta:
        return False
    if not shape:
        return tensor.numel() == 1
    return (
        tensor.is_floating_point()
        and tuple(tensor.shape) == tuple(shape)
        and is_sharded(tensor) == is_sharded(param)
    )


def _lasting_copy(tensor: Tensor, kept: Tensor) -> Tensor:
    """A copy of what could not be changed in place: of inference mode, or expanded."""
    overlaps = not is_sharded(kept) and torch._debug_has_internal_overlap(kept) == 1
    return (
        kept.clone(memory_format=torch.contiguous_format)
        if overlaps or kept.is_inference() or tensor.is_inference()
        else kept
    )


def _keeps_values(tensor: Tensor, kept: Tensor) -> bool:
    """Return whether a dtype holds the numbers: exactly where it is float8, at least as finite ones
    elsewhere.
    """
    if tensor.dtype == kept.dtype or tensor.is_meta:
        return True
    if kept.itemsize == 1:
        return bool((kept.to(torch.float32).cpu() == tensor.to(torch.float32).cpu()).all())
    if torch.finfo(kept.dtype).max >= (
        torch.finfo(tensor.dtype).max if tensor.is_floating_point() else 2.0**64
    ):
        return True
    return bool((kept.isfinite() | ~tensor.to(kept.device).isfinite()).all())
