"""Loading: a checkpoint's state is checked before any of it is used.

A checkpoint may come from another version, a converter or a file format without tensors. A state
that would end in a KeyError or in wrong numbers some steps later is refused at once.
"""

# pyright: reportPrivateImportUsage=false

import reprlib
from collections import Counter
from collections.abc import Collection, Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

from .sharded import is_sharded

State = dict[str, Any]
Shapes = Mapping[str, tuple[int, ...]]


@contextmanager
def lasting(changed: Iterable[Tensor] = ()) -> Iterator[None]:
    """Make ordinary tensors in inference mode, whose own tensors cannot be changed outside of it.

    Inference mode stays on if one of the tensors that are `changed` inside is an inference tensor.
    """
    in_inference = not torch.compiler.is_compiling() and torch.is_inference_mode_enabled()
    if not in_inference or any(tensor.is_inference() for tensor in changed):
        yield
        return
    # Outside inference mode torch would record gradients.
    with torch.inference_mode(False), torch.no_grad():
        yield


class Loading(Optimizer):
    """An optimizer that loads only states of the form that it makes itself.

    A number becomes a tensor if a new state has a tensor there, and each tensor is cast to the
    dtype that a new state has; torch would cast all to the parameter's. Values under other names
    are only moved to the parameter's device. A `step` is kept where the optimizer counts: it keeps
    its own `capturable`, which belongs to the process and not to the training run.
    """

    def _shapes(self, param: Tensor, options: dict[str, Any]) -> Shapes:
        """Return the shapes of all tensors that a real parameter's state may have, by name."""
        raise NotImplementedError

    def _required(self, param: Tensor, options: dict[str, Any], names: Collection[str]) -> set[str]:
        """Return the names that a state with these names must have, by default all in `_shapes`."""
        del names
        return {*self._shapes(param, options)}

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        """Return the dtype of a real parameter's state; a step count is always float32."""
        raise NotImplementedError

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state; ValueError if a part of it does not fit, and nothing is changed then."""
        require_form(state_dict)
        loaded: list[State] = []

        def set_aside(_: Optimizer, incoming: dict[str, Any]) -> dict[str, Any]:
            require_form(incoming)
            incoming = {**incoming, "param_groups": self._with_own_counting(incoming)}
            loaded.extend(self._checked(incoming))
            return {**incoming, "state": {}}

        def put_back(_: Optimizer) -> None:
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            self.state.update(
                (param, state) for param, state in zip(params, loaded, strict=True) if state
            )

        # After all hooks that may change the state to load, and before all that may read it.
        hooks = (
            self.register_load_state_dict_pre_hook(set_aside),
            self.register_load_state_dict_post_hook(put_back, prepend=True),
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()

    def _with_own_counting(self, incoming: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the groups to load, with the `capturable` of this optimizer's groups."""
        groups, own = incoming["param_groups"], self.param_groups
        if len(groups) != len(own):
            # Torch raises an error for this.
            return groups
        return [
            {**group, "capturable": mine["capturable"]} if "capturable" in mine else group
            for group, mine in zip(groups, own, strict=True)
        ]

    def _checked(self, incoming: Mapping[str, Any]) -> list[State]:
        """Return the states of all parameters in order, empty for a parameter without one."""
        groups, states = incoming["param_groups"], incoming["state"]
        if [len(group["params"]) for group in groups] != [
            len(group["params"]) for group in self.param_groups
        ]:
            # Torch raises an error for this.
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
        """Raise ValueError if an option that is a number or a pair of numbers has another type."""
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
                f"{type(self).__name__} cannot load the option {name!r}: found {brief(value)},"
                f" expected {expected}"
            )

    def _checked_state(self, key: Any, param: Tensor, options: dict[str, Any], state: Any) -> State:
        if not isinstance(state, Mapping):
            raise self._refusal("the state", key, brief(state), "a dict of tensors")
        if not state:
            return {}
        param = param.detach()
        as_seen = torch.view_as_real(param) if param.is_complex() else param
        shapes, required = (
            self._shapes(as_seen, options),
            self._required(as_seen, options, state.keys()),
        )
        for name in required - state.keys():
            names = f"only {', '.join(map(repr, state))}"
            raise self._refusal(
                repr(name), key, names, described(shapes[name], self._dtype(name, as_seen))
            )
        checked: State = {}
        with lasting():
            for name, value in state.items():
                if name not in shapes:
                    checked[name] = value.to(param.device) if isinstance(value, Tensor) else value
                # torch-SM3 stores a 0 in place of a missing buffer.
                elif name in required or not is_number(value) or value:
                    on_host = name == "step" and not options.get("capturable")
                    device = torch.device("cpu") if on_host else param.device
                    checked[name] = self._checked_tensor(
                        name, key, value, as_seen, shapes[name], device
                    )
        return checked

    def _checked_tensor(
        self,
        name: str,
        key: Any,
        value: Any,
        param: Tensor,
        shape: tuple[int, ...],
        device: torch.device,
    ) -> Tensor:
        dtype = self._dtype(name, param)
        tensor = as_tensor(value)
        if tensor is None or not _fits(tensor, param, shape):
            raise self._refusal(repr(name), key, brief(value), described(shape, dtype))
        if not shape and not is_sharded(tensor):
            tensor = tensor.reshape(())
        kept = _lasting_copy(tensor, tensor.to(device, dtype))
        if kept.is_meta:
            return kept
        if name == "step" and not (0 <= kept.item() < torch.inf and kept.item() % 1 == 0):
            raise self._refusal(repr(name), key, brief(value), "a count of steps")
        if not _keeps_values(tensor, kept):
            raise self._refusal(repr(name), key, brief(value), f"numbers that {_name(dtype)} holds")
        return kept

    def _dtype(self, name: str, param: Tensor) -> torch.dtype:
        return torch.float32 if name == "step" else self._state_dtype(name, param)

    def _refusal(self, what: str, key: Any, found: str, expected: str) -> ValueError:
        return ValueError(
            f"{type(self).__name__} cannot load {what} of parameter {key!r}: found {found},"
            f" expected {expected}"
        )


