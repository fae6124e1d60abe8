"""Build models without data, in code that builds batches and masks with data.

`torch.device("meta")` drops the data of masks, packed lengths and DataLoader batches too. Here only
tensors created in a module's `__init__` have no data, unless they are small: models often read
small tables while they are built, such as the rates of `torch.linspace(0, 0.1, depth)`. Elsewhere
only very large tensors have no data.
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

# The most elements of a tensor that keeps its data in `__init__`, and of an integer tensor.
_SMALL, _SMALL_WHOLE = 1 << 12, 1 << 16
# Elsewhere, the most elements of one with data: no code reads so many, and a simulated batch may
# be large.
_LARGE = 1 << 24
# They write random numbers, which a tensor without data does not keep. Torch is slow at that on
# "meta".
_FILLS = frozenset(("normal_", "uniform_", "trunc_normal_"))
# Their data exists already.
_FROM_DATA = ("tensor", "as_tensor", "asarray", "nested_tensor")

# The assignment to `tensor.data`.
_SET_DATA: Any = vars(torch._C.TensorBase)["data"].__set__

_HOLDERS = torch.Tensor, dict, list, tuple, set


class ModulesOn(TorchFunctionMode):
    """Put tensors that a module creates in its `__init__` on `device`, unless it names another.

    On "meta" small tensors keep their data. Operations on both kinds run without data.
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
                # A tensor with data keeps it, even if code assigns a tensor without data.
                raise
            args, kwargs = tree_map_only(torch.Tensor, _without_data, (args, kwargs))
            return func(*args, **kwargs)

    def _made(self, func: Any, args: Any, kwargs: Any, *, in_init: bool) -> torch.Tensor:
        if self._device != "meta":
            return func(*args, **({**kwargs, "device": self._device} if in_init else kwargs))
        made = func(*args, **{**kwargs, "device": "meta"})
        return func(*args, **kwargs) if _keeps_data(made, in_init=in_init) else made

    def _decides(self, kwargs: Any) -> bool:
        # A generator fixes the device.
        return all(kwargs.get(name) is None for name in ("device", "out", "generator"))


def is_for_want_of_data(error: Exception) -> bool:
    """Return whether a tensor without data caused an error; all but two name "meta"."""
    text = str(error)
    return (
        "meta" in text.lower()
        or "Tensor.__format__" in text
        or "have incompatible tensor type" in text
    )


def replace_tensors(model: torch.nn.Module, twin: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Replace each tensor of the model that has data by `twin(tensor)`.

    Each stays the same object, so tied weights stay tied and lists of parameters stay valid.
    Parameters, buffers and attributes of modules are replaced, also in containers.
    """
    # Recurrent modules hold weak references to their weights, which prevent a swap.
    recurrent = [module for module in model.modules() if isinstance(module, torch.nn.RNNBase)]
    for module in recurrent:
        module._flat_weight_refs = []
    for tensor in _tensors_of(model):
        detached = tensor.detach()
        made = twin(detached)
        if made is detached:
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
        # Weak references prevent a swap.
        for module in model.modules():
            places: tuple[Any, ...] = (module._parameters, module._buffers, vars(module))
            for place in places:
                place.update({name: made for name, value in place.items() if value is tensor})


def _tensors_of(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return every tensor with data in the model, each once; lazy parameters have no data."""
    tensors: dict[int, torch.Tensor] = {}
    seen: set[int] = set()
    values = [
        value
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, _HOLDERS)
    ]
    for tensor in _tensors_in(values, seen):
        if not tensor.is_meta and not is_lazy(tensor):
            tensors[id(tensor)] = tensor
    return list(tensors.values())


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
    """Return whether a module's `__init__` is a caller, up to the outermost frame."""
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
    # A lazy parameter starts without elements and grows on its device.
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
