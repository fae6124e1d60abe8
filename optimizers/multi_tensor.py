"""Multi-tensor stepping: what our optimizers share, so that each of their files holds only its
mathematics.

An update is written once, over lists of tensors, and run in one of three ways. The loop passes it
one tensor at a time. Foreach passes buckets: parameters of one device and dtype, together no larger
than the largest of them, so that the temporaries of an update never outgrow those of the loop.
Compiled, the update of one tensor goes through torch.compile (see `compiled`). Some have kernels
for a CPU as a fourth way (see `fused`).
"""

# pyright: reportPrivateImportUsage=false

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT, _default_to_fused_or_foreach

from . import compiled, fused
from .foreach import beside
from .lasting import lasting
from .loading import Loading
from .sharded import local

Options = dict[str, Any]
State = dict[str, Tensor]
Numbers = dict[str, list[float] | list[Tensor]]


@dataclass(frozen=True, kw_only=True)
class Bucket:
    """Parameters that are updated together, with their gradients, their states and the options of
    their group.

    The learning rate in the options is a float or a 0-dim tensor beside the parameters. `numbers`
    are those that change from step to step, one a parameter. In a compiled update all numbers are
    0-dim tensors, options but those of 0 too, so that it is not compiled anew for each. `largest`
    counts the elements of the largest parameter of the step, which temporaries are measured by; a
    compiled update, which has none, is told 0.
    """

    params: list[Tensor]
    grads: list[Tensor]
    states: list[State]
    options: Options
    numbers: Numbers = field(default_factory=dict)
    largest: int = 0

    def state(self, key: str) -> list[Tensor]:
        """One state of every parameter."""
        return [state[key] for state in self.states]

    def chosen(self, indices: list[int]) -> "Bucket":
        """The bucket of some of its parameters."""
        lists: Any = {
            name: [getattr(self, name)[index] for index in indices]
            for name in ("params", "grads", "states")
        }
        return replace(
            self,
            **lists,
            numbers={
                name: [values[index] for index in indices] for name, values in self.numbers.items()
            },
        )


