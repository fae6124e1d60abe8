"""PYTORCH_CUDA_ALLOC_CONF as data: the settings that change how much memory the allocator takes.

The text is a list such as `max_split_size_mb:128,expandable_segments:True`, as that variable or
PYTORCH_ALLOC_CONF takes it. Rules and defaults are those of c10/core/AllocatorConfig.h of PyTorch
2.13.
"""

import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from optprof.scenarios.schema import shown

# The variables that torch reads when it is loaded; the first one that is set counts.
VARIABLES = ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF")
MIB = 1 << 20
UNLIMITED = sys.maxsize
# Divisions have one entry for each power of two from 1 MiB on. The first also covers smaller sizes,
# and the last also larger ones.
SIZE_CLASSES = 16
_MOST_DIGITS = 20


@dataclass(frozen=True, kw_only=True)
class AllocatorSettings:
    """Settings of the allocator, in bytes.

    `large_segment_size` is the segment for requests between 1 and 10 MiB. A free block of
    `max_split_size` or more serves only requests of at least that size, unsplit, and wastes less
    than `max_non_split_rounding`. `divisions` rounds a request up to that fraction of the power of
    two below it, by size class from 1 MiB on (0: no rounding). `memory_fraction` of the device is
    the most that the process may take. Only under such a limit are idle segments released from
    `garbage_collection_threshold`, a fraction of it, on. `expandable_segments` reserves addresses
    once and maps memory into them on demand.
    """

    large_segment_size: int = 20 * MIB
    max_split_size: int = UNLIMITED
    max_non_split_rounding: int = 20 * MIB
    divisions: tuple[int, ...] = (0,) * SIZE_CLASSES
    garbage_collection_threshold: float = 0.0
    expandable_segments: bool = False
    memory_fraction: float = 1.0

    @classmethod
    def parse(cls, text: str) -> "AllocatorSettings":
        """Return the settings of a text; ValueError names an unknown or invalid one."""
        settings: dict[str, Any] = {}
        for key, value in _pairs(text):
            if key not in _KEYS:
                near = get_close_matches(key, _KEYS, n=3)
                hint = (
                    f"did you mean {', '.join(near)}?"
                    if near
                    else f"known are {', '.join(sorted(_KEYS))}"
                )
                raise ValueError(f"alloc_conf has no setting {shown(key)}; {hint}")
            settings |= _KEYS[key](key, value)
        large = settings.get("large_segment_size", cls.large_segment_size)
        settings.setdefault("max_non_split_rounding", large)
        for name, key in (
            ("max_split_size", "max_split_size_mb"),
            ("max_non_split_rounding", "max_non_split_rounding_mb"),
        ):
            if settings.get(name, UNLIMITED) < large:
                raise ValueError(
                    f"{key} must be >= large_segment_size_mb, which is {large // MIB}, got"
                    f" {settings[name] // MIB}"
                )
        return cls(**settings)


def from_environment() -> str:
    """Return the text that torch reads from the environment; empty if there is none."""
    return next((os.environ[name] for name in VARIABLES if os.environ.get(name)), "")


def names(text: str) -> set[str]:
    """Return the names of the settings in a text; ValueError if it is not a valid list."""
    return {key for key, _ in _pairs(text)}


def _pairs(text: str) -> list[tuple[str, str]]:
    """Return the keys and values of the text; commas inside brackets belong to a value."""
    compact = re.sub(r"\s", "", text).removesuffix(",")
    if not compact:
        return []
    pairs = []
    for item in re.split(r",(?![^\[]*\])", compact):
        key, colon, value = item.partition(":")
        if not key or not colon or not value:
            raise ValueError(
                "alloc_conf is a list such as max_split_size_mb:128,expandable_segments:True, got"
                f" {shown(item)} in {shown(text)}"
            )
        pairs.append((key, value))
    return pairs


def _whole(key: str, value: str) -> int:
    if not value.isascii() or not value.isdecimal():
        raise ValueError(f"{key} must be a whole number, got {shown(value)}")
    # torch reads it into 64 bits, and Python reads no more than 4,300 digits.
    if len(value) > _MOST_DIGITS or int(value) > UNLIMITED:
        raise ValueError(f"{key} is at most {UNLIMITED}, got {shown(value)}")
    return int(value)


def _fraction(key: str, value: str) -> float:
    try:
        return float(value)
    except ValueError:
        raise ValueError(f"{key} must be a number, got {shown(value)}") from None


