"""Values that a step's tensors may have: a few numbers of each, in sixteen imagined trainings.

A trace has shapes and no data, yet optimizers ask whether a parameter is zero, or a norm finite.
Every operation is remembered with its operands. When a value is read back, the operations run on a
few numbers of each tensor, in trainings whose parameters and gradients differ in size and sign. A
value on which all trainings agree is known: a step count, any(gradient), isnan(state).any(). Any
other value is that of one of the trainings, and is noted as unknown.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .layouts import data_of
from .sample_rules import MOST, TRAININGS, WRITTEN, Operand, Value, of_kind, rule_of, sampled

# In these trainings half of the numbers of a parameter or gradient are 0, as in embeddings.
_SPARSE = slice(TRAININGS // 2, None)
_MOST_OTHERS = 3
# They write random numbers into their first argument.
_RANDOM = {torch.ops.aten.normal_.default, torch.ops.aten.uniform_.default}
# The most read-backs of one step.
_MOST_READ_BACKS = 20_000


class EndlessError(Exception):
    """A program reads back too many values in one step."""


class ReadBackError(BaseException):
    """A value was read back although values are not followed.

    It is a BaseException, so that the traced program does not catch it.
    """


class Samples:
    """Follows the values of a trace's tensors and answers for one imagined training.

    `unknown` counts, for each line that reads values, the trainings in which it would read others.
    If `training` is None, values are not followed, which is faster, and a read-back raises
    ReadBackError.
    """

    def __init__(self, training: int | None = 0) -> None:
        self.training = training
        self.unknown: dict[str, Counter[int]] = {}
        self._read_backs = 0
        self._generator = torch.Generator().manual_seed(1)

    def others(self) -> list[int]:
        """Return a few trainings that read other values at every line that reads unknown ones."""
        lines, others = list(self.unknown.values()), []
        while lines and len(others) < _MOST_OTHERS:
            others.append(
                max(range(TRAININGS), key=lambda other: sum(line[other] for line in lines))
            )
            lines = [line for line in lines if others[-1] not in line]
        return others

    def note(self, func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Any]) -> None:
        """Remember how an operation made or wrote its meta tensors."""
        written = None if self.training is None else _written(func)
        if written is None:
            # A view shares its operand's storage, whose value is unchanged.
            return
        changed = _written_tensors(written, args, kwargs) if written else outputs
        if not any(isinstance(tensor, Tensor) and tensor.is_meta for tensor in changed):
            return
        operands = tuple(map(_operand, args))
        named = {name: _operand(value) for name, value in kwargs.items()}
        is_multi_tensor = func._schema.name.startswith("aten::_foreach_")
        for place, tensor in enumerate(changed):
            if not isinstance(tensor, Tensor) or not tensor.is_meta:
                continue
            if is_multi_tensor:
                value = Value(
                    tensor.numel(),
                    tensor.dtype,
                    func,
                    tuple(_member(arg, place) for arg in operands),
                    {name: _member(arg, place) for name, arg in named.items()},
                )
            else:
                value = Value(tensor.numel(), tensor.dtype, func, operands, named, place)
            _remember(tensor, value, bool(written))

    def renew(self, tensor: Tensor) -> None:
        """Give a tensor new values, as to a gradient that is computed again."""
        storage: Any = data_of(tensor)[-1].untyped_storage()
        storage._sampled = None
        self._read_backs = 0

    def settle(self, tensor: Tensor) -> None:
        """Treat a parameter that was written as a trained one with values of its own."""
        if _value_of(tensor).func is not None:
            self.renew(tensor)

    def read(self, tensor: Tensor, line: Callable[[], str]) -> Any:
        """Return the value of a tensor of one element; `line` returns the line that reads it."""
        return self.copy(tensor, line).item()

    def copy(self, tensor: Tensor, line: Callable[[], str]) -> Tensor:
        """Return a meta tensor's values on the host; those not followed resemble the others."""
        numbers = self._numbers(tensor, line)
        if tensor.numel() > len(numbers):
            picked = torch.randint(len(numbers), tensor.shape, generator=self._generator)
            is_constant = bool((numbers == numbers[0]).all()) or not numbers.is_floating_point()
            # A matrix that repeats a few numbers would be singular.
            sizes = (
                1.0 if is_constant else 0.5 + torch.rand(tensor.shape, generator=self._generator)
            )
            numbers = numbers[picked] * sizes
        return numbers.reshape(tensor.shape).to(tensor.dtype)

    def true_count(self, tensor: Tensor, line: Callable[[], str]) -> int:
        """Return the estimated number of nonzero elements."""
        shares = (self._numbers(tensor, line) != 0).double()
        return round(float(shares.mean()) * tensor.numel())

    def fix(self, tensor: Tensor, number: float | None) -> None:
        """Set every element of a tensor to a number; with None it keeps those of a trained one."""
        if number is not None:
            value = _value_of(tensor)
            value.numbers = sampled(of_kind(torch.full((1, 1), number), value.dtype), value.numel)

    def constant(self, tensor: Tensor) -> float | None:
        """Return the number that all elements have in every training, or None."""
        value = _value_of(tensor)
        if value.numbers is None and rule_of(value.func) is None:
            # Its numbers can be any, as random ones.
            return None
        numbers = self._work_out(value)
        first = numbers[0, 0]
        return first.item() if bool((numbers == first).all()) else None

    def _numbers(self, tensor: Tensor, line: Callable[[], str]) -> Tensor:
        """Return a tensor's numbers in this training, and note the trainings that have others."""
        if self.training is None:
            raise ReadBackError
        self._read_backs += 1
        if self._read_backs > _MOST_READ_BACKS:
            raise EndlessError
        operand = _operand(tensor)
        self._work_out(operand.value)
        numbers = operand.numbers()
        own = numbers[self.training]
        others = (
            ((numbers != own) & ~(numbers.isnan() & own.isnan()))
            .any(1)
            .nonzero()
            .flatten()
            .tolist()
        )
        if others:
            self.unknown.setdefault(line(), Counter()).update(others)
        return own

    def _work_out(self, value: Value) -> Tensor:
        """Return the numbers of a value, a row for each training, after those of its operands."""
        waiting = [value]
        while waiting:
            last = waiting[-1]
            missing = [
                operand.value for operand in last.operands() if operand.value.numbers is None
            ]
            if last.numbers is None and missing:
                waiting += missing
                continue
            waiting.pop()
            if last.numbers is None:
                last.numbers = self._evaluate(last)
                last.args, last.kwargs = (), {}
        assert value.numbers is not None
        return value.numbers

    def _evaluate(self, value: Value) -> Tensor:
        rule = rule_of(value.func)
        try:
            numbers = rule(value) if rule else None
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
            # An operation that does not take a few numbers has an unknown result.
            numbers = None
        if numbers is None:
            numbers = self._unknown(value)
        return sampled(of_kind(numbers, value.dtype), value.count)

    def _unknown(self, value: Value) -> Tensor:
        """Return random numbers: finite, and of both signs if there are many."""

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

        size = 10 ** (
            4 * torch.rand(TRAININGS, 1, generator=self._generator, dtype=torch.float64) - 2
        )
        size[:2] = torch.tensor([[0.01], [100.0]])
        numbers = normal(TRAININGS, value.count)
        if value.dtype == torch.bool:
            numbers = numbers > 0
            # Conditions on values are mostly guards, which are false in the first training.
            numbers[0], numbers[1] = False, True
            return numbers
        # No number is close to 0 by chance.
        numbers = numbers + 0.1 * numbers.sign()
        # In the first training most numbers are small and positive, so that few functions refuse
        # them. The second is its opposite, tensor by tensor.
        numbers[0], numbers[1] = numbers[0].abs(), -numbers[1].abs()
        if value.count == MOST:
            numbers[:, 0], numbers[:, 1] = numbers[:, 0].abs(), -numbers[:, 1].abs()
            numbers[0, 1] *= 0.1
            numbers[1, 0] *= 0.1
            if value.func is None:
                numbers[_SPARSE, 2::2] = 0
        return (
            (numbers * size)
            if value.dtype.is_floating_point or value.dtype.is_complex
            else (numbers * 8 * size).round()
        )


