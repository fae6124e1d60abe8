"""Values that a step's tensors may have: a few numbers of each, in sixteen imagined trainings.

A trace has shapes and no data, yet optimizers ask whether a parameter is zero, or a norm finite.
Every operation is remembered with its operands. When a value is read back, they are run on a few
numbers of each tensor, in trainings whose parameters and gradients differ in size and sign. What
all trainings agree on is known: a step count, any(gradient), isnan(state).any(). Anything else
is answered as in one of the trainings, and noted as unknown.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .layouts import data_of
from .sampled import MOST, TRAININGS, WRITTEN, Operand, Value, of_kind, rule_of, sampled

# In the later trainings half of the numbers of a parameter or gradient are 0, as rows of an
# embedding are.
_SPARSE = slice(TRAININGS // 2, None)
_MOST_OTHERS = 3
# In one step.
_MOST_READ_BACKS = 20_000


class EndlessError(Exception):
    """A program reads values back again and again."""


class ReadBackError(BaseException):
    """A value was read back, and none was followed. No Exception, so that the program that is
    traced does not catch it.
    """


class Samples:
    """Follows the values of a trace's tensors and answers for one of the trainings.

    `unknown` has, by the line that read, the trainings in which what it read is not as in this one,
    and how often. With no training nothing is followed, which is faster, and a read-back raises
    ReadBackError.
    """

    def __init__(self, training: int | None = 0) -> None:
        self.training = training
        self.unknown: dict[str, Counter[int]] = {}
        self._read_backs = 0
        self._generator = torch.Generator().manual_seed(1)

    def others(self) -> list[int]:
        """Return a few trainings in which values are read back that are not as in this one, for
        every line that reads any.
        """
        lines, found = list(self.unknown.values()), []
        while lines and len(found) < _MOST_OTHERS:
            found.append(
                max(range(TRAININGS), key=lambda training: sum(line[training] for line in lines))
            )
            lines = [line for line in lines if found[-1] not in line]
        return found

    def note(self, func: Any, args: Any, kwargs: Mapping[str, Any], outputs: list[Any]) -> None:
        """Remember what an operation on meta tensors has made or written."""
        written = None if self.training is None else _written(func)
        if written is None:
            # A view shares its storage, whose value is as it was.
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
        """Take new values for a tensor, as for a gradient that is computed again."""
        storage: Any = data_of(tensor)[-1].untyped_storage()
        storage._sampled = None
        self._read_backs = 0

    def settle(self, tensor: Tensor) -> None:
        """Forget how the values of a parameter came about, if it was written."""
        if _value_of(tensor).func is not None:
            self.renew(tensor)

    def read(self, tensor: Tensor, line: Callable[[], str]) -> Any:
        """Return the value of a tensor of one element; `line` tells who reads it."""
        return self.copy(tensor, line).item()

    def copy(self, tensor: Tensor, line: Callable[[], str]) -> Tensor:
        """Return a meta tensor's values on the host, those that are not followed like those that
        are.
        """
        numbers = self._numbers(tensor, line)
        if tensor.numel() > len(numbers):
            picked = torch.randint(len(numbers), tensor.shape, generator=self._generator)
            is_constant = bool((numbers == numbers[0]).all()) or not numbers.is_floating_point()
            # A matrix of a few numbers again and again would be singular.
            sizes = (
                1.0 if is_constant else 0.5 + torch.rand(tensor.shape, generator=self._generator)
            )
            numbers = numbers[picked] * sizes
        return numbers.reshape(tensor.shape).to(tensor.dtype)

    def true_count(self, tensor: Tensor, line: Callable[[], str]) -> int:
        """Return how many elements of a tensor are not 0."""
        shares = (self._numbers(tensor, line) != 0).double()
        return round(float(shares.mean()) * tensor.numel())

    def fix(self, tensor: Tensor, number: float | None) -> None:
        """Take the number for every element of a tensor; None for the values of a trained one."""
        if number is not None:
            value = _value_of(tensor)
            value.numbers = sampled(of_kind(torch.full((1, 1), number), value.dtype), value.numel)

    def constant(self, tensor: Tensor) -> float | None:
        """Return the number that all elements are in every training; None where there is none."""
        value = _value_of(tensor)
        if value.numbers is None and rule_of(value.func) is None:
            # Anything, as random numbers are.
            return None
        numbers = self._work_out(value)
        first = numbers[0, 0]
        return first.item() if bool((numbers == first).all()) else None

    def _numbers(self, tensor: Tensor, line: Callable[[], str]) -> Tensor:
        """Return a tensor's numbers in this training, and note where others have other ones."""
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
        """Return the numbers of a value, a row for each training; what it was made of is worked out
        first.
        """
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
                last.numbers = self._run(last)
                last.args, last.kwargs = (), {}
        assert value.numbers is not None
        return value.numbers

    def _run(self, value: Value) -> Tensor:
        rule = rule_of(value.func)
        try:
            numbers = rule(value) if rule else None
        except (RuntimeError, TypeError, ValueError, IndexError, ArithmeticError, AttributeError):
            # What an operation does with a few numbers only is of no interest; its result is
            # unknown.
            numbers = None
        if numbers is None:
            numbers = self._any(value)
        return sampled(of_kind(numbers, value.dtype), value.count)

    def _any(self, value: Value) -> Tensor:
        """Return numbers of which nothing is known but that they are finite and, where there are
        many, of both signs.
        """

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=self._generator, dtype=torch.float64)

        size = 10 ** (
            4 * torch.rand(TRAININGS, 1, generator=self._generator, dtype=torch.float64) - 2
        )
        size[:2] = torch.tensor([[0.01], [100.0]])
        numbers = normal(TRAININGS, value.count)
        if value.dtype == torch.bool:
            numbers = numbers > 0
            # A condition on values is mostly a guard.
            numbers[0], numbers[1] = False, True
            return numbers
        # No number is 0 by chance.
        numbers = numbers + 0.1 * numbers.sign()
        # In the first training most are small and positive, so that few functions refuse what is
        # made of them. The second is its opposite, tensor for tensor.
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
    """Follows what the operations inside write into meta tensors, as a model does that is built
    without data.
    """

    def __init__(self) -> None:
        super().__init__()
        self._samples = Samples()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        del types
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        self._samples.note(func, args, kwargs, tree_leaves(result))
        return result

    def constant(self, tensor: Tensor) -> float | None:
        """Return the number that all elements of a tensor are in every training; None where there
        is none.
        """
        return self._samples.constant(tensor)


