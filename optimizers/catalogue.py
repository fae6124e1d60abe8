"""The catalogue's table: our optimizers, torch's, and those of other packages.

Names are looked up without loading torch, so that a wrong one is refused at once.
"""

from . import entries
from .entries import CatalogueEntry
from .spec import parse, unknown
from .zoo import ZOO

_TWO_AVERAGES = (
    "two tensors like the parameter and a float32 step count: 8 bytes a parameter in float32, 12"
    " with amsgrad"
)

CATALOGUE: dict[str, CatalogueEntry] = {
    "adafactor": CatalogueEntry(
        factory="torch.optim:Adafactor",
        package="torch",
        # torch's default saves memory: its foreach needs one more tensor of every parameter's size.
        foreach_by_default=False,
        summary=(
            "the square of the gradient averaged by rows and by columns, steps clipped to their"
            " size"
        ),
        paper="https://arxiv.org/abs/1804.04235",
        state=(
            "one number for each row and each column of the last two axes and a float32 step"
            " count; like the parameter for a vector"
        ),
    ),
    "adagrad": CatalogueEntry(
        factory="torch.optim:Adagrad",
        package="torch",
        summary=(
            "the sum of the gradient's squares, for every element; its state is there before"
            " the first step"
        ),
        paper="https://jmlr.org/papers/v12/duchi11a.html",
        state=(
            "one tensor like the parameter and a float32 step count: 4 bytes a parameter in float32"
        ),
    ),
    "adam": CatalogueEntry(
        factory="torch.optim:Adam",
        package="torch",
        summary="averages of the gradient and of its square, for every element",
        paper="https://arxiv.org/abs/1412.6980",
        state=_TWO_AVERAGES,
        decided_by=("amsgrad",),
    ),
    "adamw": CatalogueEntry(
        factory="torch.optim:AdamW",
        package="torch",
        summary="Adam with weight decay apart from the gradient",
        paper="https://arxiv.org/abs/1711.05101",
        state=_TWO_AVERAGES,
        decided_by=("amsgrad",),
    ),
    "muon": CatalogueEntry(
        factory="optprof.optimizers.muon:Muon",
        package="torch",
        summary=(
            "torch's Muon, momentum made orthogonal, for matrices; torch's AdamW for all else"
        ),
        paper="https://kellerjordan.github.io/posts/muon/",
        state=(
            "a matrix: one tensor like it, 4 bytes a parameter in float32; all else as AdamW, 8"
            " bytes a parameter and a step count"
        ),
    ),
    "rmsprop": CatalogueEntry(
        factory="torch.optim:RMSprop",
        package="torch",
        summary="an average of the gradient's square, for every element",
        paper="https://www.cs.toronto.edu/~tijmen/csc321/slides/lecture_slides_lec6.pdf",
        state=(
            "one tensor like the parameter and a step count: 4 bytes a parameter in float32; 4"
            " more each for momentum and centered"
        ),
        decided_by=("momentum", "centered"),
    ),
    "sgd": CatalogueEntry(
        factory="torch.optim:SGD",
        package="torch",
        options={"momentum": 0.9},
        summary="gradient descent with momentum (0.9 unless said)",
        paper="https://proceedings.mlr.press/v28/sutskever13.html",
        state=(
            "one tensor like the parameter: 4 bytes a parameter in float32; nothing at momentum 0"
        ),
        decided_by=("momentum",),
    ),
    "lamb": CatalogueEntry(
        factory="optprof.optimizers.lamb:LAMB",
        summary="Adam's step, rescaled tensor by tensor to the norm of the weights",
        paper="https://arxiv.org/abs/1904.00962",
        state=(
            "8 bytes a parameter, also in half precision; a float32 step count where the bias"
            " is corrected"
        ),
        decided_by=("preset", "bias_correction"),
    ),
    "lamb16": CatalogueEntry(
        factory="optprof.optimizers.lamb16:LAMB16",
        summary="LAMB with both moments in float8",
        paper="https://github.com/vxst/LAMB16",
        state="2 bytes a parameter and 12 a tensor, 8 with scale=upstream",
        decided_by=("scale",),
    ),
    "sgd-sai": CatalogueEntry(
        factory="optprof.optimizers.sgd_sai:SGDSaI",
        summary="SGD with momentum, scaled once by the first gradient's signal-to-noise ratio",
        paper="https://arxiv.org/abs/2412.11768",
        state=(
            "one tensor like the parameter and a scalar: 4 bytes a parameter in float32; the"
            " scalar alone at momentum 0"
        ),
        decided_by=("momentum",),
    ),
    "sm3": CatalogueEntry(
        factory="optprof.optimizers.sm3:SM3",
        summary="Adagrad with one accumulator an axis",
        paper="https://arxiv.org/abs/1901.11150",
        state=(
            "4 bytes for each row, column and so on of a tensor; with momentum one tensor like"
            " the parameter on top"
        ),
        decided_by=("momentum",),
    ),
    **ZOO,
}


def available(*packages: str) -> tuple[str, ...]:
    """Return the sorted names of all optimizers, or of these packages', such as "torch"."""
    names = {name: entry.package for name, entry in CATALOGUE.items() if entry.is_installed}
    added = entries.added_by_packages()
    names |= {
        name: entries.owner(points[0])
        for name, points in added.items()
        if len(points) == 1 and name not in CATALOGUE
    }
    clashing = CATALOGUE.keys() & added.keys()
    return tuple(
        sorted(
            name
            for name, package in names.items()
            if name not in clashing and package in (packages or {package})
        )
    )


def describe(name: str) -> CatalogueEntry:
    """Return the entry of a name, even if its package is not installed; ValueError for others."""
    entry = find(name)
    if entry is None:
        raise ValueError(f"{unknown('optimizer', name, available())} (module:Class names your own)")
    return entry


def require_name(spec: str) -> None:
    """Raise ValueError for an optimizer's text whose name is in no catalogue; code may be any."""
    name = parse(spec)[0]
    if ":" not in name and name not in entries.added_by_packages():
        describe(name)


def find(name: str) -> CatalogueEntry | None:
    """Return a name's entry, None if it has none.

    ValueError if two packages claim the name, or if its entry point cannot be loaded.
    """
    added = entries.added_by_packages().get(name, ())
    if len(added) + (name in CATALOGUE) > 1:
        ours = [CATALOGUE[name].package] if name in CATALOGUE else []
        others = [f"{entries.owner(point)} ({point.value})" for point in added]
        raise ValueError(
            f"{name} is the name of several optimizers, by {', '.join([*ours, *others])}; write"
            " module:Class for the one that you mean"
        )
    return entries.load_added(added[0]) if added else CATALOGUE.get(name)
