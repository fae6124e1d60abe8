"""Multi-tensor stepping: what our optimizers share, so that each of their files is only its rule.

A rule is written once, over a bucket of tensors. The loop passes one tensor at a time. Foreach
passes parameters of one device and dtype, together no larger than the largest of them, so that an
update's temporaries never outgrow the loop's. `ways` has the table of what runs each way.
"""

# pyright: reportPrivateImportUsage=false

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from . import fused, ways
from .bucket import Bucket, Options, State, to_device
from .loading import Loading, Shapes, lasting
from .sharded import local, placed_like, sharding


class MultiTensorOptimizer(Loading):
    """An optimizer with its options in its parameter groups and an update over buckets.

    A learning rate may be a tensor of one element, in every way. A complex parameter and its state
    are updated as the real view of torch.view_as_real. `foreach=None` is settled as torch settles
    it. A CUDA graph can hold a step that does not count steps on the host: `capturable` counts them
    on the device. There is no `differentiable`.
    """

    takes_sparse = False
    # An update that does not read a tensor's axes can be given every tensor flat.
    sees_axes = False
    # The module of its kernels in `cuda`.
    kernels = ""
    # For torch's optimizers fused=False chooses the loop; for ours it leaves foreach open.
    ignores_unfused = True

    def __init__(self, params: ParamsT, defaults: Options) -> None:
        chosen = [f"{way}=True" for way in ("compiled", "foreach", "fused") if defaults.get(way)]
        if len(chosen) > 1:
            raise ValueError(
                f"{' and '.join(chosen)} are {'two' if len(chosen) == 2 else 'three'} ways to run"
                " one step; leave one in"
            )
        super().__init__(params, defaults)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; RuntimeError if it is fused and a parameter's device has no kernel."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        if not group.get("fused"):
            return
        try:
            for device in {param.device for param in group["params"]}:
                fused.require_kernels(self, device)
        except RuntimeError:
            self.param_groups.pop()
            raise

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Restore a pickle; an older one gets the defaults of the options that it does not have."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _initial_state(self, param: Tensor, options: Options) -> State:
        """Return the state of a parameter at its first gradient.

        Reads nothing but the options, the parameter's layout and whether its gradient is sparse.
        """
        raise NotImplementedError

    def _shapes(self, param: Tensor, options: Options) -> Shapes:
        """Return the shapes of an initial state; override this if steps add tensors later."""
        state = self._initial_state(torch.empty_like(param, device="meta"), options)
        return {name: value.shape for name, value in state.items()}

    def _state_dtype(self, name: str, param: Tensor) -> torch.dtype:
        """Return the parameter's dtype for a momentum buffer, float32 or wider for other states."""
        return (
            param.dtype
            if name == "momentum_buffer"
            else torch.promote_types(param.dtype, torch.float32)
        )

    def _prepare(self, bucket: Bucket) -> Bucket:
        """Do the host's part before an update, such as counting steps."""
        return bucket

    def _update(self, bucket: Bucket) -> None:
        """Update a bucket's parameters and states in place.

        Reads nothing but the bucket, so that one compilation serves all instances.
        """
        raise NotImplementedError

    def _fits_kernel(self, param: Tensor, state: State) -> bool:
        """Return whether a state has the shapes that the kernel needs."""
        raise NotImplementedError

    def _update_fused(self, bucket: Bucket) -> None:
        """Update parameters that fit the kernel, as `_update` does."""
        raise NotImplementedError

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update every parameter that has a gradient; return what `closure` returned.

        The closure is called once, with gradients enabled.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if _is_capturing():
            self._require_capturable()
        for bucket in self._buckets():
            with lasting():
                prepared = self._prepare(bucket)
            ways.RUNNERS[ways.chosen_way(prepared.options) or "loop"](self, prepared)
        return loss

    def _require_capturable(self) -> None:
        """Raise RuntimeError if the replays of a CUDA graph would not be steps."""
        owner = type(self).__name__
        for group in self.param_groups:
            for param in group["params"]:
                if param.grad is None or not param.numel():
                    continue
                state = self.state.get(param, {})
                required = self._required(as_real(param.detach()), group, state.keys())
                if "step" in required and not group.get("capturable"):
                    raise RuntimeError(
                        f"a CUDA graph cannot hold a step of this {owner}, which counts its steps"
                        " on the host; create it with capturable=True"
                    )
                if not required <= state.keys() or (
                    "step" in required and state["step"].device != param.device
                ):
                    raise RuntimeError(
                        f"a CUDA graph cannot hold the first step of {owner}, which makes the"
                        " state; take a step before you capture one"
                    )

    def _counted(self, bucket: Bucket, rules: Mapping[str, Callable[[Any], Any]]) -> Bucket:
        """Count a step of every parameter, and return the bucket with numbers of the counts.

        A rule returns its number of a count, a float. With `capturable`, and in a step that is
        compiled as a whole, counts and numbers are float64 tensors.
        """
        on_device = bool(bucket.options.get("capturable"))
        for param, state in zip(bucket.params, bucket.states, strict=True):
            # Otherwise on the host, as in torch's Adam: every step reads the value and must not
            # wait for the device.
            device = param.device if on_device else torch.device("cpu")
            if "step" not in state:
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
            elif state["step"].device != device:
                # The option has changed since the last step.
                state["step"] = to_device(state["step"], device)
        counts = bucket.state("step")
        torch._foreach_add_(counts, 1.0)
        if on_device:
            # All at once: a launch for each parameter would take longer than the update.
            stacked = torch.stack(counts).double()
            numbers: Any = {name: [*rule(stacked).unbind()] for name, rule in rules.items()}
        else:
            steps = [
                count.double() if torch.compiler.is_compiling() else count.item()
                for count in counts
            ]
            numbers = {name: [rule(step) for step in steps] for name, rule in rules.items()}
        return replace(bucket, numbers=numbers)

    def _buckets(self) -> Iterator[Bucket]:
        sizes = [
            local(param).numel()
            for group in self.param_groups
            for param in group["params"]
            if param.grad is not None
        ]
        largest = max(sizes, default=0)
        for group in self.param_groups:
            # An empty parameter has nothing to update, and reductions over it would fail.
            params = [
                param for param in group["params"] if param.grad is not None and param.numel()
            ]
            for param in params:
                self._require_supported_layout(param)
                if not self.state[param]:
                    with lasting():
                        self.state[param] = self._initial_state(as_real(param), group)
            for chosen in self._partition(params, group):
                yield Bucket(
                    params=[as_real(param) for param in chosen],
                    grads=[_direction(param, group) for param in chosen],
                    states=[self.state[param] for param in chosen],
                    options={**group, "lr": _scalar(group["lr"], chosen[0].device)},
                    largest=largest,
                )

    def _require_supported_layout(self, param: Tensor) -> None:
        assert param.grad is not None
        if param.grad.layout is not torch.strided and not (
            self.takes_sparse and param.grad.is_sparse
        ):
            raise RuntimeError(
                f"{type(self).__name__} does not support sparse gradients, got one of layout"
                f" {param.grad.layout}"
            )

    def _partition(self, params: list[Tensor], group: Options) -> Iterator[list[Tensor]]:
        """Yield the lists of parameters to update together."""
        sparse = [param for param in params if param.grad is not None and param.grad.is_sparse]
        dense = [param for param in params if param.grad is not None and not param.grad.is_sparse]
        yield from ([param] for param in sparse)
        way = ways.way_of_group(self, {**group, "params": dense})
        if way == "compiled":
            # The largest first: compiled code is tuned to the first tensor that it sees.
            dense.sort(key=Tensor.numel, reverse=True)
        if way in ("loop", "compiled"):
            yield from ([param] for param in dense)
            return
        alike: defaultdict[tuple[Hashable, ...], list[Tensor]] = defaultdict(list)
        for param in dense:
            kind = torch.nn.Parameter if type(param) is Tensor else type(param)
            # The norms of shards are reduced together if they are sharded alike.
            alike[kind, param.device, param.dtype, *sharding(param)].append(param)
        for tensors in alike.values():
            # A fused update has no temporaries to keep small.
            yield from [tensors] if way == "fused" else _filled(tensors)


def _is_capturing() -> bool:
    """Return whether a CUDA graph is being captured."""
    return (
        not torch.compiler.is_compiling()
        and torch.cuda.is_available()
        and torch.cuda.is_current_stream_capturing()
    )


def as_real(tensor: Tensor) -> Tensor:
    """Return a complex tensor as a real view with a further axis of two, any other unchanged."""
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _direction(param: Tensor, options: Options) -> Tensor:
    """Return the real gradient, or its negative in a new tensor under `maximize`.

    A gradient that is sharded unlike its parameter, as an embedding's may be under tensor
    parallelism, is redistributed.
    """
    assert param.grad is not None
    return as_real(placed_like(-param.grad if options["maximize"] else param.grad, param))


def _scalar(value: float | Tensor, device: torch.device) -> float | Tensor:
    return to_device(value.reshape(()), device) if isinstance(value, Tensor) else value


def _filled(tensors: list[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the tensors in order, in lists of at most as many elements as the largest has."""
    limit = max(tensor.numel() for tensor in tensors)
    bucket, count = [], 0
    for tensor in tensors:
        if count + tensor.numel() > limit:
            yield bucket
            bucket, count = [], 0
        bucket.append(tensor)
        count += tensor.numel()
    yield bucket
