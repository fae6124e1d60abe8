"""The campaign's time: an end for the whole, and for each stage a share of the rest."""

import time
from collections.abc import Mapping

# Seconds after the last stage, to end children and to bring the result back.
MARGIN_SHARE = 0.03
LEAST_MARGIN = 3.0


class Budget:
    """Seconds from `start`, divided by weights; later stages get the time that a stage leaves."""

    def __init__(self, seconds: float, shares: Mapping[str, float], start: float) -> None:
        self._start = start
        self._end = start + seconds - max(LEAST_MARGIN, MARGIN_SHARE * seconds)
        self._shares = dict(shares)

    @property
    def elapsed(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self._start

    @property
    def left(self) -> float:
        """Seconds until the end of the last stage."""
        return self._end - time.monotonic()

    def deadline(self, stage: str) -> float:
        """Begin a stage and return its end, by the monotonic clock."""
        share, rest = self._shares.pop(stage), sum(self._shares.values())
        return time.monotonic() + max(0.0, self.left) * share / (share + rest)
