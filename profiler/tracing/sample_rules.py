"""Rules by which an operation makes the sampled numbers of its outputs from its operands'.

A tensor has a row of at most eight numbers for each of sixteen imagined trainings (samples.py).
"""

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRAININGS = 16
# Followed numbers of a tensor; of smaller tensors all are followed.
MOST = 8

aten = torch.ops.aten


class Operand(NamedTuple):
    """A tensor as an operation sees it: the value of its storage, and its number of elements.

    `places` are the tensor's elements in a short storage, None for all in order.
    """

    value: "Value"
    numel: int
    places: Tensor | None = None

    def numbers(self) -> Tensor:
        """Return the followed numbers, a row for each training."""
        assert self.value.numbers is not None
        return (
            sampled(self.value.numbers, self.numel)
            if self.places is None
            else self.value.numbers[:, self.places]
        )


class Value:
    """The numbers of a storage after one operation; without one, a parameter's or a gradient's.

    They are computed when something reads them; until then the operation's arguments are kept.
    """

    __slots__ = ("args", "dtype", "func", "kwargs", "numbers", "numel", "place")

    def __init__(
        self,
        numel: int,
        dtype: torch.dtype,
        func: Any = None,
        args: Any = (),
        kwargs: Any = None,
        place: int = 0,
    ) -> None:
        self.numel = numel
        self.dtype = dtype
        self.func = func
        self.args = args
        self.kwargs: Mapping[str, Any] = kwargs or {}
        self.place = place
        self.numbers: Tensor | None = None

    @property
    def count(self) -> int:
        """Number of followed numbers."""
        return max(1, min(self.numel, MOST))

    def operands(self) -> list[Operand]:
        """Return the tensors among the operation's arguments, in lists too."""
        operands = []
        for arg in (*self.args, *self.kwargs.values()):
            members = arg if isinstance(arg, list) else (arg,)
            operands += [member for member in members if isinstance(member, Operand)]
        return operands