def _flag(key: str, value: str) -> bool:
    if value not in ("True", "False"):
        raise ValueError(f"{key} must be True or False, got {shown(value)}")
    return value == "True"


def _large_segment_size(key: str, value: str) -> dict[str, int]:
    if not 10 < _whole(key, value) <= UNLIMITED // MIB:
        raise ValueError(f"{key} must be > 10 and at most {UNLIMITED // MIB}, got {value}")
    return {"large_segment_size": _whole(key, value) * MIB}


def _megabytes(name: str) -> Callable[[str, str], dict[str, int]]:
    return lambda key, value: {name: min(_whole(key, value) * MIB, UNLIMITED)}


def _garbage_collection_threshold(key: str, value: str) -> dict[str, float]:
    if not 0 < _fraction(key, value) < 1:
        raise ValueError(f"{key} must lie between 0 and 1, got {value}")
    return {"garbage_collection_threshold": float(value)}


def _memory_fraction(key: str, value: str) -> dict[str, float]:
    if not 0 <= _fraction(key, value) <= 1:
        raise ValueError(f"{key} must be from 0 to 1, got {value}")
    return {"memory_fraction": float(value)}


def _expandable_segments(key: str, value: str) -> dict[str, bool]:
    return {"expandable_segments": _flag(key, value)}


def _backend(key: str, value: str) -> dict[str, Any]:
    if value != "native":
        raise ValueError(f"{key} must be native, the simulated allocator, got {shown(value)}")
    return {}


def _must_be_off(key: str, value: str) -> dict[str, Any]:
    if _flag(key, value):
        raise ValueError(f"{key}:True is not simulated; leave it out")
    return {}


def _without_effect(_key: str, _value: str) -> dict[str, Any]:
    """Return nothing: pinned memory, locks and CUDA graphs do not change the simulated memory."""
    return {}


def _divisions(key: str, value: str) -> dict[str, tuple[int, ...]]:
    """Return the divisions of one number for all sizes, or of a list such as [256:1,512:2,>:4].

    Boundaries are MiB; `>` stands for all sizes above the last one.
    """
    if not value.startswith("["):
        number = _power_of_two(key, value)
        return {"divisions": (number,) * SIZE_CLASSES}
    if not value.endswith("]"):
        raise ValueError(f"{key} needs a closing bracket, got {shown(value)}")
    divisions = [0] * SIZE_CLASSES
    last, first = 0, True
    for item in value[1:-1].removesuffix(",").split(",") if value != "[]" else []:
        boundary, _, number = item.partition(":")
        count = 0 if number == "0" else _power_of_two(key, number)
        if boundary == ">":
            divisions[last + 1 :] = [count] * (SIZE_CLASSES - last - 1)
            continue
        last = min(_power_of_two(key, boundary).bit_length() - 1, SIZE_CLASSES - 1)
        if first:
            divisions[:last] = [count] * last
            first = False
        divisions[last] = count
    return {"divisions": tuple(divisions)}


def _power_of_two(key: str, value: str) -> int:
    number = _whole(key, value)
    if number < 1 or number & (number - 1):
        raise ValueError(
            f"{key} takes powers of two, as in 4 or [256:1,512:2,>:4], got {shown(value)}"
        )
    return number


_KEYS: Mapping[str, Callable[[str, str], dict[str, Any]]] = {
    "large_segment_size_mb": _large_segment_size,
    "max_split_size_mb": _megabytes("max_split_size"),
    "max_non_split_rounding_mb": _megabytes("max_non_split_rounding"),
    "roundup_power2_divisions": _divisions,
    "garbage_collection_threshold": _garbage_collection_threshold,
    "expandable_segments": _expandable_segments,
    "per_process_memory_fraction": _memory_fraction,
    "backend": _backend,
    "throw_on_cudamalloc_oom": _must_be_off,
    "release_lock_on_cudamalloc": _without_effect,
    "release_lock_on_hipmalloc": _without_effect,
    "graph_capture_record_stream_reuse": _without_effect,
    "pinned_use_background_threads": _without_effect,
    "pinned_use_cuda_host_register": _without_effect,
    "pinned_use_hip_host_register": _without_effect,
    "pinned_num_register_threads": _without_effect,
    "pinned_reserve_segment_size_mb": _without_effect,
    "pinned_max_round_threshold_mb": _without_effect,
    "pinned_max_cached_size_mb": _without_effect,
    "pinned_free_catch_all": _without_effect,
}
