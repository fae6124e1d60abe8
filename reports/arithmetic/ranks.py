"""Ranks: samples thinned for the eye, where there are more than a row of marks can show."""

from collections.abc import Sequence

# More marks along a row than this only cover each other.
MOST_SHOWN = 200
THINNED = (
    f"Of more than {MOST_SHOWN} samples {MOST_SHOWN} are drawn, at even ranks from the fastest to"
    " the slowest."
)


def at_even_ranks(samples: Sequence[float], most: int = MOST_SHOWN) -> tuple[float, ...]:
    """The samples; of more than `most`, the fastest, the slowest and those at even ranks between
    them.
    """
    if len(samples) <= most:
        return tuple(samples)
    ordered = sorted(samples)
    return tuple(ordered[round(number * (len(ordered) - 1) / (most - 1))] for number in range(most))


def thinning_notes(rows: Sequence[Sequence[float]]) -> tuple[str, ...]:
    """The note on thinned rows, where one is."""
    return (THINNED,) if any(len(samples) > MOST_SHOWN for samples in rows) else ()
