"""Optimizers that keep little memory, torch's own and other packages', in one catalogue.

Importing it does not load torch: names are looked up without it.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from .catalogue import available, describe, require_name
from .entries import CatalogueEntry
from .spec import parse, parse_list

if TYPE_CHECKING:
    from . import accumulation
    from .creating import (
        create,
        default_implementation,
        goes_by_names,
        implementations,
        name_of,
        needs_compiler,
        option_defaults,
    )
    from .lamb import LAMB
    from .lamb16 import LAMB16
    from .sgd_sai import SGDBoost, SGDSaI
    from .sm3 import SM3
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
    "needs_compiler",
    "option_defaults",
    "parse",
    "parse_list",
    "require_name",
]

# The modules of the names that need torch.
_MODULES = {
    "LAMB": "lamb",
    "LAMB16": "lamb16",
    "SM3": "sm3",
    "SGDBoost": "sgd_sai",
    "SGDSaI": "sgd_sai",
    "Implementation": "ways",
}


def __getattr__(name: str) -> object:
    if name == "accumulation":
        return import_module(f"{__name__}.accumulation")
    if name in __all__:
        return getattr(import_module(f"{__name__}.{_MODULES.get(name, 'creating')}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return __all__
