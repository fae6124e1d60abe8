"""Optimizers that keep little memory, torch's own and other packages', in one catalogue."""

from . import accumulation
from .creating import (
    available,
    create,
    default_implementation,
    describe,
    goes_by_names,
    implementations,
    name_of,
    option_defaults,
)
from .entries import CatalogueEntry
from .lamb import LAMB
from .lamb16 import LAMB16
from .sgd_sai import SGDBoost, SGDSaI
from .sm3 import SM3
from .spec import parse, parse_list
from .ways import Implementation

__all__ = [
    "LAMB",
    "LAMB16",
    "SM3",
    "CatalogueEntry",
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
