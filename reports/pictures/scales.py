"""Scales: round numbers along an axis, and the places of times along a row."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..units import GIB, Sized, count_text, gib, gib_text, seconds_text
from .picture import Kind

# Beyond this ratio 2 and 5 of each power of ten would crowd an axis; below the lower one they are
# too few.
MANY_TIMES, FEW_TIMES = 300, 4
# Beyond this ratio a linear scale would press the fast ones together.
LOG_FROM = 10
# The share of an axis beyond its last tick.
PAD = 0.03


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Seconds along a row: linear from 0, or logarithmic if the times are far apart."""

    low: float
    high: float

    @classmethod
    def of(cls, smallest: float, largest: float) -> "Scale":
        """A scale from round time to round time around the smallest and the largest."""
        if largest > LOG_FROM * smallest > 0:
            times = log_ticks([smallest, largest])
            return cls(low=times[0], high=times[-1])
        return cls(low=0.0, high=multiples(largest)[-1])

    def place(self, seconds: float) -> float:
        """The place of a time, in per cent of the row."""
        if self.low:
            return 100 * math.log(seconds / self.low) / math.log(self.high / self.low)
        return 100 * seconds / self.high

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """The places of round times, and their texts."""
        times = log_ticks([self.low, self.high]) if self.low else multiples(self.high)
        return tuple((self.place(seconds), round_seconds_text(seconds)) for seconds in times)


def multiples(most: float) -> list[float]:
    """Return about five round numbers in equal steps, from 0 to the first that is not below
    `most`.
    """
    return linear_ticks([0.0, most])


def linear_ticks(values: Sequence[float]) -> list[float]:
    """Return about five round numbers in equal steps that enclose all values.

    Counts have whole numbers only.
    """
    low, high = min(values), max(values)
    # Below this a fifth may have no logarithm.
    span = max(high - low or abs(high) or 1.0, 1e-300)
    unit = 10.0 ** math.floor(math.log10(span / 5))
    step = unit * next(digit for digit in (1, 2, 5, 10) if digit * unit >= span / 5 * (1 - 1e-9))
    if all(isinstance(value, int) for value in values):
        # There is no half run between two runs.
        step = max(step, 1.0)
    # Half a millionth of a step is the error of a division, and no reason for another tick.
    first, last = math.floor(low / step + 5e-7), math.ceil(high / step - 5e-7)
    # 3 * 0.1 is not 0.3.
    return [float(f"{number * step:.12g}") for number in range(first, max(last, first + 1) + 1)]


def log_ticks(values: Sequence[float]) -> list[float]:
    """Return round numbers that enclose all positive values, for a logarithmic axis.

    They are powers of ten, for fewer powers 1, 2 and 5 of each, for less than FEW_TIMES equal
    steps.
    """
    positive = [value for value in values if value > 0] or [1.0]
    least, most = min(positive), max(positive)
    if least < most < FEW_TIMES * least and (steps := linear_ticks([least, most]))[0] > 0:
        return steps
    digits = (1,) if most > MANY_TIMES * least else (1, 2, 5)
    powers = range(math.floor(math.log10(least)) - 1, math.ceil(math.log10(most)) + 2)
    # 5 * 10**-3 is 0.005, and 5 * 0.001 is not.
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    first = max(number for number, tick in enumerate(ticks) if tick <= least)
    last = min(number for number, tick in enumerate(ticks) if tick >= most)
    # A single value that is round has a tick on each side.
    return ticks[first - (first == last) : last + 1 + (first == last)]


def framed(
    values: Sequence[float], *, log: bool, from_zero: bool = True
) -> tuple[list[float], tuple[float, float]]:
    """Return the ticks of an axis, which enclose all values, and its ends just beyond them."""
    # An axis without points, as of losses that are not finite, is drawn too.
    values = values or [1.0]
    if log:
        ticks = log_ticks(values)
        pad = (ticks[-1] / ticks[0]) ** PAD
        return ticks, (ticks[0] / pad, ticks[-1] * pad)
    ticks = linear_ticks([0.0, *values] if from_zero else values)
    pad = PAD * (ticks[-1] - ticks[0])
    return ticks, (0.0 if ticks[0] == 0 else ticks[0] - pad, ticks[-1] + pad)


def number_text(value: float) -> str:
    """A round number without an exponent and without zeros behind its point: 0.00002."""
    return f"{value:,.12f}".rstrip("0").rstrip(".")


def gib_ticks(most: float) -> tuple[tuple[float, Sized], ...]:
    """Return the places and texts of round sizes on a row as long as `most` bytes."""
    sizes = [round(size * GIB) for size in multiples(gib(most))]
    # A row that is not as long as a round size ends behind its last tick.
    return tuple((100 * size / most, _size_text(size)) for size in sizes if size <= most + 1)


def second_ticks(most: float) -> tuple[tuple[float, str], ...]:
    """Return the places and texts of round times on a row as long as `most` seconds."""
    times = [time for time in multiples(most) if time <= most * (1 + 1e-9)]
    return tuple((100 * time / most, round_seconds_text(time)) for time in times)


def round_seconds_text(seconds: float) -> str:
    """A round duration without the zeros behind its point: 5 ms."""
    number, unit = seconds_text(seconds).split()
    return f"{float(number.replace(',', '')):g} {unit}"


def round_count_text(count: float) -> str:
    """A round number of parameters without the zeros behind its point: 2 B."""
    return re.sub(r"\.0+ ", " ", count_text(round(count)))


def _size_text(size: int) -> Sized:
    return Sized.of(lambda units: f"{_short(gib_text(size, units))} {units.giga}")


def _short(number: str) -> str:
    return number.rstrip("0").rstrip(".") if "." in number else number


# The text of a tick, by the kind of its axis.
TICK_TEXTS: dict[Kind, Callable[[float], str]] = {
    "bytes": number_text,
    "number": number_text,
    "seconds": round_seconds_text,
    "parameters": round_count_text,
    "tokens": round_count_text,
}


def scale_name(*, log: bool) -> str:
    """The scale of an axis, for its title."""
    return "log scale" if log else "linear scale"
