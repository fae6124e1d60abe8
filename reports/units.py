"""Units: the one place where bytes, seconds and ratios become text for human eyes."""

import math
from collections.abc import Callable
from dataclasses import dataclass

KIB, MIB, GIB = 2**10, 2**20, 2**30

NOTHING = DASH = "\u2013"
MINUS, TIMES, INFINITE = "\u2212", "\u00d7", "\u221e"


@dataclass(frozen=True)
class Units:
    """Names for sizes: KiB, MiB and GiB with base 1,024, or kB, MB and GB with base 1,000."""

    base: int
    names: tuple[str, str, str]

    @property
    def giga(self) -> str:
        """The name of the largest size: GiB."""
        return self.names[2]


BINARY = Units(2**10, ("KiB", "MiB", "GiB"))
DECIMAL = Units(10**3, ("kB", "MB", "GB"))


@dataclass(frozen=True, kw_only=True)
class Sized:
    """A text with sizes, in binary and in decimal units."""

    binary: str
    decimal: str

    @classmethod
    def of(cls, write: Callable[[Units], str]) -> "Sized":
        """Call `write` for both units."""
        return cls(binary=write(BINARY), decimal=write(DECIMAL))


# Text for a page: the same in all units, or in both.
Words = str | Sized


def gib(count: float) -> float:
    """Return bytes in GiB (2**30), not rounded."""
    return count / GIB


def gib_in(value: float, units: Units) -> float:
    """Return GiB in the largest of the units, not rounded."""
    return value * GIB / units.base**3


def gib_text(count: int, units: Units = BINARY) -> str:
    """Return bytes in GiB or GB without the unit, for the ticks of an axis: 11.605, 0.00853."""
    value = count / units.base**3
    if value == 0:
        return "0"
    if abs(value) >= 1:
        return _signed(f"{value:,.3f}")
    return _signed(_significant(value, 3))


def bytes_text(count: int, units: Units = BINARY, upper: int | None = None) -> str:
    """Return bytes in a suitable unit, with three digits, or four in GiB: 11.61 GiB, 8.68 MiB.

    Pages, pictures and the terminal write every size so, except the ticks of axes. With `upper`,
    return a range, 11.61 to 11.84 GiB, unless both ends read the same.
    """
    if upper is not None:
        return _span(bytes_text(count, units), bytes_text(upper, units))
    size = abs(count)
    # A size below 1 of a unit reads better in the next smaller unit.
    for power, name in ((3, units.names[2]), (2, units.names[1]), (1, units.names[0])):
        unit = units.base**power
        if size >= unit:
            before = len(str(size // unit))
            digits = max((4 if power == 3 else 3) - before, 0)
            return _signed(f"{count / unit:,.{digits}f} {name}")
    return _signed(f"{count} B")


def exact_text(count: int, upper: int | None = None) -> str:
    """Return the exact count, 12,460,891,920 bytes; with `upper`, a range."""
    if upper is not None:
        return _span(exact_text(count), exact_text(upper))
    return _signed(f"{count:,} {'byte' if abs(count) == 1 else 'bytes'}")


def per_parameter_text(value: float) -> str:
    """Return bytes a parameter: 8.00, 0.00584."""
    if value == 0 or value >= 1:
        return f"{value:.2f}"
    return _significant(value, 3)


def factor_text(value: float) -> str:
    """Return a factor with the sign for times: 2.00, 13.4, 1,366, or the sign for infinity."""
    if math.isinf(value):
        return INFINITE
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return (
        f"{value:,.{digits}f}{TIMES}"
        if value >= 0.1 or value == 0
        else f"{_significant(value, 2)}{TIMES}"
    )


def percent_text(part: float, whole: float) -> str:
    """Return a share, 50.0 %, with more digits if it would read as 0 or 100 %: 99.998 %."""
    if whole == 0:
        return NOTHING
    if part in (0, whole, -whole):
        return "0 %" if part == 0 else _signed(f"{part / whole:.0%}".replace("%", " %"))
    value, digits = 100 * part / whole, 1
    while digits < 12 and abs(round(value, digits)) in (0.0, 100.0):
        digits += 1
    return _signed(f"{value:,.{digits}f} %")


def seconds_text(seconds: float) -> str:
    """Return a duration with three digits: 850 µs, 62.7 ms, 2.92 s."""
    if seconds <= 0:
        return "0 s"
    for unit, name in ((1.0, "s"), (1e-3, "ms")):
        # 0.9996 s would round to 1,000 ms.
        if seconds >= 0.9995 * unit:
            return f"{three_digits(seconds / unit)} {name}"
    return f"{three_digits(seconds / 1e-6)} µs"


def rate_text(rate: float, what: str) -> str:
    """Return a rate with three digits: 231 tokens/s."""
    return f"{three_digits(rate)} {what}/s"


def around_text(lower: float, middle: float, upper: float) -> str:
    """Return how far an interval reaches from its middle, on its longer side: \u00b12.1 %."""
    return f"\u00b1{percent_text(max(upper - middle, middle - lower), middle)}"


def range_text(low: float, high: float) -> str:
    """Return two durations, with a common unit only once: 455 to 471 ms."""
    first, last = seconds_text(low), seconds_text(high)
    if first.split()[-1] == last.split()[-1]:
        first = first.split()[0]
    return f"{first} {DASH} {last}"


def count_text(count: int) -> str:
    """Return a number of parameters: 124 M, 1.56 B."""
    for unit, name in ((10**12, " T"), (10**9, " B"), (10**6, " M"), (10**3, " K")):
        if count >= 0.9995 * unit:
            return three_digits(count / unit) + name
    return str(count)


def three_digits(value: float) -> str:
    """Return a number with three digits, or more before the point: 1.56, 10.9, 1,234."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 9.995 else f"{value:.2f}"


def difference_text(value: float, digits: int = 2) -> str:
    """Return a difference with its sign: +0.01, -0.28; one that rounds to 0 has none."""
    text = f"{value:+.{digits}f}"
    return _signed(text) if float(text) else text[1:]


def _span(low: str, high: str) -> str:
    """Return a range of two texts, with a common unit only once."""
    if low == high:
        return low
    number, _, unit = low.partition(" ")
    return f"{number if high.endswith(f' {unit}') else low} to {high}"


def _significant(value: float, digits: int) -> str:
    """Return the value in plain notation with so many significant digits, also zeros."""
    decimals = max(digits - 1 - math.floor(math.log10(abs(value))), 0)
    return f"{value:.{decimals}f}"


def _signed(text: str) -> str:
    return text.replace("-", MINUS)