class InitialValues(TorchDispatchMode):
    """Follows what the operations inside write into meta tensors, as a model built without data."""

    def __init__(self) -> None:
        super().__init__()
        self._samples = Samples()

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        # Nothing compiled runs inside, and torch's guard would double the time of an operation.
        return False

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        # Random numbers change no layout, and torch's own code for meta tensors is slow.
        result = args[0] if func in _RANDOM and args[0].is_meta else func(*args, **kwargs)
        self._samples.note(func, args, kwargs, tree_leaves(result))
        return result

    def constant(self, tensor: Tensor) -> float | None:
        """Return the number that all elements of a tensor have in every training, or None."""
        return self._samples.constant(tensor)


def _written_tensors(written: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes; `written` has their places or names."""
    places = [place for place in written if not isinstance(place, int) or place < len(args)]
    return tree_leaves(
        [args[place] if isinstance(place, int) else kwargs.get(place) for place in places]
    )


def _value_of(tensor: Tensor) -> Value:
    storage: Any = tensor.untyped_storage()
    value = getattr(storage, "_sampled", None)
    if value is None:
        value = storage._sampled = Value(
            storage.nbytes() // max(1, tensor.element_size()), tensor.dtype
        )
    return value


def _operand(arg: Any) -> Any:
    """Return an argument with tensors, in lists too, as operands, which keep no memory."""
    if isinstance(arg, Tensor):
        value = _value_of(arg) if arg.is_meta else _of_host(arg)
        return Operand(value, arg.numel(), _places(arg, value) if value.numel <= MOST else None)
    if isinstance(arg, list | tuple):
        return [_operand(member) for member in arg]
    return arg


def _places(tensor: Tensor, value: Value) -> Tensor | None:
    """Return the places of a short storage that a tensor views; None for all in order."""
    if not tensor.is_meta or (tensor.numel() == value.numel and tensor.is_contiguous()):
        return None
    return (
        torch.arange(value.numel)
        .as_strided(tensor.shape, tensor.stride(), int(tensor.storage_offset()))
        .flatten()
    )


def _member(arg: Any, place: int) -> Any:
    return (arg[place] if place < len(arg) else None) if isinstance(arg, list) else arg


def _of_host(tensor: Tensor) -> Value:
    value = Value(tensor.numel(), tensor.dtype)
    # Taken from the whole tensor: the first row of an embedding may be 0.
    few = (
        tensor.detach().reshape(-1)[:: max(1, tensor.numel() // MOST)][:MOST]
        if tensor.numel()
        else torch.zeros(1)
    )
    value.numbers = of_kind(few.clone(), tensor.dtype).expand(TRAININGS, -1)
    return value


def _remember(tensor: Tensor, value: Value, writes: bool) -> None:
    storage: Any = tensor.untyped_storage()
    before: Value | None = getattr(storage, "_sampled", None) if writes else None
    if before is not None and before.numel > value.numel:
        # A part of the storage was written.
        places = _places(tensor, before) if before.numel <= MOST else None
        value = Value(
            before.numel,
            before.dtype,
            WRITTEN,
            (Operand(value, value.numel), Operand(before, before.numel), places),
        )
    storage._sampled = value


# They change no number, but their schema does not say so.
_SHARING = (
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::lift",
    "aten::set_",
    "aten::resize_",
    "aten::resize_as_",
)


@cache
def _written(func: Any) -> tuple[int | str, ...] | None:
    """Return the places or names of the arguments that an operation writes.

    () if it makes new outputs, None for a view.
    """
    schema = func._schema
    if torch.Tag.inplace_view in func.tags or schema.name in _SHARING:
        return None
    aliases = [
        (argument.name if argument.kwarg_only else place, argument.alias_info)
        for place, argument in enumerate(schema.arguments)
        if argument.alias_info is not None
    ]
    written = tuple(place for place, alias in aliases if alias.is_write)
    return written or (None if aliases else ())