class MultiTensorOptimizer(Loading):
    """An optimizer whose options live in its parameter groups and whose update takes a bucket of
    parameters.

    A learning rate may be a tensor of one element, in every way of running. A complex parameter is
    seen as the real one that torch.view_as_real gives, and so is its state. `foreach=None` is
    settled as torch settles it. There is no `capturable` and no `differentiable`: step counts stay
    on the host, and a CUDA graph cannot hold a step.
    """

    takes_sparse = False
    # Whether an update asks for the axes of a tensor; where it does not, every tensor can be passed
    # as a flat one.
    sees_axes = False

    def __init__(self, params: ParamsT, defaults: Options) -> None:
        ways = [f"{way}=True" for way in ("compiled", "foreach", "fused") if defaults.get(way)]
        if len(ways) > 1:
            raise ValueError(
                f"{' and '.join(ways)} are {'two' if len(ways) == 2 else 'three'} ways to run one"
                " step; leave one in"
            )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Take a group of parameters; RuntimeError where their step is to be fused on a device for
        which there is no kernel.
        """
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        elsewhere = [
            param.device for param in group["params"] if not (param.is_cpu or param.is_meta)
        ]
        if group.get("fused") and elsewhere:
            self.param_groups.pop()
            raise RuntimeError(
                f"fused=True: {type(self).__name__} has kernels for a CPU alone, got a parameter on"
                f" {elsewhere[0]}"
            )

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Take a state, an older one too: options that it does not know are set to their
        defaults.
        """
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _initial_state(self, param: Tensor, options: Options) -> State:
        """The state of a parameter at its first gradient."""
        raise NotImplementedError

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        """Return the parameter's dtype for a buffer of momentum, and float32 or wider for all
        else.
        """
        return (
            param.dtype
            if name == "momentum_buffer"
            else torch.promote_types(param.dtype, torch.float32)
        )

    def _prepare(self, bucket: Bucket) -> Bucket:
        """What the host does for a bucket before its update, such as counting steps."""
        return bucket

    def _update(self, bucket: Bucket) -> None:
        """Update the parameters of a bucket and their states, in place; reads nothing else, and so
        is compiled once for all instances.
        """
        raise NotImplementedError

    def _covers(self, param: Tensor, state: State) -> bool:
        """Whether a state has the shapes of a parameter's, as a kernel needs it."""
        raise NotImplementedError

    def _update_fused(self, bucket: Bucket) -> None:
        """The same by a kernel, for parameters that `fused` takes."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; what `closure`, called once with gradients
        enabled, returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for bucket in self._buckets():
            with lasting():
                prepared = self._prepare(bucket)
            if prepared.options.get("compiled") and compiled.suits(prepared):
                compiled.update(self, prepared)
            elif prepared.options.get("fused"):
                taken, others = fused.divided(self, prepared)
                if taken.params:
                    self._update_fused(taken)
                    compiled.note_changes(taken.params)
                for other in others:
                    self._update(other)
            else:
                self._update(prepared)
        return loss

    def _buckets(self) -> Iterator[Bucket]:
        sizes = [
            local(param).numel()
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        largest = max(sizes, default=0)
        for group in self.param_groups:
            # A parameter without elements has nothing to update, and no largest element or mean to
            # ask for.
            params = [
                param for param in group["params"] if param.grad is not None and param.numel()
            ]
            for param in params:
                self._require_known_layout(param)
                if not self.state[param]:
                    with lasting():
                        self.state[param] = self._initial_state(real(param), group)
            for chosen in _partition(params, group):
                yield Bucket(
                    params=[real(param) for param in chosen],
                    grads=[gradient(param, group) for param in chosen],
                    states=[self.state[param] for param in chosen],
                    options={**group, "lr": _scalar(group["lr"], chosen[0].device)},
                    largest=largest,
                )

    def _require_known_layout(self, param: Tensor) -> None:
        assert param.grad is not None
        if param.grad.layout is not torch.strided and not (
            self.takes_sparse and param.grad.is_sparse
        ):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients, got one of layout"
                f" {param.grad.layout}"
            )


def real(tensor: Tensor) -> Tensor:
    """A view of a complex tensor as a real one, with an axis of two more; any other tensor
    itself.
    """
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def gradient(param: Tensor, options: Options) -> Tensor:
    """The direction to descend, real: the gradient, or its negative in a new tensor under
    `maximize`.
    """
    assert param.grad is not None
    return real(-param.grad if options["maximize"] else param.grad)


def _scalar(value: float | Tensor, device: torch.device) -> float | Tensor:
    return beside(value.reshape(()), device) if isinstance(value, Tensor) else value


def _partition(params: list[Tensor], options: Options) -> Iterator[list[Tensor]]:
    sparse = [param for param in params if param.grad is not None and param.grad.is_sparse]
    dense = [param for param in params if param.grad is not None and not param.grad.is_sparse]
    yield from ([param] for param in sparse)
    if options.get("compiled"):
        # The largest first: what is compiled is tuned to the first tensor that it sees.
        yield from ([param] for param in sorted(dense, key=Tensor.numel, reverse=True))
        return
    # A kernel is handed all that it takes at once; fused=False leaves the choice where it was.
    together = True if options.get("fused") else options["foreach"]
    if together is None:
        _, together = _default_to_fused_or_foreach(dense, differentiable=False, use_fused=False)
    if not together:
        yield from ([param] for param in dense)
        return
    alike: defaultdict[tuple[type[Tensor], torch.device, torch.dtype], list[Tensor]] = defaultdict(
        list
    )
    for param in dense:
        kind = torch.nn.Parameter if type(param) is Tensor else type(param)
        alike[kind, param.device, param.dtype].append(param)
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
