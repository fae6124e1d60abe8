"""Privacy: records and answers without secrets, since their pages are meant to be shared.

Secrets are masked, and home folders are written as ~. Anonymous records name no machine and no
path either.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from hashlib import sha256
from pathlib import PurePosixPath
from typing import Any

from optprof.scenarios.spec import Scenario

from ..safety.secret import MASK, is_mask_needed, weight, without_secrets
from ..safety.whereabouts import without_homes, without_host, without_paths
from .fits import Fit
from .record import OF_THE_MACHINE, Environment, Record

# Our options whose value is a path, even without a slash, or the address of a machine.
_PLACES = {
    "--out": "PATH",
    "--html": "PATH",
    "--on": "CLUSTER",
    "--rdzv-endpoint": "HOST:PORT",
}
# The value of an option that is masked already.
_MASKED = re.compile(r"\*{3}(?:[0-9a-f]{4})?")


@lru_cache(maxsize=4096)
def masked(text: str, *, anonymous: bool = False) -> str:
    """Return a text without secrets, user names and the host's name; home folders are ~.

    An `anonymous` text has PATH in place of other paths.
    """
    text = without_host(without_homes(without_secrets(text)))
    return without_paths(text, _in_text) if anonymous else text


def disclosed_command(words: Sequence[str], *, anonymous: bool = False) -> list[str]:
    """Return the words that repeat a command of ours; `anonymous` leaves paths out too."""
    shown: list[str] = []
    previous = ""
    for word in words:
        is_secret = bool(weight(previous.lstrip("-"))) and previous.startswith("-")
        is_masked = is_secret and "=" not in previous and not word.startswith("--")
        shown.append(MASK if is_masked else _word(word, previous, anonymous))
        previous = word
    return shown


def disclosed_scenario(scenario: Scenario, *, anonymous: bool = False) -> Scenario:
    """Return the scenario as its record discloses it; a disclosed one stays the same."""
    changes: dict[str, Any] = {}
    if ":" in scenario.model and (model := _name(scenario.model, anonymous)) != scenario.model:
        changes["model"] = model
    for field in ("config", "options"):
        values: Mapping[str, Any] = getattr(scenario, field)
        if (shown := _values(values, anonymous)) is not values:
            changes[field] = shown
    return replace(scenario, **changes) if changes else scenario


def disclosed(record: Record, *, anonymous: bool = False) -> Record:
    """Return the record as it may be shared; `anonymous` makes it anonymous."""
    show = partial(masked, anonymous=anonymous)
    parts: dict[str, Any] = {
        "scenario": disclosed_scenario(record.scenario, anonymous=anonymous),
        "environment": _environment(record.environment, anonymous),
        "deciding_options": record.deciding_options and _values(record.deciding_options, anonymous),
        "error": record.error and show(record.error),
        "warnings": tuple(map(show, record.warnings)),
        "lost": tuple(map(show, record.lost)),
    }
    if record.watched is not None and record.watched.warnings:
        shown = tuple(map(show, record.watched.warnings))
        parts["watched"] = replace(record.watched, warnings=shown)
    # Most records were disclosed when they were written, and stay the same.
    changes = {name: value for name, value in parts.items() if value is not getattr(record, name)}
    return replace(record, **changes) if changes else record


def disclosed_fit(fit: Fit, *, anonymous: bool = False) -> Fit:
    """Return the answer as a page may show it; `anonymous` leaves paths out too."""
    return replace(
        fit,
        scenario=disclosed_scenario(fit.scenario, anonymous=anonymous),
        reason=fit.reason and masked(fit.reason, anonymous=anonymous),
        error=fit.error and masked(fit.error, anonymous=anonymous),
        deciding_options=fit.deciding_options and _values(fit.deciding_options, anonymous),
    )


def _environment(environment: Environment, anonymous: bool) -> Environment:
    words = _command(environment.command, anonymous)
    if words[:1] not in (("optprof",), ("optprof.py",)) or environment.seed is None:
        # The arguments of a user's script are private; older records have them.
        words = () if anonymous else words[:1]
    if anonymous:
        unknown = Environment()
        left_out = {name: getattr(unknown, name) for name in OF_THE_MACHINE}
        return replace(environment, command=words, anonymous=True, **left_out)
    return environment if words == environment.command else replace(environment, command=words)


@lru_cache(maxsize=256)
def _command(words: tuple[str, ...], anonymous: bool) -> tuple[str, ...]:
    return tuple(disclosed_command(words, anonymous=anonymous))


def _word(word: str, previous: str, anonymous: bool) -> str:
    option, equals, _ = word.partition("=")
    if anonymous and option in _PLACES and equals:
        return f"{option}={_PLACES[option]}"
    return _PLACES[previous] if anonymous and previous in _PLACES else _name(word, anonymous)


def _values(values: Mapping[str, Any], anonymous: bool) -> Mapping[str, Any]:
    """Return options without secrets, the same mapping if there are none."""
    masks = {
        name: shown
        for name, value in values.items()
        if (shown := _value(name, value, anonymous)) is not value
    }
    return {**values, **masks} if masks else values


def _value(name: str, value: Any, anonymous: bool) -> Any:
    """Return the value of an option; numbers stay, except those of a secret's name."""
    if type(value) in (float, int):
        return MASK if weight(name) == 2 else value
    if isinstance(value, dict):
        shown = {key: _value(key, item, anonymous) for key, item in value.items()}
        return value if shown == value else shown
    if isinstance(value, (list, tuple)):
        shown = type(value)(_value(name, item, anonymous) for item in value)
        return value if shown == value else shown
    if isinstance(value, str):
        return _text_value(name, value, anonymous)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return MASK if is_number and weight(name) == 2 else value


def _text_value(name: str, value: str, anonymous: bool) -> str:
    """Return a text as the value of an option; masked texts that differ stay different.

    Scenarios that differ in `norm_key=`, or in the commit of `revision=`, have other results.
    """
    if _MASKED.fullmatch(value):
        return value
    shown = MASK if is_mask_needed(name, value) else _name(value, anonymous)
    has_digest = shown == MASK and weight(name) < 2
    return f"{MASK}{sha256(value.encode()).hexdigest()[:4]}" if has_digest else shown


@lru_cache(maxsize=4096)
def _name(text: str, anonymous: bool) -> str:
    """Return a name or a word without secrets; of an anonymous path the last part stays.

    A digest follows it, so that files of different folders stay different.
    """
    shown = without_homes(without_secrets(text, is_word=True))
    if not anonymous:
        return shown
    return "".join(_last(part) if _is_path(part) else part for part in re.split("([:=,])", shown))


def _is_path(part: str) -> bool:
    return "/" in part or "\\" in part


def _last(path: str) -> str:
    name = PurePosixPath(path.replace("\\", "/"))
    return f"{name.stem or 'path'}-{sha256(path.encode()).hexdigest()[:4]}{name.suffix}"


def _in_text(path: str) -> str:
    """Return the replacement of a path in a text: the name of a Python file, else PATH."""
    name = re.split(r"[\\/]", path)[-1]
    return name if name.endswith(".py") else "PATH"