def require_form(state_dict: Any) -> None:
    """Raise ValueError unless the argument has the form of an optimizer's `state_dict`."""
    if not isinstance(state_dict, Mapping):
        raise ValueError(f"an optimizer's state_dict is a dict, got {brief(state_dict)}")
    states, groups = state_dict.get("state"), state_dict.get("param_groups")
    if not isinstance(states, Mapping):
        raise ValueError(f"'state' of an optimizer's state_dict is a dict, got {brief(states)}")
    if not isinstance(groups, list) or not all(
        isinstance(group, Mapping) and isinstance(group.get("params"), list) for group in groups
    ):
        raise ValueError(
            "'param_groups' of an optimizer's state_dict is a list of dicts with 'params', got"
            f" {brief(groups)}"
        )
    for key in chain.from_iterable(group["params"] for group in groups):
        if not isinstance(key, Hashable):
            raise ValueError(
                f"'params' of an optimizer's state_dict has numbers or names, got {brief(key)}"
            )


def is_number(value: Any) -> bool:
    """Return whether the value is a real number of Python or numpy, but no bool."""
    return isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)


def as_tensor(value: Any) -> Tensor | None:
    """Return a tensor, number or numpy array as a tensor, None for anything else."""
    if isinstance(value, Tensor):
        return value.detach()
    if not is_number(value) and not isinstance(value, np.ndarray):
        return None
    try:
        # A copy: the array's owner may change its memory.
        return torch.tensor(value, dtype=None if isinstance(value, np.ndarray) else torch.float64)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        return None


def described(shape: tuple[int, ...], dtype: torch.dtype) -> str:
    """Describe a tensor in words."""
    return f"{_name(dtype)} tensor of shape {tuple(shape)}"


def brief(value: Any) -> str:
    """Describe a checkpoint's value in a few words on one line."""
    if isinstance(value, Tensor) and value.is_nested:
        # A nested tensor has no shape.
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
    """Return whether a tensor has real numbers, this shape, and data if the parameter has."""
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
    """Return the tensor, or a copy of one that cannot be changed in place.

    That is an inference tensor or one that overlaps itself, as an expanded one does.
    """
    overlaps = not is_sharded(kept) and torch._debug_has_internal_overlap(kept) == 1
    return (
        kept.clone(memory_format=torch.contiguous_format)
        if overlaps or kept.is_inference() or tensor.is_inference()
        else kept
    )


def _keeps_values(tensor: Tensor, kept: Tensor) -> bool:
    """Return whether a cast kept the numbers: exactly for float8, finite ones finite otherwise."""
    if tensor.dtype == kept.dtype or tensor.is_meta:
        return True
    if kept.itemsize == 1:
        return bool((kept.to(torch.float32).cpu() == tensor.to(torch.float32).cpu()).all())
    if torch.finfo(kept.dtype).max >= (
        torch.finfo(tensor.dtype).max if tensor.is_floating_point() else 2.0**64
    ):
        return True
    return bool((kept.isfinite() | ~tensor.to(kept.device).isfinite()).all())
