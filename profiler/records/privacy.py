"""Privacy: what a record discloses, since its pages are meant to be shared.

Secrets are masked, home folders are ~. What is anonymous names no machine and no path either.
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
from .record import Record

# What an anonymous record leaves out of its environment.
OF_THE_MACHINE = ("machine", "platform", "affinity", "git_commit")
# Options of ours whose value is a place, also where it has no slash.
_PLACES = ("--out", "--html")
# The value of an option that is masked already.
_MASKED = re.compile(r"\*{3}(?:[0-9a-f]{4})?")


@lru_cache(maxsize=4096)
def masked(text: str, *, anonymous: bool = False) -> str:
    """Return a text without secrets, user names and the host's name; home folders are ~.

    One that is `anonymous` has PATH where another path was.
    """
    text = without_host(without_homes(without_secrets(text)))
    return without_paths(text, _in_text) if anonymous else text


def disclosed_command(words: Sequence[str], *, anonymous: bool = False) -> list[str]:
    """Return the words of a command of ours that repeat it; `anonymous` leaves paths out too."""
    found: list[str] = []
    before = ""
    for word in words:
        is_value = bool(weight(before.lstrip("-"))) and before.startswith("-") and "=" not in before
        is_masked = is_value and not word.startswith("--")
        found.append(MASK if is_masked else _word(word, before, anonymous))
        before = word
    return found


def disclosed_scenario(scenario: Scenario, *, anonymous: bool = False) -> Scenario:
    """Return the scenario as its record discloses it; once more, it stays the same."""
    changes: dict[str, Any] = {}
    if ":" in scenario.model and (model := _name(scenario.model, anonymous)) != scenario.model:
        changes["model"] = model
    for field in ("config", "options"):
        values: Mapping[str, Any] = getattr(scenario, field)
        shown = (
            {name: _value(name, value, anonymous) for name, value in values.items()}
            if values
            else values
        )
        if shown != values:
            changes[field] = shown
    return replace(scenario, **changes) if changes else scenario


def disclosed(record: Record, *, anonymous: bool = False) -> Record:
    """Return the record as it may be shared; `anonymous` makes it anonymous."""
    show = partial(masked, anonymous=anonymous)
    found: dict[str, Any] = {
        "scenario": disclosed_scenario(record.scenario, anonymous=anonymous),
        "environment": _environment(record.environment, anonymous),
        "error": record.error and show(record.error),
        "warnings": tuple(map(show, record.warnings)),
        "lost": tuple(map(show, record.lost)),
    }
    if record.watched is not None and record.watched.warnings:
        shown = tuple(map(show, record.watched.warnings))
        found["watched"] = replace(record.watched, warnings=shown)
    # Most records are read as they were disclosed when they were written.
    changes = {name: value for name, value in found.items() if value is not getattr(record, name)}
    return replace(record, **changes) if changes else record


def disclosed_fit(fit: Fit, *, anonymous: bool = False) -> Fit:
    """Return the answer as a page may show it."""
    return replace(
        fit,
        scenario=disclosed_scenario(fit.scenario, anonymous=anonymous),
        reason=fit.reason and masked(fit.reason, anonymous=anonymous),
        error=fit.error and masked(fit.error, anonymous=anonymous),
    )


def _environment(environment: Mapping[str, Any], anonymous: bool) -> Mapping[str, Any]:
    left_out = OF_THE_MACHINE if anonymous else ()
    found = {name: value for name, value in environment.items() if name not in left_out}
    command = environment.get("command")
    if isinstance(command, list | tuple):
        words = [*_command(tuple(map(str, command)), anonymous)]
        # A script's arguments are its own; older records have them.
        is_ours = (
            words[:1] in (["optprof"], ["optprof.py"]) and environment.get("seed", 0) is not None
        )
        found["command"] = words if is_ours else [] if anonymous else words[:1]
    if anonymous:
        return {**found, "anonymous": True}
    return environment if found == environment else found


@lru_cache(maxsize=256)
def _command(words: tuple[str, ...], anonymous: bool) -> tuple[str, ...]:
    return tuple(disclosed_command(words, anonymous=anonymous))


def _word(word: str, before: str, anonymous: bool) -> str:
    option, equals, _ = word.partition("=")
    if anonymous and option in _PLACES and equals:
        return f"{option}=PATH"
    return "PATH" if anonymous and before in _PLACES else _name(word, anonymous)


def _value(name: str, value: Any, anonymous: bool) -> Any:
    """Return the value of an option; numbers stay, except behind the name of a secret."""
    if type(value) in (float, int):
        return MASK if weight(name) == 2 else value
    if isinstance(value, (dict, Mapping)):
        return {key: _value(key, item, anonymous) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_value(name, item, anonymous) for item in value)
    if isinstance(value, str):
        return _text_value(name, value, anonymous)
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return MASK if is_number and weight(name) == 2 else value


def _text_value(name: str, value: str, anonymous: bool) -> str:
    """Return a text as the value of an option; one that is masked is still told from others.

    Scenarios that differ in `norm_key=`, or in the commit of `revision=`, have other results.
    """
    if _MASKED.fullmatch(value):
        return value
    shown = MASK if is_mask_needed(name, value) else _name(value, anonymous)
    is_told_apart = shown == MASK and weight(name) < 2
    return f"{MASK}{sha256(value.encode()).hexdigest()[:4]}" if is_told_apart else shown


@lru_cache(maxsize=4096)
def _name(text: str, anonymous: bool) -> str:
    """Return a name or a word without secrets; where paths are anonymous, their last part stays.

    A digest behind that keeps apart what lies in different folders.
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
    """Return what takes the place of a path in a text: of a file of Python its name, else PATH."""
    name = re.split(r"[\\/]", path)[-1]
    return name if name.endswith(".py") else "PATH"
