"""Optimizers that keep little memory, beside torch's own, in one catalogue."""

from . import accumulation
from .catalogue import (
    Implementation,
    available,
    create,
    default_implementation,
    describe,
    goes_by_names,
    implementations,
    name_of,
    option_defaults,
)
from .entry import Description, Entry
from .lamb import LAMB
from .lamb16 import LAMB16
from .sgd_sai import SGDBoost, SGDSaI
from .sm3 import SM3
from .spec import parse, parse_list

__all__ = [
    "LAMB",
    "LAMB16",
    "SM3",
    "Description",
    "Entry",
    "Implementation",
    "SGDBoost",
    "SGDSaI",
    "accumulation",
    "available",
    "create",
    "default_implementation",
    "describe",
    "goes_by_names",
    "implementations",
    "name_of",
    "option_defaults",
    "parse",
    "parse_list",
]
