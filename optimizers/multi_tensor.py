"""Multi-tensor stepping: what our optimizers share, so that each of their files holds only its mathematics.

An update is written once, over lists of tensors. The loop passes it one tensor at a time. Foreach passes buckets: parameters of one device
and dtype, together no larger than the largest of them, so that the temporaries of an update never outgrow those of the loop.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import Optimizer

Options = dict[str, Any]
State = dict[str, Tensor]
Tensors = list[Tensor] | tuple[Tensor, ...]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Parameters that are updated together, with their gradients, their states and the options of their group."""

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]
    options: Options

    def state(self, key: str) -> list[Tensor]:
        """One state of every parameter."""
        return [state[key] for state in self.states]


class MultiTensorOptimizer(Optimizer):
    """An optimizer whose options live in its parameter groups and whose update takes a bucket of parameters."""

    def _initial_state(self, param: Tensor, options: Options) -> State:
        """The state of a parameter at its first gradient."""
        raise NotImplementedError

    def _update(self, bucket: Bucket) -> None:
        """Update the parameters of a bucket and their states, in place."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; what `closure`, called once with gradients enabled, returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in self._buckets():
            self._update(bucket)
        return loss

    def _buckets(self) -> Iterator[Bucket]:
        for group in self.param_groups:
            # A parameter without elements has nothing to update, and no largest element or mean to ask for.
            params = [param for param in group["params"] if param.grad is not None and param.numel()]
            for param in params:
                self._require_dense_and_real(param)
                if not self.state[param]:
                    self.state[param] = self._initial_state(param, group)
            for chosen in _partition(params, group["foreach"]):
                yield Bucket(
                    params=chosen,
                    grads=[gradient(param, group) for param in chosen],
                    states=[self.state[param] for param in chosen],
                    options=group,
                )

    def _require_dense_and_real(self, param: Tensor) -> None:
        name = type(self).__name__
        if param.grad is not None and param.grad.layout is not torch.strided:
            raise RuntimeError(f"{name} does not support sparse gradients, got one of layout {param.grad.layout}")
        if param.is_complex():
            raise RuntimeError(f"{name} does not support complex parameters, got one of {param.dtype}")

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load a state, each tensor in the dtype it was saved in; torch alone would cast it to its parameter's."""
        given: dict[str, Any] = {}

        def set_aside(_: Optimizer, loaded: dict[str, Any]) -> dict[str, Any]:
            given.update(loaded)
            return {**loaded, "state": {}}

        def put_back(_: Optimizer) -> None:
            keys = chain.from_iterable(group["params"] for group in given["param_groups"])
            params = chain.from_iterable(group["params"] for group in self.param_groups)
            for key, param in zip(keys, params, strict=True):
                if key in given["state"]:
                    self.state[param] = {name: _beside(param, name, value) for name, value in given["state"][key].items()}

        # After every hook that may change what is loaded, before every hook that may look at what was.
        hooks = (self.register_load_state_dict_pre_hook(set_aside), self.register_load_state_dict_post_hook(put_back, prepend=True))
        try:
            super().load_state_dict(state_dict)
        finally:
            for hook in hooks:
                hook.remove()


def require_not_negative(values: Mapping[str, float]) -> None:
    """ValueError for the first value below 0."""
    for name, value in values.items():
        if not value >= 0.0:
            raise ValueError(f"Invalid {name}: {value}, must be >= 0")


def require_fraction(values: Mapping[str, float]) -> None:
    """ValueError for the first value outside [0, 1)."""
    for name, value in values.items():
        if not 0.0 <= value < 1.0:
            raise ValueError(f"Invalid {name}: {value}, must be in [0, 1)")


def require_betas(betas: tuple[float, float]) -> None:
    """ValueError for the first decay rate outside [0, 1)."""
    require_fraction({f"beta parameter at index {index}": beta for index, beta in enumerate(betas)})


def gradient(param: Tensor, options: Options) -> Tensor:
    """The direction to descend: the gradient, or its negative in a new tensor under `maximize`."""
    assert param.grad is not None
    return -param.grad if options["maximize"] else param.grad


def _beside(param: Tensor, name: str, value: Any) -> Any:
    """A loaded state on the device of its parameter; step counts stay on the host, as in torch."""
    return value.to(param.device) if isinstance(value, Tensor) and name != "step" else value


def _partition(params: list[Tensor], foreach: bool | None) -> Iterator[list[Tensor]]:
    if foreach is None:
        foreach = all(param.is_cuda and type(param) in (Tensor, torch.nn.Parameter) for param in params)
    if not foreach:
        yield from ([param] for param in params)
        return
    alike: defaultdict[tuple[torch.device, torch.dtype], list[Tensor]] = defaultdict(list)
    for param in params:
        alike[param.device, param.dtype].append(param)
    for tensors in alike.values():
        yield from _fill(tensors)


def _fill(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """The tensors in order, in lists of together at most as many elements as the largest of all."""
    room = max(tensor.numel() for tensor in tensors)
    held, taken = [], 0
    for tensor in tensors:
        if taken + tensor.numel() > room:
            yield held
            held, taken = [], 0
        held.append(tensor)
        taken += tensor.numel()
    yield held
