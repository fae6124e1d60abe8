"""The text that comes with optprof, as bytes: what a course of training reads, and what is kept
from it.
"""

from functools import cache
from pathlib import Path

_GENESIS = Path(__file__).parent / "data" / "genesis.txt"


@cache
def text() -> bytes:
    """Genesis 1 to 9, King James Version: 28,851 letters of ASCII."""
    return _GENESIS.read_bytes()


def split() -> tuple[bytes, bytes]:
    """The text to train on, and its last tenth, held out."""
    place = len(text()) * 9 // 10
    return text()[:place], text()[place:]
