"""Options of a constructor, checked against its signature; the catalogues' words for what does not
fit.
"""

import inspect
from collections.abc import Callable, Collection, Mapping
from difflib import get_close_matches
from typing import Any

Known = Mapping[str, inspect.Parameter]


def known_options(factory: Callable[..., Any]) -> tuple[dict[str, inspect.Parameter], bool]:
    """The named options behind the first parameter, and whether it takes others too."""
    behind = dict(list(inspect.signature(factory).parameters.items())[1:])
    named = {
        key: value
        for key, value in behind.items()
        if value.kind not in (value.VAR_POSITIONAL, value.VAR_KEYWORD)
    }
    return named, any(value.kind is value.VAR_KEYWORD for value in behind.values())


def require_known(name: str, given: Collection[str], known: Known) -> None:
    """ValueError for the first option that the constructor does not have."""
    for key in given:
        if key not in known:
            raise ValueError(unknown(f"option of {name}", key, known))


def require_complete(name: str, given: Collection[str], known: Known) -> None:
    """ValueError where options without a default are not given."""
    missing = [
        key
        for key, value in known.items()
        if value.default is inspect.Parameter.empty and key not in given
    ]
    if missing:
        raise ValueError(f"{name} needs {', '.join(missing)}; write {name}:{missing[0]}=VALUE")


def defaults(known: Known) -> dict[str, Any]:
    """The options that have a default, with it."""
    return {
        key: value.default
        for key, value in known.items()
        if value.default is not inspect.Parameter.empty
    }


def refusal(name: str, options: Mapping[str, Any], error: Exception) -> str:
    """One line for options that the constructor did not take."""
    written = ", ".join(f"{key}={value!r}" for key, value in options.items())
    return f"{name} does not take {written or 'these parameters'}: {one_line(error)}"


def one_line(error: Exception) -> str:
    """The kind of an error and its message."""
    return " ".join(f"{type(error).__name__}: {error}".split())


def unknown(what: str, name: str, there: Collection[str]) -> str:
    """One line for a name that is not there, with those that are near and all that are."""
    near = get_close_matches(name.lower(), there)
    hint = f"did you mean {' or '.join(near)}? " if near else ""
    return f"no {what} is named {name!r}; {hint}there is {', '.join(there) or 'none'}"
