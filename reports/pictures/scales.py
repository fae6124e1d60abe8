"""Scales: round numbers along an axis, and the places of times along a row."""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

from ..units import GIB, Sized, count_text, gib, gib_text, seconds_text

# Beyond this ratio 2 and 5 of each power of ten would crowd an axis.
MANY_TIMES = 300
# Beyond this ratio a linear scale would press the fast ones together.
LOG_FROM = 10


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Seconds along a row: linear from 0, or logarithmic if the times are far apart."""

    low: float
    high: float

    @classmethod
    def of(cls, smallest: float, largest: float) -> "Scale":
        """A scale with room for times from the smallest to the largest."""
        far = largest > LOG_FROM * smallest > 0
        return cls(low=smallest / 1.15 if far else 0.0, high=largest * (1.15 if far else 1.05))

    def place(self, seconds: float) -> float:
        """The place of a time, in per cent of the row."""
        if self.low:
            return 100 * math.log(seconds / self.low) / math.log(self.high / self.low)
        return 100 * seconds / self.high

    @property
    def ticks(self) -> tuple[tuple[float, str], ...]:
        """The places of round times, and their texts."""
        times = self._powers() if self.low else multiples(self.high)
        return tuple((self.place(seconds), round_seconds_text(seconds)) for seconds in times)

    def _powers(self) -> list[float]:
        digits = (1, 2, 5) if math.log10(self.high / self.low) < 2.5 else (1,)
        return _powers(self.low, self.high, digits)


def multiples(high: float) -> list[float]:
    """Return about five round numbers from 0 to `high`."""
    rough = high / 5
    unit = 10.0 ** math.floor(math.log10(rough))
    step = unit * next(digit for digit in (1, 2, 5, 10) if digit * unit >= rough)
    return [number * step for number in range(int(high / step) + 1)]


def gib_ticks(most: float) -> tuple[tuple[float, Sized], ...]:
    """Return the places and texts of round sizes on a row as long as `most` bytes."""
    sizes = [round(size * GIB) for size in multiples(gib(most))]
    return tuple((100 * size / most, _size_text(size)) for size in sizes)


def second_ticks(most: float) -> tuple[tuple[float, str], ...]:
    """Return the places and texts of round times on a row as long as `most` seconds."""
    return tuple((100 * time / most, round_seconds_text(time)) for time in multiples(most))


def round_numbers(values: Sequence[float]) -> list[float]:
    """Return 1, 2 and 5 of each power of ten from half the least to twice the greatest value.

    Of many powers only the powers themselves.
    """
    # A logarithm has no place for 0.
    positive = [value for value in values if value > 0] or [1]
    least, most = min(positive) / 2, 2 * max(positive)
    return _powers(least, most, (1,) if most > MANY_TIMES * least else (1, 2, 5))


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


def _powers(least: float, most: float, digits: Sequence[int]) -> list[float]:
    powers = range(math.floor(math.log10(least)), math.ceil(math.log10(most)) + 1)
    # 5 * 10**-3 is 0.005, and 5 * 0.001 is not.
    ticks = [float(f"{digit}e{power}") for power in powers for digit in digits]
    return [tick for tick in ticks if least <= tick <= most]
