"""A cache of operations on meta tensors, which run once for each combination of shapes.

Models repeat their layers, and optimizers their parameters. torch needs up to half a millisecond to
derive the shape of an output; making a tensor of a known shape takes microseconds.
"""

from typing import Any

import torch

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]


class MetaCache:
    """Runs operations and remembers the layouts of their outputs."""

    def __init__(self) -> None:
        self._made: dict[Any, tuple[type | None, list[_Layout]]] = {}
        self._written: set[Any] = set()
        self._kinds: dict[int, tuple[bool, bool, bool]] = {}

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Return what `func` returns for these arguments, possibly without running it."""
        # By id: hashing an operation takes longer, and operations live as long as torch does.
        kind = self._kinds.get(id(func))
        if kind is None:
            kind = self._kinds[id(func)] = (
                _makes_its_outputs(func),
                _only_writes(func),
                _fills_out(func),
            )
        makes, writes, fills = kind
        if not makes and not writes and not fills:
            return func(*args, **kwargs)
        try:
            key = (id(func), _key(args), *((name, _key(value)) for name, value in kwargs.items()))
        except _NotCacheableError:
            return func(*args, **kwargs)
        if key in self._written:
            return kwargs["out"] if fills else args[0] if func._schema.returns else None
        if key in self._made:
            container, layouts = self._made[key]
            tensors = [
                torch.empty_strided(shape, stride, dtype=dtype, device="meta")
                for shape, stride, dtype in layouts
            ]
            return tensors[0] if container is None else container(tensors)
        result = func(*args, **kwargs)
        if writes or fills:
            # An `out` of the wrong shape was resized, and no longer matches the key.
            if writes or key[-1] == ("out", _key(kwargs["out"])):
                self._written.add(key)
        else:
            self._remember(key, result)
        return result

    def _remember(self, key: Any, result: Any) -> None:
        outputs = [result] if isinstance(result, torch.Tensor) else result
        if type(outputs) in (list, tuple) and all(map(_is_fresh, outputs)):
            container = None if isinstance(result, torch.Tensor) else type(result)
            self._made[key] = (
                container,
                [(output.shape, output.stride(), output.dtype) for output in outputs],
            )


class _NotCacheableError(Exception):
    """An argument decides more than the layouts of outputs."""


def _key(argument: Any) -> Any:
    if isinstance(argument, torch.Tensor):
        if argument.device.type != "meta":
            raise _NotCacheableError
        return argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, list | tuple):
        return tuple(map(_key, argument))
    # 1, 1.0 and True are equal but lead to different dtypes.
    return type(argument), argument


def _is_fresh(output: Any) -> bool:
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


def _makes_its_outputs(func: Any) -> bool:
    """Return whether the operation writes nothing and returns only new tensors."""
    schema = func._schema
    written = any(
        argument.alias_info is not None for argument in (*schema.arguments, *schema.returns)
    )
    return (
        func.namespace == "aten" and not written and schema.returns and schema.name not in _SHARING
    )


def _only_writes(func: Any) -> bool:
    """Return whether the operation changes only the values of its first argument."""
    schema = func._schema
    if func.namespace != "aten" or torch.Tag.inplace_view in func.tags or schema.name in _RESIZING:
        return False
    written = [
        argument.alias_info is not None and argument.alias_info.is_write
        for argument in schema.arguments
    ]
    return (
        written[:1] == [True]
        and not any(written[1:])
        and schema.name.endswith("_")
        and len(schema.returns) <= 1
    )


def _fills_out(func: Any) -> bool:
    """Return whether the operation writes its `out` argument and nothing else."""
    schema = func._schema
    written = [
        argument.name
        for argument in schema.arguments
        if argument.alias_info is not None and argument.alias_info.is_write
    ]
    return (
        func.namespace == "aten"
        and written == ["out"]
        and schema.arguments[-1].name == "out"
        and len(schema.returns) == 1
    )


# They return their argument's storage, but their schema does not say so.
_SHARING = {"aten::_unsafe_view", "aten::_reshape_alias", "aten::lift_fresh", "aten::lift"}
_RESIZING = {"aten::resize_", "aten::resize_as_", "aten::set_"}
