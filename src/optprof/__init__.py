"""optprof: the cost of an optimizer on your model.

`profile`, `watch`, `read_run` and `compare` are for programs and notebooks, `optprof.optimizers`
has the optimizers. Importing optprof loads nothing: `python -m optprof` imports it while the
current folder, which may be a stranger's, still comes first in `sys.path`.
"""

TYPE_CHECKING = False
if TYPE_CHECKING:
    from .library import compare, profile, read_run, watch

__all__ = ["compare", "profile", "read_run", "watch"]


def __getattr__(name: str) -> object:
    if name in __all__:
        from . import library

        return getattr(library, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