def of_kind(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the numbers in the widest dtype of their kind: float64, int64 or bool."""
    if dtype == torch.bool:
        return numbers != 0
    if numbers.is_complex():
        numbers = numbers.real
    whole = not (dtype.is_floating_point or dtype.is_complex)
    return (
        numbers.nan_to_num().to(torch.int64)
        if whole and numbers.is_floating_point()
        else numbers.to(torch.int64 if whole else torch.float64)
    )


def sampled(numbers: Tensor, numel: int) -> Tensor:
    """Return as many of the numbers as are followed of a tensor with `numel` elements.

    Each training chooses others, so that a tensor of different numbers does not seem constant.
    """
    count, width = max(1, min(numel, MOST)), numbers.shape[-1]
    if numbers.shape[0] != TRAININGS:
        numbers = numbers.expand(TRAININGS, -1)
    if width == count:
        return numbers
    first = (
        torch.arange(TRAININGS)[:, None]
        if count < width
        else torch.zeros(TRAININGS, 1, dtype=torch.int64)
    )
    return numbers.gather(1, (first + torch.arange(count)) % width)


# A rule returns the numbers of an operation's output, or None if they are unknown.
Rule = Callable[[Value], Tensor | None]
WRITTEN = object()


def _numbers_of(arg: Any, count: int) -> Any:
    return (
        sampled(arg.numbers(), 1 if arg.numel == 1 else count) if isinstance(arg, Operand) else arg
    )


def _partly_written(value: Value) -> Tensor:
    """Return the numbers of a storage after a part of it was written."""
    new, old, places = value.args
    if places is None:
        return torch.cat([sampled(operand.numbers(), MOST // 2) for operand in (new, old)], 1)
    numbers = old.numbers().clone()
    numbers[:, places] = new.numbers()
    return numbers


def _elementwise(value: Value) -> Tensor:
    """Run the operation on the numbers themselves."""
    name, args = _name(value.func), value.args
    kwargs = {
        key: arg
        for key, arg in value.kwargs.items()
        if key not in ("out", "dtype", "device", "layout")
    }
    if name in ("addcmul", "addcdiv") and len(args) > 3:
        # Operations on lists take the factor by position.
        args, kwargs = args[:3], {"value": args[3]}
    arguments = [_numbers_of(arg, value.count) for arg in args]
    return getattr(aten, name)(
        *arguments, **{key: _numbers_of(arg, value.count) for key, arg in kwargs.items()}
    )


def _passed(value: Value) -> Tensor | None:
    """Return the numbers of the first operand, or of the second if the first is written."""
    place = 1 if _name(value.func) == "copy" else 0
    source = value.args[place]
    if value.place:
        # The indices of a sort.
        return None
    return _mixed(value) if isinstance(source, list) else _numbers_of(source, value.count)


def _mixed(value: Value) -> Tensor:
    """Return some numbers of each tensor in a list."""
    return torch.cat([member.numbers() for member in value.args[0][:MOST]], 1)


def _constant(value: Value) -> Tensor | None:
    name = _name(value.func).removeprefix("new_").removesuffix("_like")
    if name in ("zeros", "zero", "ones"):
        return torch.full((1, 1), float(name == "ones"))
    fill = value.args[0] if name == "scalar_tensor" else value.args[1]
    return _numbers_of(fill, 1) if isinstance(fill, Operand) else torch.full((1, 1), fill)


def _reduced(value: Value) -> Tensor | None:
    """Return the reduction of all followed numbers, for every element of the output."""
    name, args = _name(value.func), value.args
    operand = args[0]
    numbers = operand.numbers()
    # The number of reduced elements that one followed number stands for.
    share = operand.numel / max(1, value.numel) / numbers.shape[1]
    if name in ("norm", "linalg_vector_norm"):
        order = args[1] if len(args) > 1 and args[1] is not None else value.kwargs.get("ord", 2)
        return torch.linalg.vector_norm(numbers, order, -1, keepdim=True) * share ** (1 / order)
    if value.place:
        # The indices of the largest.
        return None
    reduced = _REDUCTIONS[name](numbers)[:, None]
    if name not in ("sum", "nansum"):
        return reduced
    return reduced * share if value.dtype.is_floating_point else (reduced * share).round()


_REDUCTIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda x: x.sum(-1),
    "nansum": lambda x: x.nansum(-1),
    "mean": lambda x: x.mean(-1),
    "prod": lambda x: x.prod(-1),
    "max": lambda x: x.amax(-1),
    "amax": lambda x: x.amax(-1),
    "min": lambda x: x.amin(-1),
    "amin": lambda x: x.amin(-1),
    "any": lambda x: x.any(-1),
    "all": lambda x: x.all(-1),
    "var": lambda x: x.var(-1, correction=0),
    "std": lambda x: x.std(-1, correction=0),
    "median": lambda x: x.median(-1)[0],
    "kthvalue": lambda x: x.median(-1)[0],
}


def _dot(value: Value) -> Tensor:
    first, second = (operand.numbers() for operand in value.args[:2])
    share = value.args[0].numel / first.shape[1]
    return (first * second).sum(-1, keepdim=True) * share


def _product(value: Value) -> Tensor:
    """Return products of numbers of both factors, at different places, for a matrix product."""
    bias = (
        []
        if _name(value.func) in ("mm", "bmm", "mv")
        else [_numbers_of(value.args[0], value.count)]
    )
    first, second = (
        _numbers_of(operand, MOST) for operand in value.args[len(bias) : len(bias) + 2]
    )
    return sum(bias, sampled(first * second.roll(1, 1), value.count))


def _uniform(value: Value) -> Tensor:
    generator = torch.Generator().manual_seed(value.numel)
    return torch.rand(TRAININGS, value.count, generator=generator, dtype=torch.float64)


def _decomposed(value: Value) -> Tensor | None:
    """Return singular values or eigenvalues, which are positive in optimizers' decompositions."""
    if value.place != (1 if "svd" in _name(value.func) else 0):
        return None
    numbers = _numbers_of(value.args[0], value.count)
    return numbers.abs()


_RULES: Mapping[Rule, tuple[str, ...]] = {
    _passed: (
        "copy", "_to_copy", "clone", "lift_fresh", "cat", "stack", "index_select", "gather",
        "index", "flip", "roll", "repeat", "sort", "topk", "take", "view_copy", "expand_copy",
    ),
    _constant: (
        "zeros", "zeros_like", "new_zeros", "zero", "ones", "ones_like", "new_ones", "full",
        "full_like", "new_full", "fill", "scalar_tensor",
    ),
    _reduced: ("norm", "linalg_vector_norm", *_REDUCTIONS),
    _dot: ("dot", "vdot"),
    _product: ("mm", "bmm", "mv", "addmm", "baddbmm", "addmv"),
    _elementwise: ("bitwise_and", "bitwise_or"),
    _uniform: ("rand", "rand_like", "uniform"),
    _decomposed: ("_linalg_svd", "_linalg_eigh"),
}  # fmt: skip
_BY_NAME: Mapping[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names}
_OPERATORS = {
    "__iand__": "bitwise_and",
    "__and__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__or__": "bitwise_or",
}


def _name(func: Any) -> str:
    """Return an operation's name without the marks of in-place and multi-tensor variants."""
    name = func._schema.name.removeprefix("aten::")
    return _OPERATORS.get(name) or name.removeprefix("_foreach_").removesuffix("_")


@cache
def rule_of(func: Any) -> Rule | None:
    """Return the rule that makes an operation's numbers, or None if they are unknown."""
    if func is None:
        return None
    if func is WRITTEN:
        return _partly_written
    rule = _BY_NAME.get(_name(func)) if func.namespace == "aten" else None
    if rule is None and (torch.Tag.pointwise in func.tags or "_foreach_" in func._schema.name):
        return _elementwise
    return rule