def _written_tensors(written: Any, args: Any, kwargs: Mapping[str, Any]) -> list[Any]:
    """Return the arguments that an operation writes; `written` has their places and names."""
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
    """An argument without its memory: tensors as operands, lists of them too."""
    if isinstance(arg, Tensor):
        value = _value_of(arg) if arg.is_meta else _of_host(arg)
        return Operand(value, arg.numel(), _places(arg, value) if value.numel <= MOST else None)
    if isinstance(arg, list | tuple):
        return [_operand(member) for member in arg]
    return arg


def _places(tensor: Tensor, value: Value) -> Tensor | None:
    """Which numbers of a short storage a tensor looks at; None for all of them in their order."""
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
    # From all over the tensor: the first row of an embedding may be 0.
    few = (
        tensor.detach().reshape(-1)[:: max(1, tensor.numel() // MOST)][:MOST]
        if tensor.numel()
        else torch.zeros(1)
    )
    value.numbers = of_kind(few.clone(), tensor.dtype).expand(TRAININGS, -1)
    return value


def _remember(tensor: Tensor, value: Value, writes: bool) -> None:
    storage: Any = tensor.untyped_storage()
    held = getattr(storage, "_sampled", None) if writes else None
    if held is not None and held.numel > value.numel:
        # A part of the storage was written.
        places = _places(tensor, held) if held.numel <= MOST else None
        value = Value(
            held.numel,
            held.dtype,
            WRITTEN,
            (Operand(value, value.numel), Operand(held, held.numel), places),
        )
    storage._sampled = value


# They change no number, and do not say so in their schema.
_SHARING = (
    "aten::_unsafe_view",
    "aten::_reshape_alias",
    "aten::lift",
    "aten::set_",
    "aten::resize_",
    "aten::resize_as_",
)
_found_written: dict[int, tuple[int | str, ...] | None] = {}


def _written(func: Any) -> tuple[int | str, ...] | None:
    """Places and names of the arguments that an operation writes, () where it makes its outputs,
    None for a view.
    """
    if id(func) not in _found_written:
        schema = func._schema
        aliases = [
            (argument.name if argument.kwarg_only else place, argument.alias_info)
            for place, argument in enumerate(schema.arguments)
        ]
        written = tuple(place for place, alias in aliases if alias is not None and alias.is_write)
        if torch.Tag.inplace_view in func.tags or schema.name in _SHARING:
            found = None
        else:
            found = written or (None if any(alias is not None for _, alias in aliases) else ())
        _found_written[id(func)] = found
    return _found_written[id(func)]
