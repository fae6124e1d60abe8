"""A cache of operations on meta tensors, which run once for each combination of shapes.

Models repeat their layers, and optimizers their parameters. torch needs up to half a millisecond to
derive the shape of an output; making a tensor of a known shape takes microseconds.
"""

from typing import Any

import torch

Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
# Their lists hold one tensor or number for each parameter.
_MULTI_TENSOR = "aten::_foreach_"


class MetaCache:
    """Runs operations and remembers the layouts of their outputs."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[type | None, list[Layout]]] = {}
        self._written: set[Any] = set()
        self._kinds: dict[int, tuple[bool, bool, bool]] = {}
        # For multi-tensor operations, the layout of one output; None if they write in place.
        self._members: dict[Any, Layout | None] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what `func` returns for these arguments, possibly without running it."""
        # By id: hashing an operation takes longer, and operations live as long as torch does.
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = _kind(func)
        makes, writes, fills = kind
        if not makes and not writes and not fills:
            return func(*args, **kwargs)
        if not fills and not kwargs and func._schema.name.startswith(_MULTI_TENSOR):
            return self._run_for_each(func, args)
        try:
            key = (id(func), _key(args), *((name, _key(value)) for name, value in kwargs.items()))
        except _NotCacheableError:
            return func(*args, **kwargs)
        if key in self._written:
            return kwargs["out"] if fills else args[0] if func._schema.returns else None
        if key in self._made:
            container, layouts = self._made[key]
            tensors = [made_as(layout) for layout in layouts]
            return tensors[0] if container is None else container(tensors)
        result = func(*args, **kwargs)
        if writes or fills:
            # An `out` of the wrong shape was resized, and no longer matches the key.
            if writes or key[-1] == ("out", _key(kwargs["out"])):
                self._written.add(key)
        else:
            self._remember(key, result)
        return result

    def _run_for_each(self, func: Any, args: Any) -> Any:
        """Run a multi-tensor operation once for each combination of layouts in its lists.

        On meta tensors it runs operations of single tensors, one after another.
        """
        lists = [arg for arg in args if isinstance(arg, list | tuple)]
        if len({len(each) for each in lists}) != 1:
            return func(*args)
        try:
            shared = tuple(_key(arg) for arg in args if not isinstance(arg, list | tuple))
            members = [map(_key, each) for each in lists]
            keys = [(id(func), shared, *key) for key in zip(*members, strict=True)]
        except _NotCacheableError:
            return func(*args)
        new = {key: place for place, key in enumerate(keys) if key not in self._members}
        if new:
            few = [
                [arg[place] for place in new.values()] if isinstance(arg, list | tuple) else arg
                for arg in args
            ]
            made = func(*few)
            if made is None:
                self._members.update(dict.fromkeys(new))
            elif all(map(is_fresh, made)):
                self._members.update(zip(new, map(fresh_layout, made), strict=True))
            else:
                return func(*args)
        layouts = [self._members[key] for key in keys]
        return (
            None if not func._schema.returns else [made_as(layout) for layout in layouts if layout]
        )

    def _remember(self, key: Any, result: Any) -> None:
        outputs = [result] if isinstance(result, torch.Tensor) else result
        if type(outputs) in (list, tuple) and all(map(is_fresh, outputs)):
            container = None if isinstance(result, torch.Tensor) else type(result)
            self._made[key] = container, [fresh_layout(output) for output in outputs]


class _NotCacheableError(Exception):
    """An argument decides more than the layouts of outputs."""


def fresh_layout(tensor: torch.Tensor) -> Layout:
    """Return what `made_as` needs to make a tensor like this one, if it is fresh."""
    return tensor.shape, tensor.stride(), tensor.dtype


def made_as(layout: Layout) -> torch.Tensor:
    """Return a new meta tensor."""
    shape, stride, dtype = layout
    return torch.empty_strided(shape, stride, dtype=dtype, device="meta")


def _key(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        if argument.device.type != "meta":
            raise _NotCacheableError
        return argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, list | tuple):
        return tuple(map(_key, argument))
    # 1, 1.0 and True are equal but lead to different dtypes.
    return type(argument), argument


def is_fresh(output: Any) -> bool:
    """Return whether the tensor fills its storage as one made by `empty_strided` does."""
    if (
        not isinstance(output, torch.Tensor)
        or output.device.type != "meta"
        or output.layout is not torch.strided
    ):
        return False
    if output.storage_offset():
        return False
    span = (
        1
        + sum(
            (size - 1) * stride for size, stride in zip(output.shape, output.stride(), strict=True)
        )
        if output.numel()
        else 0
    )
    return output.untyped_storage().nbytes() == span * output.element_size()


def _kind(func: Any) -> tuple[bool, bool, bool]:
    """Return whether an operation makes all its outputs, only writes its first argument, or `out`.

    At most one holds: it returns only new tensors and writes nothing; it changes the values of its
    first argument and nothing else; or it writes its `out` argument and nothing else.
    """
    schema = func._schema
    if func.namespace != "aten":
        return False, False, False
    arguments = schema.arguments
    has_aliases = any(value.alias_info is not None for value in (*arguments, *schema.returns))
    written = [
        place
        for place, argument in enumerate(arguments)
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    keeps_layout = torch.Tag.inplace_view not in func.tags and schema.name not in _RESIZING
    makes = not has_aliases and bool(schema.returns) and schema.name not in _SHARING
    writes = (
        written == [0] and keeps_layout and schema.name.endswith("_") and len(schema.returns) <= 1
    )
    fills = (
        written == [len(arguments) - 1] and arguments[-1].name == "out" and len(schema.returns) == 1
    )
    return makes, writes, fills


# They return their argument's storage, but their schema does not say so.
_SHARING = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh", "aten::lift"}
_RESIZING = {"aten::resize_", "aten::resize_as_", "aten::set_"}
