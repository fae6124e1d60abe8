"""An optimizer as text: `sm3:momentum=0.9,betas=(0.9, 0.99)`, a name and its options, or
`module:Class:lr=0.1`.
"""

import ast
import re
import reprlib
from typing import Any

# Of one optimizer's text, and of a list of them.
MOST_LETTERS, MOST_LIST_LETTERS = 2_000, 100_000

_WORDS = {"true": True, "false": False, "none": None}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """The name (`module:Class` for a class of one's own) and the options; ValueError for text that
    does not read so.

    Values are Python literals; true, false and none may be written in any case, and other plain
    words are strings.
    """
    _require_letters(text, MOST_LETTERS, "an optimizer's text")
    name, _, rest = text.partition(":")
    head, _, tail = rest.partition(":")
    if rest and "=" not in head:
        name, rest = f"{name.strip()}:{head.strip()}", tail
    if not name.strip():
        raise ValueError(f"no optimizer is named in {_shown(text)}")
    options: dict[str, Any] = {}
    for piece in _split(rest) if rest else ():
        key, equals, value = (part.strip() for part in piece.partition("="))
        if not equals or not key.isidentifier():
            raise ValueError(
                f"an option is written name=value, got {_shown(piece)} in {_shown(text)}"
            )
        if key in options:
            raise ValueError(f"option {_shown(key)} is given twice in {_shown(text)}")
        options[key] = _value(value, text)
    return name.strip(), options


def parse_list(text: str) -> tuple[str, ...]:
    """The specs of a list such as `adamw,sm3:momentum=0.9,lr=0.1,lamb`; options go on over commas
    until the next name.
    """
    _require_letters(text, MOST_LIST_LETTERS, "a list of optimizers")
    specs: list[str] = []
    for piece in map(str.strip, _split(text)):
        if not piece:
            raise ValueError(f"no optimizer is named beside a comma in {_shown(text)}")
        if "=" not in piece.partition(":")[0]:
            specs.append(piece)
        elif specs and "=" in specs[-1]:
            specs[-1] += f",{piece}"
        else:
            raise ValueError(
                f"option {_shown(piece)} follows no other in {_shown(text)}; the first is written"
                " after a colon, as in adamw:lr=0.1"
            )
    return tuple(specs)


def _require_letters(text: str, most: int, what: str) -> None:
    if len(text) > most:
        raise ValueError(f"{what} has at most {most} letters, got {len(text)}")


def _shown(text: str) -> str:
    """A text as an error tells it: on one line, and not all of a long one."""
    return _Shown.repr(text)


_Shown = reprlib.Repr()
_Shown.maxstring = 120


def _value(text: str, whole: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (
        ValueError,
        SyntaxError,
        TypeError,
        MemoryError,
        RecursionError,
    ):  # what a literal in its form alone ends in
        if re.fullmatch(r"[\w./+-]+", text) is None:
            raise ValueError(
                f"cannot read the value {_shown(text)} in {_shown(whole)}; write a Python literal"
                " or a plain word"
            ) from None
    return _WORDS.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """The pieces between those commas that stand outside brackets and quotes."""
    pieces, depth, quote, start = [], 0, "", 0
    for place, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        elif letter in "([{":
            depth += 1
        elif letter in ")]}":
            depth -= 1
        if letter == "," and not depth and not quote:
            pieces.append(text[start:place])
            start = place + 1
    return [*pieces, text[start:]]
