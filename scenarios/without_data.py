"""Models built without data, in code that builds other things with data.

`torch.device("meta")` takes the data of masks, packed lengths and DataLoader batches too. Here what
is made inside the `__init__` of a module is without data, unless it is small: small tables are
often read while a model is built, as the rates of `torch.linspace(0, 0.1, depth)` are. Elsewhere
only what is very large has none.
"""

import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import torch
from torch.nn.parameter import is_lazy
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import is_traceable_wrapper_subclass
from torch.utils._pytree import tree_leaves, tree_map_only

# Elements of a tensor that keeps its data inside `__init__`, and of one of whole numbers.
_SMALL, _SMALL_WHOLE = 1 << 12, 1 << 16
# Elements of a tensor that has data elsewhere: nobody reads so many, and a simulated batch may be
# large.
_LARGE = 1 << 24
# They write random numbers, of which a tensor without data keeps none; on "meta" torch is slow to
# do nothing.
_FILLS = frozenset(("normal_", "uniform_", "trunc_normal_"))
# They are given their data, which exists already.
_FROM_DATA = ("tensor", "as_tensor", "asarray", "nested_tensor")

# The assignment to `tensor.data`.
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__

_HOLDERS = torch.Tensor, dict, list, tuple, set


class ModulesOn(TorchFunctionMode):
    """Inside, tensors that a module makes in its `__init__` are on `device`, unless it asks for
    another.

    On "meta" small ones keep their data. Operations on both kinds are run without data.
    """

    def __init__(self, device: str) -> None:
        super().__init__()
        self._device = device
        self._outermost = sys._getframe(1)
        self._constructors = {func for func in _device_constructors() if not _has_data(func)}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in self._constructors and self._decides(kwargs):
            return self._made(
                func, args, kwargs, in_init=_in_init(sys._getframe(1), self._outermost)
            )
        if (
            getattr(func, "__name__", "") in _FILLS
            and isinstance(filled := args[0] if args else kwargs.get("tensor"), torch.Tensor)
            and filled.is_meta
        ):
            return filled
        try:
            return func(*args, **kwargs)
        except (RuntimeError, TypeError) as error:
            if not is_for_want_of_data(error) or not _is_mixed(args, kwargs):
                raise
            if func is _SET_DATA and not args[0].is_meta:
                # What has data keeps it, whatever a copy of it is given.
                raise
            args, kwargs = tree_map_only(torch.Tensor, _without_data, (args, kwargs))
            return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: Any, *, in_init: bool) -> torch.Tensor:
        if self._device != "meta":
            return func(*args, **({**kwargs, "device": self._device} if in_init else kwargs))
        made = func(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs) if _keeps_data(made, in_init=in_init) else made

    def _decides(self, kwargs: Any) -> bool:
        # A generator belongs to its device.
        return all(kwargs.get(name) is None for name in ("device", "out", "generator"))


def is_for_want_of_data(error: Exception) -> bool:
    """Return whether an error comes from a tensor without data: torch names "meta" in all but
    two.
    """
    text = str(error)
    return (
        "meta" in text.lower()
        or "Tensor.__format__" in text
        or "have incompatible tensor type" in text
    )


def replace_tensors(model: torch.nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Put `twin(tensor)` in the place of each tensor of the model that has data.

    Each stays the same object, so that tied weights stay tied and lists of parameters hold what the
    model holds. Modules' parameters, buffers and attributes are replaced, those in containers too.
    """
    # Recurrent modules hold weak references to their weights, which stand in the way of a swap.
    recurrent = [module for module in model.modules() if isinstance(module, torch.nn.RNNBase)]
    for module in recurrent:
        module._flat_weight_refs = []
    for tensor in _tensors_of(model):
        # The data goes on in an object of its own.
        held = tensor.detach()
        made = twin(held)
        if made is held:
            continue
        if isinstance(tensor, torch.nn.Parameter) and not isinstance(made, torch.nn.Parameter):
            made = torch.nn.Parameter(made, requires_grad=tensor.requires_grad)
            if not is_traceable_wrapper_subclass(tensor):
                made.__class__ = type(tensor)
        vars(made).update(
            {name: value for name, value in vars(tensor).items() if name not in vars(made)}
        )
        _swap(model, tensor, made)
    for module in recurrent:
        module._init_flat_weights()


def _swap(model: torch.nn.Module, tensor: torch.Tensor, made: torch.Tensor) -> None:
    try:
        torch.utils.swap_tensors(tensor, made)
    except RuntimeError:
        # One that something refers to weakly cannot be swapped.
        for module in model.modules():
            places: tuple[Any, ...] = (module._parameters, module._buffers, vars(module))
            for held in places:
                held.update({name: made for name, value in held.items() if value is tensor})


def _tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Every tensor with data that a module holds, each once; parameters without a shape have
    none.
    """
    found: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    held = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, _HOLDERS)
    ]
    for tensor in _tensors_in(held, seen):
        if not tensor.is_meta and not is_lazy(tensor):
            found[id(tensor)] = tensor
    return list(found.values())


def _tensors_in(value: Any, seen: set[int]) -> Iterator[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif value and id(value) not in seen:
        seen.add(id(value))
        for item in value.values() if isinstance(value, dict) else value:
            if isinstance(item, _HOLDERS):
                yield from _tensors_in(item, seen)


def _has_data(func: Any) -> bool:
    name = func.__name__
    return name in _FROM_DATA or name.startswith("sparse_")


def _in_init(frame: FrameType | None, outermost: FrameType) -> bool:
    """Return whether a module's `__init__` is among the callers, up to the outermost frame."""
    while frame is not None and frame is not outermost:
        code = frame.f_code
        if (
            code.co_name == "__init__"
            and code.co_argcount
            and isinstance(frame.f_locals[code.co_varnames[0]], torch.nn.Module)
        ):
            return True
        frame = frame.f_back
    return False


def _keeps_data(tensor: torch.Tensor, *, in_init: bool) -> bool:
    if not in_init:
        return tensor.numel() <= _LARGE
    # A lazy parameter begins without elements, and grows on its device.
    return (
        0
        < tensor.numel()
        <= (_SMALL if tensor.is_floating_point() or tensor.is_complex() else _SMALL_WHOLE)
    )


def _is_mixed(args: Any, kwargs: Any) -> bool:
    kinds = {leaf.is_meta for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)}
    return len(kinds) == 2


def _without_data(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.to("meta")
