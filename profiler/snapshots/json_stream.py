"""A reader of large JSON that holds one element of its lists at a time."""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any, TextIO

_CHUNK = 1 << 20
# The longest value that is read as a whole, such as an event with its stack.
MOST_TEXT = 16 << 20
_SPACE = re.compile(r"[ \t\n\r]*")


class JsonReader:
    """Reads values, lists and objects in their order; ValueError for anything but JSON."""

    def __init__(self, file: TextIO) -> None:
        self._file = file
        self._decode = json.JSONDecoder().raw_decode
        self._text, self._at, self._ended = "", 0, False
        self._before = 0

    @property
    def place(self) -> int:
        """The number of characters that were read."""
        return self._before + self._at

    def next(self) -> str:
        """Return the next character without reading it, nothing at the end."""
        while True:
            match = _SPACE.match(self._text, self._at)
            self._at = match.end() if match else self._at
            if self._at < len(self._text) or self._ended:
                return self._text[self._at : self._at + 1]
            self._more(_CHUNK)

    def take(self, character: str) -> None:
        """Read one character; ValueError if it is another one."""
        following = self.next()
        if following != character:
            raise ValueError(
                f"it has {following!r} instead of {character!r}"
                if following
                else "it ends too early; copy it again"
            )
        self._at += 1

    def value(self) -> Any:
        """Read a value of any kind."""
        self.next()
        size = _CHUNK
        while True:
            try:
                value, end = self._decode(self._text, self._at)
                # More digits of a number may follow.
                if self._ended or end < len(self._text):
                    self._at = end
                    return value
            except (ValueError, RecursionError) as error:
                if self._ended or not isinstance(error, json.JSONDecodeError):
                    raise ValueError(_problem(error)) from None
            if size > MOST_TEXT:
                raise ValueError(f"it has no JSON value within {MOST_TEXT} characters")
            self._more(size)
            size *= 2

    def elements(self, read: Callable[[], Any]) -> Iterator[Any]:
        """Read a list, each of its elements with the given reader."""
        self.take("[")
        while self.next() != "]":
            yield read()
            if self.next() != "]":
                self.take(",")
        self.take("]")

    def members(self) -> Iterator[str]:
        """Read an object and return its keys; the caller reads each key's value."""
        self.take("{")
        while self.next() != "}":
            key = self.value()
            if type(key) is not str:
                raise ValueError("it has an object with a key that is not a text")
            self.take(":")
            yield key
            if self.next() != "}":
                self.take(",")
        self.take("}")

    def _more(self, size: int) -> None:
        more = self._file.read(size)
        self._ended = not more
        self._before += self._at
        self._text, self._at = self._text[self._at :] + more, 0


def _problem(error: Exception) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    # Python refuses to convert more digits.
    return "it has a number of too many digits" if "digits" in str(error) else "it is not JSON"
