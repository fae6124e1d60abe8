"""An optimizer as text, `sm3:momentum=0.9,lr=0.1`, and its options checked against a signature.

Before the first colon is a name of the catalogue; `module:Class:lr=0.1` names another class.
"""

import ast
import inspect
import re
import reprlib
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

# Limits of one optimizer's text and of a list of them.
MOST_LETTERS, MOST_LIST_LETTERS = 2_000, 100_000

Parameters = Mapping[str, inspect.Parameter]

_WORDS = {"true": True, "false": False, "none": None}


def parse(text: str) -> tuple[str, dict[str, Any]]:
    """Return the name and the options; ValueError for text of another form.

    Values are Python literals; true, false and none may be in any case, and other plain words are
    strings.
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
    """Return the texts of a list such as `adamw,sm3:momentum=0.9,lr=0.1,lamb`.

    Options continue over commas until the next name.
    """
    _require_letters(text, MOST_LIST_LETTERS, "a list of optimizers")
    specs: list[str] = []
    for piece in map(str.strip, _split(text)):
        if not piece:
            raise ValueError(f"no optimizer before or after a comma in {_shown(text)}")
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


def known_options(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """Return the named options after the first parameter, and whether others are accepted too."""
    options = dict(list(inspect.signature(factory).parameters.items())[1:])
    named = {
        key: value
        for key, value in options.items()
        if value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
    }
    return named, any(value.kind is value.VAR_KEYWORD for value in options.values())


def require_known(name: str, options: Collection[str], known: Parameters) -> None:
    """Raise ValueError for an option that the constructor does not have."""
    for key in options:
        if key not in known:
            raise ValueError(unknown(f"option of {name}", key, known))


def require_complete(name: str, options: Collection[str], known: Parameters) -> None:
    """Raise ValueError if an option without a default is missing."""
    missing = [
        key
        for key, value in known.items()
        if value.default is inspect.Parameter.empty and key not in options
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}; write {name}:{missing[0]}=VALUE")


def defaults(known: Parameters) -> dict[str, Any]:
    """Return the defaults of the options that have one."""
    return {
        key: value.default
        for key, value in known.items()
        if value.default is not inspect.Parameter.empty
    }


def refusal(name: str, options: Mapping[str, Any], error: Exception) -> str:
    """Return one line for options that the constructor rejected."""
    written = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name} does not take {written or 'these parameters'}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """Return an error's type and message on one line."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def unknown(kind: str, name: str, names: Collection[str]) -> str:
    """Return one line for an unknown name, with the similar ones and all."""
    text = name.lower()
    begun = [known for known in names if len(text) > 1 and known.startswith(text)]
    near = begun[:3] or get_close_matches(text, names, cutoff=0.66)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    verb = "is" if len(names) < 2 else "are"
    return f"no {kind} is named {name!r}; {hint}there {verb} {', '.join(names) or 'none'}"


def _require_letters(text: str, most: int, subject: str) -> None:
    if len(text) > most:
        raise ValueError(f"{subject} has at most {most} letters, got {len(text)}")


def _shown(text: str) -> str:
    """Return a text for an error, on one line and shortened."""
    return _short.repr(text)


_short = reprlib.Repr()
_short.maxstring = 120


def _value(text: str, whole: str) -> Any:
    try:
        return ast.literal_eval(text)
    # ast.literal_eval raises all of these for text that only looks like a literal.
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        if re.fullmatch(r"[\w./+-]+", text) is None:
            raise ValueError(
                f"cannot read the value {_shown(text)} in {_shown(whole)}; write a Python literal"
                " or a plain word"
            ) from None
    return _WORDS.get(text.lower(), text)


def _split(text: str) -> list[str]:
    """Return the pieces between commas outside brackets and quotes."""
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
