"""Numbers of a traced tensor, and how each operation makes those of its outputs from its operands'.

A tensor has a row of at most eight numbers for each of sixteen trainings (`samples`).
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

TRAININGS = 16
# Numbers of a tensor that are followed; of smaller tensors all are.
MOST = 8

aten = torch.ops.aten


class Operand(NamedTuple):
    """A tensor as an operation sees it: the value of its storage, and how many numbers it looks at;
    of a short storage also which.
    """

    value: "Value"
    numel: int
    places: Tensor | None = None

    def numbers(self) -> Tensor:
        """The numbers that are followed, a row for each training."""
        assert self.value.numbers is not None
        return (
            sampled(self.value.numbers, self.numel)
            if self.places is None
            else self.value.numbers[:, self.places]
        )


class Value:
    """The numbers of a storage as one operation left them; without an operation, a parameter's or a
    gradient's.
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
        """Numbers that are followed."""
        return max(1, min(self.numel, MOST))

    def operands(self) -> list[Operand]:
        """The tensors that the operation was given, in lists too."""
        found = []
        for arg in (*self.args, *self.kwargs.values()):
            members = arg if isinstance(arg, list) else (arg,)
            found += [member for member in members if isinstance(member, Operand)]
        return found


def of_kind(numbers: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers as the widest dtype of their kind: float64, int64 or bool."""
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
    """As many of the numbers as are followed of a tensor with `numel`.

    Trainings choose others, so that a tensor whose numbers are not alike is not taken for one of
    them.
    """
    count, there = max(1, min(numel, MOST)), numbers.shape[-1]
    if numbers.shape[0] != TRAININGS:
        numbers = numbers.expand(TRAININGS, -1)
    if there == count:
        return numbers
    first = (
        torch.arange(TRAININGS)[:, None]
        if count < there
        else torch.zeros(TRAININGS, 1, dtype=torch.int64)
    )
    return numbers.gather(1, (first + torch.arange(count)) % there)


# The rules: how an operation makes the numbers of its output.

Rule = Callable[[Value], Tensor | None]
WRITTEN = object()


def _numbers_of(arg: Any, count: int) -> Any:
    return (
        sampled(arg.numbers(), 1 if arg.numel == 1 else count) if isinstance(arg, Operand) else arg
    )


def _partly_written(value: Value) -> Tensor:
    """The numbers of a storage of which a part was written."""
    new, old, places = value.args
    if places is None:
        return torch.cat([sampled(operand.numbers(), MOST // 2) for operand in (new, old)], 1)
    numbers = old.numbers().clone()
    numbers[:, places] = new.numbers()
    return numbers


def _elementwise(value: Value) -> Tensor:
    """The operation on the numbers themselves."""
    name = _name(value.func)
    args, kwargs = (
        value.args,
        {
            name: arg
            for name, arg in value.kwargs.items()
            if name not in ("out", "dtype", "device", "layout")
        },
    )
    if name in ("addcmul", "addcdiv") and len(args) > 3:
        # Lists of tensors are given the factor by its place.
        args, kwargs = args[:3], {"value": args[3]}
    arguments = [_numbers_of(arg, value.count) for arg in args]
    return getattr(aten, name)(
        *arguments, **{name: _numbers_of(arg, value.count) for name, arg in kwargs.items()}
    )


def _passed(value: Value) -> Tensor | None:
    """The numbers of the first operand, or of the second where the first is written."""
    place = 1 if _name(value.func) == "copy" else 0
    source = value.args[place]
    if value.place:
        # The places that a sort has found.
        return None
    return _mixed(value) if isinstance(source, list) else _numbers_of(source, value.count)


def _mixed(value: Value) -> Tensor:
    """Some numbers of each member of a list."""
    return torch.cat([member.numbers() for member in value.args[0][:MOST]], 1)


def _constant(value: Value) -> Tensor | None:
    name = _name(value.func).removeprefix("new_").removesuffix("_like")
    if name in ("zeros", "zero", "ones"):
        return torch.full((1, 1), float(name == "ones"))
    fill = value.args[0] if name == "scalar_tensor" else value.args[1]
    return _numbers_of(fill, 1) if isinstance(fill, Operand) else torch.full((1, 1), fill)


def _reduced(value: Value) -> Tensor | None:
    """One reduction of all the numbers, for each element of the output."""
    name, args = _name(value.func), value.args
    operand = args[0]
    numbers = operand.numbers()
    # How many numbers of the tensor one that is followed stands for.
    share = operand.numel / max(1, value.numel) / numbers.shape[1]
    if name in ("norm", "linalg_vector_norm"):
        order = args[1] if len(args) > 1 and args[1] is not None else value.kwargs.get("ord", 2)
        return torch.linalg.vector_norm(numbers, order, -1, keepdim=True) * share ** (1 / order)
    if value.place:
        # The places of the largest.
        return None
    found = _REDUCTIONS[name](numbers)[:, None]
    if name not in ("sum", "nansum"):
        return found
    return found * share if value.dtype.is_floating_point else (found * share).round()


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
    """A matrix product: numbers of both factors times each other, those of one with others of the
    second.
    """
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
    """Of a decomposition by singular or eigenvalues those, which are positive for what optimizers
    decompose.
    """
    if value.place != (1 if "svd" in _name(value.func) else 0):
        return None
    numbers = _numbers_of(value.args[0], value.count)
    return numbers.abs()


_RULES: Mapping[Rule, tuple[str, ...]] = {
    _passed: (
        "copy",
        "_to_copy",
        "clone",
        "lift_fresh",
        "cat",
        "stack",
        "index_select",
        "gather",
        "index",
        "flip",
        "roll",
        "repeat",
        "sort",
        "topk",
        "take",
        "view_copy",
        "expand_copy",
    ),
    _constant: (
        "zeros",
        "zeros_like",
        "new_zeros",
        "zero",
        "ones",
        "ones_like",
        "new_ones",
        "full",
        "full_like",
        "new_full",
        "fill",
        "scalar_tensor",
    ),
    _reduced: ("norm", "linalg_vector_norm", *_REDUCTIONS),
    _dot: ("dot", "vdot"),
    _product: ("mm", "bmm", "mv", "addmm", "baddbmm", "addmv"),
    _elementwise: ("bitwise_and", "bitwise_or"),
    _uniform: ("rand", "rand_like", "uniform"),
    _decomposed: ("_linalg_svd", "_linalg_eigh"),
}
_BY_NAME: Mapping[str, Rule] = {name: rule for rule, names in _RULES.items() for name in names}
_OPERATORS = {
    "__iand__": "bitwise_and",
    "__and__": "bitwise_and",
    "__ior__": "bitwise_or",
    "__or__": "bitwise_or",
}
_found_rules: dict[int, Rule | None] = {}


def _name(func: Any) -> str:
    """An operation's name without what says that it writes, or takes lists."""
    name = func._schema.name.removeprefix("aten::")
    return _OPERATORS.get(name) or name.removeprefix("_foreach_").removesuffix("_")


def rule_of(func: Any) -> Rule | None:
    """Return the rule that makes an operation's numbers; None where nothing is known of them."""
    if func is None:
        return None
    if func is WRITTEN:
        return _partly_written
    rule = _found_rules.get(id(func))
    if rule is None:
        rule = _BY_NAME.get(_name(func)) if func.namespace == "aten" else None
        if rule is None and (torch.Tag.pointwise in func.tags or "_foreach_" in func._schema.name):
            rule = _elementwise
        _found_rules[id(func)] = rule
    return rule
