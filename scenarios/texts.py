"""The text that comes with optprof, as bytes: one part to train on, one held out."""

from functools import cache
from pathlib import Path

_GENESIS = Path(__file__).parent / "data" / "genesis.txt"


@cache
def text() -> bytes:
    """Return Genesis 1 to 9, King James Version: 28,851 letters of ASCII."""
    return _GENESIS.read_bytes()


def split() -> tuple[bytes, bytes]:
    """Return the text to train on, and the last tenth, which is held out."""
    place = len(text()) * 9 // 10
    return text()[:place], text()[place:]
